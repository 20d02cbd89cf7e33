//! One full read of the configuration's objects, for commands that look and do not serve.

use std::sync::Arc;
use std::time::Duration;

use streamgate::config::{Config, Registries, Source};
use streamgate::live::Live;
use streamgate::live::source_status::SourceStatus;
use streamgate::resolve;
use streamgate::snapshot::{Builder, Snapshot, UpstreamSettings};
use streamgate::source;
use streamgate::store::{Batch, Event, Store};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long the source may take to answer.
const READ: Duration = Duration::from_secs(15);
/// How often a failure is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// How long names may take to resolve.
const RESOLVE: Duration = Duration::from_secs(3);

/// What was read.
pub(super) struct Loaded {
    pub(super) store: Store,
    pub(super) snapshot: Snapshot,
    /// Revisions are etcd's; those of a file are sums of its content.
    pub(super) from_etcd: bool,
    /// What config.yaml has registries for.
    pub(super) registries: Registries,
}

/// Reads all objects once. The error is a sentence for the operator.
pub(super) fn load(config: &Config) -> Result<Loaded, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(read(config))
}

async fn read(config: &Config) -> Result<Loaded, String> {
    let mut store = Store::new(config.rules.clone());
    let mut builder =
        Builder::new(Arc::new(Live::default()), rand::random()).with_settings(UpstreamSettings::new(config));
    let batch = first_read(config).await?;
    let changes = store.apply(batch, 0);
    let mut snapshot = builder.build(&store, &changes);
    let wanted: Arc<[Arc<str>]> = builder.wanted_names().cloned().collect();
    for answer in resolved(config, wanted).await {
        let changes = store.apply(answer, 0);
        snapshot = builder.build(&store, &changes);
    }
    let from_etcd = matches!(config.source, Source::Etcd(_));
    Ok(Loaded { store, snapshot, from_etcd, registries: config.registries.clone() })
}

/// The first batch of the source: a full read.
async fn first_read(config: &Config) -> Result<Batch, String> {
    let (sender, mut batches) = mpsc::channel(1);
    let status = Arc::new(SourceStatus::new(Instant::now().into_std()));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let (from, watched) = (config.source.clone(), status.clone());
    tokio::spawn(async move { source::run(&from, sender, watched, stop).await });
    let received = async {
        tokio::select! {
            batch = batches.recv() => batch,
            () = refused(config, &status) => None,
        }
    };
    if let Ok(Some(batch)) = timeout(READ, received).await {
        return Ok(batch);
    }
    let place = match &config.source {
        Source::Etcd(etcd) => format!("etcd {}", etcd.hosts.join(", ")),
        Source::File(path) => path.display().to_string(),
    };
    let why = status.last_error().map_or_else(|| "it gave no answer".into(), |error| error.sentence);
    Err(format!("cannot read the objects of {place}: {why}"))
}

/// Waits until waiting longer is of no use: a file that cannot be read now stays so until somebody
/// edits it, and of several etcd endpoints none has answered once each was tried twice.
async fn refused(config: &Config, status: &SourceStatus) {
    let tries = match &config.source {
        Source::Etcd(etcd) => 2 * etcd.hosts.len() as u64,
        Source::File(_) => 0,
    };
    while status.last_error().is_none() || status.reconnects() < tries {
        sleep(LOOK).await;
    }
}

/// The first answer for each name, as far as they come in time.
async fn resolved(config: &Config, names: Arc<[Arc<str>]>) -> Vec<Batch> {
    let mut missing = names.len();
    let mut answers = Vec::with_capacity(missing);
    let (wanted, receiver) = watch::channel(names);
    let (sender, mut batches) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(resolve::run(config.dns.clone(), receiver, sender, stop));
    let deadline = Instant::now() + RESOLVE;
    while missing > 0 {
        match timeout_at(deadline, batches.recv()).await {
            Ok(Some(batch)) => {
                missing -=
                    batch.events.iter().filter(|event| matches!(event, Event::Addresses { .. })).count();
                answers.push(batch);
            }
            _ => break,
        }
    }
    drop(wanted);
    answers
}
