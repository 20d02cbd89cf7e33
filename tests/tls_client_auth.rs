//! Clients that have to show a certificate: verified in the handshake, with the authority and the depth of
//! the certificate object, and never by way of another session.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/openssl.rs"]
mod openssl;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::sync::{Arc, Mutex};

use binary::Gateway;
use openssl::s_client;
use peers::talk;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use serde_json::{Value, json};
use tls::{
    Algorithm, Authority, Client, ONLY_TLS12, ONLY_TLS13, Pair, failures, refusal, shake_hands, ssl,
    terminating, unrouted,
};

/// A certificate object that asks clients for certificates of `clients`.
fn verifying(id: &str, names: &[&str], pair: &Pair, clients: &str) -> Value {
    let mut object = ssl(id, names, pair);
    object["client"] = json!({"ca": clients});
    object
}

#[track_caller]
fn answered(gateway: &Gateway, name: &str, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut session = shake_hands(gateway.tcp(0), Some(name), config).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    session.conn.handshake_kind().unwrap()
}

#[test]
fn a_client_is_verified_in_the_handshake() {
    let (servers, clients, strangers) =
        (Authority::new("servers"), Authority::new("clients"), Authority::new("strangers"));
    let pair = servers.issue(&["a.test"]);
    let mut gateway = terminating(&[verifying("1", &["a.test"], &pair, &clients.pem)]).start();
    let good = clients.issue(&["device 7"]);
    let over = clients.issue_expired(&["device 8"]);
    let early = clients.issue_with(&["device 9"], Algorithm::Ecdsa, |params| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
    });
    let other = strangers.issue(&["device 7"]);
    for versions in [ONLY_TLS13, ONLY_TLS12] {
        let client = Client { versions, believes: Some(&servers), ..Client::default() };
        answered(&gateway, "a.test", &Client { shows: Some(&good), ..client }.config());
        let refused = |shows| refusal(gateway.tcp(0), Some("a.test"), &Client { shows, ..client }.config());
        for (shows, alert) in [
            (None, "CertificateRequired"),
            (Some(&over), "CertificateExpired"),
            (Some(&early), "CertificateExpired"),
            (Some(&other), "UnknownCA"),
        ] {
            let why = refused(shows);
            assert!(why.contains(alert), "no {alert}: {why}");
        }
    }
    for (reason, count) in [
        ("client_certificate_missing", 2.0),
        ("client_certificate_expired", 4.0),
        ("client_certificate_untrusted", 2.0),
    ] {
        gateway.eventually(reason, |gateway| failures(gateway, reason) == Some(count));
    }
    gateway.eventually("ends", |gateway| gateway.ended_so("r1", "client_closed") >= 2.0);
    gateway.eventually("ends", |gateway| unrouted(gateway, "tls_failed") == Some(8.0));
    assert!(gateway.ended_so("r1", "tls_failed") < 1.0, "they had no route yet");
    let details = |gateway: &Gateway| -> Vec<String> {
        let lines = gateway.log().into_iter();
        let failed = lines.filter(|line| line["end"] == "tls_failed" && line["sni"] == "a.test");
        failed.map(|line| line["detail"].as_str().unwrap().to_owned()).collect()
    };
    gateway.eventually("lines", |gateway| details(gateway).len() == 8);
    let logged = details(&gateway);
    for words in
        ["shows no certificate", "not valid today", "client.ca", "versions TLSv1.2;", "groups X25519"]
    {
        let folded = words.to_lowercase();
        assert!(logged.iter().any(|line| line.to_lowercase().contains(&folded)), "no {words} in {logged:#?}");
    }
}

#[test]
fn openssl_shows_its_certificate_and_learns_whose_is_wanted() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("the clients of this test"));
    let pair = servers.issue(&["a.test"]);
    let mut setup = terminating(&[verifying("1", &["a.test"], &pair, &clients.pem)]);
    setup.more =
        "nginx_config: {worker_processes: 2, stream: {enable_access_log: true, access_log: lines,\n  \
                  access_log_format: '$ssl_protocol $ssl_client_verify $ssl_client_s_dn/$ssl_client_i_dn'}}\n"
            .into();
    let mut gateway = setup.start();
    let folder = tempfile::tempdir().unwrap();
    let [cert, key] = clients.issue(&["device"]).files(folder.path(), "device");
    for version in ["-tls1_2", "-tls1_3"] {
        let bare = ["-servername", "a.test", version];
        let said = s_client(gateway.tcp(0), &[&bare[..], &["-cert", &cert, "-key", &key]].concat(), "A?");
        assert!(said.contains("A?"), "{said}");
        let wanted = "Acceptable client certificate CA names\nCN = the clients of this test";
        assert!(said.contains(wanted), "{said}");
        let said = s_client(gateway.tcp(0), &bare, "alert");
        assert!(said.contains("alert") && !said.contains("A?"), "{said}");
    }
    let lines = gateway.folder().join("lines");
    for version in ["TLSv1.2", "TLSv1.3"] {
        let line = format!("{version} SUCCESS CN=device/CN=the clients of this test\n");
        gateway
            .eventually("the line", |_| std::fs::read_to_string(&lines).unwrap_or_default().contains(&line));
    }
}

#[test]
fn the_depth_counts_authorities_between() {
    let servers = Authority::new("servers");
    let root = Authority::new("root");
    let one = root.below("one");
    let (near, middle, far) =
        (root.issue(&["near"]), one.issue(&["middle"]), one.below("two").issue(&["far"]));
    let with_depth = |id: &str, depth: Option<u32>| {
        let name = format!("{id}.test");
        let mut object = verifying(id, &[&name], &servers.issue(&[&name]), &root.pem);
        if let Some(depth) = depth {
            object["client"]["depth"] = depth.into();
        }
        object
    };
    let objects = [with_depth("usual", None), with_depth("zero", Some(0)), with_depth("two", Some(2))];
    let gateway = terminating(&objects).start();
    for (name, good) in [
        ("usual.test", [true, true, false]),
        ("zero.test", [true, false, false]),
        ("two.test", [true, true, true]),
    ] {
        for (shows, good) in [&near, &middle, &far].into_iter().zip(good) {
            let config = Client { shows: Some(shows), ..Client::default() }.config();
            if good {
                answered(&gateway, name, &config);
            } else {
                let why = refusal(gateway.tcp(0), Some(name), &config);
                assert!(why.contains("UnknownCA"), "{name}: {why}");
            }
        }
    }
}

#[test]
fn a_client_may_show_more_than_is_needed() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let pair = servers.issue(&["a.test"]);
    let gateway = terminating(&[verifying("1", &["a.test"], &pair, &clients.pem)]).start();
    let mut device = clients.below("between").issue(&["device"]);
    // More than a record holds.
    for number in 0..60 {
        device.cert += &Authority::new(&format!("authority number {number} of a long chain")).pem;
    }
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        answered(
            &gateway,
            "a.test",
            &Client { versions, shows: Some(&device), ..Client::default() }.config(),
        );
    }
}

/// Gives the newest session to whatever server comes next.
#[derive(Debug, Default)]
struct Careless {
    tls12: Mutex<Option<Tls12ClientSessionValue>>,
    tls13: Mutex<Vec<Tls13ClientSessionValue>>,
}

impl ClientSessionStore for Careless {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        *self.tls12.lock().unwrap() = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.tls12.lock().unwrap().clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.tls13.lock().unwrap().push(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tls13.lock().unwrap().pop()
    }
}

/// Three names: one whose clients are not verified, and two of one object whose are.
fn names(servers: &Authority, clients: &str) -> [Value; 2] {
    let closed = servers.issue(&["one.test", "two.test"]);
    [
        ssl("1", &["open.test"], &servers.issue(&["open.test"])),
        verifying("2", &["one.test", "two.test"], &closed, clients),
    ]
}

#[test]
fn a_session_is_resumed_under_its_name_alone() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let gateway = terminating(&names(&servers, &clients.pem)).start();
    let device = clients.issue(&["device"]);
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let shows = Client { versions, shows: Some(&device), ..Client::default() }
            .keeping_in(Arc::<Careless>::default());
        assert_eq!(answered(&gateway, "one.test", &shows), HandshakeKind::Full);
        assert_eq!(answered(&gateway, "one.test", &shows), HandshakeKind::Resumed);
        // The session is offered, and not taken: who shows a certificate is verified anew.
        assert_eq!(answered(&gateway, "two.test", &shows), HandshakeKind::Full);
        assert_eq!(answered(&gateway, "open.test", &shows), HandshakeKind::Full);

        // One without a certificate has a session all the same, of the open name.
        let bare = Client { versions, ..Client::default() }.keeping_in(Arc::<Careless>::default());
        assert_eq!(answered(&gateway, "open.test", &bare), HandshakeKind::Full);
        assert_eq!(answered(&gateway, "open.test", &bare), HandshakeKind::Resumed);
        let why = refusal(gateway.tcp(0), Some("one.test"), &bare);
        assert!(why.contains("CertificateRequired"), "{why}");
    }
}

#[test]
fn openssl_cannot_carry_a_session_to_another_name() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let gateway = terminating(&names(&servers, &clients.pem)).start();
    let folder = tempfile::tempdir().unwrap();
    let [cert, key] = clients.issue(&["device"]).files(folder.path(), "device");
    let file = folder.path().join("session");
    let file = file.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let ask = |name, more: &[&str], until| {
            s_client(gateway.tcp(0), &[&["-servername", name, version], more].concat(), until)
        };
        let said = ask("one.test", &["-cert", &cert, "-key", &key, "-sess_out", file], "A?");
        assert!(said.contains("A?"), "{said}");
        // By the session alone its client is known.
        let said = ask("one.test", &["-sess_in", file], "A?");
        assert!(said.contains("\nReused, ") && said.contains("A?"), "{said}");
        let said = ask("two.test", &["-sess_in", file], "alert");
        assert!(!said.contains("\nReused, ") && !said.contains("A?"), "{said}");
        let said = ask("open.test", &["-sess_out", file], "A?");
        assert!(said.contains("A?"), "{said}");
        let said = ask("one.test", &["-sess_in", file], "alert");
        assert!(!said.contains("\nReused, ") && !said.contains("A?"), "{said}");
    }
}

#[test]
fn sessions_end_with_the_authority_they_were_verified_by() {
    let (servers, clients, successors) =
        (Authority::new("servers"), Authority::new("clients"), Authority::new("successors"));
    let objects = |clients: &Authority| {
        json!({
            "stream_routes": [{"id": "r1", "upstream": {"nodes": {peers::echo("A").to_string(): 1}}}],
            "ssls": names(&servers, &clients.pem),
        })
    };
    let mut gateway = terminating(&names(&servers, &clients.pem)).start();
    let configs = [ONLY_TLS12, ONLY_TLS13].map(|versions| {
        let device = clients.issue(&["device"]);
        let client = Client { versions, shows: Some(&device), ..Client::default() };
        client.keeping_in(Arc::<Careless>::default())
    });
    for config in &configs {
        answered(&gateway, "one.test", config);
        assert_eq!(answered(&gateway, "one.test", config), HandshakeKind::Resumed);
    }
    gateway.write_objects(&objects(&successors));
    let successor = successors.issue(&["device"]);
    let new = Client { shows: Some(&successor), ..Client::default() }.config();
    gateway.eventually("the new authority", |gateway| {
        shake_hands(gateway.tcp(0), Some("one.test"), &new)
            .and_then(|mut session| talk(&mut session))
            .is_ok_and(|answer| answer == "A")
    });
    for config in &configs {
        let why = refusal(gateway.tcp(0), Some("one.test"), config);
        assert!(why.contains("UnknownCA"), "{why}");
    }
}
