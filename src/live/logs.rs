//! What is written of sessions, and the way there: workers fill blocks of lines and hand them to a
//! thread that alone waits for the file. No I/O, no clock.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use super::Counter;
use crate::session::End;
use crate::session::line::Format;

/// What is written of sessions; replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The access log.
    pub access: Option<Access>,
    /// The session log.
    pub sessions: Sessions,
}

/// A line for every session, in a format of nginx.
#[derive(Clone, Debug)]
pub struct Access {
    /// How it looks.
    pub format: Format,
    /// It shows what only the kernel knows of a connection.
    pub measured: bool,
    /// Where it goes.
    pub to: Outlet,
}

/// The session log: which sessions it tells of.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    /// Those that are over.
    pub which: Which,
    /// The share of normal endings, of [`Which::All`]; `None`: each.
    pub sample: Option<f64>,
    /// How often a session that still lives is told of.
    pub long: Option<Duration>,
    /// Its file; `None`: the log of the process.
    pub to: Option<Outlet>,
}

/// Sessions that a line is written of when they end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Which {
    /// None at all.
    None,
    /// Those that somebody may have to look at.
    #[default]
    Abnormal,
    /// All.
    All,
}

impl Sessions {
    /// Reports whether such an ending has a line; `skipped` is what sampling has left over so far.
    pub fn tells(&self, end: End, skipped: &mut f64) -> bool {
        match self.which {
            Which::None => false,
            _ if !end.is_normal() => true,
            Which::Abnormal => false,
            Which::All => {
                let Some(sample) = self.sample else { return true };
                // Shares add up to whole lines: exact, and no random number is needed.
                *skipped += sample;
                let told = *skipped >= 1.0;
                if told {
                    *skipped -= 1.0;
                }
                told
            }
        }
    }
}

/// What a writer is told.
#[derive(Debug)]
pub enum Message {
    /// Write these.
    Block(Block),
    /// Open the file anew: it may have been renamed. Answered by dropping it.
    Reopen(std::sync::mpsc::Sender<()>),
    /// Answered by dropping it once all before it is written.
    Flush(std::sync::mpsc::Sender<()>),
}

/// Whole lines.
#[derive(Debug, Default)]
pub struct Block {
    /// The lines, each with its end.
    pub bytes: Vec<u8>,
    /// How many they are.
    pub lines: u64,
}

/// The way to a file. Never waits: what its writer cannot take is lost, and counted.
#[derive(Clone, Debug)]
pub struct Outlet {
    to: SyncSender<Message>,
    lost: Arc<Counter>,
}

impl Outlet {
    /// One to the writer that receives from `to`.
    #[must_use]
    pub fn new(to: SyncSender<Message>, lost: Arc<Counter>) -> Self {
        Self { to, lost }
    }

    /// Hands lines on.
    pub fn write(&self, block: Block) {
        let lines = block.lines;
        if lines > 0 && self.to.try_send(Message::Block(block)).is_err() {
            self.lost.add(lines);
        }
    }

    /// Tells the writer something else; false where it has too much to do to be told now.
    #[must_use]
    pub fn tell(&self, message: Message) -> bool {
        // Where the writer has gone, nothing is left to wait for.
        !matches!(self.to.try_send(message), Err(TrySendError::Full(_)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[track_caller]
    fn check(sessions: &Sessions, end: End, told: usize) {
        let mut skipped = 0.0;
        let found = (0..100).filter(|_| sessions.tells(end, &mut skipped)).count();
        assert_eq!(found, told, "{sessions:?} of {end:?}");
    }

    #[test]
    fn sessions_are_told_of_as_asked() {
        let of = |which, sample| Sessions { which, sample, ..Sessions::default() };
        check(&of(Which::None, None), End::NoRoute, 0);
        check(&of(Which::Abnormal, None), End::NoRoute, 100);
        check(&of(Which::Abnormal, None), End::ClientClosed, 0);
        check(&of(Which::All, None), End::ClientClosed, 100);
        check(&of(Which::All, Some(0.25)), End::ClientClosed, 25);
        check(&of(Which::All, Some(0.0)), End::UpstreamClosed, 0);
        check(&of(Which::All, Some(0.25)), End::NoRoute, 100);
    }

    #[test]
    fn what_cannot_be_taken_is_counted() {
        let (sender, receiver) = sync_channel(1);
        let lost = Arc::<Counter>::default();
        let outlet = Outlet::new(sender, lost.clone());
        for lines in [3, 4, 0, 5] {
            outlet.write(Block { bytes: b"x\n".to_vec(), lines });
        }
        assert_eq!(lost.count(), 9);
        drop(receiver);
        outlet.write(Block { bytes: b"x\n".to_vec(), lines: 1 });
        assert_eq!(lost.count(), 10);
    }
}
