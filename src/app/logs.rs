//! The files that sessions are written to: opened, changed and opened anew.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::live::logs::{Access, Sessions, Settings};
use crate::live::{Counter, NodeCounters};
use crate::log::Writer;
use crate::net::trust::Trust;
use crate::proxy::Shared;
use crate::report;
use crate::session::line::Format;
use crate::snapshot::Ended;

/// How long a file is waited for when the process ends or the files are opened anew.
const LIMIT: Duration = Duration::from_secs(2);

/// Who hears of the sessions that workers tell of.
#[derive(Debug)]
pub(super) struct Hearers {
    pub(super) log: LogFiles,
    /// Sends lines about sessions to those who collect them; ends when the workers have.
    report: JoinHandle<()>,
    /// Whose certificates are believed, of servers that are asked or told something.
    pub(super) trust: Trust,
}

impl Hearers {
    /// Begins to hear: `log` writes the session log, `reports` brings what is to be sent. Ends with `stop`
    /// at the latest.
    pub(super) fn start(
        shared: &Shared,
        config: &Config,
        (log, reports): (JoinHandle<()>, mpsc::Receiver<Arc<Ended>>),
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let trust = Trust::new(config.ssl.trusted.as_deref());
        let means = report::Means {
            published: shared.published.clone(),
            node: shared.node.clone(),
            host: shared.host.clone(),
            dns: config.dns.clone(),
            trust: trust.clone(),
        };
        let report = tokio::spawn(report::run(means, reports, stop.clone()));
        Ok(Self { log: LogFiles::start(shared, config, log)?, report, trust })
    }

    /// Waits until all lines are written and sent, until `last` for those that are sent.
    pub(super) async fn finish(mut self, last: Instant) {
        if !self.log.finish().await {
            tracing::error!("the last lines about sessions could not be written in time");
        }
        // Its servers may take nothing any more: they were given their time.
        let _ = tokio::time::timeout_at(last, &mut self.report).await;
    }
}

/// The files that are open.
#[derive(Debug)]
pub(super) struct LogFiles {
    settings: Arc<ArcSwap<Settings>>,
    node: Arc<NodeCounters>,
    open: Opened,
    /// Writes what became of sessions; ends when the workers have.
    task: JoinHandle<()>,
}

/// Those of one config.yaml.
#[derive(Clone, Debug, Default)]
pub(super) struct Opened {
    access: Option<Writer>,
    sessions: Option<Writer>,
}

impl LogFiles {
    /// Opens what a configuration asks for. `task` writes the session log.
    pub(super) fn start(shared: &Shared, config: &Config, task: JoinHandle<()>) -> anyhow::Result<Self> {
        let (settings, node) = (shared.logs.settings.clone(), shared.node.clone());
        let mut files = Self { settings, node, open: Opened::default(), task };
        let opened = files.prepare(config)?;
        files.follow(config, opened);
        Ok(files)
    }

    /// Opens what a configuration asks for; files that are open already stay so. Nothing is followed yet.
    pub(super) fn prepare(&self, config: &Config) -> anyhow::Result<Opened> {
        let open = |path: &Path, before: &Option<Writer>, lost: &Arc<Counter>| match before {
            Some(writer) if writer.path() == path => Ok(writer.clone()),
            _ => Writer::start(path, lost),
        };
        let mut opened = Opened::default();
        if config.access_log.enabled {
            let writer = open(&config.access_log.path, &self.open.access, &self.node.access_lines_dropped);
            opened.access = Some(writer.context("nginx_config.stream.access_log")?);
        }
        if let Some(path) = &config.session_log.path {
            let writer = open(path, &self.open.sessions, &self.node.session_lines_dropped);
            opened.sessions = Some(writer.context("streamgate.session_log.path")?);
        }
        Ok(opened)
    }

    /// From now on lines are those that the configuration asks for.
    pub(super) fn follow(&mut self, config: &Config, opened: Opened) {
        let (log, asked) = (&config.access_log, &config.session_log);
        // A format that is none was refused with the rest of config.yaml.
        let format = Format::new(&log.format, log.escape).ok();
        let access = opened.access.as_ref().zip(format);
        self.settings.store(Arc::new(Settings {
            access: access.map(|(writer, format)| Access {
                measured: format.measures(),
                format,
                to: writer.outlet(),
            }),
            sessions: Sessions {
                which: asked.which,
                sample: asked.sample,
                long: asked.long,
                to: opened.sessions.as_ref().map(Writer::outlet),
            },
        }));
        self.open = opened;
    }

    /// Opens the files anew; false where one takes too long to be written.
    pub(super) async fn reopen(&self) -> bool {
        self.each(|writer| writer.reopen(LIMIT)).await
    }

    /// Waits until all lines are written, but not for a log or a file that blocks: false.
    pub(super) async fn finish(mut self) -> bool {
        // It has the last outcomes and nothing more to wait for.
        let logged = tokio::time::timeout(LIMIT, &mut self.task).await;
        self.each(|writer| writer.flush(LIMIT)).await && logged.is_ok()
    }

    /// Does something that may wait with each file, away from the threads that serve others.
    async fn each(&self, act: fn(&Writer) -> bool) -> bool {
        let Opened { access, sessions } = self.open.clone();
        let writers = access.into_iter().chain(sessions);
        let all = tokio::task::spawn_blocking(move || {
            let done: Vec<bool> = writers.map(|writer| act(&writer)).collect();
            done.iter().all(|done| *done)
        });
        all.await.unwrap_or(false)
    }
}
