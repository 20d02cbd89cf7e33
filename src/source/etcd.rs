//! etcd: a full read, then the watch from the revision after it, for as long as the process lives.
//!
//! Read-only, and never beyond `{prefix}/`. A *session* is one connection to one endpoint. Its
//! successor goes on from the last revision handed on if etcd shows that it still has that history,
//! otherwise it reads everything again and says so with [`Event::Resync`]. Nothing but events of
//! the watch and full reads moves that revision.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::Client;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::config::EtcdConfig;
use crate::live::source_status::SourceStatus;
use crate::store::Batch;
use crate::store::Event;

use self::auth::Token;
use self::failure::{Failure, advise};
use self::keys::{Position, Prefix};
use self::list::{Listing, Reader};
use self::pace::Pace;
use self::watch::Watch;

mod auth;
mod connector;
mod failure;
mod keys;
mod list;
mod pace;
mod tls;
mod watch;

/// The largest answer taken. A page of a full read that is larger is split; a watch whose answer is
/// larger is replaced by a full read. One value is at most etcd's `--max-request-bytes`.
const MAX_ANSWER: usize = 64 << 20;
/// The same trouble is logged again after so long.
const REPEAT_LOG: Duration = Duration::from_secs(30);

/// The patience of the source. Deadlines of requests are [`EtcdConfig::timeout`].
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Connecting to one endpoint, TLS included.
    pub connect: Duration,
    /// A quiet watch is asked for a sign of life so often.
    pub progress: Duration,
    /// A watch that gives none for so long is dead.
    pub silence: Duration,
    /// The wait after the first failure, and after many; half of each wait is random.
    pub retry: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            progress: Duration::from_secs(3),
            silence: Duration::from_secs(9),
            retry: (Duration::from_millis(50), Duration::from_secs(5)),
        }
    }
}

/// Sends the objects below the prefix, then every change, to `out`, until `stop` is cancelled or a
/// batch finds `out` closed. Without [`EtcdConfig::hosts`] there is nothing to do.
pub async fn run(
    config: &EtcdConfig,
    timing: Timing,
    out: mpsc::Sender<Batch>,
    status: Arc<SourceStatus>,
    stop: CancellationToken,
) {
    let prefix = Prefix::new(&config.prefix);
    let follower = Follower { config, timing, out, status, prefix, position: None, token: None, began: None };
    // Boxed: tonic's futures are large, and this one is kept inside others.
    stop.run_until_cancelled(Box::pin(follower.follow())).await;
}

struct Follower<'a> {
    config: &'a EtcdConfig,
    timing: Timing,
    out: mpsc::Sender<Batch>,
    status: Arc<SourceStatus>,
    prefix: Prefix,
    /// None: the next session reads everything.
    position: Option<Position>,
    token: Option<Token>,
    /// When the watch of this session was confirmed.
    began: Option<Instant>,
}

impl Follower<'_> {
    async fn follow(mut self) {
        let hosts = &self.config.hosts;
        let mut pace = Pace::new(self.timing.retry.0, self.timing.retry.1, hosts.len());
        // Not every gateway shall begin with the first member.
        let mut turn = rand::random_range(0..hosts.len().max(1));
        let mut logged: Option<(String, Instant)> = None;
        while let Some(host) = hosts.get(turn % hosts.len().max(1)) {
            let failure = match self.session(host).await {
                Ok(never) => match never {},
                Err(Failure::Closed) => return,
                Err(failure) => failure,
            };
            let sentence = advise(format!("etcd {host}: {failure}"));
            self.forget(&failure);
            if logged.as_ref().is_none_or(|(text, at)| *text != sentence || at.elapsed() > REPEAT_LOG) {
                tracing::warn!("{sentence}; the last state stands");
                logged = Some((sentence.clone(), Instant::now()));
            }
            self.status.fail(Instant::now().into_std(), false, sentence);
            let lasted = self.began.take().map_or(Duration::ZERO, |began| began.elapsed());
            sleep(pace.after(lasted, rand::random())).await;
            turn += 1;
            self.status.reconnect();
        }
    }

    /// One connection, from its making to its end.
    async fn session(&mut self, host: &str) -> Result<Infallible, Failure> {
        let channel = connector::connect(self.config, host, self.timing.connect).await?;
        let fresh = self.token.is_none();
        let client = self.client(&channel).await?;
        match self.serve(host, client).await {
            Err(Failure::Token(reason)) if !fresh => {
                tracing::info!("etcd {host} asks to authenticate again: {reason}");
                self.token = None;
                let client = self.client(&channel).await?;
                self.serve(host, client).await
            }
            other => other,
        }
    }

    async fn client(&mut self, channel: &Channel) -> Result<Client, Failure> {
        if let (None, Some(credentials)) = (&self.token, &self.config.auth) {
            self.token = auth::authenticate(channel, credentials, self.config.timeout).await?;
        }
        auth::client(channel, self.token.as_ref()).await
    }

    async fn serve(&mut self, host: &str, client: Client) -> Result<Infallible, Failure> {
        let (prefix, status) = (self.prefix.clone(), self.status.clone());
        let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
        let mut reader = Reader { kv, prefix: &prefix, limit: self.config.timeout, status: &status };
        let kept = match self.position.take() {
            Some(position) => self.recheck(&mut reader, position).await?,
            None => None,
        };
        let position = match kept {
            Some(position) => position,
            None => self.replace(host, reader.read().await?).await?,
        };
        let position = self.position.insert(position);
        let watcher = client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let mut watch = Watch::open(watcher, &prefix, position, self.timing).await?;
        self.began = Some(Instant::now());
        tracing::info!("watching etcd {host} from revision {}", position.revision + 1);
        loop {
            let response = watch.next().await?;
            status.contact(Instant::now().into_std());
            if let Some(header) = response.header() {
                status.see(header.revision());
            }
            let events = watch::changes(&response, &prefix, position, &status);
            hand_on(&self.out, &status, events, position.revision).await?;
        }
    }

    /// `position`, if etcd still holds the history it was taken from.
    async fn recheck(
        &mut self,
        reader: &mut Reader<'_>,
        position: Position,
    ) -> Result<Option<Position>, Failure> {
        match reader.still_holds(&position).await {
            Ok(true) => Ok(Some(position)),
            Ok(false) => {
                tracing::warn!("etcd no longer has the history after revision {}", position.revision);
                Ok(None)
            }
            Err(failure) => {
                self.position = Some(position);
                Err(failure)
            }
        }
    }

    /// Hands on a full read.
    async fn replace(&mut self, host: &str, listing: Listing) -> Result<Position, Failure> {
        let Listing { objects, position } = listing;
        let (count, revision) = (objects.len(), position.revision);
        tracing::info!("read {count} objects from etcd {host} at revision {revision}");
        self.status.set_cluster(position.cluster);
        hand_on(&self.out, &self.status, vec![Event::Resync { objects, revision }], revision).await?;
        Ok(position)
    }

    /// What must not be used again after `failure`.
    fn forget(&mut self, failure: &Failure) {
        match failure {
            Failure::Position(_) | Failure::TooLarge(_) => self.position = None,
            Failure::Token(_) => self.token = None,
            Failure::Closed | Failure::Connection(_) | Failure::Refused(_) => {}
        }
    }
}

/// Hands on `events`, if any; what is not ours moves the revision alone.
async fn hand_on(
    out: &mpsc::Sender<Batch>,
    status: &SourceStatus,
    events: Vec<Event>,
    revision: i64,
) -> Result<(), Failure> {
    if !events.is_empty() {
        out.send(Batch { events, revision }).await.map_err(|_| Failure::Closed)?;
        status.event(Instant::now().into_std());
    }
    status.apply(revision);
    Ok(())
}
