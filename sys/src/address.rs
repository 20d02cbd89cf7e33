//! Socket addresses to and from the form the kernel reads and writes.

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for an internet address of either family, with how much of it counts. The kernel cuts what is
/// longer, which no internet address is; `sockaddr_storage` has four times the size.
#[derive(Clone, Copy)]
pub(crate) struct RawAddress {
    pub(crate) storage: libc::sockaddr_in6,
    pub(crate) len: libc::socklen_t,
}

const _: () = assert!(
    size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>()
        && align_of::<libc::sockaddr_in>() <= align_of::<libc::sockaddr_in6>()
);

/// The size of a `T` as the kernel wants it.
#[expect(clippy::cast_possible_truncation, reason = "the structures of sockets are small")]
pub(crate) const fn socklen_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

impl RawAddress {
    /// How much room there is.
    pub(crate) const LEN: libc::socklen_t = socklen_of::<libc::sockaddr_in6>();

    /// Room for the kernel to write an address of any family into.
    pub(crate) fn empty() -> Self {
        // SAFETY: sockaddr_in6 is plain old data for which all zeroes is a value (AF_UNSPEC).
        let storage = unsafe { mem::zeroed() };
        Self { storage, len: Self::LEN }
    }

    /// The address; `None` for a family that is neither IPv4 nor IPv6.
    pub(crate) fn decode(&self) -> Option<SocketAddr> {
        let storage: *const libc::sockaddr_in6 = &raw const self.storage;
        match libc::c_int::from(self.storage.sin6_family) {
            libc::AF_INET if self.len >= socklen_of::<libc::sockaddr_in>() => {
                // SAFETY: as asserted above a sockaddr_in fits in size and alignment, the family, at
                // the same place in both, says it holds one, and every bit pattern of it is valid.
                let raw = unsafe { storage.cast::<libc::sockaddr_in>().read() };
                Some(SocketAddrV4::new(ipv4(raw.sin_addr), u16::from_be(raw.sin_port)).into())
            }
            libc::AF_INET6 if self.len >= Self::LEN => {
                let raw = &self.storage;
                let (ip, port) = (Ipv6Addr::from(raw.sin6_addr.s6_addr), u16::from_be(raw.sin6_port));
                // The flow label is of this packet: as part of a key it would split one client in two.
                Some(SocketAddrV6::new(ip, port, 0, raw.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(v4) => {
                let encoded = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: v4.port().to_be(),
                    sin_addr: raw_ipv4(*v4.ip()),
                    sin_zero: [0; 8],
                };
                let storage: *mut libc::sockaddr_in6 = &raw mut raw.storage;
                // SAFETY: as asserted above a sockaddr_in fits in size and alignment, and `storage`
                // points to a live, exclusively borrowed structure.
                unsafe { storage.cast::<libc::sockaddr_in>().write(encoded) };
                raw.len = socklen_of::<libc::sockaddr_in>();
            }
            SocketAddr::V6(v6) => {
                raw.storage = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
            }
        }
        raw
    }
}

pub(crate) fn ipv4(raw: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be(raw.s_addr))
}

pub(crate) fn raw_ipv4(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(ip).to_be() }
}

fn family(value: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str) {
        let address: SocketAddr = text.parse().unwrap();
        assert_eq!(RawAddress::from(address).decode(), Some(address));
    }

    #[test]
    fn addresses_come_back_as_they_went() {
        check("127.0.0.1:9100");
        check("255.1.2.3:65535");
        check("[::1]:1");
        check("[fe80::1%7]:53");
    }

    #[test]
    fn what_is_no_address_is_none() {
        assert_eq!(RawAddress::empty().decode(), None);
        for text in ["127.0.0.1:1", "[::1]:1"] {
            let mut short = RawAddress::from(text.parse::<SocketAddr>().unwrap());
            short.len = 2;
            assert_eq!(short.decode(), None);
        }
    }
}
