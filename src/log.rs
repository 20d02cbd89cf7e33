//! What a node writes about itself: its event log, and a line for every session that did not end
//! normally.
//!
//! Nothing here can hold a session up. Outcomes arrive by a bounded channel; lines leave by another
//! to a thread that alone waits for the file; what does not fit is dropped and counted.

mod cap;
mod lines;

use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use self::cap::Cap;
pub use self::lines::{Flush, Lines};
use crate::session::{End, Outcome};
use crate::snapshot::Ended;

/// How lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// For a person at a terminal.
    Human {
        /// With colours.
        colours: bool,
    },
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The level is none.
    #[error("`{level}` is no log level; write error, warn, info, debug or trace")]
    Level {
        /// As given.
        level: Box<str>,
    },
    /// Something else has set up a log before.
    #[error("a log has already been set up in this process")]
    Again,
}

/// The log of the process. Dropped, it waits for lines that are on their way.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    _flush: Flush,
}

impl Log {
    /// From now on lines of this level and above are written.
    pub fn set_level(&self, level: &str) -> Result<(), InitError> {
        let filter = filter(level)?;
        // It fails only where the log itself is gone, and this value holds it.
        let _ = self.filter.reload(filter);
        Ok(())
    }
}

/// Sends the events of the whole process to standard error. What is dropped is counted in `dropped`.
pub fn init(format: Format, level: &str, dropped: Counter) -> Result<Log, InitError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let (lines, flush) = Lines::new(std::io::stderr(), dropped);
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Human { colours } => {
            registry.with(layer.with_ansi(colours).with_target(false).compact()).try_init()
        }
        Format::Json => registry.with(layer.json().flatten_event(true).with_ansi(false)).try_init(),
    }
    .map_err(|_| InitError::Again)?;
    Ok(Log { filter: handle, _flush: flush })
}

/// Libraries speak at their own debug level about every frame; they stay at warn unless a full
/// filter such as `debug,h2=debug` is given. That of TLS warns of what a client says, a line for each
/// client; the session log tells it too, and not without end.
fn filter(level: &str) -> Result<EnvFilter, InitError> {
    let wrong = || InitError::Level { level: level.into() };
    let known = matches!(level, "error" | "warn" | "info" | "debug" | "trace" | "off");
    let filter = if known && !matches!(level, "error" | "off") {
        EnvFilter::try_new(format!("warn,rustls=error,streamgate={level}"))
    } else if known || level.contains('=') {
        EnvFilter::try_new(level)
    } else {
        return Err(wrong());
    };
    filter.map_err(|_| wrong())
}

/// Writes a line for each outcome that is not normal, until the sending side is gone.
///
/// An ending that comes in masses has its first lines of each [`WINDOW`] written; how many there
/// were besides is told at the window's end.
pub async fn outcomes(mut outcomes: mpsc::Receiver<Arc<Ended>>) {
    let mut cap = Cap::new(LINES, WINDOW, Instant::now());
    loop {
        let outcome = tokio::select! {
            outcome = outcomes.recv() => outcome,
            () = tokio::time::sleep_until(cap.window_end()) => {
                suppressed(&mut cap);
                continue;
            }
        };
        let Some(ended) = outcome else { break };
        let outcome = &ended.outcome;
        if cap.window_end() <= Instant::now() {
            suppressed(&mut cap);
        }
        if !outcome.end.is_normal() && cap.admit(outcome.end) {
            write(outcome);
        }
    }
    suppressed(&mut cap);
}

/// In which the lines of one ending are counted.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one ending in a window.
pub const LINES: u32 = 50;

/// Quiet endings are told at `info`, all others at `warn`.
macro_rules! at_level_of {
    ($end:expr, $($fields:tt)*) => {
        if is_quiet($end) {
            tracing::info!(target: "streamgate::session", $($fields)*)
        } else {
            tracing::warn!(target: "streamgate::session", $($fields)*)
        }
    };
}

/// Reports whether an ending is the client's doing and nothing to look at. A handshake or a header that
/// failed is the client's doing too, but only its line says what is wrong with the client or with its
/// proxy; nginx tells of them as errors.
fn is_quiet(end: End) -> bool {
    matches!(end, End::ClientClosed | End::ClientReset | End::PrereadTimeout)
}

fn suppressed(cap: &mut Cap) {
    for (end, count) in cap.next_window(Instant::now()) {
        let (label, side) = (end.label(), end.side().label());
        at_level_of!(
            end,
            end = label,
            side,
            suppressed = count,
            "suppressed {count} lines of {label} in the last {} s",
            WINDOW.as_secs()
        );
    }
}

fn write(outcome: &Outcome) {
    let Outcome { inbound, end, traffic, .. } = outcome;
    let label = end.label();
    at_level_of!(
        *end,
        end = label,
        side = end.side().label(),
        route = outcome.route.as_deref(),
        upstream = outcome.upstream.as_deref(),
        node = outcome.node.as_deref(),
        client = %inbound.client,
        peer = inbound.brought.as_ref().and_then(|brought| brought.peer).map(tracing::field::display),
        server = %inbound.server,
        listen = &*outcome.listen,
        transport = inbound.transport.label(),
        sni = inbound.sni.as_deref(),
        bytes_received = traffic.received,
        bytes_sent = traffic.sent,
        attempts = outcome.attempts,
        connect_ms = outcome.connect.map(milliseconds),
        duration_ms = milliseconds(outcome.duration),
        detail = outcome.detail.as_deref(),
        "{}",
        sentence(*end)
    );
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as fine as anybody reads.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// What an operator reads first.
fn sentence(end: End) -> &'static str {
    match end {
        End::ClientClosed => "the client closed the session",
        End::UpstreamClosed => "the upstream closed the session",
        End::ClientReset => "the client reset the connection",
        End::UpstreamReset => "the upstream reset the connection",
        End::IdleTimeout => "no byte moved for the idle timeout",
        End::HalfClosedTimeout => "one side had closed and no byte moved for the half-closed timeout",
        End::UpstreamTls => "TLS to the upstream lacks its client certificate or its CA",
        End::NoRoute => "no stream_route matches",
        End::UpstreamMissing => "the upstream of the route does not exist",
        End::ServiceMissing => "the service of the route does not exist",
        End::NoNode => "the upstream has no node that can be dialled",
        End::ConnectFailed => "no node could be reached",
        End::RetryDeadline => "retry_timeout passed before a node was reached",
        End::NodeDown => "its node went down or left the upstream (close_on_down)",
        End::PluginDenied => "a plugin refused the session",
        End::TlsNoSni => "the client sent no server name and there is no fallback_sni",
        End::TlsNoCertificate => "no certificate is configured for the server name",
        End::TlsFailed => "the TLS handshake with the client failed",
        End::ProxyHeader => "the PROXY header is missing or malformed",
        End::PrereadTimeout => "the first bytes of the client did not come",
        End::PrereadOverflow => "the first bytes of the client are more than fit the buffer",
        End::Limit => "a limit of the process was reached",
        End::Drained => "the node stopped before the session ended",
        End::Internal => "the system refused what should have worked",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::session::{Inbound, Traffic, Transport};

    fn ended(end: End) -> Arc<Ended> {
        Arc::new(Ended { outcome: outcome(end), route: None })
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
        let subscriber = tracing_subscriber::registry().with(filter("info").unwrap()).with(layer);
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
        let lines = logged(outcomes(receiver)).await;
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
        let lines = logged(outcomes(receiver)).await;
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
            tokio::join!(outcomes(receiver), feed);
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

    #[track_caller]
    fn check_level(level: &str, good: bool) {
        assert_eq!(filter(level).is_ok(), good, "{level}");
    }

    #[test]
    fn levels_are_words_or_filters() {
        check_level("warn", true);
        check_level("debug", true);
        check_level("debug,h2=trace", true);
        check_level("loud", false);
        check_level("", false);
        assert!(filter("loud").unwrap_err().to_string().contains("`loud`"));
    }
}
