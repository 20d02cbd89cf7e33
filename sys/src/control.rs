//! Control messages: what the kernel tells about a datagram beside its bytes, and is told.

use std::net::IpAddr;
use std::ptr;

use crate::address::{ipv4, raw_ipv4, socklen_of};
use crate::datagram::Local;

/// Room for the control messages of one datagram: packet info of either family, and as much again.
/// Aligned as `cmsghdr` wants it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Space([u64; 12]);

impl Space {
    pub(crate) fn pointer(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }

    pub(crate) const LEN: usize = size_of::<Self>();
}

/// The local address a received message was sent to, where packet info is enabled.
///
/// # Safety
/// `message` must be as `recvmsg` left it, its control buffer alive and unchanged since.
pub(crate) unsafe fn local(message: &libc::msghdr) -> Option<Local> {
    // SAFETY: by the contract of this function the control buffer is readable for msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header that lies in the buffer whole.
        let found = unsafe { decode(header) };
        if found.is_some() {
            return found;
        }
        // SAFETY: `header` is one of this message's headers.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// Reads one control message.
///
/// # Safety
/// `header` must point to a whole control message as the kernel wrote it.
unsafe fn decode(header: *const libc::cmsghdr) -> Option<Local> {
    // SAFETY: by the contract of this function.
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // SAFETY: the kernel writes an in_pktinfo for this level and type; it may be unaligned.
            let info = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::in_pktinfo>()) };
            // Not ipi_addr: that is the broadcast address for a broadcast, from which nobody can answer.
            Some(Local { ip: ipv4(info.ipi_spec_dst).into(), interface: info.ipi_ifindex.cast_unsigned() })
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // SAFETY: the kernel writes an in6_pktinfo for this level and type; it may be unaligned.
            let info = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>()) };
            Some(Local { ip: IpAddr::from(info.ipi6_addr.s6_addr), interface: info.ipi6_ifindex })
        }
        _ => None,
    }
}

/// Makes `message` leave from `local`. `space` becomes its control buffer.
///
/// # Safety
/// `message` must be used only while `space` is alive and unchanged.
pub(crate) unsafe fn set_source(message: &mut libc::msghdr, space: &mut Space, local: Local) {
    match local.ip {
        IpAddr::V4(ip) => {
            let info = libc::in_pktinfo {
                // 0: the route decides. A reply need not leave where the question came in.
                ipi_ifindex: 0,
                ipi_spec_dst: raw_ipv4(ip),
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            // SAFETY: passed on to the caller.
            unsafe { put(message, space, (libc::IPPROTO_IP, libc::IP_PKTINFO), info) };
        }
        IpAddr::V6(ip) => {
            // Only a link-local address says nothing without its interface.
            let interface = if ip.is_unicast_link_local() { local.interface } else { 0 };
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: interface,
            };
            // SAFETY: passed on to the caller.
            unsafe { put(message, space, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info) };
        }
    }
}

/// Writes one control message as the whole control buffer of `message`.
///
/// # Safety
/// `message` must be used only while `space` is alive and unchanged.
unsafe fn put<T: Copy>(
    message: &mut libc::msghdr,
    space: &mut Space,
    kind: (libc::c_int, libc::c_int),
    value: T,
) {
    let size = socklen_of::<T>();
    // SAFETY: CMSG_SPACE and CMSG_LEN are arithmetic.
    let (needed, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
    assert!(needed <= Space::LEN, "the control buffer is too small for its message");
    message.msg_control = space.pointer();
    message.msg_controllen = needed;
    // SAFETY: the buffer is aligned for cmsghdr and, as asserted, holds header and value whole.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = kind.0;
        (*header).cmsg_type = kind.1;
        (*header).cmsg_len = len;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    #[track_caller]
    fn check(ip: &str, interface: u32, kept: u32) {
        let mut space = Space::default();
        // SAFETY: msghdr is plain old data for which all zeroes is a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        let wanted = Local { ip: ip.parse().unwrap(), interface };
        // SAFETY: `space` outlives both calls and nothing else touches it.
        let read = unsafe {
            set_source(&mut message, &mut space, wanted);
            local(&message)
        };
        assert_eq!(read, Some(Local { ip: wanted.ip, interface: kept }), "{ip}");
    }

    #[test]
    fn what_is_written_is_read() {
        check("127.0.0.2", 3, 0);
        check("::1", 3, 0);
        check("fe80::1", 3, 3);
    }

    #[test]
    fn no_control_message_is_no_address() {
        // SAFETY: msghdr is plain old data for which all zeroes is a value.
        let message: libc::msghdr = unsafe { mem::zeroed() };
        // SAFETY: a null control buffer of no length is what recvmsg leaves when there is none.
        assert_eq!(unsafe { local(&message) }, None);
    }
}
