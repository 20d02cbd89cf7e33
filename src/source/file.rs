//! `apisix.yaml` or `apisix.json`: read whole, and again whenever it changes.
//!
//! A change is seen by a watch on the directory (a `ConfigMap` is swapped by renaming a link
//! beside the file) and by looking every second, which also covers file systems without events. A file
//! that cannot be read, is cut short or does not parse changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::live::source_status::SourceStatus;
use crate::store::Batch;
use crate::store::Event;

use self::parse::{Format, Object};
use self::stamp::{Looked, Stamp};

mod parse;
mod stamp;

/// How often the file is looked at when nothing was reported.
pub const POLL: Duration = Duration::from_secs(1);
/// A writer gets so long to finish after the first sign of a change.
const SETTLE: Duration = Duration::from_millis(20);

/// Sends the objects of the file at `path`, and again after each change, to `out`, until `stop` is
/// cancelled or a batch finds `out` closed. `poll` is how often to look besides.
pub async fn run(
    path: &Path,
    poll: Duration,
    out: mpsc::Sender<Batch>,
    status: Arc<SourceStatus>,
    stop: CancellationToken,
) {
    let changed = Arc::new(Notify::new());
    // Dropped with this future, which ends the watch.
    let _watcher = watch_directory(path, &changed)
        .inspect_err(|error| tracing::warn!("no events for {}: {error}; it is polled", path.display()));
    let follower = Follower { path: path.into(), out, status, stamp: Stamp::default() };
    stop.run_until_cancelled(follower.follow(poll, &changed)).await;
}

struct Follower {
    path: PathBuf,
    out: mpsc::Sender<Batch>,
    status: Arc<SourceStatus>,
    stamp: Stamp,
}

impl Follower {
    async fn follow(mut self, poll: Duration, changed: &Notify) {
        while self.look().await.is_ok() {
            tokio::select! {
                () = changed.notified() => sleep(SETTLE).await,
                () = sleep(poll) => {}
            }
        }
    }

    /// Hands on the file if it changed; an error means that nobody reads any more.
    async fn look(&mut self) -> Result<(), mpsc::error::SendError<Batch>> {
        let text = match self.stamp.look(&self.path) {
            Ok(Looked::Same) => {
                self.status.contact(Instant::now().into_std());
                return Ok(());
            }
            Ok(Looked::Changed(text)) => text,
            Err(error) => {
                self.fail(false, format!("{} cannot be read: {error}", self.path.display()));
                return Ok(());
            }
        };
        let path = self.path.clone();
        // A large file takes seconds to parse: not on the thread of the control plane.
        match tokio::task::spawn_blocking(move || load(&path, &text)).await {
            Ok(Ok(objects)) => self.hand_on(objects).await,
            Ok(Err(sentence)) => {
                self.fail(true, sentence);
                Ok(())
            }
            // The runtime is going down.
            Err(_) => Ok(()),
        }
    }

    async fn hand_on(&self, objects: Vec<Object>) -> Result<(), mpsc::error::SendError<Batch>> {
        tracing::info!("read {} objects from {}", objects.len(), self.path.display());
        let events = vec![Event::Resync { objects, revision: 0 }];
        self.out.send(Batch { events, revision: 0 }).await?;
        let now = Instant::now().into_std();
        self.status.contact(now);
        self.status.event(now);
        self.status.recover();
        Ok(())
    }

    fn fail(&self, reachable: bool, sentence: String) {
        // Looking again every second must not fill the log.
        if self.status.last_error().is_none_or(|error| error.sentence != sentence) {
            tracing::error!("{sentence}; the last state stands");
        }
        self.status.fail(Instant::now().into_std(), reachable, sentence);
    }
}

/// The objects in `text`, or a sentence with file, line and column.
fn load(path: &Path, text: &[u8]) -> Result<Vec<Object>, String> {
    let place = path.display();
    let text = str::from_utf8(text)
        .map_err(|error| format!("{place} is not UTF-8: see byte {}", error.valid_up_to() + 1))?;
    let json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let format = if json { Format::Json } else { Format::Yaml };
    let (objects, warnings) =
        parse::parse(text, format, &|name| std::env::var(name).ok()).map_err(|error| match error.at {
            Some((line, column)) => format!("{place}:{line}:{column}: {}", error.what),
            None => format!("{place}: {}", error.what),
        })?;
    for warning in warnings {
        tracing::warn!("{place}: {warning}");
    }
    Ok(objects)
}

/// Tells `changed` of everything that happens in the directory of `path`, except reading.
fn watch_directory(path: &Path, changed: &Arc<Notify>) -> notify::Result<impl Watcher + use<>> {
    let told = changed.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading must not make us read again.
        let written = AccessKind::Close(AccessMode::Write);
        let only_read =
            event.is_ok_and(|event| matches!(event.kind, EventKind::Access(kind) if kind != written));
        if !only_read {
            told.notify_one();
        }
    })?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The directory of a path that is itself a link may be another one: polling sees changes there.
    fs::metadata(directory).map_err(notify::Error::io)?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
