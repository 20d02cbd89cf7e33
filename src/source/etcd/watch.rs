//! The watch: changes as etcd reports them, on a stream that is never trusted to be alive.
//!
//! Progress requests on the same stream show that it lives, and that is all they are used for: their
//! revision is not ordered with events before etcd 3.4.25 and 3.5.8 and moves nothing here. Fragments
//! are off, so one answer holds whole revisions.

use bytes::Bytes;
use etcd_client::{WatchClient, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::Timing;
use super::failure::Failure;
use super::keys::{Position, Prefix, Witness};
use crate::live::source_status::SourceStatus;
use crate::store::Event;

/// An open watch.
pub(super) struct Watch {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    timing: Timing,
}

impl Watch {
    /// Watches from the revision after `position` and waits until etcd confirms it.
    pub(super) async fn open(
        mut client: WatchClient,
        prefix: &Prefix,
        position: &Position,
        timing: Timing,
    ) -> Result<Self, Failure> {
        let options = WatchOptions::new().with_range(prefix.end()).with_start_revision(position.revision + 1);
        let stream = timeout(timing.silence, client.watch(prefix.start(), Some(options)))
            .await
            .map_err(|_| Failure::timeout("open the watch", timing.silence))?
            .map_err(|error| Failure::from_etcd("open the watch", &error))?;
        let (requests, responses) = stream.split();
        let mut watch = Self { requests, responses, timing };
        let confirmation = watch.next().await?;
        let cluster = confirmation.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
        if cluster == position.cluster {
            Ok(watch)
        } else {
            Err(Failure::Position(format!("the cluster is another: {cluster:x}")))
        }
    }

    /// The next answer; one without events only shows that the stream lives.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, Failure> {
        let started = Instant::now();
        let deadline = started + self.timing.silence;
        let mut ask = started + self.timing.progress;
        let message = loop {
            tokio::select! {
                biased;
                message = self.responses.message() => break message,
                () = sleep_until(deadline) => {
                    return Err(Failure::timeout("watch", self.timing.silence));
                }
                () = sleep_until(ask) => {
                    self.ask_for_progress().await?;
                    ask += self.timing.progress;
                }
            }
        };
        match message.map_err(|error| Failure::from_etcd("watch", &error))? {
            None => Err(Failure::Connection("etcd closed the watch".into())),
            Some(response) if response.canceled() => {
                Err(Failure::from_cancel(response.compact_revision(), response.cancel_reason()))
            }
            Some(response) => Ok(response),
        }
    }

    async fn ask_for_progress(&mut self) -> Result<(), Failure> {
        // The queue of requests holds far more than are asked within the silence deadline.
        self.requests.request_progress().await.map_err(|error| Failure::from_etcd("watch", &error))
    }
}

/// The events of `response` that are new and ours, in order; `position` moves behind all of them,
/// ours or not.
pub(super) fn changes(
    response: &WatchResponse,
    prefix: &Prefix,
    position: &mut Position,
    status: &SourceStatus,
) -> Vec<Event> {
    let applied = position.revision;
    let mut events = Vec::new();
    let fresh = response.events().iter().filter_map(etcd_client::Event::kv);
    for kv in fresh.filter(|kv| kv.mod_revision() > applied) {
        let revision = kv.mod_revision();
        // A deletion has no value, and an empty value is a deletion: the type of the event adds
        // nothing, and etcd-client panics on one it does not know.
        let deleted = kv.value().is_empty();
        if kv.version() > 0 {
            prefix.note(status, kv.key(), revision);
        }
        if let Some(key) = prefix.object(kv.key()) {
            events.push(if deleted {
                Event::Delete { key, revision }
            } else {
                Event::Put { key, value: Bytes::copy_from_slice(kv.value()), revision }
            });
        }
        position.revision = position.revision.max(revision);
    }
    if let Some(last) = response.events().last().and_then(etcd_client::Event::kv)
        && last.mod_revision() > applied
    {
        // The version counts the writes of a key and is 0 once it is deleted.
        let modified = if last.version() > 0 { last.mod_revision() } else { 0 };
        position.witness = Witness { key: last.key().to_vec(), modified };
    }
    events
}
