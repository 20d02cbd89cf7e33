//! What the first bytes of a connection said of it: its PROXY header and its TLS hello.

use std::net::SocketAddr;

use super::Variable;

/// What a connection brought before the bytes that are passed on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Brought {
    /// The PROXY header, where it had addresses: source and destination.
    pub proxy: Option<(SocketAddr, SocketAddr)>,
    /// Type and value of the header's TLVs, in their order.
    pub tlvs: Vec<(u8, Box<[u8]>)>,
    /// The peer of the TCP connection, where a header has replaced it as the client.
    pub peer: Option<SocketAddr>,
    /// The protocol the client prefers (ALPN).
    pub alpn: Option<Box<[u8]>>,
    /// What TLS was terminated with.
    pub tls: Option<TlsFacts>,
}

/// What a handshake with a client came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TlsFacts {
    /// nginx's `$ssl_protocol`: `TLSv1.2`, `TLSv1.3`.
    pub protocol: &'static str,
    /// The IANA name of the cipher suite.
    pub suite: &'static str,
    /// An earlier session was gone on with.
    pub resumed: bool,
}

impl Brought {
    /// The value of a TLV.
    #[must_use]
    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|(known, _)| *known == kind).map(|(_, value)| &**value)
    }

    /// The variables of nginx that are about it (`ngx_stream_variables.c`, `ngx_stream_realip_module.c`,
    /// `ngx_stream_ssl_module.c`).
    pub(super) fn variable(&self, name: &str) -> Option<Variable<'_>> {
        let proxy = |pick: fn(&(SocketAddr, SocketAddr)) -> SocketAddr| self.proxy.as_ref().map(pick);
        if let Some(tlv) = name.strip_prefix("proxy_protocol_tlv_") {
            return std::str::from_utf8(self.tlv(tlv_kind(tlv)?)?).ok().map(Variable::Text);
        }
        Some(match name {
            "proxy_protocol_addr" => Variable::Ip(proxy(|pair| pair.0)?.ip()),
            "proxy_protocol_port" => Variable::Port(proxy(|pair| pair.0)?.port()),
            "proxy_protocol_server_addr" => Variable::Ip(proxy(|pair| pair.1)?.ip()),
            "proxy_protocol_server_port" => Variable::Port(proxy(|pair| pair.1)?.port()),
            "realip_remote_addr" => Variable::Ip(self.peer?.ip()),
            "realip_remote_port" => Variable::Port(self.peer?.port()),
            "ssl_protocol" => Variable::Text(self.tls?.protocol),
            "ssl_cipher" => Variable::Text(self.tls?.suite),
            "ssl_session_reused" => Variable::Text(if self.tls?.resumed { "r" } else { "." }),
            _ => return None,
        })
    }
}

/// The type of a TLV by nginx's name for it, or in hexadecimal (`$proxy_protocol_tlv_0x01`).
fn tlv_kind(name: &str) -> Option<u8> {
    Some(match name {
        "alpn" => 0x01,
        "authority" => 0x02,
        "unique_id" => 0x05,
        "ssl" => 0x20,
        "netns" => 0x30,
        other => u8::from_str_radix(other.strip_prefix("0x")?, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_say_what_the_header_said() {
        let pair = ("10.1.2.3:5000".parse().unwrap(), "10.0.0.1:443".parse().unwrap());
        let brought = Brought {
            proxy: Some(pair),
            tlvs: vec![(2, b"a.com"[..].into()), (0xea, b"vpce-1"[..].into()), (5, [0xff][..].into())],
            peer: Some("127.0.0.1:9".parse().unwrap()),
            tls: Some(TlsFacts { protocol: "TLSv1.3", suite: "TLS_AES_128_GCM_SHA256", resumed: true }),
            ..Brought::default()
        };
        let cases = [
            ("proxy_protocol_addr", Some("10.1.2.3")),
            ("proxy_protocol_port", Some("5000")),
            ("proxy_protocol_server_addr", Some("10.0.0.1")),
            ("proxy_protocol_server_port", Some("443")),
            ("proxy_protocol_tlv_authority", Some("a.com")),
            ("proxy_protocol_tlv_0xea", Some("vpce-1")),
            ("proxy_protocol_tlv_unique_id", None),
            ("proxy_protocol_tlv_alpn", None),
            ("realip_remote_addr", Some("127.0.0.1")),
            ("realip_remote_port", Some("9")),
            ("ssl_protocol", Some("TLSv1.3")),
            ("ssl_session_reused", Some("r")),
            ("uri", None),
        ];
        for (name, expected) in cases {
            let found = brought.variable(name).map(|value| value.to_string());
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }
}
