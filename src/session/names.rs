//! The names of variables: which there are, and which was meant by one that is none.

/// Declares [`Name`] and how each is written.
macro_rules! names {
    ($($text:literal => $name:ident,)*) => {
        /// A variable that formats, filters and keys may name.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Name {
            $(#[doc = concat!("`$", $text, "`.")] $name,)*
            /// `$proxy_protocol_tlv_…`: a TLV of a PROXY header of version 2, by its type.
            Tlv(u8),
            /// `$proxy_protocol_tlv_ssl_…`: one inside the TLV about TLS.
            TlvSsl(u8),
            /// `$proxy_protocol_tlv_ssl_verify`.
            TlvSslVerify,
        }

        impl Name {
            /// Every name but those of TLVs.
            pub const ALL: &'static [&'static str] = &[$($text,)*];

            fn plain(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

names! {
    // ngx_stream_core_module
    "binary_remote_addr" => BinaryRemoteAddr,
    "bytes_received" => BytesReceived,
    "bytes_sent" => BytesSent,
    "connection" => Connection,
    "hostname" => Hostname,
    "msec" => Msec,
    "nginx_version" => NginxVersion,
    "pid" => Pid,
    "protocol" => Protocol,
    "proxy_protocol_addr" => ProxyProtocolAddr,
    "proxy_protocol_port" => ProxyProtocolPort,
    "proxy_protocol_server_addr" => ProxyProtocolServerAddr,
    "proxy_protocol_server_port" => ProxyProtocolServerPort,
    "remote_addr" => RemoteAddr,
    "remote_port" => RemotePort,
    "server_addr" => ServerAddr,
    "server_port" => ServerPort,
    "session_time" => SessionTime,
    "status" => Status,
    "time_iso8601" => TimeIso8601,
    "time_local" => TimeLocal,
    // ngx_stream_realip_module
    "realip_remote_addr" => RealipRemoteAddr,
    "realip_remote_port" => RealipRemotePort,
    // ngx_stream_ssl_module
    "ssl_cipher" => SslCipher,
    "ssl_client_fingerprint" => SslClientFingerprint,
    "ssl_client_i_dn" => SslClientIssuer,
    "ssl_client_s_dn" => SslClientSubject,
    "ssl_client_serial" => SslClientSerial,
    "ssl_client_verify" => SslClientVerify,
    "ssl_protocol" => SslProtocol,
    "ssl_server_name" => SslServerName,
    "ssl_session_reused" => SslSessionReused,
    // ngx_stream_ssl_preread_module
    "ssl_preread_alpn_protocols" => SslPrereadAlpnProtocols,
    "ssl_preread_server_name" => SslPrereadServerName,
    // ngx_stream_upstream_module
    "upstream_addr" => UpstreamAddr,
    "upstream_bytes_received" => UpstreamBytesReceived,
    "upstream_bytes_sent" => UpstreamBytesSent,
    "upstream_connect_time" => UpstreamConnectTime,
    "upstream_first_byte_time" => UpstreamFirstByteTime,
    "upstream_session_time" => UpstreamSessionTime,
    // apisix/core/ctx.lua, apisix/init.lua, apisix/balancer.lua
    "balancer_ip" => BalancerIp,
    "balancer_port" => BalancerPort,
    "mqtt_client_id" => MqttClientId,
    "route_id" => RouteId,
    "route_name" => RouteName,
    "service_id" => ServiceId,
    "service_name" => ServiceName,
    // Ours.
    "alpn" => Alpn,
    "attempts" => Attempts,
    "client_retransmits" => ClientRetransmits,
    "client_rtt" => ClientRtt,
    "detail" => Detail,
    "end" => End,
    "listen" => Listen,
    "listen_addr" => ListenAddr,
    "plugin" => Plugin,
    "plugin_code" => PluginCode,
    "side" => Side,
    "upstream_id" => UpstreamId,
    "upstream_retransmits" => UpstreamRetransmits,
    "upstream_rtt" => UpstreamRtt,
}

/// Variables of nginx's stream modules that no session has a value of here. A format may name them and
/// shows what nginx shows where there is no value.
pub const WITHOUT_VALUE: &[&str] = &[
    "limit_conn_status",
    "ssl_alpn_protocol",
    "ssl_ciphers",
    "ssl_client_cert",
    "ssl_client_raw_cert",
    "ssl_client_v_end",
    "ssl_client_v_remain",
    "ssl_client_v_start",
    "ssl_curve",
    "ssl_curves",
    "ssl_preread_protocol",
    "ssl_session_id",
];

/// Where the value of a variable comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    Client,
    Route,
    Outcome,
    Host,
}

impl Name {
    /// Where its value comes from.
    #[inline]
    pub(super) fn source(self) -> Source {
        match self {
            Self::Hostname
            | Self::Msec
            | Self::NginxVersion
            | Self::Pid
            | Self::TimeIso8601
            | Self::TimeLocal => Source::Host,
            Self::RouteId | Self::RouteName | Self::ServiceId | Self::ServiceName => Source::Route,
            Self::BytesReceived
            | Self::BytesSent
            | Self::Connection
            | Self::SessionTime
            | Self::Status
            | Self::UpstreamAddr
            | Self::UpstreamBytesReceived
            | Self::UpstreamBytesSent
            | Self::UpstreamConnectTime
            | Self::UpstreamFirstByteTime
            | Self::UpstreamSessionTime
            | Self::BalancerIp
            | Self::BalancerPort
            | Self::Attempts
            | Self::ClientRetransmits
            | Self::ClientRtt
            | Self::Detail
            | Self::End
            | Self::Listen
            | Self::ListenAddr
            | Self::Plugin
            | Self::PluginCode
            | Self::Side
            | Self::UpstreamId
            | Self::UpstreamRetransmits
            | Self::UpstreamRtt => Source::Outcome,
            _ => Source::Client,
        }
    }

    /// The variable of that name, without its `$`; `None` where there is none with a value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("proxy_protocol_tlv_") {
            Some(tlv) => Self::tlv(tlv),
            None => Self::plain(text),
        }
    }

    /// Its name in nginx, or its type in hexadecimal (`$proxy_protocol_tlv_0x01`;
    /// `ngx_proxy_protocol.c`).
    fn tlv(text: &str) -> Option<Self> {
        Some(match text {
            "alpn" => Self::Tlv(0x01),
            "authority" => Self::Tlv(0x02),
            "unique_id" => Self::Tlv(0x05),
            "ssl" => Self::Tlv(0x20),
            "netns" => Self::Tlv(0x30),
            "ssl_verify" => Self::TlvSslVerify,
            "ssl_version" => Self::TlvSsl(0x21),
            "ssl_cn" => Self::TlvSsl(0x22),
            "ssl_cipher" => Self::TlvSsl(0x23),
            "ssl_sig_alg" => Self::TlvSsl(0x24),
            "ssl_key_alg" => Self::TlvSsl(0x25),
            other => match other.strip_prefix("ssl_0x") {
                Some(hex) => Self::TlvSsl(u8::from_str_radix(hex, 16).ok()?),
                None => Self::Tlv(u8::from_str_radix(other.strip_prefix("0x")?, 16).ok()?),
            },
        })
    }

    /// The known name that a slip made into `text`.
    #[must_use]
    pub fn nearest(text: &str) -> Option<&'static str> {
        /// More slips than that, and something else is meant.
        const SLIPS: usize = 3;
        let known = Self::ALL.iter().chain(WITHOUT_VALUE);
        let near = known.map(|name| (distance(text.as_bytes(), name.as_bytes()), *name));
        near.filter(|(slips, name)| *slips <= SLIPS.min(name.len() / 3)).min().map(|(_, name)| name)
    }
}

/// How many insertions, deletions and replacements lie between two names.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, x) in a.iter().enumerate() {
        // What stood left above, and left.
        let (mut corner, mut left) = (line, line + 1);
        for (cell, y) in row.iter_mut().skip(1).zip(b) {
            let best = (corner + usize::from(x != y)).min(*cell + 1).min(left + 1);
            (corner, left, *cell) = (*cell, best, best);
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_list() {
        for text in Name::ALL {
            assert!(Name::parse(text).is_some(), "{text}");
        }
        for text in WITHOUT_VALUE {
            assert_eq!(Name::parse(text), None, "{text}");
        }
        assert_eq!(Name::parse("proxy_protocol_tlv_0xea"), Some(Name::Tlv(0xea)));
        assert_eq!(Name::parse("proxy_protocol_tlv_ssl_cn"), Some(Name::TlvSsl(0x22)));
        assert_eq!(Name::parse("proxy_protocol_tlv_0x1ff"), None);
        assert_eq!(Name::parse("uri"), None);
    }

    #[track_caller]
    fn check(text: &str, meant: Option<&str>) {
        assert_eq!(Name::nearest(text), meant, "{text}");
    }

    #[test]
    fn slips_are_near_and_strangers_are_not() {
        check("remote_adr", Some("remote_addr"));
        check("upstrem_addr", Some("upstream_addr"));
        check("byte_sent", Some("bytes_sent"));
        check("route_ids", Some("route_id"));
        check("request_uri", None);
        check("uri", None);
    }

    #[test]
    fn the_documentation_names_every_variable() {
        let page = include_str!("../../docs/config.md");
        for text in Name::ALL.iter().chain(WITHOUT_VALUE) {
            assert!(page.contains(&format!("`{text}`")), "`{text}` is not in docs/config.md");
        }
    }
}
