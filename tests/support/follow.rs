//! Runs the etcd source and keeps the state its batches add up to.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use streamgate::config::EtcdConfig;
use streamgate::live::source_status::SourceStatus;
use streamgate::source::etcd::{Timing, run};
use streamgate::store::{Batch, Event};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Less patience than in production, so that tests end.
pub const TIMING: Timing = Timing {
    connect: Duration::from_secs(5),
    progress: Duration::from_millis(500),
    silence: Duration::from_secs(4),
    retry: (Duration::from_millis(10), Duration::from_millis(500)),
};
/// Every wait ends here.
const DEADLINE: Duration = Duration::from_secs(30);

/// The configuration of a plain etcd with the usual prefix.
pub fn config(hosts: impl IntoIterator<Item = String>) -> EtcdConfig {
    EtcdConfig {
        hosts: hosts.into_iter().map(Into::into).collect(),
        prefix: "/apisix".into(),
        auth: None,
        timeout: Duration::from_secs(5),
        tls_verify: true,
        tls_sni: None,
        tls_cert: None,
        trusted: None,
    }
}

/// A running source.
#[derive(Debug)]
pub struct Follow {
    batches: mpsc::Receiver<Batch>,
    /// What the source says of itself.
    pub status: Arc<SourceStatus>,
    /// Values by name, such as `upstreams/1`.
    pub state: BTreeMap<String, String>,
    /// Full reads so far.
    pub resyncs: usize,
    /// The revision of the last batch.
    pub revision: i64,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Follow {
    /// Starts the source.
    pub fn start(config: EtcdConfig) -> Self {
        let (out, batches) = mpsc::channel(64);
        let status = Arc::new(SourceStatus::new(Instant::now().into_std()));
        let stop = CancellationToken::new();
        let (told, token) = (status.clone(), stop.clone());
        let task = tokio::spawn(async move { run(&config, TIMING, out, told, token).await });
        Self { batches, status, state: BTreeMap::new(), resyncs: 0, revision: 0, stop, task }
    }

    /// The next batch, applied to the state.
    pub async fn batch(&mut self) -> Batch {
        let batch = timeout(DEADLINE, self.batches.recv()).await;
        let batch = batch.unwrap_or_else(|_| panic!("no batch; {:?}", self.status.last_error())).unwrap();
        self.apply(&batch);
        batch
    }

    /// Waits until the object has this value, or is gone.
    pub async fn until(&mut self, name: &str, value: Option<&str>) {
        while self.state.get(name).map(String::as_str) != value {
            self.batch().await;
        }
    }

    /// Waits until there are so many objects.
    pub async fn until_count(&mut self, count: usize) {
        while self.state.len() != count {
            self.batch().await;
        }
    }

    /// Lets time pass; no batch may come.
    pub async fn quiet(&mut self, time: Duration) {
        if let Ok(batch) = timeout(time, self.batches.recv()).await {
            panic!("nothing was changed, but: {batch:?}");
        }
    }

    /// Lets time pass, applying batches.
    pub async fn quiet_or_batch(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(batch) = tokio::time::timeout_at(end, self.batches.recv()).await {
            self.apply(&batch.unwrap());
        }
    }

    /// Waits until the status says so.
    pub async fn poll(&self, what: &str, holds: impl Fn(&SourceStatus) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(&self.status) {
            assert!(Instant::now() < deadline, "never: {what}; {:?}", self.status);
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The names of all objects, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.state.keys().map(String::as_str).collect()
    }

    /// Stops the source and waits for its end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        timeout(DEADLINE, &mut self.task).await.unwrap().unwrap();
    }

    fn apply(&mut self, batch: &Batch) {
        for event in &batch.events {
            match event {
                Event::Put { key, value, revision } => {
                    assert!(*revision > self.revision, "{key} came again or late");
                    self.state.insert(key.to_string(), text(value));
                }
                Event::Delete { key, revision } => {
                    assert!(*revision > self.revision, "{key} came again or late");
                    self.state.remove(&key.to_string());
                }
                Event::Resync { objects, .. } => {
                    self.resyncs += 1;
                    self.state =
                        objects.iter().map(|(key, value, _)| (key.to_string(), text(value))).collect();
                }
                Event::Addresses { .. } | Event::Nodes { .. } => {
                    panic!("a source of objects knows no addresses")
                }
            }
        }
        self.revision = batch.revision;
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8(value.to_vec()).unwrap()
}
