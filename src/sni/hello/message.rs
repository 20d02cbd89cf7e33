//! The ClientHello message: its fields and the extensions that are of use here.

use super::{CLIENT_HELLO, MESSAGE_HEADER};

/// Numbers of extensions (IANA "TLS `ExtensionType` Values").
mod extension {
    pub(super) const SERVER_NAME: u16 = 0;
    pub(super) const MAX_FRAGMENT_LENGTH: u16 = 1;
    pub(super) const SUPPORTED_GROUPS: u16 = 10;
    pub(super) const SIGNATURE_ALGORITHMS: u16 = 13;
    pub(super) const ALPN: u16 = 16;
    pub(super) const SUPPORTED_VERSIONS: u16 = 43;
}

/// A host name is at most so long (RFC 1035 3.1; OpenSSL's `TLSEXT_MAXLEN_host_name`).
const LONGEST_NAME: usize = 255;

/// A hello, borrowed from the bytes it was read from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hello<'a> {
    message: &'a [u8],
    consumed: usize,
    server_name: Option<&'a str>,
    alpn: Option<&'a [u8]>,
    legacy_version: &'a [u8],
    versions: Option<&'a [u8]>,
    suites: &'a [u8],
    groups: Option<&'a [u8]>,
    signature_schemes: Option<&'a [u8]>,
    max_fragment_length: Option<u16>,
}

/// A server name in the form in which names are compared: lower case, without one final dot
/// (`apisix/ssl.lua:39`). May be empty.
#[must_use]
pub fn normalized(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Parses a kept handshake message again; `None` where it is not one.
#[must_use]
pub fn parse_message(message: &[u8]) -> Option<Hello<'_>> {
    let (header, body) = message.split_first_chunk::<MESSAGE_HEADER>()?;
    let [kind, length @ ..] = *header;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let whole = kind == CLIENT_HELLO && length == body.len();
    whole.then(|| Hello::parse(message, message.len()).ok()).flatten()
}

impl<'a> Hello<'a> {
    /// Reads a message whose header was found good. `consumed` is what it took up with record headers.
    pub(super) fn parse(message: &'a [u8], consumed: usize) -> Result<Self, &'static str> {
        let mut bytes = Bytes(message);
        let mut fields = || {
            bytes.take(MESSAGE_HEADER)?;
            let version = bytes.take(2)?;
            let (_random, _session) = (bytes.take(32)?, bytes.vector8()?);
            let suites = bytes.vector16()?;
            let _compression = bytes.vector8()?;
            Some((version, suites))
        };
        let (legacy_version, suites) = fields().ok_or("it is cut short")?;
        let mut hello = Self {
            message,
            consumed,
            server_name: None,
            alpn: None,
            legacy_version,
            versions: None,
            suites,
            groups: None,
            signature_schemes: None,
            max_fragment_length: None,
        };
        // TLS 1.2 and older have hellos without extensions (RFC 5246 7.4.1.2).
        if !bytes.0.is_empty() {
            hello.extensions(bytes.vector16().ok_or("its extensions are cut short")?)?;
        }
        Ok(hello)
    }

    /// Of extensions that come twice the first counts. The two that connections are routed by may not: a
    /// server that took the last one would serve another name than the one routed by, and none takes both
    /// (RFC 8446 4.2; OpenSSL's and rustls' parsers).
    fn extensions(&mut self, extensions: &'a [u8]) -> Result<(), &'static str> {
        let mut bytes = Bytes(extensions);
        let mut named = false;
        while !bytes.0.is_empty() {
            let (kind, data) =
                bytes.short().zip(bytes.vector16()).ok_or("an extension of it is cut short")?;
            match kind {
                extension::SERVER_NAME if named => return Err("it has two server_name extensions"),
                extension::SERVER_NAME => (named, self.server_name) = (true, host_name(data)?),
                extension::ALPN if self.alpn.is_some() => return Err("it has two ALPN extensions"),
                extension::ALPN => first(&mut self.alpn, Bytes(data).vector16()),
                extension::SUPPORTED_VERSIONS => first(&mut self.versions, Bytes(data).vector8()),
                extension::SUPPORTED_GROUPS => first(&mut self.groups, Bytes(data).vector16()),
                extension::SIGNATURE_ALGORITHMS => {
                    first(&mut self.signature_schemes, Bytes(data).vector16());
                }
                extension::MAX_FRAGMENT_LENGTH if self.max_fragment_length.is_none() => {
                    self.max_fragment_length = fragment_length(data);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The host name of `server_name` as sent (RFC 6066 3); `None` where there is no such extension or it
    /// names no host. Printable ASCII, 1 to 255 bytes.
    #[must_use]
    pub fn server_name(&self) -> Option<&'a str> {
        self.server_name
    }

    /// That name in lower case and without one final dot; `None` also where that leaves nothing
    /// (`apisix/ssl.lua:39`).
    #[must_use]
    pub fn normalized_name(&self) -> Option<String> {
        Some(normalized(self.server_name?)).filter(|name| !name.is_empty())
    }

    /// The application protocols offered, the client's favourite first (RFC 7301 3.1).
    pub fn alpn(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut bytes = Bytes(self.alpn.unwrap_or_default());
        std::iter::from_fn(move || bytes.vector8())
    }

    /// The protocol versions offered, in the order sent, which is the newest first: those of
    /// `supported_versions`, else `legacy_version` (RFC 8446 4.2.1). 0x0303 is TLS 1.2.
    pub fn versions(&self) -> impl Iterator<Item = u16> + use<'a> {
        codes(self.versions.filter(|list| list.len() > 1).unwrap_or(self.legacy_version))
    }

    /// The cipher suites offered, the client's favourite first.
    pub fn suites(&self) -> impl Iterator<Item = u16> + use<'a> {
        codes(self.suites)
    }

    /// The key exchange groups offered, the client's favourite first (RFC 8446 4.2.7).
    pub fn groups(&self) -> impl Iterator<Item = u16> + use<'a> {
        codes(self.groups.unwrap_or_default())
    }

    /// The ways of signing that the client verifies (RFC 8446 4.2.3).
    pub fn signature_schemes(&self) -> impl Iterator<Item = u16> + use<'a> {
        codes(self.signature_schemes.unwrap_or_default())
    }

    /// The bytes a record may hold that the client asks for: 512, 1024, 2048 or 4096 (RFC 6066 4); `None`
    /// where it does not ask, or for something else.
    #[must_use]
    pub fn max_fragment_length(&self) -> Option<u16> {
        self.max_fragment_length
    }

    /// The handshake message, header included, as one slice: what to keep for [`parse_message`].
    #[must_use]
    pub fn message(&self) -> &'a [u8] {
        self.message
    }

    /// Bytes of the input that the hello takes up, record headers included.
    #[must_use]
    pub fn consumed(&self) -> usize {
        self.consumed
    }
}

/// The first host name of a `server_name` extension. Names of another type are passed over.
fn host_name(data: &[u8]) -> Result<Option<&str>, &'static str> {
    let broken = "its server_name extension is malformed";
    let mut outer = Bytes(data);
    let mut list = Bytes(if data.is_empty() { data } else { outer.vector16().ok_or(broken)? });
    if !outer.0.is_empty() {
        return Err(broken);
    }
    let mut found = None;
    while !list.0.is_empty() {
        let (kind, name) = list.byte().zip(list.vector16()).ok_or(broken)?;
        match (kind, found) {
            (0, None) => found = Some(name),
            (0, Some(_)) => return Err("it has two server names"),
            _ => {}
        }
    }
    found.map(as_text).transpose()
}

/// What goes into log lines and look-ups is held to what a name can be: it cannot end a line.
fn as_text(name: &[u8]) -> Result<&str, &'static str> {
    match name.len() {
        0 => return Err("its server name is empty"),
        1..=LONGEST_NAME => {}
        _ => return Err("its server name is over 255 bytes long"),
    }
    let printable = name.iter().all(u8::is_ascii_graphic);
    let text = str::from_utf8(name).ok().filter(|_| printable);
    text.ok_or("its server name has a byte that is no printable ASCII character")
}

/// Keeps the list of an extension, unless one came before. A broken one is empty.
fn first<'a>(slot: &mut Option<&'a [u8]>, list: Option<&'a [u8]>) {
    slot.get_or_insert(list.unwrap_or_default());
}

fn fragment_length(data: &[u8]) -> Option<u16> {
    match data {
        [code @ 1..=4] => Some(256 << code),
        _ => None,
    }
}

/// Two-byte codes without those of RFC 8701, which say nothing: 0x0A0A, 0x1A1A, … 0xFAFA.
fn codes(list: &[u8]) -> impl Iterator<Item = u16> {
    let pairs = list.as_chunks().0.iter().map(|pair| u16::from_be_bytes(*pair));
    pairs.filter(|code| code & 0x0f0f != 0x0a0a || code >> 8 != code & 0xff)
}

/// Bytes that are taken from the front. What takes more than is there gives `None`.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn short(&mut self) -> Option<u16> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*first))
    }

    /// What follows a length of one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(usize::from(length))
    }

    /// What follows a length of two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.short()?;
        self.take(usize::from(length))
    }
}
