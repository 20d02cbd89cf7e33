//! One connection or UDP association: what is known of its client, and how it ended.
//!
//! Every session makes one [`Outcome`] with one [`End`]; the access log and the statistics are both
//! made from it, so they cannot disagree. Pure: no I/O, no clock.

mod brought;
mod connect_failure;
mod course;
mod host;
pub mod line;
mod moment;
mod names;
mod tls_failure;
mod value;
mod view;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use brought::{Brought, ClientCertificate, TlsFacts};
pub use connect_failure::ConnectFailure;
pub use course::{Attempt, Course, Measured, Path};
pub use host::{Host, Zone};
pub use moment::{Moment, Style, date};
pub use names::{Name, WITHOUT_VALUE};
pub use tls_failure::TlsFailure;
pub use value::{Attempts, Variable};
pub use view::{RouteFacts, View};

/// What carries the bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// A byte stream.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// The word of nginx's `$protocol` in lower case.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What is known of a client when its route is chosen.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// TCP or UDP.
    pub transport: Transport,
    /// The client, after a trusted PROXY header has been read (nginx's `$remote_addr`).
    pub client: SocketAddr,
    /// The local address of the accepted socket, never one of a PROXY header (`$server_addr`).
    pub server: SocketAddr,
    /// The server name of the TLS hello: lower case, no final dot. Absent on plain connections.
    pub sni: Option<Arc<str>>,
    /// The client identifier of an MQTT CONNECT, where a plugin read one that is not empty.
    pub mqtt_client_id: Option<Arc<str>>,
    /// What its first bytes said of it; absent on plain connections.
    pub brought: Option<Box<Brought>>,
}

impl Inbound {
    /// A session of which only the addresses are known.
    #[must_use]
    pub fn new(transport: Transport, client: SocketAddr, server: SocketAddr) -> Self {
        Self { transport, client, server, sni: None, mqtt_client_id: None, brought: None }
    }

    /// What its first bytes said, to be added to.
    pub fn brought(&mut self) -> &mut Brought {
        self.brought.get_or_insert_default()
    }

    /// The address whose route rules apply to the client.
    #[must_use]
    pub fn client_ip(&self) -> IpAddr {
        self.client.ip()
    }
}

/// Whose doing an ending was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The client's.
    Client,
    /// The upstream node's.
    Upstream,
    /// Ours: the configuration, a limit, a stop.
    Gateway,
}

impl Side {
    /// The label of metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Gateway => "gateway",
        }
    }
}

/// Declares [`End`] and the one table that maps each ending to its label, its side, nginx's
/// `$status` and the code of `apisix_stream_status`.
macro_rules! endings {
    ($($(#[$doc:meta])* $name:ident => ($label:literal, $side:ident, $status:literal, $code:literal),)*) => {
        /// How a session ended: a closed set.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        pub enum End { $($(#[$doc])* $name,)* }

        impl End {
            /// Every ending, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The fixed label of metrics and logs.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// Whose doing it was.
            #[must_use]
            pub fn side(self) -> Side {
                match self { $(Self::$name => Side::$side,)* }
            }

            /// nginx's `$status`, three digits (`001` is what APISIX's `ngx.exit(1)` leaves).
            #[must_use]
            pub fn nginx_status(self) -> &'static str {
                match self { $(Self::$name => $status,)* }
            }

            /// The `code` label of `apisix_stream_status` (`apisix/plugins/prometheus/exporter.lua:885`).
            #[must_use]
            pub fn apisix_code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

endings! {
    /// The client closed, all was delivered.
    ClientClosed => ("client_closed", Client, "200", "200"),
    /// The upstream closed, all was delivered.
    UpstreamClosed => ("upstream_closed", Upstream, "200", "200"),
    /// The client reset the connection.
    ClientReset => ("client_reset", Client, "200", "400"),
    /// The upstream reset the connection.
    UpstreamReset => ("upstream_reset", Upstream, "200", "502"),
    /// Neither side moved a byte for the idle timeout.
    IdleTimeout => ("idle_timeout", Gateway, "200", "502"),
    /// One side had closed and the other moved no byte for the half-closed timeout.
    HalfClosedTimeout => ("half_closed_timeout", Gateway, "200", "200"),
    /// What TLS to the upstream needs is missing: the client certificate it names, or a CA.
    UpstreamTls => ("upstream_tls", Gateway, "001", "001"),
    /// No stream_route matched.
    NoRoute => ("no_route", Gateway, "001", "500"),
    /// The route's upstream does not exist, or the route names none.
    UpstreamMissing => ("upstream_missing", Gateway, "001", "001"),
    /// The route's service does not exist.
    ServiceMissing => ("service_missing", Gateway, "404", "001"),
    /// The upstream has no node that can be dialled.
    NoNode => ("no_node", Gateway, "001", "001"),
    /// Every attempt to reach a node failed.
    ConnectFailed => ("connect_failed", Upstream, "502", "502"),
    /// `retry_timeout` passed before another attempt could begin.
    RetryDeadline => ("retry_deadline", Upstream, "502", "502"),
    /// Its node went down or left the upstream, whose sessions end then (`close_on_down`).
    NodeDown => ("node_down", Upstream, "200", "502"),
    /// A plugin refused the session.
    PluginDenied => ("plugin_denied", Gateway, "001", "500"),
    /// A TLS client sent no server name and no `fallback_sni` is set.
    TlsNoSni => ("tls_no_sni", Client, "500", "500"),
    /// No certificate is configured for the server name.
    TlsNoCertificate => ("tls_no_certificate", Gateway, "500", "500"),
    /// The TLS handshake with the client failed.
    TlsFailed => ("tls_failed", Client, "500", "500"),
    /// The PROXY protocol header was missing or malformed.
    ProxyHeader => ("proxy_header", Client, "400", "400"),
    /// The first bytes a plugin or the SNI reader waited for never came.
    PrereadTimeout => ("preread_timeout", Client, "200", "200"),
    /// More first bytes than fit the preread buffer.
    PrereadOverflow => ("preread_overflow", Client, "400", "400"),
    /// A limit on sessions or descriptors of the process was reached.
    Limit => ("limit", Gateway, "500", "500"),
    /// The gateway was stopping and its drain time was over.
    Drained => ("drained", Gateway, "200", "200"),
    /// The system refused what should have worked; the log has the error.
    Internal => ("internal", Gateway, "500", "500"),
}

impl End {
    /// How many endings there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The place in arrays of counters.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Reports whether an operator would call it normal: nobody has to look.
    #[must_use]
    pub fn is_normal(self) -> bool {
        matches!(self, Self::ClientClosed | Self::UpstreamClosed)
    }
}

/// Bytes moved by a session, seen from the client.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    /// From the client to the upstream.
    pub received: u64,
    /// From the upstream to the client.
    pub sent: u64,
}

/// Who refused a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Denied {
    /// The plugin.
    pub plugin: &'static str,
    /// What it refused with: 403, 503, … Only metrics and logs show it.
    pub code: u16,
}

/// One finished session.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The client and what it asked for.
    pub inbound: Inbound,
    /// The listen as written in config.yaml.
    pub listen: Arc<str>,
    /// The address of that listen with its port: the `listen_addr` label of `apisix_stream_status`.
    pub listen_addr: Arc<str>,
    /// The `route` label of the `apisix_stream_*` series: set where the route carries the prometheus
    /// plugin, and only then does the session count there.
    pub apisix_label: Option<Arc<str>>,
    /// Id of the matched stream_route.
    pub route: Option<Arc<str>>,
    /// Id of the upstream (for one written inside a route or service: that object's id).
    pub upstream: Option<Arc<str>>,
    /// `host:port` of the node last tried.
    pub node: Option<Arc<str>>,
    /// Why it ended.
    pub end: End,
    /// The plugin that refused it, where one did.
    pub denied: Option<Denied>,
    /// What the label alone does not say: the missing id, the plugin, the system's error.
    pub detail: Option<Box<str>>,
    /// Bytes both ways.
    pub traffic: Traffic,
    /// Attempts to reach a node.
    pub attempts: u32,
    /// Time to connect, of the attempt that worked.
    pub connect: Option<Duration>,
    /// From accept to close.
    pub duration: Duration,
    /// What only lines show.
    pub course: Course,
}

impl Outcome {
    /// That of a session that ended before anything was found out.
    #[must_use]
    pub fn of(inbound: Inbound, end: End) -> Self {
        Self {
            inbound,
            listen: Arc::default(),
            listen_addr: Arc::default(),
            apisix_label: None,
            route: None,
            upstream: None,
            node: None,
            end,
            denied: None,
            detail: None,
            traffic: Traffic::default(),
            attempts: 0,
            connect: None,
            duration: Duration::ZERO,
            course: Course::default(),
        }
    }

    /// The `code` label of `apisix_stream_status`. A plugin's own code is shown where it is one of
    /// nginx's five, else by its class (`apisix/plugins/prometheus/exporter.lua:265`).
    #[must_use]
    pub fn apisix_code(&self) -> &'static str {
        match self.denied.map(|denied| denied.code) {
            // An association has no other way to end, and nginx calls it fine.
            None if self.end == End::IdleTimeout && self.inbound.transport == Transport::Udp => "200",
            None => self.end.apisix_code(),
            Some(403) => "403",
            Some(502) => "502",
            Some(503) => "503",
            Some(400..500) => "400",
            Some(_) => "500",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_indexes_are_one_to_one() {
        for (index, end) in End::ALL.iter().enumerate() {
            assert_eq!(end.index(), index, "{}", end.label());
            assert_eq!(End::ALL.iter().filter(|other| other.label() == end.label()).count(), 1);
        }
    }
}
