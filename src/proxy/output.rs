//! What a worker writes of its sessions: lines of the access log, gathered in a block that leaves when it
//! is full or a second old, and a line now and then for sessions that last.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, Cache};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::live::logs::{Block, Outlet, Settings};
use crate::proxy::Shared;
use crate::session::line::Stamp;
use crate::session::{End, Traffic};
use crate::snapshot::Ended;

/// Bytes of a block, as the `buffer` of APISIX's access log (`apisix/cli/config.lua`).
const BLOCK: usize = 16 * 1024;
/// A block with less room than that leaves, so that few lines make it grow.
const ROOM: usize = 1024;

/// What the workers share of it.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    /// What is written; may change.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Takes sessions that last; what it cannot take at once is counted and lost.
    pub lasting: Option<mpsc::Sender<Arc<Ended>>>,
}

/// One worker's part.
#[derive(Debug)]
pub(super) struct Output {
    lines: RefCell<Lines>,
    lasting: RefCell<BTreeMap<(Instant, u64), Rc<Lasting>>>,
    /// The number of the last session that was told of, in steps of as many as there are workers.
    serial: Cell<u64>,
    step: u64,
}

struct Lines {
    settings: Cache<Arc<ArcSwap<Settings>>, Arc<Settings>>,
    block: Block,
    /// Where the block goes.
    to: Option<Outlet>,
    /// The settings that the block and `to` are of.
    seen: Option<Arc<Settings>>,
    stamp: Stamp,
    /// What sampling has left over.
    skipped: f64,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("block", &self.block.lines).finish_non_exhaustive()
    }
}

/// What is told of a session that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// The session log has a line.
    pub(super) logged: bool,
    /// The access log has a line,
    pub(super) written: bool,
    /// and it shows what only the kernel knows of a connection.
    pub(super) measured: bool,
}

/// A session that is told of while it lives.
#[derive(Debug)]
pub(super) struct Lasting {
    /// As it would be told if it ended now, but for what follows.
    ended: Ended,
    started: Instant,
    due: Cell<Instant>,
    pub(super) traffic: Cell<Traffic>,
}

impl Output {
    /// That of a worker with this number among so many.
    pub(super) fn new(logs: &Logs, number: usize, count: usize) -> Self {
        let lines = Lines {
            settings: Cache::new(logs.settings.clone()),
            block: Block::default(),
            to: None,
            seen: None,
            stamp: Stamp::default(),
            skipped: 0.0,
        };
        Self {
            lines: RefCell::new(lines),
            lasting: RefCell::default(),
            serial: Cell::new(number as u64),
            step: count.max(1) as u64,
        }
    }

    /// A number that no other session of the process has.
    pub(super) fn next_serial(&self) -> u64 {
        let serial = self.serial.get();
        self.serial.set(serial + self.step);
        serial + 1
    }

    /// What is to be told of such an ending: asked once a session.
    pub(super) fn tells(&self, end: End) -> Told {
        let mut lines = self.lines.borrow_mut();
        let Lines { settings, skipped, .. } = &mut *lines;
        let settings = settings.load();
        let logged = settings.sessions.tells(end, skipped);
        match &settings.access {
            None => Told { logged, written: false, measured: false },
            Some(access) => Told { logged, written: true, measured: access.measured },
        }
    }

    /// Writes the line of a session that is over.
    pub(super) fn write(&self, ended: &Ended, shared: &Shared) {
        let mut lines = self.lines.borrow_mut();
        let lines = &mut *lines;
        lines.follow();
        let Some(access) = lines.seen.as_ref().and_then(|settings| settings.access.as_ref()) else { return };
        if lines.block.bytes.capacity() == 0 {
            lines.block.bytes.reserve_exact(BLOCK);
        }
        access.format.write(&ended.view(&shared.host), &mut lines.stamp, &mut lines.block.bytes);
        lines.block.lines += 1;
        if lines.block.bytes.len() > BLOCK - ROOM {
            lines.flush();
        }
    }

    /// Hands on what there is.
    pub(super) fn flush(&self) {
        let mut lines = self.lines.borrow_mut();
        lines.flush();
        // An outlet that is no more in force would keep its writer.
        lines.follow();
    }

    /// Tells of `ended` from time to time, until it is over.
    pub(super) fn watch(&self, ended: Ended, started: Instant) -> Option<Rc<Lasting>> {
        let long = self.lines.borrow_mut().settings.load().sessions.long?;
        let (due, traffic) = (started + long, Cell::new(ended.outcome.traffic));
        let serial = ended.outcome.course.serial;
        let lasting = Rc::new(Lasting { ended, started, due: Cell::new(due), traffic });
        self.lasting.borrow_mut().insert((due, serial), lasting.clone());
        Some(lasting)
    }

    /// Reports whether sessions are told of while they live.
    pub(super) fn watches(&self) -> bool {
        self.lines.borrow_mut().settings.load().sessions.long.is_some()
    }

    /// It is over, or its node changed.
    pub(super) fn forget(&self, lasting: &Lasting) {
        self.lasting.borrow_mut().remove(&(lasting.due.get(), lasting.ended.outcome.course.serial));
    }

    /// Tells of the sessions whose time has come.
    pub(super) fn tell_of_lasting(&self, shared: &Shared) {
        let long = self.lines.borrow_mut().settings.load().sessions.long;
        let (now, mut all) = (Instant::now(), self.lasting.borrow_mut());
        let Some(long) = long else { return all.clear() };
        while let Some(first) = all.first_entry().filter(|first| first.key().0 <= now) {
            let lasting = first.remove();
            let ended = Arc::new(lasting.told(now));
            if shared.logs.lasting.as_ref().is_none_or(|to| to.try_send(ended).is_err()) {
                shared.node.outcomes_dropped.add_one();
            }
            lasting.due.set(now + long);
            all.insert((now + long, lasting.ended.outcome.course.serial), lasting);
        }
    }
}

impl Lines {
    /// Begins a new block where the settings changed.
    fn follow(&mut self) {
        let settings = self.settings.load();
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, settings)) {
            return;
        }
        let settings = settings.clone();
        self.flush();
        self.to = settings.access.as_ref().map(|access| access.to.clone());
        self.seen = Some(settings);
    }

    fn flush(&mut self) {
        if let Some(to) = self.to.as_ref().filter(|_| self.block.lines > 0) {
            to.write(std::mem::take(&mut self.block));
        }
    }
}

impl Lasting {
    /// The number of its session.
    pub(super) fn serial(&self) -> u64 {
        self.ended.outcome.course.serial
    }

    fn told(&self, now: Instant) -> Ended {
        let mut ended = self.ended.clone();
        ended.outcome.traffic = self.traffic.get();
        ended.outcome.duration = now.duration_since(self.started);
        ended.outcome.course.ended = SystemTime::now();
        ended
    }
}

/// Those that are left when the worker ends.
impl Drop for Output {
    fn drop(&mut self) {
        self.flush();
    }
}
