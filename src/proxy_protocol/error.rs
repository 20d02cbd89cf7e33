//! Why what begins as a header is none.

use std::fmt;

use super::MOST;

/// A part of a sentence, with the value: `broken header: "PROXY TCP4 bad": …`. The words up to the line are
/// nginx's, whose logs are searched for them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HeaderError {
    /// A line of version 1 that is none.
    Line {
        /// What it says, without its end, escaped.
        line: Box<str>,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A version in the high bits of the 13th byte that does not exist.
    Version(u8),
    /// Neither LOCAL nor PROXY.
    Command(u8),
    /// An address family or a transport that does not exist, as sent: four bits each.
    Family(u8),
    /// The header is longer than is read; its whole length in bytes.
    TooLong(usize),
    /// The length leaves no room for the addresses.
    Addresses {
        /// What they take.
        needed: usize,
        /// What there is.
        found: usize,
    },
    /// A TLV that is not whole.
    Tlv {
        /// Where it begins, in bytes from the start of the header.
        at: usize,
    },
    /// The checksum is not that of the header.
    Checksum {
        /// What the header says.
        said: u32,
        /// What it is.
        computed: u32,
    },
    /// A checksum that is not four bytes long.
    ChecksumLength(usize),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { line, why } => write!(f, "broken header: \"{line}\": {why}"),
            Self::Version(version) => {
                write!(f, "broken header: its version is {version}; only 1 and 2 are known")
            }
            Self::Command(command) => {
                write!(f, "broken header: its command is {command}; only 0 (LOCAL) and 1 (PROXY) are known")
            }
            Self::Family(family) => write!(
                f,
                "broken header: its address family and transport are {family:#04x}; families are known up \
                 to 3 and transports up to 2"
            ),
            Self::TooLong(length) => {
                write!(f, "broken header: it is {length} bytes long; at most {MOST} are read")
            }
            Self::Addresses { needed, found } => {
                write!(f, "broken header: its addresses take {needed} bytes and it has {found}")
            }
            Self::Tlv { at } => write!(f, "broken header: the TLV at byte {at} is longer than what is left"),
            Self::Checksum { said, computed } => write!(
                f,
                "broken header: it says its CRC-32C is {said:#010x} and it is {computed:#010x}; something \
                 changed it on its way"
            ),
            Self::ChecksumLength(length) => {
                write!(f, "broken header: its CRC-32C is {length} bytes long; it must be 4")
            }
        }
    }
}

impl std::error::Error for HeaderError {}
