//! Control messages: what the kernel tells about a datagram beside its bytes, and is told.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroUsize};
use std::ptr;

use crate::address::{ipv4, raw_ipv4, socklen_of};
use crate::datagram::Local;

/// Room for the control messages of one datagram: packet info of either family and a segment size,
/// which take 64 bytes, and some more. Aligned as `cmsghdr` wants it.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct Space([u64; 12]);

impl Space {
    pub(crate) fn pointer(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }

    pub(crate) const LEN: usize = size_of::<Self>();
}

/// What control messages told of a received message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Told {
    /// The local address it was sent to, where packet info is enabled.
    pub(crate) local: Option<Local>,
    /// It holds several datagrams of so many bytes, the last of which may be shorter (udp(7), `UDP_GRO`).
    pub(crate) segment: Option<NonZeroUsize>,
}

/// Reads the control messages of a received message.
///
/// # Safety
/// `message` must be as `recvmsg` left it, its control buffer alive and unchanged since.
pub(crate) unsafe fn read(message: &libc::msghdr) -> Told {
    let mut told = Told::default();
    // SAFETY: by the contract of this function the control buffer is readable for msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header that lies in the buffer whole.
        unsafe { decode(header, &mut told) };
        // SAFETY: `header` is one of this message's headers.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    told
}

/// Reads one control message.
///
/// # Safety
/// `header` must point to a whole control message as the kernel wrote it.
unsafe fn decode(header: *const libc::cmsghdr, told: &mut Told) {
    // SAFETY: by the contract of this function.
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // SAFETY: the kernel writes an in_pktinfo for this level and type; it may be unaligned.
            let info = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::in_pktinfo>()) };
            // Not ipi_addr: that is the broadcast address for a broadcast, from which nobody can answer.
            let ip = ipv4(info.ipi_spec_dst).into();
            told.local = Some(Local { ip, interface: info.ipi_ifindex.cast_unsigned() });
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // SAFETY: the kernel writes an in6_pktinfo for this level and type; it may be unaligned.
            let info = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>()) };
            let ip = IpAddr::from(info.ipi6_addr.s6_addr);
            told.local = Some(Local { ip, interface: info.ipi6_ifindex });
        }
        (libc::SOL_UDP, libc::UDP_GRO) => {
            // SAFETY: the kernel writes an int for this level and type; it may be unaligned.
            let size = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::c_int>()) };
            told.segment = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        }
        _ => {}
    }
}

/// Makes `message` leave from `from` and in segments of `segment` bytes, where given. `space` becomes
/// its control buffer.
///
/// # Safety
/// `message` must be used only while `space` is alive and unchanged.
pub(crate) unsafe fn write(
    message: &mut libc::msghdr,
    space: &mut Space,
    from: Option<Local>,
    segment: Option<NonZeroU16>,
) {
    let mut used = 0;
    match from.map(|from| (from.ip, from.interface)) {
        Some((IpAddr::V4(ip), _)) => {
            let info = libc::in_pktinfo {
                // 0: the route decides. A reply need not leave where the question came in.
                ipi_ifindex: 0,
                ipi_spec_dst: raw_ipv4(ip),
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            used = put(space, used, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
        }
        Some((IpAddr::V6(ip), interface)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                // Only a link-local address says nothing without its interface.
                ipi6_ifindex: if ip.is_unicast_link_local() { interface } else { 0 },
            };
            used = put(space, used, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
        }
        None => {}
    }
    if let Some(segment) = segment {
        used = put(space, used, (libc::SOL_UDP, libc::UDP_SEGMENT), segment.get());
    }
    message.msg_control = if used == 0 { ptr::null_mut() } else { space.pointer() };
    message.msg_controllen = used;
}

/// Writes one control message behind the `used` bytes of those before it; how many are used then.
fn put<T: Copy>(space: &mut Space, used: usize, kind: (libc::c_int, libc::c_int), value: T) -> usize {
    let size = socklen_of::<T>();
    // SAFETY: CMSG_SPACE and CMSG_LEN are arithmetic.
    let (needed, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
    assert!(used + needed <= Space::LEN, "the control buffer is too small for its messages");
    // SAFETY: as asserted the buffer holds header and value whole behind what is used. It is aligned
    // for cmsghdr, and CMSG_SPACE, of which `used` is a sum, is a multiple of that alignment.
    unsafe {
        let header = space.0.as_mut_ptr().add(used / size_of::<u64>()).cast::<libc::cmsghdr>();
        (*header).cmsg_level = kind.0;
        (*header).cmsg_type = kind.1;
        (*header).cmsg_len = len;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
    }
    used + needed
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    fn message() -> libc::msghdr {
        // SAFETY: msghdr is plain old data for which all zeroes is a value.
        unsafe { mem::zeroed() }
    }

    #[track_caller]
    fn check(ip: &str, interface: u32, kept: u32) {
        let (mut space, mut message) = (Space::default(), message());
        let wanted = Local { ip: ip.parse().unwrap(), interface };
        // SAFETY: `space` outlives both calls and nothing else touches it.
        let read = unsafe {
            write(&mut message, &mut space, Some(wanted), NonZeroU16::new(1200));
            read(&message)
        };
        assert_eq!(read.local, Some(Local { ip: wanted.ip, interface: kept }), "{ip}");
        // The segment size of a sent message has another type than that of a received one.
        assert_eq!(read.segment, None);
        assert!(message.msg_controllen <= Space::LEN);
    }

    #[test]
    fn what_is_written_is_read() {
        check("127.0.0.2", 3, 0);
        check("::1", 3, 0);
        check("fe80::1", 3, 3);
    }

    #[test]
    fn a_segment_size_is_read_behind_an_address() {
        let (mut space, mut message) = (Space::default(), message());
        let local = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: [9; 16] }, ipi6_ifindex: 1 };
        let used = put(&mut space, 0, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), local);
        message.msg_controllen = put(&mut space, used, (libc::SOL_UDP, libc::UDP_GRO), 1200);
        message.msg_control = space.pointer();
        // SAFETY: `space` outlives the call and nothing else touches it.
        let told = unsafe { read(&message) };
        assert_eq!(told.local.map(|local| local.interface), Some(1));
        assert_eq!(told.segment, NonZeroUsize::new(1200));
    }

    #[test]
    fn no_control_message_tells_nothing() {
        let (mut space, mut message) = (Space::default(), message());
        // SAFETY: a null control buffer of no length is what recvmsg leaves when there is none.
        assert_eq!(unsafe { read(&message) }, Told::default());
        // SAFETY: `space` outlives `message`.
        unsafe { write(&mut message, &mut space, None, None) };
        assert!(message.msg_control.is_null() && message.msg_controllen == 0);
    }
}
