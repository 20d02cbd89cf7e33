//! The one place that gives variables their values: while a session is decided about, and at its end.

use std::time::SystemTime;

use super::names::Source;
use super::value::{Attempts, Each};
use super::{Brought, Host, Inbound, Measured, Name, Outcome, Path, Transport, Variable};

/// The matched stream_route.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteFacts<'a> {
    /// `$route_id`.
    pub id: &'a str,
    /// `$route_name`.
    pub name: Option<&'a str>,
    /// `$service_id`.
    pub service: Option<&'a str>,
    /// `$service_name`.
    pub service_name: Option<&'a str>,
}

/// A session as variables show it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The client.
    pub inbound: &'a Inbound,
    /// Its route, where one matched.
    pub route: Option<RouteFacts<'a>>,
    /// What became of it, once it is over.
    pub outcome: Option<&'a Outcome>,
    /// This process.
    pub host: &'a Host,
    /// Now.
    pub time: SystemTime,
}

impl<'a> View<'a> {
    /// The value of a variable; `None` where the session has none.
    #[must_use]
    pub fn value(&self, name: Name) -> Option<Variable<'a>> {
        match name.source() {
            Source::Client => self.inbound.value(name),
            Source::Route => self.route?.value(name),
            Source::Outcome => self.outcome?.value(name),
            Source::Host => self.host.value(name, self.time),
        }
    }

    /// The same by its name, without its `$`.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<Variable<'a>> {
        self.value(Name::parse(name)?)
    }
}

impl<'a> RouteFacts<'a> {
    /// The value of a variable about the route.
    #[must_use]
    pub fn value(&self, name: Name) -> Option<Variable<'a>> {
        match name {
            Name::RouteId => Some(Variable::Text(self.id)),
            Name::RouteName => self.name.map(Variable::Text),
            Name::ServiceId => self.service.map(Variable::Text),
            Name::ServiceName => self.service_name.map(Variable::Text),
            _ => None,
        }
    }
}

impl Inbound {
    /// The value of a variable about the client.
    #[must_use]
    pub fn value(&self, name: Name) -> Option<Variable<'_>> {
        Some(match name {
            Name::RemoteAddr => Variable::Ip(self.client.ip()),
            Name::BinaryRemoteAddr => Variable::Binary(self.client.ip()),
            Name::RemotePort => Variable::Port(self.client.port()),
            Name::RealipRemoteAddr => Variable::Ip(self.peer().ip()),
            Name::RealipRemotePort => Variable::Port(self.peer().port()),
            Name::ServerAddr => Variable::Ip(self.server.ip()),
            Name::ServerPort => Variable::Port(self.server.port()),
            Name::Protocol if self.transport == Transport::Tcp => Variable::Word("TCP"),
            Name::Protocol => Variable::Word("UDP"),
            Name::SslServerName | Name::SslPrereadServerName => Variable::Text(self.sni.as_deref()?),
            Name::MqttClientId => Variable::Text(self.mqtt_client_id.as_deref()?),
            _ => return self.brought.as_ref()?.value(name),
        })
    }

    /// The value of a variable that formats, hash keys and filters may name, without its `$`.
    /// `None` where the client has no such value.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<Variable<'_>> {
        self.value(Name::parse(name)?)
    }

    /// Who the connection comes from: the client, or what named it in a PROXY header.
    fn peer(&self) -> std::net::SocketAddr {
        self.brought.as_ref().and_then(|brought| brought.peer).unwrap_or(self.client)
    }
}

impl Brought {
    /// The value of a variable about the first bytes (`ngx_stream_variables.c`,
    /// `ngx_stream_ssl_module.c`).
    pub(super) fn value(&self, name: Name) -> Option<Variable<'_>> {
        let text = |bytes| std::str::from_utf8(bytes).ok().map(Variable::Text);
        let certificate = || self.certificate.as_deref();
        Some(match name {
            Name::ProxyProtocolAddr => Variable::Ip(self.proxy?.0.ip()),
            Name::ProxyProtocolPort => Variable::Port(self.proxy?.0.port()),
            Name::ProxyProtocolServerAddr => Variable::Ip(self.proxy?.1.ip()),
            Name::ProxyProtocolServerPort => Variable::Port(self.proxy?.1.port()),
            Name::Tlv(kind) => text(self.tlv(kind)?)?,
            Name::TlvSsl(kind) => text(self.tls_tlv(kind)?)?,
            Name::TlvSslVerify => Variable::Number(self.tls_tlv_verify()?.into()),
            Name::SslProtocol => Variable::Text(self.tls?.protocol),
            Name::SslCipher => Variable::Text(self.tls?.suite),
            Name::SslSessionReused => Variable::Text(if self.tls?.resumed { "r" } else { "." }),
            Name::SslClientVerify => {
                self.tls?;
                Variable::Text(if self.certificate.is_some() { "SUCCESS" } else { "NONE" })
            }
            Name::SslClientSubject => Variable::Text(&certificate()?.subject),
            Name::SslClientIssuer => Variable::Text(&certificate()?.issuer),
            Name::SslClientSerial => Variable::Text(&certificate()?.serial),
            Name::SslClientFingerprint => Variable::Text(&certificate()?.fingerprint),
            Name::Alpn | Name::SslPrereadAlpnProtocols => text(self.alpn.as_deref()?)?,
            _ => return None,
        })
    }
}

impl Outcome {
    /// The value of a variable about the way the session went.
    #[must_use]
    pub fn value(&self, name: Name) -> Option<Variable<'_>> {
        let list = |each| Attempts::new(self, each).map(Variable::Attempts);
        let path = |pick: fn(&Measured) -> Option<Path>| self.course.measured.as_deref().and_then(pick);
        let micros = |path: Path| u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX);
        Some(match name {
            Name::BytesReceived => Variable::Number(self.traffic.received),
            Name::BytesSent => Variable::Number(self.traffic.sent),
            Name::Connection => Variable::Number(self.course.serial),
            Name::SessionTime => Variable::Seconds(self.duration),
            Name::Status => Variable::Word(self.end.nginx_status()),
            Name::UpstreamAddr => list(Each::Addr)?,
            Name::UpstreamBytesReceived => list(Each::Received)?,
            Name::UpstreamBytesSent => list(Each::Sent)?,
            Name::UpstreamConnectTime => list(Each::Connect)?,
            Name::UpstreamFirstByteTime => list(Each::FirstByte)?,
            Name::UpstreamSessionTime => list(Each::Session)?,
            Name::BalancerIp => Variable::Text(split(self.node.as_deref()?).0),
            Name::BalancerPort => Variable::Text(split(self.node.as_deref()?).1),
            Name::UpstreamId => Variable::Text(self.upstream.as_deref()?),
            Name::Attempts => Variable::Number(self.attempts.into()),
            Name::Detail => Variable::Text(self.detail.as_deref()?),
            Name::End => Variable::Word(self.end.label()),
            Name::Side => Variable::Word(self.end.side().label()),
            Name::Listen => Variable::Text(&self.listen),
            Name::ListenAddr => Variable::Text(&self.listen_addr),
            Name::Plugin => Variable::Text(self.denied?.plugin),
            Name::PluginCode => Variable::Number(self.denied?.code.into()),
            Name::ClientRtt => Variable::Number(micros(path(|it| it.client)?)),
            Name::ClientRetransmits => Variable::Number(path(|it| it.client)?.retransmits.into()),
            Name::UpstreamRtt => Variable::Number(micros(path(|it| it.upstream)?)),
            Name::UpstreamRetransmits => Variable::Number(path(|it| it.upstream)?.retransmits.into()),
            _ => return None,
        })
    }
}

/// Host and port of a node's label.
fn split(label: &str) -> (&str, &str) {
    let (host, port) = label.rsplit_once(':').unwrap_or((label, ""));
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::session::{Attempt, ConnectFailure, Course, End, Traffic};

    fn outcome() -> Outcome {
        let course = Course {
            serial: 7,
            attempted: Duration::from_millis(500),
            first_byte: Some(Duration::from_millis(4)),
            failed: [Attempt {
                node: "10.0.0.1:80".into(),
                failure: ConnectFailure::TimedOut,
                took: Duration::from_millis(500),
            }]
            .into(),
            ..Course::default()
        };
        Outcome {
            node: Some("[::1]:81".into()),
            end: End::ClientClosed,
            attempts: 2,
            connect: Some(Duration::from_micros(1_900)),
            traffic: Traffic { received: 5, sent: 11 },
            duration: Duration::from_millis(2_584),
            course,
            ..Outcome::of(
                Inbound::new(Transport::Tcp, "10.0.0.1:5000".parse().unwrap(), "[::1]:9100".parse().unwrap()),
                End::ClientClosed,
            )
        }
    }

    #[track_caller]
    fn check(outcome: &Outcome, name: &str, expected: Option<&str>) {
        let host = Host { hostname: "gw1".into(), pid: 42, ..Host::default() };
        let route = Some(RouteFacts { id: "r1", name: Some("web"), ..RouteFacts::default() });
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_078);
        let view = View { inbound: &outcome.inbound, route, outcome: Some(outcome), host: &host, time };
        assert_eq!(view.variable(name).map(|value| value.to_string()).as_deref(), expected, "{name}");
    }

    #[test]
    fn every_kind_of_variable_has_its_value() {
        let over = outcome();
        for (name, expected) in [
            ("remote_addr", Some("10.0.0.1")),
            ("remote_port", Some("5000")),
            ("realip_remote_addr", Some("10.0.0.1")),
            ("binary_remote_addr", Some("\u{a}\0\0\u{1}")),
            ("server_addr", Some("::1")),
            ("protocol", Some("TCP")),
            ("bytes_received", Some("5")),
            ("bytes_sent", Some("11")),
            ("connection", Some("7")),
            ("session_time", Some("2.584")),
            ("status", Some("200")),
            ("hostname", Some("gw1")),
            ("pid", Some("42")),
            ("msec", Some("1700000000.078")),
            ("time_local", Some("14/Nov/2023:22:13:20 +0000")),
            ("time_iso8601", Some("2023-11-14T22:13:20+00:00")),
            ("route_id", Some("r1")),
            ("route_name", Some("web")),
            ("service_id", None),
            ("end", Some("client_closed")),
            ("side", Some("client")),
            ("ssl_server_name", None),
            ("ssl_client_verify", None),
            ("mqtt_client_id", None),
            ("plugin", None),
            ("uri", None),
        ] {
            check(&over, name, expected);
        }
    }

    #[test]
    fn what_is_upstream_is_told_of_each_attempt() {
        let over = outcome();
        check(&over, "upstream_addr", Some("10.0.0.1:80, [::1]:81"));
        check(&over, "upstream_connect_time", Some("-, 0.001"));
        check(&over, "upstream_first_byte_time", Some("-, 0.004"));
        check(&over, "upstream_session_time", Some("0.500, 2.084"));
        check(&over, "upstream_bytes_received", Some("0, 11"));
        check(&over, "upstream_bytes_sent", Some("0, 5"));
        check(&over, "balancer_ip", Some("::1"));
        check(&over, "balancer_port", Some("81"));
        let failed = Outcome { attempts: 1, node: Some("10.0.0.1:80".into()), ..outcome() };
        check(&failed, "upstream_addr", Some("10.0.0.1:80"));
        check(&failed, "upstream_connect_time", Some("-"));
        let refused = Outcome { attempts: 0, node: None, course: Course::default(), ..outcome() };
        check(&refused, "upstream_addr", None);
        check(&refused, "balancer_ip", None);
    }
}
