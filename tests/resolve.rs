//! Names to addresses, in the background: what servers say, and what becomes of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/dnsmasq.rs"]
mod dnsmasq;
#[path = "support/names.rs"]
mod names;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dnsmasq::Dnsmasq;
use names::{Names, Reply};
use streamgate::config::Dns;
use streamgate::resolve;
use streamgate::store::{Batch, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

fn list(of: &[&str]) -> Arc<[Arc<str>]> {
    of.iter().map(|name| Arc::from(*name)).collect()
}

fn dns(servers: &[SocketAddr]) -> Dns {
    Dns { servers: servers.to_vec(), valid: None, timeout: PATIENCE, search: false, ipv6: true }
}

/// Answers to names that are followed until this is dropped.
struct Following {
    wanted: watch::Sender<Arc<[Arc<str>]>>,
    answers: mpsc::Receiver<Batch>,
    _stop: tokio_util::sync::DropGuard,
}

impl Following {
    fn start(dns: Dns, names: &[&str]) -> Self {
        let (wanted, receiver) = watch::channel(list(names));
        let (out, answers) = mpsc::channel(4096);
        let stop = CancellationToken::new();
        tokio::spawn(resolve::run(dns, receiver, out, stop.clone()));
        Self { wanted, answers, _stop: stop.drop_guard() }
    }

    /// The next answer, whatever name it is for.
    async fn next(&mut self) -> Vec<IpAddr> {
        let batch = timeout(PATIENCE, self.answers.recv()).await.unwrap().unwrap();
        let [Event::Addresses { addresses, .. }] = &*batch.events else { panic!("{batch:?}") };
        addresses.to_vec()
    }
}

/// The first answer for a name.
async fn first(dns: Dns, name: &str) -> Vec<IpAddr> {
    Following::start(dns, &[name]).next().await
}

async fn check(dns: &Dns, name: &str, expected: &[&str]) {
    let found: Vec<String> = first(dns.clone(), name).await.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{name}");
}

#[tokio::test]
async fn a_name_that_went_and_came_back_unseen_is_answered_again() {
    let mut following = Following::start(Dns { search: false, ..dns(&[]) }, &["localhost"]);
    assert!(following.next().await[0].is_loopback());
    // No await in between: the resolver sees the second list alone.
    following.wanted.send_replace(list(&[]));
    following.wanted.send_replace(list(&["localhost"]));
    assert!(following.next().await[0].is_loopback());
}

#[tokio::test]
async fn what_a_real_server_says() {
    let mut hosts =
        "127.0.0.3 both.test\n127.0.0.2 both.test\n::1 both.test\n::1 six.test\n127.0.0.9 my_db.test\n"
            .to_owned();
    for last in 1..=100 {
        writeln!(hosts, "127.0.1.{last} many.test").unwrap();
    }
    let aliases = ["--cname=one.test,two.test", "--cname=two.test,both.test", "--cname=lost.test,no.test"];
    let server = Dnsmasq::start(&hosts, &aliases);
    let dns = dns(&[server.addr()]);
    check(&dns, "both.test", &["127.0.0.2", "127.0.0.3"]).await;
    check(&dns, "BOTH.test.", &["127.0.0.2", "127.0.0.3"]).await;
    check(&dns, "one.test", &["127.0.0.2", "127.0.0.3"]).await;
    check(&dns, "six.test", &["::1"]).await;
    check(&dns, "my_db.test", &["127.0.0.9"]).await;
    check(&dns, "no.test", &[]).await;
    check(&dns, "lost.test", &[]).await;
    check(&dns, "a..b", &[]).await;
    let without_ipv6 = Dns { ipv6: false, ..dns.clone() };
    check(&without_ipv6, "both.test", &["127.0.0.2", "127.0.0.3"]).await;
    check(&without_ipv6, "six.test", &[]).await;
    // More than fits into a datagram, so it comes over TCP; the first ones in their order count.
    let many = first(dns, "many.test").await;
    assert_eq!((many.len(), many[0]), (64, IpAddr::from([127, 0, 1, 1])));
}

#[tokio::test]
async fn a_server_that_is_no_use_does_not_cost_the_time_limit() {
    let good = Names::start(&[("a.test", &["127.0.0.2"])]);
    for useless in [Reply::Silence, Reply::Fails, Reply::Refuses] {
        let bad = Names::start(&[]);
        bad.set("a.test", useless.clone());
        for servers in [[bad.addr(), good.addr()], [good.addr(), bad.addr()]] {
            let began = Instant::now();
            check(&dns(&servers), "a.test", &["127.0.0.2"]).await;
            assert!(began.elapsed() < PATIENCE / 4, "{useless:?}: {:?}", began.elapsed());
        }
    }
    // Two of them dead: the third gets its turn within one look-up.
    let dead = Names::start(&[]);
    dead.set("a.test", Reply::Silence);
    let other = Names::start(&[]);
    other.set("a.test", Reply::Silence);
    let three = Dns { timeout: Duration::from_secs(2), ..dns(&[dead.addr(), other.addr(), good.addr()]) };
    check(&three, "a.test", &["127.0.0.2"]).await;
}

#[tokio::test]
async fn no_ipv6_address_is_taken_for_an_ipv4_one_that_cannot_be_had_now() {
    let server = Names::start(&[]);
    server.set("a.test", Reply::addresses(&["::1"], 60));
    check(&dns(&[server.addr()]), "a.test", &["::1"]).await;
    server.set("a.test", Reply::HalfFails(vec!["::1".parse().unwrap()]));
    let mut following = Following::start(dns(&[server.addr()]), &["a.test"]);
    assert_eq!(following.next().await, [] as [IpAddr; 0]);
    server.set("a.test", Reply::addresses(&["127.0.0.2", "::1"], 60));
    assert_eq!(following.next().await, [IpAddr::from([127, 0, 0, 2])]);
}

#[tokio::test]
async fn thousands_of_names_are_asked_for_at_once() {
    let server = Dnsmasq::start("127.0.0.2 w.test\n", &["--address=/many.test/127.0.0.7"]);
    let names: Vec<String> = (0..2000).map(|number| format!("n{number}.many.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut following = Following::start(dns(&[server.addr()]), &names);
    for _ in &names {
        assert_eq!(following.next().await, [IpAddr::from([127, 0, 0, 7])]);
    }
}
