//! Services of registries to nodes: what consul, nacos and eureka are asked, and what of their answers
//! counts. Each is a server of the test's own that speaks its documented HTTP.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use registry::{Consul, Heard, Reply, Server, application, hosts, instance};
use serde_json::json;
use streamgate::config::{Config, Environment};
use streamgate::discovery::{self, Means};
use streamgate::live::registries::Failing;
use streamgate::metrics::Metrics;
use streamgate::resource::Discovery;
use streamgate::store::{Batch, Event};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// No wait of a test is longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Follows services.
struct Following {
    events: mpsc::Receiver<Batch>,
    failing: Arc<Failing>,
    /// Held: without it nothing is wanted any more.
    _wanted: watch::Sender<Arc<[Arc<Discovery>]>>,
    stop: DropGuard,
    task: JoinHandle<()>,
}

/// With the section `discovery` of a config.yaml; the service is `s`.
fn follow(section: &str, kind: &str, more: [Option<&str>; 2]) -> Following {
    follow_with(section, kind, more, "")
}

fn follow_with(section: &str, kind: &str, [namespace, group]: [Option<&str>; 2], apisix: &str) -> Following {
    let service = Discovery {
        kind: kind.into(),
        service_name: "s".into(),
        namespace_id: namespace.map(Into::into),
        group_name: group.map(Into::into),
    };
    follow_all(section, vec![service], apisix)
}

fn follow_all(section: &str, services: Vec<Discovery>, apisix: &str) -> Following {
    let text = format!(
        "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [1]}}{apisix}}}\ndiscovery: {{{section}}}\n"
    );
    let config = Config::from_text(&text, Path::new("/conf/config.yaml"), &Environment::default());
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let failing = Arc::<Failing>::default();
    let means = Means {
        registries: config.registries,
        trusted: config.ssl.trusted,
        failing: failing.clone(),
        metrics: Metrics::new(&[], "1"),
    };
    let (wanted, services) = watch::channel(services.into_iter().map(Arc::new).collect());
    let (out, events) = mpsc::channel(100);
    let stop = CancellationToken::new();
    let task = tokio::spawn(discovery::run(means, services, out, stop.clone()));
    Following { events, failing, _wanted: wanted, stop: stop.drop_guard(), task }
}

impl Following {
    /// The next instances that count.
    async fn told(&mut self) -> Vec<String> {
        let batch = timeout(PATIENCE, self.events.recv()).await.unwrap().unwrap();
        let [Event::Nodes { nodes, .. }] = &*batch.events else { panic!("{batch:?}") };
        nodes.iter().map(|node| format!("{}:{}", node.written, node.port)).collect()
    }

    #[track_caller]
    fn tells(&mut self, addresses: &[SocketAddr]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let mut expected: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            expected.sort();
            assert_eq!(self.told().await, expected, "{caller}");
        }
    }

    /// Tells anything until it is these.
    async fn tells_at_last(&mut self, addresses: &[SocketAddr]) {
        let expected: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        while self.told().await != expected {}
    }

    /// Waits for the reason why the registry fails.
    async fn fails(&mut self, words: &str) {
        let told = || self.failing.list().into_iter().map(|(_, problem)| problem.text).collect::<String>();
        until(words, || told().contains(words), told).await;
    }

    async fn works(&mut self) {
        until("success", || self.failing.list().is_empty(), || format!("{:?}", self.failing.list())).await;
    }
}

/// Looks again until it holds.
async fn until(what: &str, holds: impl Fn() -> bool, shown: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "no {what}: {}", shown());
        sleep(Duration::from_millis(5)).await;
    }
}

async fn until_heard(server: &Server, what: &str, wanted: impl Fn(&Heard) -> bool) {
    until(what, || server.heard().iter().any(&wanted), || format!("{:#?}", server.heard())).await;
}

fn addresses<const COUNT: usize>() -> [SocketAddr; COUNT] {
    std::array::from_fn(|at| SocketAddr::from(([10, 0, 0, 1], 7000 + u16::try_from(at).unwrap())))
}

fn consul(server: &Server, more: &str) -> String {
    format!("consul: {{servers: ['{}']{more}}}", server.url())
}

#[tokio::test]
async fn a_change_in_consul_wakes_a_query_that_waits() {
    let consul = Consul::start();
    let [a, b] = addresses();
    consul.set("s", &[a]);
    // Waiting lasts longer than any test: what comes was not polled for.
    let section = self::consul(&consul.server, ", token: secret, timeout: {wait: 600}");
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[a]).await;
    until_heard(&consul.server, "blocking query", |heard| heard.parameter("index").is_some()).await;
    consul.set("s", &[b, a]);
    following.tells(&[a, b]).await;
    consul.set("s", &[b]);
    following.tells(&[b]).await;
    let heard = consul.server.heard();
    assert_eq!((heard[0].path(), heard[0].parameter("index")), ("/v1/health/service/s", None));
    assert_eq!((heard[1].parameter("index"), heard[1].parameter("wait")), (Some("11"), Some("600000ms")));
    for heard in heard {
        assert_eq!(heard.parameter("passing"), Some("true"));
        assert_eq!(heard.header("x-consul-token"), Some("secret"));
        assert!(!heard.line.contains("secret"), "{heard:?}");
    }
}

#[tokio::test]
async fn an_index_that_goes_backwards_is_forgotten() {
    let consul = Consul::start();
    let [a, b] = addresses();
    consul.set("s", &[a]);
    let section = self::consul(&consul.server, ", timeout: {wait: 600}");
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[a]).await;
    until_heard(&consul.server, "blocking query", |heard| heard.parameter("index") == Some("11")).await;
    consul.restart(3);
    // Asked without an index, and from then on with the new one.
    until_heard(&consul.server, "new index", |heard| heard.parameter("index") == Some("3")).await;
    let heard = consul.server.heard();
    assert_eq!(heard[2].parameter("index"), None, "{heard:#?}");
    consul.set("s", &[b]);
    following.tells(&[b]).await;
}

#[tokio::test]
async fn a_consul_without_indexes_is_polled() {
    let [a, b] = addresses();
    let server = Server::saying(Reply::json(&json!([instance(&a)])).header("X-Consul-Index", 0));
    let section = consul(&server, ", fetch_interval: 1");
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[a]).await;
    server.say(Reply::json(&json!([instance(&b)])));
    following.tells_at_last(&[b]).await;
    assert!(server.heard().iter().all(|heard| heard.parameter("index").is_none()));
}

#[tokio::test]
async fn more_services_than_may_wait_are_followed_all_the_same() {
    const MANY: usize = 200;
    let consul = Consul::start();
    let [a, b] = addresses();
    let name = |at| format!("s{at}");
    let service = |at| Discovery {
        kind: "consul".into(),
        service_name: name(at).into(),
        namespace_id: None,
        group_name: None,
    };
    (0..MANY).for_each(|at| consul.set(&name(at), &[a]));
    let section = self::consul(&consul.server, ", fetch_interval: 1, timeout: {read: 20000, wait: 600}");
    let mut following = follow_all(&section, (0..MANY).map(service).collect(), "");
    for _ in 0..MANY {
        following.tells(&[a]).await;
    }
    until("many that wait", || consul.waiting() >= 128, String::new).await;
    (0..MANY).for_each(|at| consul.set(&name(at), &[b]));
    for _ in 0..MANY {
        following.tells(&[b]).await;
    }
    assert!(consul.waited() <= 128, "{}", consul.waited());
    assert!(following.failing.list().is_empty(), "{:?}", following.failing.list());
}

#[tokio::test]
async fn without_keepalive_consul_is_polled() {
    let consul = Consul::start();
    let [a, b] = addresses();
    consul.set("s", &[a]);
    let section = self::consul(&consul.server, ", keepalive: false, fetch_interval: 1");
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[a]).await;
    consul.set("s", &[b]);
    following.tells_at_last(&[b]).await;
    assert!(consul.server.heard().iter().all(|heard| heard.parameter("index").is_none()));
}

#[tokio::test]
async fn no_answer_that_is_none_takes_instances_away() {
    let consul = Consul::start();
    let [a, b] = addresses();
    consul.set("s", &[a]);
    let section = self::consul(&consul.server, ", timeout: {wait: 600}");
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[a]).await;
    let huge = vec![b' '; (4 << 20) + 1];
    for (reply, words) in [
        (Reply::status(500), "answers with status 500"),
        (Reply::status(403), "check the token"),
        (Reply::status(404), "status 404"),
        (Reply::bytes("<html>"), "no JSON"),
        (Reply::bytes(""), "no JSON"),
        (Reply::bytes("[".repeat(100_000)), "no JSON"),
        (Reply::json(&json!({"a": 1})), "it is no list"),
        (Reply::json(&json!([{"Service": {"Address": "*", "Port": 1}}])), "none of its 1 instances"),
        (Reply::json(&json!([instance(&b)])).cut(), "before its answer was complete"),
        (Reply::bytes(huge), "has more than 4194304 bytes"),
    ] {
        consul.breaks(Some(reply));
        following.fails(words).await;
        assert!(following.events.try_recv().is_err(), "{words}");
        consul.breaks(None);
        following.works().await;
        assert!(following.events.try_recv().is_err(), "{words}");
    }
    // It stops to know any instance: the last ones serve on.
    consul.set("s", &[]);
    until_heard(&consul.server, "a second look", |heard| {
        heard.parameter("index").is_some()
            && heard.parameter("wait").is_some_and(|wait| wait.len() < "600000ms".len())
    })
    .await;
    consul.set("s", &[b]);
    following.tells(&[b]).await;
}

#[tokio::test]
async fn another_consul_stands_in() {
    let (_held, dead) = peers::refused();
    let consul = Consul::start();
    let [a, b] = addresses();
    consul.set("s", &[a]);
    let section =
        format!("consul: {{servers: ['http://{dead}', '{}'], fetch_interval: 1}}", consul.server.url());
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[a]).await;
    assert!(following.failing.list().is_empty());
    // Who is dead may know instances: that the other knows none is not believed.
    consul.set("s", &[]);
    following.fails(&dead.to_string()).await;
    assert!(following.events.try_recv().is_err());
    consul.set("s", &[b]);
    following.tells(&[b]).await;
    following.works().await;
}

#[tokio::test]
async fn servers_of_two_clusters_are_taken_together() {
    let (one, other) = (Consul::start(), Consul::start());
    let [a] = addresses();
    other.set("s", &[a]);
    let section =
        format!("consul: {{servers: ['{}', '{}'], fetch_interval: 1}}", one.server.url(), other.server.url());
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[a]).await;
}

#[tokio::test]
async fn a_service_that_is_skipped_or_unknown_has_the_default_one() {
    let consul = Consul::start();
    let [a, default] = addresses();
    consul.set("s", &[a]);
    let default_service = format!("default_service: {{host: {}, port: {}}}", default.ip(), default.port());
    let section = self::consul(&consul.server, &format!(", skip_services: [s], {default_service}"));
    follow(&section, "consul", [None, None]).tells(&[default]).await;
    assert!(consul.server.heard().is_empty());
    consul.set("s", &[]);
    let section = self::consul(&consul.server, &format!(", {default_service}"));
    let mut following = follow(&section, "consul", [None, None]);
    following.tells(&[default]).await;
    consul.set("s", &[a]);
    following.tells(&[a]).await;
}

#[tokio::test]
async fn a_kind_without_a_registry_has_no_nodes_and_says_so() {
    for (kind, words) in [("nacos", "no section discovery.nacos"), ("kubernetes", "is not built")] {
        let mut following = follow("", kind, [None, None]);
        following.tells(&[]).await;
        following.fails(words).await;
    }
}

#[tokio::test]
async fn a_registry_that_never_answers_is_told_as_nobody() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let section =
        format!("nacos: {{host: ['http://{address}'], timeout: {{connect: 100, send: 50, read: 50}}}}");
    let mut following = follow(&section, "nacos", [None, None]);
    following.tells(&[]).await;
    following.fails("no answer within 100ms").await;
    // Stopped, it ends at once, whatever it waits for.
    drop(following.stop);
    timeout(PATIENCE, following.task).await.unwrap().unwrap();
}

/// A Nacos with a user, whose tokens are counted up with each login.
fn nacos(instances: Vec<SocketAddr>, logins: Arc<AtomicU32>) -> Server {
    Server::start(move |heard| match heard.path() {
        "/nacos/v1/auth/login" if heard.body == "username=gate&password=se%40cret" => {
            let token = format!("t{}", logins.fetch_add(1, Relaxed) + 1);
            Reply::json(&json!({"accessToken": token, "tokenTtl": 18_000, "globalAdmin": true}))
        }
        "/nacos/v1/ns/instance/list" => {
            let good = format!("t{}", logins.load(Relaxed).max(1));
            if heard.parameter("accessToken") == Some(&good) {
                Reply::json(&hosts(&instances))
            } else {
                Reply::status(403)
            }
        }
        _ => Reply::status(403),
    })
}

#[tokio::test]
async fn nacos_is_logged_in_to_and_asked_for_what_the_upstream_says() {
    let logins = Arc::<AtomicU32>::default();
    let [a] = addresses();
    let server = nacos(vec![a], logins.clone());
    let section = format!("nacos: {{host: ['http://gate:se@cret@{}'], fetch_interval: 1}}", server.address);
    let mut following = follow(&section, "nacos", [Some("n s"), Some("g")]);
    following.tells(&[a]).await;
    let with = |token: &'static str| move |heard: &Heard| heard.parameter("accessToken") == Some(token);
    let asked_with = |token| server.heard().iter().filter(|heard| with(token)(heard)).count();
    until("a second question", || asked_with("t1") > 1, String::new).await;
    assert_eq!(logins.load(Relaxed), 1);
    // A token that is not good any more, as after a restart of the server.
    logins.fetch_add(5, Relaxed);
    until_heard(&server, "the token of a new login", with("t7")).await;
    assert!(following.failing.list().is_empty());
    let lists: Vec<_> = server.heard().into_iter().filter(|heard| heard.path().ends_with("list")).collect();
    for heard in &lists {
        assert_eq!(heard.parameter("healthyOnly"), Some("true"));
        assert_eq!(heard.parameter("serviceName"), Some("s"));
        assert_eq!(heard.parameter("namespaceId"), Some("n%20s"));
        assert_eq!(heard.parameter("groupName"), Some("g"));
        assert_eq!(heard.parameter("signature"), None);
    }
    drop(following);
    let section = format!("nacos: {{host: ['http://gate:hidden@{}']}}", server.address);
    let mut following = follow(&section, "nacos", [None, None]);
    following.tells(&[]).await;
    following.fails("check the token or the user and password").await;
    assert!(!format!("{:?}", following.failing).contains("hidden"));
}

#[tokio::test]
async fn nacos_is_signed_for_and_another_stands_in() {
    let (_held, dead) = peers::refused();
    let [a, b] = addresses();
    let broken = Server::saying(Reply::status(500));
    let server = Server::saying(Reply::json(&hosts(&[a])));
    let section = format!(
        "nacos: {{host: ['http://{dead}', '{}', '{}'], fetch_interval: 1, prefix: /v1, access_key: k, secret_key: s}}",
        broken.url(),
        server.url()
    );
    let mut following = follow(&section, "nacos", [None, None]);
    following.tells(&[a]).await;
    let heard = &server.heard()[0];
    assert_eq!(heard.path(), "/v1/ns/instance/list");
    assert_eq!(
        (heard.parameter("namespaceId"), heard.parameter("groupName")),
        (Some("public"), Some("DEFAULT_GROUP"))
    );
    assert_eq!(heard.parameter("ak"), Some("k"));
    assert!(heard.parameter("data").unwrap().ends_with("%40%40DEFAULT_GROUP%40%40s"), "{heard:?}");
    assert!(heard.parameter("signature").is_some());
    // An empty answer is not told at once, nor one that is none.
    server.say(Reply::json(&hosts(&[])));
    let count = server.heard().len();
    until("two more questions", || server.heard().len() > count + 2, String::new).await;
    server.say(Reply::json(&json!({"code": 0})));
    following.fails("no list of hosts").await;
    while let Ok(batch) = following.events.try_recv() {
        assert!(matches!(&*batch.events, [Event::Nodes { nodes, .. }] if nodes.len() == 1), "{batch:?}");
    }
    server.say(Reply::json(&hosts(&[a, b])));
    following.tells(&[a, b]).await;
}

#[tokio::test]
async fn nacos_by_https_is_verified() {
    let authority = tls::Authority::new("ca");
    let [a] = addresses();
    let pair = authority.issue(&["localhost"]);
    let server = Server::start_tls(tls::server_config(&pair, None), move |_| Reply::json(&hosts(&[a])));
    let folder = tempfile::tempdir().unwrap();
    let section = format!("nacos: {{host: ['https://localhost:{}']}}", server.address.port());
    let follow = |pem: &str, name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, pem).unwrap();
        let trusted = format!(", ssl: {{ssl_trusted_certificate: {}}}", path.display());
        follow_with(&section, "nacos", [None, None], &trusted)
    };
    follow(&authority.pem, "right.pem").tells(&[a]).await;
    let mut following = follow(&tls::Authority::new("other").pem, "wrong.pem");
    following.tells(&[]).await;
    following.fails("TLS failed").await;
    let mut following = follow("nothing", "none.pem");
    following.tells(&[]).await;
    following.fails("none.pem").await;
}

#[tokio::test]
async fn eureka_is_asked_for_one_application() {
    let (_held, dead) = peers::refused();
    let [a, b] = addresses();
    let server = Server::saying(Reply::json(&application(&[a])));
    let section = format!(
        "eureka: {{host: ['http://{dead}', 'http://gate:secret@{}'], prefix: /eureka/, fetch_interval: 1}}",
        server.address
    );
    let mut following = follow(&section, "eureka", [None, None]);
    following.tells(&[a]).await;
    let heard = &server.heard()[0];
    assert_eq!(heard.line, "GET /eureka/apps/s");
    assert_eq!(heard.header("accept"), Some("application/json"));
    assert_eq!(heard.header("authorization"), Some("Basic Z2F0ZTpzZWNyZXQ="));
    // It forgets the application, as after a restart, and fails: neither takes the instance away.
    server.say(Reply::status(404));
    let count = server.heard().len();
    until("two more questions", || server.heard().len() > count + 2, String::new).await;
    server.say(Reply::bytes("<applications/>"));
    following.fails("no JSON").await;
    server.say(Reply::json(&application(&[a, b])));
    while following.told().await.len() < 2 {}
}

#[tokio::test]
async fn an_application_that_eureka_does_not_know_has_no_nodes() {
    let server = Server::saying(Reply::status(404));
    let section = format!("eureka: {{host: ['{}']}}", server.url());
    let mut following = follow(&section, "eureka", [None, None]);
    following.tells(&[]).await;
    assert!(following.failing.list().is_empty());
    assert_eq!(server.heard()[0].line, "GET /apps/s");
}
