//! What the first bytes of a connection said of it: its PROXY header and its TLS hello.

use std::net::SocketAddr;

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
    /// The certificate that the client showed and that was verified.
    pub certificate: Option<Box<ClientCertificate>>,
}

/// A client's certificate as nginx's variables show it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientCertificate {
    /// `$ssl_client_s_dn`, as in RFC 2253.
    pub subject: Box<str>,
    /// `$ssl_client_i_dn`, likewise.
    pub issuer: Box<str>,
    /// `$ssl_client_serial`, hexadecimal.
    pub serial: Box<str>,
    /// `$ssl_client_fingerprint`: its SHA-1, hexadecimal.
    pub fingerprint: Box<str>,
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

    /// A part of the TLV about TLS: five bytes, then TLVs (section 2.2.5 of the specification).
    pub(super) fn tls_tlv(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = self.tlv(TLS)?.get(5..)?;
        while let [found, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let value = after.get(..length)?;
            if *found == kind {
                return Some(value);
            }
            rest = after.get(length..)?;
        }
        None
    }

    /// What the TLV about TLS says of the client's certificate: 0 where it was verified.
    pub(super) fn tls_tlv_verify(&self) -> Option<u32> {
        let bytes = self.tlv(TLS)?.get(1..5)?;
        bytes.try_into().ok().map(u32::from_be_bytes)
    }
}

/// `PP2_TYPE_SSL`.
const TLS: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Name;

    #[test]
    fn variables_say_what_the_header_said() {
        let pair = ("10.1.2.3:5000".parse().unwrap(), "10.0.0.1:443".parse().unwrap());
        let tls = b"\x07\0\0\0\x01\x21\0\x01x\x22\0\x02gw\x23\0\x09cut";
        let brought = Brought {
            proxy: Some(pair),
            tlvs: vec![
                (2, b"a.com"[..].into()),
                (0xea, b"vpce-1"[..].into()),
                (5, [0xff][..].into()),
                (0x20, tls[..].into()),
            ],
            peer: Some("127.0.0.1:9".parse().unwrap()),
            tls: Some(TlsFacts { protocol: "TLSv1.3", suite: "TLS_AES_128_GCM_SHA256", resumed: true }),
            certificate: None,
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
            ("proxy_protocol_tlv_ssl_cn", Some("gw")),
            ("proxy_protocol_tlv_ssl_verify", Some("1")),
            ("proxy_protocol_tlv_ssl_cipher", None),
            ("ssl_protocol", Some("TLSv1.3")),
            ("ssl_session_reused", Some("r")),
            ("ssl_client_verify", Some("NONE")),
            ("ssl_client_s_dn", None),
            ("uri", None),
        ];
        for (name, expected) in cases {
            let found = Name::parse(name).and_then(|name| brought.value(name)).map(|value| value.to_string());
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }
}
