//! `syslog`: a line to a syslog server at the end of each session.
//!
//! Here is what the line says and what a configuration asks for; `crate::report` sends it. The line is
//! APISIX's, byte for byte: collectors key on it (`apisix/utils/rfc5424.lua:88`).

mod format;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

pub use self::format::Format;
use super::{Ground, Stage};
use crate::addr::Host;

/// What each line begins with: facility syslog, severity informational, version 1 of the protocol.
const PRIORITY_AND_VERSION: &str = "<46>1 ";
/// No pause between tries is longer, whatever `retry_delay` says.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// A configuration of `syslog`.
#[derive(Debug)]
pub struct Syslog {
    /// Where its lines go. Equal ones share a connection.
    pub settings: Arc<Settings>,
    /// `log_format`; none: that of the plugin's metadata.
    pub format: Option<Format>,
}

/// Where lines go and how they are gathered on the way: all of a configuration but its `log_format`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Settings {
    /// `host`.
    pub host: Host,
    /// `port`.
    pub port: u16,
    /// `sock_type` and `tls`.
    pub way: Way,
    /// `timeout`: to connect, and for a server to take anything.
    pub timeout: Duration,
    /// `batch_max_size`: lines that make a batch.
    pub batch: usize,
    /// `flush_limit`: bytes that a batch has to have as well.
    pub flush_limit: usize,
    /// `inactive_timeout`: a batch is sent when no line came for so long.
    pub inactive: Duration,
    /// `buffer_duration`: no line waits longer for its batch.
    pub longest: Duration,
    /// `drop_limit`: bytes that may wait; lines above it are lost.
    pub drop_limit: usize,
    /// `retry_delay`: the pause before the next tries where some have failed, at first.
    pub retry_delay: Duration,
}

/// How lines travel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Way {
    /// One after the other on a connection.
    Tcp,
    /// The same inside TLS.
    Tls {
        /// `ssl_verify`: the server has to show a certificate of a known authority.
        verify: bool,
    },
    /// Each in a datagram of its own.
    Udp,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Tcp => "tcp",
            Way::Tls { .. } => "tls",
            Way::Udp => "udp",
        };
        write!(f, "{way}://{}:{}", self.host, self.port)
    }
}

impl Stage for Syslog {
    const NAME: &'static str = "syslog";
    const PRIORITY: i32 = 401;
    const REPORTS: bool = true;

    fn compile(conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        // One that the schema cannot have seen is as if it was not written.
        let format = conf.get("log_format").and_then(Format::new);
        Ok(Self { settings: Arc::new(Settings::new(conf)?), format })
    }
}

impl Settings {
    fn new(conf: &Value) -> Result<Self, String> {
        let host = conf.get("host").and_then(Value::as_str).unwrap_or_default();
        if host.is_empty() {
            return Err("host is empty; write the name or address of the syslog server".into());
        }
        let written = whole(conf, "port");
        let Some(port) = written.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0) else {
            let port = conf.get("port").unwrap_or(&Value::Null);
            return Err(format!("port is {port}; a port from 1 to 65535 is allowed"));
        };
        let size = |name, default| amount(conf, name, default).try_into().unwrap_or(usize::MAX);
        let seconds = |name, default| Duration::from_secs(amount(conf, name, default));
        Ok(Self {
            host: Host::parse(host),
            port,
            way: Way::new(conf)?,
            timeout: Duration::from_millis(amount(conf, "timeout", 3000)),
            batch: size("batch_max_size", 1000),
            flush_limit: size("flush_limit", 4096),
            inactive: seconds("inactive_timeout", 5),
            longest: seconds("buffer_duration", 60),
            drop_limit: size("drop_limit", 1_048_576),
            retry_delay: seconds("retry_delay", 1).min(LONGEST_DELAY),
        })
    }

    /// The pause after one of `pause`, while a server does not come back.
    #[must_use]
    pub fn next_pause(pause: Duration) -> Duration {
        (pause * 2).clamp(Duration::from_secs(1), LONGEST_DELAY)
    }
}

impl Way {
    fn new(conf: &Value) -> Result<Self, String> {
        let is = |name| conf.get(name) == Some(&Value::Bool(true));
        match (conf.get("sock_type").and_then(Value::as_str), is("tls")) {
            (Some("udp"), false) => Ok(Self::Udp),
            // APISIX would send in clear what is not meant to be.
            (Some("udp"), true) => {
                Err("tls goes with sock_type tcp alone; datagrams are not encrypted here".into())
            }
            (_, true) => Ok(Self::Tls { verify: is("ssl_verify") }),
            (_, false) => Ok(Self::Tcp),
        }
    }
}

/// A member that is a whole number, however it is written: JSON Schema takes 514.0, too.
fn whole(conf: &Value, name: &str) -> Option<i64> {
    let number = conf.get(name)?;
    #[expect(clippy::cast_possible_truncation, reason = "what is no whole number is not taken")]
    let of_float = |number: f64| (number.fract() == 0.0).then_some(number as i64);
    number.as_i64().or_else(|| number.as_f64().and_then(of_float))
}

/// A member that counts something; below zero it is none of it.
fn amount(conf: &Value, name: &str, default: u64) -> u64 {
    whole(conf, name).map_or(default, |value| u64::try_from(value).unwrap_or_default())
}

/// What the metadata of the plugin says: `plugin_metadata/syslog`.
#[derive(Debug, Default)]
pub struct Metadata {
    /// `log_format`, for configurations that have none.
    pub format: Option<Format>,
    /// `max_pending_entries`: lines of all servers that may wait; those above it are lost.
    pub pending: Option<usize>,
    /// Sentences about members that cannot be used.
    pub problems: Vec<String>,
}

impl Metadata {
    /// Reads it. As in APISIX nothing is refused when it is written (`apisix/plugin.lua:1226`), so what makes
    /// no sense is passed over here.
    #[must_use]
    pub fn new(value: &Value) -> Self {
        let mut read = Self::default();
        if let Some(format) = value.get("log_format") {
            // APISIX takes an empty one for none (`apisix/utils/log-util.lua:305`).
            read.format = Format::new(format).filter(|format| !format.is_empty());
            if read.format.is_none() && !format.is_object() {
                read.problems.push(format!("log_format is {format}; an object is allowed"));
            }
        }
        if let Some(written) = value.get("max_pending_entries") {
            let pending = whole(value, "max_pending_entries").filter(|pending| *pending > 0);
            read.pending = pending.and_then(|pending| usize::try_from(pending).ok());
            if read.pending.is_none() {
                read.problems.push(format!("max_pending_entries is {written}; a number above 0 is allowed"));
            }
        }
        read
    }
}

/// Appends what stands before the JSON of a line. `time` is RFC 3339 in UTC with milliseconds. There is no
/// host name: APISIX writes `$host`, which no stream has.
pub fn header(out: &mut String, time: &str, pid: u32) {
    // Writing to a String cannot fail.
    let _ = fmt::Write::write_fmt(out, format_args!("{PRIORITY_AND_VERSION}{time} - apisix {pid} - - "));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refused(conf: &Value, words: &str) {
        let why = Settings::new(conf).unwrap_err();
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn what_cannot_be_sent_to_is_refused_by_name() {
        refused(&json!({"host": "", "port": 514}), "host is empty");
        refused(&json!({"host": "a", "port": 0}), "port is 0; a port from 1 to 65535");
        refused(&json!({"host": "a", "port": 65_536}), "port is 65536");
        refused(&json!({"host": "a", "port": -1}), "port is -1");
        refused(&json!({"host": "a", "port": 514, "sock_type": "udp", "tls": true}), "sock_type tcp alone");
    }

    #[track_caller]
    fn goes(conf: &Value, shown: &str, way: Way) {
        let settings = Settings::new(conf).unwrap();
        assert_eq!((settings.to_string(), settings.way), (shown.to_owned(), way));
    }

    #[test]
    fn servers_are_names_and_addresses() {
        goes(&json!({"host": "log.test", "port": 514.0}), "tcp://log.test:514", Way::Tcp);
        goes(&json!({"host": "::1", "port": 514, "sock_type": "udp"}), "udp://[::1]:514", Way::Udp);
        let conf = json!({"host": "[::1]", "port": 6514, "tls": true});
        goes(&conf, "tls://[::1]:6514", Way::Tls { verify: false });
        let conf = json!({"host": "a", "port": 6514, "tls": true, "ssl_verify": true});
        goes(&conf, "tls://a:6514", Way::Tls { verify: true });
    }

    #[test]
    fn configurations_that_differ_in_their_format_alone_share_a_server() {
        let conf = |format: Value| json!({"host": "a", "port": 514, "log_format": format});
        let of = |conf: &Value| Settings::new(conf).unwrap();
        assert_eq!(of(&conf(json!({"a": "1"}))), of(&conf(json!({"b": "2"}))));
        let other = json!({"host": "a", "port": 514, "drop_limit": 1});
        assert_ne!(of(&other), of(&conf(json!({}))));
    }

    #[track_caller]
    fn metadata(value: &Value, format: bool, pending: Option<usize>, problem: &str) {
        let read = Metadata::new(value);
        assert_eq!((read.format.is_some(), read.pending), (format, pending), "{read:?}");
        assert!(read.problems.join("\n").contains(problem), "{read:?}");
        assert_eq!(read.problems.is_empty(), problem.is_empty(), "{read:?}");
    }

    #[test]
    fn metadata_counts_in_parts() {
        metadata(&json!({"log_format": {"a": "$b"}, "max_pending_entries": 5}), true, Some(5), "");
        metadata(&json!({"log_format": {}}), false, None, "");
        metadata(
            &json!({"log_format": "x", "max_pending_entries": 5}),
            false,
            Some(5),
            "log_format is \"x\"",
        );
        metadata(
            &json!({"log_format": {"a": 1}, "max_pending_entries": 0}),
            true,
            None,
            "max_pending_entries",
        );
        metadata(&json!([]), false, None, "");
    }

    #[test]
    fn pauses_grow_to_half_a_minute() {
        let mut pause = Duration::ZERO;
        let pauses: Vec<u64> = std::iter::repeat_with(|| {
            pause = Settings::next_pause(pause);
            pause.as_secs()
        })
        .take(7)
        .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn the_header_is_that_of_apisix() {
        let mut line = String::new();
        header(&mut line, "2026-11-22T21:46:04.401Z", 13_346);
        assert_eq!(line, "<46>1 2026-11-22T21:46:04.401Z - apisix 13346 - - ");
    }
}
