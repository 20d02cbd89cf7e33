//! A file that lines go to: a thread of its own alone waits for it, so a slow disk delays nothing else.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::time::Instant;

use crate::live::Counter;
use crate::live::logs::{Block, Message, Outlet};

/// Blocks that wait for the file: 4 MiB of a busy access log. More are dropped.
const WAITING: usize = 256;
/// How often it is said that a file cannot be written.
const COMPLAINTS: Duration = Duration::from_mins(1);

/// A file that lines are appended to.
#[derive(Clone, Debug)]
pub struct Writer {
    path: PathBuf,
    outlet: Outlet,
    lost: Arc<Counter>,
}

/// Why a file cannot be appended to.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {}: {error}{}", path.display(), advice(error))]
pub struct OpenError {
    path: PathBuf,
    error: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; make the folder, it is not made for you",
        io::ErrorKind::PermissionDenied => "; let the user that streamgate runs as write there",
        _ => "",
    }
}

impl Writer {
    /// Opens a file and begins to write what comes. Lines that are lost are counted in `lost`.
    pub fn start(path: &Path, lost: &Arc<Counter>) -> Result<Self, OpenError> {
        let file = open(path)?;
        let (sender, receiver) = sync_channel(WAITING);
        let (end, counter) = (End::new(path, file), lost.clone());
        // Where no thread can be had the receiver is gone, and each line counts as lost.
        let _ =
            thread::Builder::new().name("lines".into()).spawn(move || write_all(&receiver, end, &counter));
        let outlet = Outlet::new(sender, lost.clone());
        Ok(Self { path: path.to_owned(), outlet, lost: lost.clone() })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where lines are handed in.
    #[must_use]
    pub fn outlet(&self) -> Outlet {
        self.outlet.clone()
    }

    /// How many lines were lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.count()
    }

    /// Opens the file anew once all that was handed in before is written. Waits for it, at most so long;
    /// false where that was not enough.
    #[must_use]
    pub fn reopen(&self, limit: Duration) -> bool {
        self.ask(Message::Reopen, limit)
    }

    /// Waits until all that was handed in is written, at most so long; false where that was not enough.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        self.ask(Message::Flush, limit)
    }

    fn ask(&self, message: fn(std::sync::mpsc::Sender<()>) -> Message, limit: Duration) -> bool {
        /// How soon it is tried again to get a word in.
        const AGAIN: Duration = Duration::from_millis(10);
        let until = Instant::now() + limit;
        loop {
            let (done, wait) = channel();
            if self.outlet.tell(message(done)) {
                let left = until.saturating_duration_since(Instant::now());
                return wait.recv_timeout(left) != Err(RecvTimeoutError::Timeout);
            }
            if Instant::now() + AGAIN > until {
                return false;
            }
            thread::sleep(AGAIN);
        }
    }
}

fn open(path: &Path) -> Result<File, OpenError> {
    // A FIFO that nobody reads would be waited for, for ever: so it is refused.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new().append(true).create(true).custom_flags(nonblocking).open(path);
    let blocking = |file: File| {
        let flags = fcntl_getfl(&file)?;
        fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
        Ok(file)
    };
    opened.and_then(blocking).map_err(|error| OpenError { path: path.to_owned(), error })
}

fn write_all(messages: &Receiver<Message>, mut end: End<File>, lost: &Counter) {
    while let Ok(message) = messages.recv() {
        match message {
            Message::Block(block) => lost.add(end.write(&block)),
            Message::Flush(done) => drop(done),
            Message::Reopen(done) => {
                match open(&end.path) {
                    Ok(file) => end = End::new(&end.path, file),
                    Err(error) => tracing::error!("{error}; lines go on to the file that was open before"),
                }
                drop(done);
            }
        }
    }
}

/// The end of a file.
#[derive(Debug)]
struct End<W> {
    path: PathBuf,
    file: W,
    /// A line was cut there: the disk was full in the middle of it.
    cut: bool,
    complained: Option<Instant>,
}

impl<W: Write> End<W> {
    fn new(path: &Path, file: W) -> Self {
        Self { path: path.to_owned(), file, cut: false, complained: None }
    }

    /// Writes lines; how many were lost. What follows a line that was cut begins on a new one.
    fn write(&mut self, block: &Block) -> u64 {
        let mut rest = &*block.bytes;
        let outcome = loop {
            if rest.is_empty() {
                return 0;
            }
            if self.cut {
                match self.file.write(b"\n") {
                    Ok(count) => self.cut = count == 0,
                    Err(error) => break error,
                }
            }
            match self.file.write(rest) {
                Ok(0) => break io::ErrorKind::WriteZero.into(),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        let written = block.bytes.len() - rest.len();
        let last = block.bytes.get(..written).and_then(|bytes| bytes.last());
        self.cut |= last.is_some_and(|byte| *byte != b'\n');
        if self.complained.is_none_or(|then| then.elapsed() > COMPLAINTS) {
            self.complained = Some(Instant::now());
            tracing::error!(
                "cannot write {}: {outcome}; lines of sessions are lost and counted",
                self.path.display()
            );
        }
        // Each line has its end, so what is behind the last one is empty.
        rest.split(|byte| *byte == b'\n').skip(1).fold(0, |count, _| count + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn block(lines: &[&str]) -> Block {
        Block { bytes: lines.concat().into_bytes(), lines: lines.len() as u64 }
    }

    #[test]
    fn lines_are_appended_and_a_renamed_file_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let [path, old] = ["lines", "lines.1"].map(|name| folder.path().join(name));
        fs::write(&path, "zero\n").unwrap();
        let lost = Arc::<Counter>::default();
        let writer = Writer::start(&path, &lost).unwrap();
        writer.outlet().write(block(&["one\n", "two\n"]));
        assert!(writer.flush(LIMIT));
        fs::rename(&path, &old).unwrap();
        writer.outlet().write(block(&["three\n"]));
        assert!(writer.reopen(LIMIT));
        writer.outlet().write(block(&["four\n"]));
        assert!(writer.flush(LIMIT));
        assert_eq!(fs::read_to_string(&old).unwrap(), "zero\none\ntwo\nthree\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(writer.reopen(LIMIT), "what was open before is kept");
        assert_eq!(lost.count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = Writer::start(Path::new("/nowhere/at/all.log"), &Arc::default()).unwrap_err();
        assert!(error.to_string().starts_with("cannot open /nowhere/at/all.log: No such file"), "{error}");
        assert!(error.to_string().ends_with("make the folder, it is not made for you"), "{error}");
    }

    #[test]
    fn a_fifo_without_a_reader_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = Writer::start(&path, &Arc::default()).unwrap_err().to_string();
        assert!(error.contains("fifo"), "{error}");
    }

    /// A disk with room for so many bytes.
    struct Disk(Vec<u8>, usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.1 - self.0.len());
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_cuts_one_line_and_counts_what_is_lost() {
        let mut end = End::new(Path::new("x"), Disk(Vec::new(), 10));
        assert_eq!(end.write(&block(&["1234\n", "5678901\n", "9\n"])), 2);
        assert_eq!(end.write(&block(&["0\n"])), 1);
        end.file.1 = 100;
        assert_eq!(end.write(&block(&["abc\n"])), 0);
        assert_eq!(String::from_utf8(end.file.0).unwrap(), "1234\n56789\nabc\n");
    }
}
