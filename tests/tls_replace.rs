//! Certificates that are replaced while clients shake hands: none fails, those that come later see the new
//! one, and sessions that live go on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use binary::{Gateway, Setup};
use etcd::Etcd;
use peers::{echo, talk};
use rustls::HandshakeKind;
use serde_json::{Value, json};
use tls::{Algorithm, Authority, Client, Pair, Session, handshakes, refusal, shake_hands, ssl, terminating};

const NAME: Option<&str> = Some("a.test");
/// Threads of clients; each second one goes on with its sessions.
const CLIENTS: usize = 4;
/// Handshakes between two replacements, at least.
const BETWEEN: usize = 25;

/// Clients that shake hands as fast as they can.
struct Load<'a> {
    at: SocketAddr,
    authority: &'a Authority,
    pairs: &'a [Pair],
    /// The number of the certificate that has been seen.
    confirmed: AtomicUsize,
    done: AtomicUsize,
    stop: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

impl Load<'_> {
    fn client(&self) -> Client<'_> {
        Client { believes: Some(self.authority), ..Client::default() }
    }

    /// Which certificate a session was begun with; `None` where it goes on with an earlier one.
    fn shown(&self, session: &Session) -> Option<usize> {
        let full = session.conn.handshake_kind() != Some(HandshakeKind::Resumed);
        full.then(|| self.pairs.iter().position(|pair| pair.is_shown_by(session)).unwrap())
    }

    fn run(&self, resumes: bool) {
        let mut config = self.client().config();
        while !self.stop.load(SeqCst) {
            let least = self.confirmed.load(SeqCst);
            if !resumes {
                config = self.client().config();
            }
            let heard: io::Result<Session> = shake_hands(self.at, NAME, &config).and_then(|mut session| {
                talk(&mut session)?;
                Ok(session)
            });
            let wrong = match heard {
                Err(error) => Some(error.to_string()),
                Ok(session) => self
                    .shown(&session)
                    .filter(|shown| *shown < least)
                    .map(|shown| format!("certificate {shown} after {least}")),
            };
            self.wrong.lock().unwrap().extend(wrong);
            self.done.fetch_add(1, SeqCst);
        }
    }

    /// Waits for more handshakes.
    fn goes_on(&self, gateway: &mut Gateway) {
        let until = self.done.load(SeqCst) + BETWEEN;
        gateway.eventually("handshakes", |_| self.done.load(SeqCst) >= until);
    }
}

/// Replaces the certificate of `1` by all others of the list, one after the other, by `put`.
fn replace(
    gateway: &mut Gateway,
    authority: &Authority,
    pairs: &[Pair],
    mut put: impl FnMut(&Gateway, &Value),
) {
    let (at, confirmed) = (gateway.tcp(0), AtomicUsize::new(0));
    let load = Load {
        at,
        authority,
        pairs,
        confirmed,
        done: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        wrong: Mutex::default(),
    };
    let open = || shake_hands(at, NAME, &load.client().config()).unwrap();
    let mut living = Vec::new();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let load = &load;
            scope.spawn(move || load.run(number % 2 == 0));
        }
        for (number, pair) in pairs.iter().enumerate().skip(1) {
            living.push(open());
            load.goes_on(gateway);
            put(gateway, &ssl("1", &["a.test"], pair));
            gateway.eventually("the new certificate", |_| load.shown(&open()) == Some(number));
            load.confirmed.store(number, SeqCst);
            load.goes_on(gateway);
        }
        // One that cannot be served changes nothing.
        let strange = Pair { key: pairs[0].key.clone(), ..pairs[1].clone() };
        put(gateway, &ssl("1", &["a.test"], &strange));
        gateway.says("the previous version keeps serving");
        load.goes_on(gateway);
        load.stop.store(true, SeqCst);
    });
    let wrong = load.wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} handshakes: {wrong:?}", wrong.len(), load.done.into_inner());
    assert!(living.len() + 1 == pairs.len());
    for session in &mut living {
        assert_eq!(talk(session).unwrap(), "A", "a session that lives goes on");
    }
    let page = gateway.metrics();
    let failed = page.lines().filter(|line| line.starts_with("streamgate_tls_handshake_failures_total{"));
    assert!(failed.clone().count() > 10 && failed.clone().all(|line| line.ends_with(" 0")), "{page}");
    assert!(handshakes(gateway, "resumed") > Some(10.0), "{page}");
}

/// So many certificates for the same name, with keys of different kinds.
fn pairs(authority: &Authority) -> Vec<Pair> {
    let kinds = [Algorithm::Ecdsa, Algorithm::Rsa, Algorithm::Ed25519, Algorithm::Ecdsa, Algorithm::Ecdsa];
    kinds.map(|kind| authority.issue_with(&["a.test"], kind, |_| ())).into()
}

#[test]
fn in_the_file_under_load() {
    let authority = Authority::new("root");
    let pairs = pairs(&authority);
    let mut gateway = terminating(&[ssl("1", &["a.test"], &pairs[0])]).start();
    let mut objects: Value = serde_json::from_str(gateway.setup.objects.as_ref().unwrap()).unwrap();
    replace(&mut gateway, &authority, &pairs, |gateway, object| {
        objects["ssls"] = json!([object]);
        gateway.write_objects(&objects);
    });
    let mut living = shake_hands(gateway.tcp(0), NAME, &Client::default().config()).unwrap();
    objects["ssls"] = json!([]);
    gateway.write_objects(&objects);
    let config = Client::default().config();
    gateway.eventually("its end", |gateway| shake_hands(gateway.tcp(0), NAME, &config).is_err());
    let why = refusal(gateway.tcp(0), NAME, &config);
    assert!(why.contains("UnrecognisedName"), "{why}");
    assert_eq!(talk(&mut living).unwrap(), "A");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_etcd_under_load() {
    let etcd = Etcd::start().await;
    let authority = Authority::new("root");
    let pairs = pairs(&authority);
    let upstream = json!({"upstream": {"nodes": {echo("A").to_string(): 1}}});
    etcd.put("/apisix/stream_routes/r1", upstream.to_string()).await;
    etcd.put("/apisix/ssls/1", ssl("1", &["a.test"], &pairs[0]).to_string()).await;
    let setup = Setup { listens: vec!["tls: true"], ..Setup::etcd(&etcd.endpoint()) };
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut gateway = setup.start();
        replace(&mut gateway, &authority, &pairs, |_, object| {
            runtime.block_on(etcd.put("/apisix/ssls/1", object.to_string()));
        });
    });
}
