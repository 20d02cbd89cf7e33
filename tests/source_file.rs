//! The file source: reading, reloading, and keeping the old state when the file is bad.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use streamgate::live::source_status::SourceStatus;
use streamgate::source::file::run;
use streamgate::store::{Batch, Event};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);
/// So rarely that only events of the directory can have shown a change.
const NEVER: Duration = Duration::from_hours(1);
/// So often that a test need not wait.
const OFTEN: Duration = Duration::from_millis(20);

struct Follow {
    batches: mpsc::Receiver<Batch>,
    status: Arc<SourceStatus>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Follow {
    fn start(path: &Path, poll: Duration) -> Self {
        let (out, batches) = mpsc::channel(16);
        let status = Arc::new(SourceStatus::new(Instant::now().into_std()));
        let stop = CancellationToken::new();
        let (path, told, token) = (path.to_owned(), status.clone(), stop.clone());
        let task = tokio::spawn(async move { run(&path, poll, out, told, token).await });
        Self { batches, status, stop, task }
    }

    /// The objects of the next batch as `kind/id` and value, in order.
    async fn objects(&mut self) -> Vec<(String, String, i64)> {
        let batch = timeout(DEADLINE, self.batches.recv()).await;
        let batch = batch.unwrap_or_else(|_| panic!("no batch: {:?}", self.status)).unwrap();
        let [Event::Resync { objects, .. }] = &batch.events[..] else { panic!("{batch:?}") };
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        objects.iter().map(|(key, value, revision)| (key.to_string(), text(value), *revision)).collect()
    }

    async fn names(&mut self) -> Vec<String> {
        self.objects().await.into_iter().map(|(name, _, _)| name).collect()
    }

    /// Waits until the last error contains all of `words`.
    async fn error(&self, words: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        let told = || self.status.last_error().map(|error| error.sentence).unwrap_or_default();
        while !words.iter().all(|word| told().contains(word)) {
            assert!(Instant::now() < deadline, "{words:?} not in {:?}", told());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing is sent.
    fn quiet(&mut self) {
        assert!(self.batches.try_recv().is_err());
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn folder(name: &str, content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn yaml(ids: &[&str]) -> String {
    let items: Vec<_> =
        ids.iter().map(|id| format!("  - id: {id}\n    nodes: {{\"127.0.0.1:1\": 1}}\n")).collect();
    format!("upstreams:\n{}#END\n", items.concat())
}

#[tokio::test]
async fn yaml_is_read_in_its_order_and_again_after_a_change() {
    let (_folder, path) = folder("apisix.yaml", &yaml(&["b", "a", "10"]));
    let mut follow = Follow::start(&path, NEVER);
    let first = follow.objects().await;
    let names: Vec<_> = first.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(names, ["upstreams/b", "upstreams/a", "upstreams/10"]);
    assert_eq!(first[0].1, r#"{"id":"b","nodes":{"127.0.0.1:1":1}}"#);
    fs::write(&path, yaml(&["a", "c"])).unwrap();
    let second = follow.objects().await;
    assert_eq!(second.len(), 2);
    assert_eq!(second[0], first[1], "an unchanged object keeps its revision");
    assert!(follow.status.reachable());
}

#[tokio::test]
async fn json_needs_no_end_mark() {
    let (_folder, path) = folder("apisix.json", r#"{"upstreams":[{"id":123456789012345678},{"id":2}]}"#);
    let mut follow = Follow::start(&path, NEVER);
    assert_eq!(follow.names().await, ["upstreams/123456789012345678", "upstreams/2"]);
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_where() {
    let (_folder, path) = folder("apisix.yaml", &yaml(&["a"]));
    let mut follow = Follow::start(&path, OFTEN);
    assert_eq!(follow.names().await, ["upstreams/a"]);
    fs::write(&path, "upstreams:\n  - {id: b}\n").unwrap();
    follow.error(&["apisix.yaml:2:1", "#END"]).await;
    fs::write(&path, "upstreams:\n  - {id: ]}\n#END").unwrap();
    follow.error(&["apisix.yaml:2:5"]).await;
    fs::write(&path, "upstreams:\n  - {id: ${{STREAMGATE_TEST_NOT_SET}}}\n#END").unwrap();
    follow.error(&["apisix.yaml:2:10", "STREAMGATE_TEST_NOT_SET is not set"]).await;
    fs::write(&path, "#END").unwrap();
    follow.error(&["the file holds nothing"]).await;
    fs::write(&path, b"\xff#END").unwrap();
    follow.error(&["not UTF-8"]).await;
    assert!(follow.status.reachable());
    follow.quiet();
    fs::write(&path, yaml(&["c"])).unwrap();
    assert_eq!(follow.names().await, ["upstreams/c"]);
    assert_eq!(follow.status.last_error(), None);
}

#[tokio::test]
async fn a_file_that_is_missing_is_waited_for() {
    let (_folder, path) = folder("apisix.yaml", "");
    fs::remove_file(&path).unwrap();
    let mut follow = Follow::start(&path, NEVER);
    follow.error(&["cannot be read"]).await;
    assert!(!follow.status.reachable());
    fs::write(&path, yaml(&["a"])).unwrap();
    assert_eq!(follow.names().await, ["upstreams/a"]);
    fs::remove_file(&path).unwrap();
    follow.error(&["cannot be read"]).await;
    follow.quiet();
}

/// As Kubernetes mounts a `ConfigMap`: the file is a link through `..data`, which is swapped.
#[tokio::test]
async fn a_config_map_swap_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let version = |name: &str, ids: &[&str]| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("apisix.yaml"), yaml(ids)).unwrap();
        symlink(name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    version("..1", &["a"]);
    symlink("..data/apisix.yaml", root.join("apisix.yaml")).unwrap();
    for poll in [NEVER, OFTEN] {
        let mut follow = Follow::start(&root.join("apisix.yaml"), poll);
        follow.objects().await;
        let name = format!("..{}", poll.as_millis());
        version(&name, &[&name]);
        assert_eq!(follow.names().await, [format!("upstreams/{name}")]);
    }
}

#[tokio::test]
async fn two_writes_in_one_second_are_both_seen() {
    let (_folder, path) = folder("apisix.yaml", &yaml(&["a"]));
    for poll in [NEVER, OFTEN] {
        let mut follow = Follow::start(&path, poll);
        follow.objects().await;
        for id in ["b", "c", "d", "e"] {
            fs::write(&path, yaml(&[id])).unwrap();
            assert_eq!(follow.names().await, [format!("upstreams/{id}")]);
        }
    }
}

#[tokio::test]
async fn a_touch_without_a_change_sends_nothing() {
    let (_folder, path) = folder("apisix.yaml", &yaml(&["a"]));
    let mut follow = Follow::start(&path, OFTEN);
    follow.objects().await;
    fs::write(&path, yaml(&["a"])).unwrap();
    let other = path.with_file_name("other");
    fs::write(other, "x").unwrap();
    fs::write(&path, yaml(&["b"])).unwrap();
    assert_eq!(follow.names().await, ["upstreams/b"], "the next batch is the next change");
}

#[tokio::test]
async fn a_stop_ends_it() {
    let (_folder, path) = folder("apisix.yaml", &yaml(&["a"]));
    let mut follow = Follow::start(&path, NEVER);
    follow.objects().await;
    follow.stop.cancel();
    timeout(DEADLINE, &mut follow.task).await.unwrap().unwrap();
}
