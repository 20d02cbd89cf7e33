//! Which sessions the session log tells of, and where.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use super::cap::Cap;
use super::story::{Event, Story, suppressed};
use crate::live::logs::{Block, Outlet, Settings, Which};
use crate::session::Host;
use crate::snapshot::Ended;

/// In which the lines of one ending are counted.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one ending in a window.
pub const LINES: u32 = 50;
/// Bytes of lines that are gathered for a file while more sessions wait to be told of.
const BLOCK: usize = 16 * 1024;

/// What the session log hears of.
#[derive(Debug)]
pub struct Heard {
    /// Sessions that are over.
    pub ended: Receiver<Arc<Ended>>,
    /// Sessions that last.
    pub lasting: Receiver<Arc<Ended>>,
    /// What is to be told of them.
    pub settings: Arc<ArcSwap<Settings>>,
    /// This process.
    pub host: Arc<Host>,
}

/// Writes the lines of sessions, until nobody is left that could end one.
///
/// Of abnormal endings that come in masses the first of each [`WINDOW`] are written; how many there were
/// besides is told at the window's end. Where all sessions are asked for, all are written.
pub async fn outcomes(mut heard: Heard) {
    let mut page = Page { cap: Cap::new(LINES, WINDOW, Instant::now()), block: Block::default(), to: None };
    loop {
        let (event, told) = tokio::select! {
            biased;
            told = heard.ended.recv() => (Event::End, told),
            Some(told) = heard.lasting.recv() => (Event::Open, Some(told)),
            () = tokio::time::sleep_until(page.cap.window_end()) => {
                page.turn();
                continue;
            }
        };
        let Some(told) = told else { break };
        page.tell(&heard, event, &told);
        // What waits already goes into the same block.
        while let Ok(told) = heard.ended.try_recv() {
            page.tell(&heard, Event::End, &told);
        }
        page.flush();
    }
    page.turn();
}

/// What is being written.
struct Page {
    cap: Cap,
    block: Block,
    /// The file that the block is for.
    to: Option<Outlet>,
}

impl Page {
    fn tell(&mut self, heard: &Heard, event: Event, ended: &Ended) {
        if self.cap.window_end() <= Instant::now() {
            self.turn();
        }
        let settings = heard.settings.load();
        let end = ended.outcome.end;
        let wanted = event == Event::Open
            || match settings.sessions.which {
                Which::None => false,
                Which::Abnormal => !end.is_normal() && self.cap.admit(end),
                Which::All => true,
            };
        if !wanted {
            return;
        }
        let story = Story { event, ended, host: &heard.host };
        match &settings.sessions.to {
            None => story.log(),
            Some(to) => {
                story.write(&mut self.block.bytes);
                self.block.lines += 1;
                self.to = Some(to.clone());
                if self.block.bytes.len() > BLOCK {
                    self.flush();
                }
            }
        }
    }

    /// Begins the next window.
    fn turn(&mut self) {
        for (end, count) in self.cap.next_window(Instant::now()) {
            suppressed(end, count, WINDOW);
        }
    }

    fn flush(&mut self) {
        if let Some(to) = self.to.take() {
            to.write(std::mem::take(&mut self.block));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use tokio::sync::mpsc;

    use super::*;
    use crate::live::logs::Sessions;
    use crate::session::{Course, End, Inbound, Outcome, Traffic, Transport};

    fn ended(end: End) -> Arc<Ended> {
        Arc::new(Ended { outcome: outcome(end), route: None })
    }

    fn heard(ended: Receiver<Arc<Ended>>, sessions: Sessions) -> Heard {
        let settings = Settings { sessions, ..Settings::default() };
        let (_, lasting) = mpsc::channel(1);
        Heard { ended, lasting, settings: Arc::new(ArcSwap::from_pointee(settings)), host: Arc::default() }
    }

    fn outcome(end: End) -> Outcome {
        let (client, server) = ("10.0.0.1:5000".parse().unwrap(), "10.0.0.2:9100".parse().unwrap());
        Outcome {
            inbound: Inbound::new(Transport::Tcp, client, server),
            listen: "9100".into(),
            listen_addr: "0.0.0.0:9100".into(),
            apisix_label: None,
            denied: None,
            route: Some("r1".into()),
            upstream: Some("u1".into()),
            node: Some("10.1.0.1:80".into()),
            end,
            detail: Some("connection refused".into()),
            traffic: Traffic { received: 3, sent: 4 },
            attempts: 2,
            connect: None,
            duration: Duration::from_micros(1_500),
            course: Course::default(),
        }
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Memory {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The lines that a log at info has after `run`.
    async fn logged(run: impl Future<Output = ()>) -> Vec<serde_json::Value> {
        let memory = Memory::default();
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(memory.clone());
        let subscriber = tracing_subscriber::registry().with(EnvFilter::new("info")).with(layer);
        let guard = tracing::subscriber::set_default(subscriber);
        run.await;
        drop(guard);
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_names_everything() {
        let (sender, receiver) = mpsc::channel(8);
        sender.try_send(ended(End::ConnectFailed)).unwrap();
        drop(sender);
        let lines = logged(outcomes(heard(receiver, Sessions::default()))).await;
        let [line] = &*lines else { panic!("{lines:?}") };
        let expected = [
            ("level", "WARN".into()),
            ("message", "no node could be reached".into()),
            ("end", "connect_failed".into()),
            ("side", "upstream".into()),
            ("route", "r1".into()),
            ("upstream", "u1".into()),
            ("node", "10.1.0.1:80".into()),
            ("client", "10.0.0.1:5000".into()),
            ("server", "10.0.0.2:9100".into()),
            ("listen", "9100".into()),
            ("transport", "tcp".into()),
            ("bytes_received", 3.into()),
            ("bytes_sent", 4.into()),
            ("attempts", 2.into()),
            ("duration_ms", serde_json::json!(1.5)),
            ("detail", "connection refused".into()),
        ];
        for (field, value) in expected {
            assert_eq!(line[field], value, "{field} of {line}");
        }
        assert!(line.get("connect_ms").is_none() && line.get("sni").is_none(), "{line}");
    }

    #[tokio::test(start_paused = true)]
    async fn normal_endings_are_silent_and_quiet_ones_at_info() {
        let (sender, receiver) = mpsc::channel(64);
        for end in End::ALL {
            sender.try_send(ended(*end)).unwrap();
        }
        drop(sender);
        let lines = logged(outcomes(heard(receiver, Sessions::default()))).await;
        let seen: Vec<&str> = lines.iter().map(|line| line["end"].as_str().unwrap()).collect();
        let expected: Vec<&str> =
            End::ALL.iter().filter(|end| !end.is_normal()).map(|end| end.label()).collect();
        assert_eq!(seen, expected);
        for line in &lines {
            let quiet = ["client_reset", "preread_timeout"].contains(&line["end"].as_str().unwrap());
            let level = if quiet { "INFO" } else { "WARN" };
            assert_eq!(line["level"], level, "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn masses_are_counted_instead_of_written() {
        let (sender, receiver) = mpsc::channel(256);
        let lines = logged(async {
            let feed = async move {
                for _ in 0..LINES + 70 {
                    sender.send(ended(End::NoRoute)).await.unwrap();
                }
                sender.send(ended(End::NoNode)).await.unwrap();
                tokio::time::sleep(WINDOW * 2).await;
                sender.send(ended(End::NoRoute)).await.unwrap();
            };
            tokio::join!(outcomes(heard(receiver, Sessions::default())), feed);
        })
        .await;
        let of = |end: &str| lines.iter().filter(|line| line["end"] == end && line["route"] == "r1").count();
        assert_eq!(of("no_route"), usize::try_from(LINES).unwrap() + 1);
        assert_eq!(of("no_node"), 1);
        let told: Vec<_> = lines.iter().filter_map(|line| line.get("suppressed")).collect();
        assert_eq!(told, [70]);
        let sentence = "suppressed 70 lines of no_route in the last 10 s";
        assert!(lines.iter().any(|line| line["message"] == sentence), "{lines:?}");
    }
}
