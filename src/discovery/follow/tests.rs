//! Scripted registries, on a clock that stands still while nothing waits.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Mutex;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::{Found, RegistryError};
use super::*;
use crate::config::Registries;
use crate::metrics::Metrics;

/// What a registry says next.
enum Say {
    Hosts(&'static [&'static str]),
    Fails,
    /// With another reason.
    Hangs,
}
use Say::{Fails, Hangs, Hosts};

/// Says one after the other, then nothing any more.
struct Script {
    says: VecDeque<Say>,
    again: Duration,
    fallback: Option<Node>,
    /// When it was asked, and with how much patience.
    asked: Arc<Mutex<Vec<(Instant, Duration)>>>,
}

impl Registry for Script {
    async fn instances(&mut self, patience: Duration) -> Result<Found, RegistryError> {
        self.asked.lock().unwrap().push((Instant::now(), patience));
        match self.says.pop_front() {
            Some(Hosts(hosts)) => {
                let node = |host: &&str| Node::discovered(host, 1, 1).unwrap();
                Ok(Found { nodes: hosts.iter().map(node).collect(), again: self.again })
            }
            Some(Hangs) => Err(RegistryError("no answer within 2s".into())),
            Some(Fails) => Err(RegistryError("10.0.0.9:8500: refused".into())),
            None => pending().await,
        }
    }

    fn fallback(&self) -> Option<Node> {
        self.fallback.clone()
    }
}

struct Running {
    events: mpsc::Receiver<Batch>,
    asked: Arc<Mutex<Vec<(Instant, Duration)>>>,
    failing: Arc<Failing>,
    metrics: Metrics,
    began: Instant,
    task: JoinHandle<()>,
}

fn run(says: Vec<Say>, again: u64, fallback: Option<Node>) -> Running {
    let (failing, metrics) = (Arc::<Failing>::default(), Metrics::new(&[], "1"));
    let means = Means {
        registries: Registries::default(),
        trusted: None,
        failing: failing.clone(),
        metrics: metrics.clone(),
    };
    let (kind, service_name) = ("consul".into(), "x".into());
    let service = Discovery { kind, service_name, namespace_id: None, group_name: None };
    let asked = Arc::<Mutex<Vec<_>>>::default();
    let script =
        Script { says: says.into(), again: Duration::from_secs(again), fallback, asked: asked.clone() };
    let (out, events) = mpsc::channel(100);
    let task = tokio::spawn(follow(script, Standing::new(service.into(), &means), out));
    Running { events, asked, failing, metrics, began: Instant::now(), task }
}

impl Running {
    /// The next hosts told, and after how many seconds.
    async fn told(&mut self) -> Option<(u64, String)> {
        let batch = timeout(Duration::from_hours(1), self.events.recv()).await.ok()??;
        let [Event::Nodes { nodes, .. }] = &*batch.events else { panic!("{batch:?}") };
        let hosts: Vec<&str> = nodes.iter().map(|node| &*node.written).collect();
        Some((self.began.elapsed().as_secs(), hosts.join(" ")))
    }

    fn gauge(&self) -> String {
        let mut page = String::new();
        self.metrics.render(&mut page);
        let line = page.lines().find(|line| line.starts_with("streamgate_discovery_failing ")).unwrap();
        line.to_owned()
    }
}

/// A registry that says so every ten seconds: what is told, and when.
#[track_caller]
fn check(says: Vec<Say>, expected: &[(u64, &str)]) -> impl Future {
    let caller = std::panic::Location::caller();
    let mut running = run(says, 10, None);
    async move {
        let mut told = Vec::new();
        while let Some(next) = running.told().await {
            told.push(next);
        }
        let expected: Vec<_> = expected.iter().map(|(at, hosts)| (*at, (*hosts).to_owned())).collect();
        assert_eq!(told, expected, "{caller}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_counts_when_it_has_been_given_for_a_while() {
    let none = || Hosts(&[]);
    check(vec![Hosts(&["a"]), none(), none(), none(), none()], &[(0, "a"), (40, "")]).await;
    check(vec![Hosts(&["a"]), none(), none(), none()], &[(0, "a")]).await;
    check(
        vec![Hosts(&["a"]), none(), none(), Hosts(&["b"]), none(), none(), none(), none()],
        &[(0, "a"), (30, "b"), (70, "")],
    )
    .await;
    check(vec![none(), none(), Hosts(&["a"])], &[(0, ""), (20, "a")]).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_again_is_not_told() {
    let same = || Hosts(&["a", "b"]);
    check(vec![same(), same(), Fails, same(), Hosts(&["a"])], &[(0, "a b"), (30, "a")]).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_no_empty_answer() {
    let none = || Hosts(&[]);
    let mut running =
        run(vec![Hosts(&["a"]), none(), none(), none(), Fails, none(), none(), none(), none()], 10, None);
    assert_eq!(running.told().await, Some((0, "a".into())));
    // The time begins anew after the failure: within a second of 40.
    let (at, hosts) = running.told().await.unwrap();
    assert!((70..=71).contains(&at) && hosts.is_empty(), "{at}");
}

#[tokio::test(start_paused = true)]
async fn who_was_never_known_is_told_as_nobody() {
    let mut running = run(vec![Fails, Fails, Hosts(&["a"])], 10, None);
    assert_eq!(running.told().await, Some((0, String::new())));
    assert_eq!(running.told().await.unwrap().1, "a");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_waits_is_asked_again_in_time() {
    let mut running = run(vec![Hosts(&["a"]), Hosts(&[]), Hosts(&[])], 1800, None);
    assert_eq!(running.told().await, Some((0, "a".into())));
    assert_eq!(running.told().await, Some((1830, String::new())));
    let patience: Vec<_> = running.asked.lock().unwrap().iter().map(|(_, patience)| *patience).collect();
    assert_eq!(patience, [Duration::MAX, Duration::MAX, Duration::ZERO]);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_stands_for_nobody() {
    let fallback = || Some(Node::discovered("f", 1, 1).unwrap());
    let mut running = run(vec![Fails, Hosts(&["a"]), Hosts(&[]), Hosts(&[])], 30, fallback());
    assert_eq!(running.told().await, Some((0, "f".into())));
    assert_eq!(running.told().await.unwrap().1, "a");
    assert_eq!(running.told().await.unwrap().1, "f");
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_ever_less_often() {
    let mut running = run((0..10).map(|_| Fails).collect(), 10, None);
    while running.told().await.is_some() {}
    let asked: Vec<Instant> = running.asked.lock().unwrap().iter().map(|(at, _)| *at).collect();
    let gaps: Vec<_> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    let most = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 30.0];
    assert_eq!(gaps.len(), most.len());
    for (gap, most) in gaps.iter().zip(most) {
        assert!((most / 2.0 - 0.01..=most + 0.01).contains(gap), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn operators_see_what_fails_as_long_as_it_does() {
    let mut running = run(vec![Hosts(&["a"]), Fails, Hangs, Hosts(&["b"]), Fails], 10, None);
    assert_eq!((running.failing.list().len(), &*running.gauge()), (0, "streamgate_discovery_failing 0"));
    running.told().await;
    for (seconds, text) in [(10, "10.0.0.9:8500: refused"), (1, "no answer within 2s")] {
        sleep(Duration::from_millis(seconds * 1000 + 10)).await;
        let [(service, problem)] = &*running.failing.list() else { panic!("{:?}", running.failing) };
        assert_eq!((&**service, &*problem.text), ("x by consul", text));
    }
    assert_eq!(running.gauge(), "streamgate_discovery_failing 1");
    assert_eq!(running.told().await.unwrap().1, "b");
    assert_eq!((running.failing.list().len(), &*running.gauge()), (0, "streamgate_discovery_failing 0"));
    sleep(Duration::from_secs(11)).await;
    assert_eq!(running.gauge(), "streamgate_discovery_failing 1");
    // A service that nobody wants any more fails no more.
    running.task.abort();
    let _ = (&mut running.task).await;
    assert_eq!((running.failing.list().len(), &*running.gauge()), (0, "streamgate_discovery_failing 0"));
}
