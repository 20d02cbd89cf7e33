//! Who holds a port: the first thing an operator wants to know when binding fails.
//!
//! Best effort from procfs: `/proc/net/{tcp,tcp6,udp,udp6}` gives the inode of the socket,
//! `/proc/<pid>/fd` whose it is. Processes of other users are seen by root alone.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::session::Transport;

/// State `TCP_LISTEN` in the `st` column (`include/net/tcp_states.h`).
const LISTENING: &str = "0A";

/// A process that has a socket open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name as in `/proc/<pid>/comm`.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// The process whose socket keeps `addr` from being bound, as far as it can be seen.
#[must_use]
pub fn find(transport: Transport, addr: SocketAddr) -> Option<Holder> {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| inodes(&table, transport, addr))
        .collect();
    inodes.iter().find_map(|inode| owner(*inode))
}

/// Inodes of the sockets in a table of procfs that conflict with `wanted`.
fn inodes(table: &str, transport: Transport, wanted: SocketAddr) -> Vec<u64> {
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = parse_addr(fields.next()?)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        let open = transport == Transport::Udp || state == LISTENING;
        (open && conflict(local, wanted)).then_some(inode)
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// Two sockets on one port get in each other's way when they have an address in common. `[::]` may
/// or may not include IPv4; here it is only asked after binding failed, so it is taken to.
fn conflict(held: SocketAddr, wanted: SocketAddr) -> bool {
    held.port() == wanted.port()
        && (held.ip() == wanted.ip()
            || held.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            || (held.is_ipv4() == wanted.is_ipv4()
                && (held.ip().is_unspecified() || wanted.ip().is_unspecified())))
}

/// `0100007F:238C`: the words of the address in the byte order of the host, then the port.
fn parse_addr(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The first process with a descriptor for this socket.
fn owner(inode: u64) -> Option<Holder> {
    let link = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find_map(|pid| {
        let mut descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        descriptors.find(|fd| fs::read_link(fd.path()).is_ok_and(|target| *target == *link))?;
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Holder { pid, command: command.trim_end().to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:238C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:238C 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
";

    #[track_caller]
    #[cfg(target_endian = "little")]
    fn check(wanted: &str, found: &[u64]) {
        assert_eq!(inodes(TCP, Transport::Tcp, wanted.parse().unwrap()), found, "{wanted}");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_in_the_way_are_found() {
        check("127.0.0.1:9100", &[4711]);
        check("0.0.0.0:9100", &[4711]);
        check("127.0.0.2:9100", &[]);
        check("10.0.0.1:80", &[4713]);
        check("[::1]:80", &[]);
    }

    #[test]
    fn broken_lines_are_left_out() {
        let table = "head\n0: x\n1: 0100007F:238\n2: 01:02 03 0A\n";
        assert_eq!(inodes(table, Transport::Tcp, "127.0.0.1:9100".parse().unwrap()), [0_u64; 0]);
    }

    #[test]
    fn this_process_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let tcp = TcpListener::bind(address).unwrap();
            let holder = find(Transport::Tcp, tcp.local_addr().unwrap()).unwrap();
            assert_eq!(holder.pid, std::process::id());
            let udp = UdpSocket::bind(address).unwrap();
            let holder = find(Transport::Udp, udp.local_addr().unwrap()).unwrap();
            assert_eq!(holder.pid, std::process::id());
        }
    }
}
