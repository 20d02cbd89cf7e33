//! Lines on their way to a file that may block: a full pipe or a stopped terminal holds up one
//! thread here and nothing else.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use metrics::Counter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the file; more are dropped.
const WAITING: usize = 4096;
/// How long the last lines are waited for.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

enum Message {
    Line(Box<[u8]>),
    /// Answered by dropping it once all lines before it are written.
    Flush(#[expect(dead_code, reason = "held to be dropped")] std::sync::mpsc::Sender<()>),
}

/// Takes each event as one line and never blocks.
#[derive(Clone, Debug)]
pub struct Lines {
    sender: SyncSender<Message>,
    dropped: Counter,
}

/// Waits for lines that are on their way when dropped, a second at most.
#[derive(Debug)]
pub struct Flush(SyncSender<Message>);

impl Lines {
    /// Lines to `file`, written by a thread of their own. Those dropped are counted in `dropped`.
    pub fn new(file: impl Write + Send + 'static, dropped: Counter) -> (Self, Flush) {
        let (sender, receiver) = sync_channel(WAITING);
        // Where no thread can be had the receiver is gone, and each line counts as dropped.
        let _ = std::thread::Builder::new().name("log".into()).spawn(move || write_all(&receiver, file));
        (Self { sender: sender.clone(), dropped }, Flush(sender))
    }
}

impl Write for Lines {
    /// tracing-subscriber hands over one event a call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Message::Line(line.into())).is_err() {
            self.dropped.increment(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let (done, wait) = channel();
        // A queue that is full is not going to be written in a second either.
        if let Err(TrySendError::Disconnected(_) | TrySendError::Full(_)) =
            self.0.try_send(Message::Flush(done))
        {
            return;
        }
        let ended: Result<(), RecvTimeoutError> = wait.recv_timeout(FLUSH_TIMEOUT);
        // Disconnected is the answer; after a timeout nothing more can be done.
        let _ = ended;
    }
}

fn write_all(lines: &Receiver<Message>, mut file: impl Write) {
    while let Ok(message) = lines.recv() {
        if let Message::Line(line) = message {
            // A log that cannot be written has nowhere to say so.
            let _ = file.write_all(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// A file that blocks until its lock is free.
    #[derive(Clone, Default)]
    struct Gate(Arc<Mutex<Vec<u8>>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn counter() -> (Counter, impl Fn() -> String) {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let counter = metrics::with_local_recorder(&recorder, || metrics::counter!("dropped"));
        (counter, move || handle.render())
    }

    #[test]
    fn a_blocked_file_drops_lines_and_counts_them() {
        let gate = Gate::default();
        let (counter, page) = counter();
        let (mut lines, flush) = Lines::new(gate.clone(), counter);
        let closed = gate.0.lock().unwrap();
        for _ in 0..WAITING + 100 {
            lines.write_all(b"line\n").unwrap();
        }
        // The thread may have taken one line already, which it cannot write.
        assert!(page().contains("dropped 99\n") || page().contains("dropped 100\n"), "{}", page());
        drop(closed);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while gate.0.lock().unwrap().len() < WAITING * 5 && tokio::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        drop(flush);
        assert!(gate.0.lock().unwrap().len() >= WAITING * 5);
    }

    #[test]
    fn the_last_lines_are_waited_for() {
        let gate = Gate::default();
        let (mut lines, flush) = Lines::new(gate.clone(), Counter::noop());
        for _ in 0..1000 {
            lines.write_all(b"x").unwrap();
        }
        drop(flush);
        assert_eq!(gate.0.lock().unwrap().len(), 1000);
    }
}
