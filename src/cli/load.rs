//! One full read of the configuration's objects, for commands that look and do not serve.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use streamgate::config::{Config, Registries, Source};
use streamgate::discovery;
use streamgate::live::Live;
use streamgate::live::source_status::SourceStatus;
use streamgate::metrics::Metrics;
use streamgate::resolve;
use streamgate::resource::Discovery;
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
/// How long registries, and then names, may take to answer.
const RESOLVE: Duration = Duration::from_secs(3);

/// What was read.
pub(super) struct Loaded {
    pub(super) store: Store,
    pub(super) snapshot: Snapshot,
    /// What can be asked for instances of services.
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
    // Instances may be names, which come to the wanted ones then.
    let served = |service: &&Arc<Discovery>| config.registries.has(&service.kind);
    let services: Arc<[Arc<Discovery>]> = builder.wanted_services().filter(served).cloned().collect();
    for answer in instances(config, services).await {
        let changes = store.apply(answer, 0);
        snapshot = builder.build(&store, &changes);
    }
    let wanted: Arc<[Arc<str>]> = builder.wanted_names().cloned().collect();
    for answer in addresses(config, wanted).await {
        let changes = store.apply(answer, 0);
        snapshot = builder.build(&store, &changes);
    }
    let registries = config.registries.clone();
    Ok(Loaded { store, snapshot, registries })
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
async fn addresses(config: &Config, names: Arc<[Arc<str>]>) -> Vec<Batch> {
    let (missing, dns) = (names.len(), config.dns.clone());
    let (_wanted, receiver) = watch::channel(names);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let (sender, batches) = mpsc::channel(16);
    tokio::spawn(resolve::run(dns, receiver, sender, stop));
    first_answers(batches, missing).await
}

/// The same for each service.
async fn instances(config: &Config, services: Arc<[Arc<Discovery>]>) -> Vec<Batch> {
    let missing = services.len();
    let means = discovery::Means {
        registries: config.registries.clone(),
        trusted: config.ssl.trusted.clone(),
        failing: Arc::default(),
        metrics: Metrics::new(&[], ""),
    };
    let (_wanted, receiver) = watch::channel(services);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let (sender, batches) = mpsc::channel(16);
    tokio::spawn(discovery::run(means, receiver, sender, stop));
    first_answers(batches, missing).await
}

async fn first_answers(mut batches: mpsc::Receiver<Batch>, missing: usize) -> Vec<Batch> {
    let mut answers = Vec::with_capacity(missing);
    let mut known = HashSet::new();
    let deadline = Instant::now() + RESOLVE;
    while known.len() < missing {
        let Ok(Some(batch)) = timeout_at(deadline, batches.recv()).await else { break };
        // One may answer again before another does so for the first time.
        known.extend(batch.events.iter().filter_map(|event| match event {
            Event::Addresses { name, .. } => Some(name.to_string()),
            Event::Nodes { service, .. } => Some(service.to_string()),
            _ => None,
        }));
        answers.push(batch);
    }
    answers
}
