//! Where objects come from: etcd or a file, as a stream of batches for `control`.
//!
//! A source never ends by itself and never reports an error to its reader: it keeps trying, and what
//! is wrong stands in [`SourceStatus`]. Until it sends something else, the last state stands. It
//! hands on bytes as they are: whether an object is good is for the store to say.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Source;
use crate::live::source_status::SourceStatus;
use crate::store::Batch;

pub mod etcd;
pub mod file;

/// Sends the objects of `source`, then every change, to `out`, until `stop` is cancelled or a
/// batch finds `out` closed.
///
/// The first batch is one [`Resync`](crate::store::Event::Resync); another one follows whenever
/// what happened in between cannot be known.
pub async fn run(
    source: &Source,
    out: mpsc::Sender<Batch>,
    status: Arc<SourceStatus>,
    stop: CancellationToken,
) {
    match source {
        Source::Etcd(config) => etcd::run(config, etcd::Timing::default(), out, status, stop).await,
        Source::File(path) => file::run(path, file::POLL, out, status, stop).await,
    }
}
