//! What a line of the session log says.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::session::{End, Host, Style};
use crate::snapshot::Ended;

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// A session ended.
    End,
    /// It lives on.
    Open,
}

/// A session with what happened to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Story<'a> {
    pub(super) event: Event,
    pub(super) ended: &'a Ended,
    pub(super) host: &'a Host,
}

/// Quiet endings are told at `info`, all others at `warn`.
macro_rules! at_level_of {
    ($quiet:expr, $($fields:tt)*) => {
        if $quiet {
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
    matches!(end, End::ClientClosed | End::UpstreamClosed | End::ClientReset | End::PrereadTimeout)
}

/// Tells of lines that were not written.
pub(super) fn suppressed(end: End, count: u64, window: Duration) {
    let (label, side) = (end.label(), end.side().label());
    at_level_of!(
        is_quiet(end),
        end = label,
        side,
        suppressed = count,
        "suppressed {count} lines of {label} in the last {} s",
        window.as_secs()
    );
}

/// Declares what a line says, once for the log of the process and once for a file. A field is absent where
/// its value is `None`.
macro_rules! fields {
    ($($field:ident: $value:expr,)*) => {
        impl Story<'_> {
            /// Writes it to the log of the process, whose form quotes and escapes what clients sent.
            pub(super) fn log(&self) {
                let quiet = self.event == Event::Open || is_quiet(self.ended.outcome.end);
                at_level_of!(quiet, $($field = $value(self),)* "{}", self.sentence());
            }

            /// Appends it as one JSON object.
            pub(super) fn write(&self, line: &mut Vec<u8>) {
                let mut object = Map::new();
                let time = self.host.moment(self.ended.outcome.course.ended, Style::Utc);
                object.insert("time".into(), time.to_string().into());
                object.insert("message".into(), self.sentence().into());
                $(if let Some(value) = $value(self) {
                    object.insert(stringify!($field).into(), json!(value));
                })*
                line.extend_from_slice(Value::Object(object).to_string().as_bytes());
                line.push(b'\n');
            }
        }

        /// Every field but `time` and `message`.
        #[cfg(test)]
        const FIELDS: &[&str] = &[$(stringify!($field),)*];
    };
}

fields! {
    event: (|story: &Story<'_>| Some(match story.event { Event::End => "end", Event::Open => "open" })),
    end: Story::end,
    side: Story::side,
    detail: (|story: &Story<'_>| story.ended.outcome.detail.as_deref().map(str::to_owned)),
    plugin: (|story: &Story<'_>| story.ended.outcome.denied.map(|denied| denied.plugin)),
    code: (|story: &Story<'_>| story.ended.outcome.denied.map(|denied| denied.code)),
    route: (|story: &Story<'_>| story.ended.outcome.route.as_deref().map(str::to_owned)),
    route_name: (|story: &Story<'_>| story.text("route_name")),
    service: (|story: &Story<'_>| story.text("service_id")),
    service_name: (|story: &Story<'_>| story.text("service_name")),
    upstream: (|story: &Story<'_>| story.text("upstream_id")),
    node: (|story: &Story<'_>| story.ended.outcome.node.as_deref().map(str::to_owned)),
    client: (|story: &Story<'_>| Some(story.ended.outcome.inbound.client.to_string())),
    peer: Story::peer,
    server: (|story: &Story<'_>| Some(story.ended.outcome.inbound.server.to_string())),
    listen: (|story: &Story<'_>| story.text("listen")),
    transport: (|story: &Story<'_>| Some(story.ended.outcome.inbound.transport.label())),
    sni: (|story: &Story<'_>| story.text("ssl_server_name")),
    alpn: (|story: &Story<'_>| story.text("alpn")),
    tls: (|story: &Story<'_>| story.text("ssl_protocol")),
    cipher: (|story: &Story<'_>| story.text("ssl_cipher")),
    mqtt_client_id: (|story: &Story<'_>| story.text("mqtt_client_id")),
    connection: (|story: &Story<'_>| Some(story.ended.outcome.course.serial)),
    bytes_received: (|story: &Story<'_>| Some(story.ended.outcome.traffic.received)),
    bytes_sent: (|story: &Story<'_>| Some(story.ended.outcome.traffic.sent)),
    attempts: (|story: &Story<'_>| Some(story.ended.outcome.attempts)),
    failed: Story::failed,
    connect_ms: (|story: &Story<'_>| story.ended.outcome.connect.map(milliseconds)),
    first_byte_ms: (|story: &Story<'_>| story.ended.outcome.course.first_byte.map(milliseconds)),
    duration_ms: (|story: &Story<'_>| Some(milliseconds(story.ended.outcome.duration))),
    client_rtt_ms: (|story: &Story<'_>| story.path(true).map(|path| milliseconds(path.rtt))),
    client_retransmits: (|story: &Story<'_>| story.path(true).map(|path| path.retransmits)),
    upstream_rtt_ms: (|story: &Story<'_>| story.path(false).map(|path| milliseconds(path.rtt))),
    upstream_retransmits: (|story: &Story<'_>| story.path(false).map(|path| path.retransmits)),
}

impl Story<'_> {
    fn end(&self) -> Option<&'static str> {
        (self.event == Event::End).then(|| self.ended.outcome.end.label())
    }

    fn side(&self) -> Option<&'static str> {
        (self.event == Event::End).then(|| self.ended.outcome.end.side().label())
    }

    /// A variable as a format shows it.
    fn text(&self, name: &str) -> Option<String> {
        self.ended.variable(name, self.host).map(|value| value.to_string())
    }

    fn peer(&self) -> Option<String> {
        let brought = self.ended.outcome.inbound.brought.as_ref()?;
        brought.peer.map(|peer| peer.to_string())
    }

    /// Attempts that failed: node, reason, time.
    fn failed(&self) -> Option<String> {
        let (mut text, failed) = (String::new(), &self.ended.outcome.course.failed);
        for attempt in failed {
            let (separator, reason) = (if text.is_empty() { "" } else { ", " }, attempt.failure.label());
            // Writing to a String cannot fail.
            let _ = write!(text, "{separator}{} {reason} {} ms", attempt.node, milliseconds(attempt.took));
        }
        (!text.is_empty()).then_some(text)
    }

    fn path(&self, client: bool) -> Option<crate::session::Path> {
        let measured = self.ended.outcome.course.measured.as_ref()?;
        if client { measured.client } else { measured.upstream }
    }

    fn sentence(&self) -> &'static str {
        match self.event {
            Event::End => sentence(self.ended.outcome.end),
            Event::Open => "the session lives on",
        }
    }
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
    use super::*;

    #[test]
    fn the_documentation_names_every_field() {
        let page = include_str!("../../docs/metrics.md");
        let page = page.split("## The session log").nth(1).unwrap();
        for field in FIELDS.iter().chain(&["time", "message"]) {
            assert!(page.contains(&format!("`{field}`")), "`{field}` is not in docs/metrics.md");
        }
    }
}
