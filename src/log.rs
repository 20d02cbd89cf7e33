//! What a node writes about itself: its event log, and lines about sessions.
//!
//! Nothing here can hold a session up. What became of sessions arrives by a bounded channel; lines leave by
//! another to a thread that alone waits for the file; what does not fit is dropped and counted.
//!
//! - `lines`: the event log; `sessions`: which sessions have a line, `story`: what it says;
//!   `cap`: how many of one kind
//! - `writer`: a file that lines of sessions go to

mod cap;
mod lines;
mod sessions;
mod story;
mod writer;

use metrics::Counter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

pub use self::lines::{Flush, Lines};
pub use self::sessions::{Heard, LINES, WINDOW, outcomes};
pub use self::writer::{OpenError, Writer};

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

#[cfg(test)]
mod tests {
    use super::*;

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
