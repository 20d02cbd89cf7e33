//! One server's lines: gathered into batches, sent, and kept within bounds while it does not take them.
//!
//! A batch is sent when it has both `batch_max_size` lines and `flush_limit` bytes, when no line came for
//! `inactive_timeout`, when its first line has waited for `buffer_duration`, or when half of what may wait
//! does. APISIX keeps what is below `flush_limit` for ever, which no setting can wish for.
//!
//! A server that fails is tried four times, 100 ms apart (`resty/logger/socket.lua`), then after pauses that
//! grow. Meanwhile lines wait: within `drop_limit` and `max_pending_entries` none is lost.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Way;
use super::connection::{Connection, Taken};
use crate::live::LineCounters;
use crate::plugin::syslog::Settings;

/// Lines that are taken in at once.
const TOGETHER: usize = 512;
/// Tries before a pause, and what is between them.
const TRIES: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(100);
/// Losses of a server that keeps taking lines are told no more often.
const TELL: Duration = Duration::from_secs(10);

/// A line in its own allocation.
type Line = Box<[u8]>;

/// Where lines go in.
#[derive(Debug)]
pub(super) struct Entrance {
    queue: Arc<Queue>,
    lines: mpsc::UnboundedSender<Line>,
    /// Dropped, the task sends what it has and ends, and takes no pauses.
    _ends: DropGuard,
}

/// What both ends know.
#[derive(Debug)]
struct Queue {
    settings: Arc<Settings>,
    /// Of lines that wait.
    bytes: AtomicUsize,
    lines: AtomicUsize,
    /// Lines that may wait.
    most: AtomicUsize,
    /// Lines lost and not told of.
    lost: AtomicU64,
    /// A line that can never fit was told of.
    too_long: AtomicBool,
}

/// An outlet: where lines go in, and the task that sends them.
pub(super) fn open(
    settings: Arc<Settings>,
    way: Arc<Way>,
    most: usize,
) -> (Entrance, impl Future<Output = ()> + Send + 'static) {
    let queue = Arc::new(Queue {
        settings,
        bytes: AtomicUsize::new(0),
        lines: AtomicUsize::new(0),
        most: AtomicUsize::new(most),
        lost: AtomicU64::new(0),
        too_long: AtomicBool::new(false),
    });
    let (lines, received) = mpsc::unbounded_channel();
    let ending = CancellationToken::new();
    let outlet = Outlet {
        queue: queue.clone(),
        way,
        lines: received,
        ending: ending.clone(),
        batch: VecDeque::new(),
        bytes: 0,
        first: Instant::now(),
        last: Instant::now(),
        connection: None,
        failing: false,
        told: None,
    };
    (Entrance { queue, lines, _ends: ending.drop_guard() }, outlet.run())
}

impl Entrance {
    /// So many lines may wait from now on.
    pub(super) fn bound(&self, most: usize) {
        self.queue.most.store(most, Relaxed);
    }

    /// Takes a line in, or loses it where too much waits.
    pub(super) fn push(&self, line: &[u8], counters: &LineCounters) {
        let queue = &*self.queue;
        let limit = queue.settings.drop_limit;
        let full = queue.bytes.load(Relaxed).saturating_add(line.len()) > limit;
        if full || queue.lines.load(Relaxed) >= queue.most.load(Relaxed) {
            counters.dropped.add_one();
            queue.lost.fetch_add(1, Relaxed);
            if line.len() > limit && !queue.too_long.swap(true, Relaxed) {
                tracing::warn!(
                    "a line of {} bytes for {} is longer than its drop_limit of {limit} and lost, as all such are",
                    line.len(),
                    queue.settings,
                );
            }
            return;
        }
        queue.bytes.fetch_add(line.len(), Relaxed);
        queue.lines.fetch_add(1, Relaxed);
        counters.waiting.rise(1);
        // The task lives as long as the entrance does.
        let _ = self.lines.send(line.into());
    }
}

impl Queue {
    /// One that waited does no longer.
    fn leaves(&self, line: &Line, counters: &LineCounters) {
        self.bytes.fetch_sub(line.len(), Relaxed);
        self.lines.fetch_sub(1, Relaxed);
        counters.waiting.fall(1);
    }
}

/// What came of a round that sent its batch.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Datagrams that found nobody.
    refused: u64,
    /// Times the server took some lines and then no more.
    halts: u64,
}

/// The task.
struct Outlet {
    queue: Arc<Queue>,
    way: Arc<Way>,
    lines: mpsc::UnboundedReceiver<Line>,
    ending: CancellationToken,
    /// Lines in their order, and their bytes.
    batch: VecDeque<Line>,
    bytes: usize,
    /// When the first and the last of them came.
    first: Instant,
    last: Instant,
    connection: Option<Connection>,
    /// The server takes no lines, and the log says so.
    failing: bool,
    /// When losses were told of last.
    told: Option<Instant>,
}

impl Outlet {
    async fn run(mut self) {
        let mut taken = Vec::new();
        loop {
            let due = self.due();
            let ended = tokio::select! {
                () = closed(&mut self.connection) => {
                    self.connection = None;
                    continue;
                }
                count = self.lines.recv_many(&mut taken, TOGETHER) => count == 0,
                () = until(due) => false,
            };
            let now = Instant::now();
            if self.batch.is_empty() {
                self.first = now;
            }
            if !taken.is_empty() {
                self.last = now;
            }
            self.bytes += taken.iter().map(|line| line.len()).sum::<usize>();
            self.batch.extend(taken.drain(..));
            if ended || self.is_full() || due.is_some_and(|due| due <= now) {
                self.deliver().await;
            }
            if ended {
                return;
            }
        }
    }

    /// When the batch is sent whatever it has.
    fn due(&self) -> Option<Instant> {
        let settings = &self.queue.settings;
        let due = (self.last + settings.inactive).min(self.first + settings.longest);
        (!self.batch.is_empty()).then_some(due)
    }

    fn is_full(&self) -> bool {
        let (settings, lines) = (&self.queue.settings, self.batch.len());
        let whole = lines >= settings.batch && self.bytes >= settings.flush_limit;
        let half = self.bytes >= settings.drop_limit / 2 || lines >= self.queue.most.load(Relaxed) / 2;
        !self.batch.is_empty() && (whole || half)
    }

    /// Sends the batch, however long that takes; once the outlet is to end, one more round of tries long.
    async fn deliver(&mut self) {
        let mut pause = self.queue.settings.retry_delay;
        while !self.batch.is_empty() {
            // A round that was under way before may have had its tries.
            let last = self.ending.is_cancelled();
            match self.round().await {
                Ok(Round { refused: 0, halts: 0 }) => self.works(),
                // A new connection takes some lines whatever is behind it.
                Ok(Round { refused: 0, .. }) => {}
                Ok(Round { refused, .. }) => {
                    self.queue.lost.fetch_add(refused, Relaxed);
                    self.fails("nothing listens there, and what is sent is lost");
                }
                Err(why) => {
                    let limit = self.queue.settings.drop_limit;
                    self.fails(&format!("{why}; they wait for it, up to {limit} bytes (drop_limit)"));
                    if last {
                        return;
                    }
                    tokio::select! {
                        () = self.ending.cancelled() => {}
                        () = sleep(pause) => {}
                    }
                    pause = Settings::next_pause(pause);
                }
            }
        }
    }

    /// A few tries, and as many again after each that got some lines through.
    async fn round(&mut self) -> Result<Round, String> {
        let (mut tries, mut round) = (0, Round::default());
        loop {
            let before = self.batch.len();
            let Err(why) = self.attempt(&mut round).await else { return Ok(round) };
            self.connection = None;
            let took_some = self.batch.len() < before;
            round.halts += u64::from(took_some);
            tries = if took_some { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(why);
            }
            if round.halts > 1 {
                self.fails(&format!("{why}, again and again; what it took before may be lost with it"));
            }
            sleep(BETWEEN).await;
        }
    }

    async fn attempt(&mut self, round: &mut Round) -> Result<(), String> {
        let settings = self.queue.settings.clone();
        // Lines that are written to a server that has gone are taken, and lost.
        if let Some(connection) = &mut self.connection
            && (connection.is_old() || connection.is_closed().await)
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = Some(Connection::open(&settings, &self.way).await?);
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        while !self.batch.is_empty() {
            let Taken { lines, unfit, refused, outcome } =
                connection.send(&self.batch, settings.timeout).await;
            let counters = &self.way.node.lines;
            for line in self.batch.drain(..lines) {
                self.bytes -= line.len();
                self.queue.leaves(&line, counters);
            }
            counters.sent.add((lines - unfit) as u64);
            counters.failed.add(unfit as u64);
            self.queue.lost.fetch_add(unfit as u64, Relaxed);
            round.refused += refused;
            outcome?;
        }
        Ok(())
    }

    /// Tells of a server that has begun to fail.
    fn fails(&mut self, why: &str) {
        if self.failing {
            return;
        }
        self.failing = true;
        self.way.node.lines.failing.rise(1);
        tracing::warn!("the syslog server {} takes no lines: {why}", self.queue.settings);
    }

    /// Tells of a server that takes lines again, and of lines that came faster than it took them.
    fn works(&mut self) {
        let now = Instant::now();
        let lost = || self.queue.lost.swap(0, Relaxed);
        let server = &self.queue.settings;
        if self.failing {
            self.failing = false;
            self.way.node.lines.failing.fall(1);
            self.told = Some(now);
            tracing::info!("the syslog server {server} takes lines again; {} were lost", lost());
        } else if self.told.is_none_or(|told| now.duration_since(told) >= TELL)
            && self.queue.lost.load(Relaxed) > 0
        {
            self.told = Some(now);
            tracing::warn!(
                "{} lines for the syslog server {server} were lost: they came faster than it takes them, or are \
                 too long for it",
                lost()
            );
        }
    }
}

impl Drop for Outlet {
    /// What is left is lost.
    fn drop(&mut self) {
        let counters = &self.way.node.lines;
        if self.failing {
            counters.failing.fall(1);
        }
        self.lines.close();
        while let Ok(line) = self.lines.try_recv() {
            self.batch.push_back(line);
        }
        for line in &self.batch {
            self.queue.leaves(line, counters);
        }
        let left = self.batch.len() as u64;
        counters.failed.add(left);
        let lost = self.queue.lost.load(Relaxed) + left;
        if lost > 0 {
            tracing::warn!(
                "{lost} lines for the syslog server {} were lost: it did not take them before nobody sent there any \
                 more",
                self.queue.settings
            );
        }
    }
}

/// Waits until a server closes the connection that it has, or for ever.
async fn closed(connection: &mut Option<Connection>) {
    match connection {
        Some(connection) => connection.closed().await,
        None => pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
