//! Descriptors: how many the process may have, and how many of them sessions may take.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept back from sessions: etcd, name servers, admin requests, probes, log files, and
/// the runtimes' own.
const RESERVED: usize = 128;

/// Raises the soft limit on descriptors to the hard one and returns it. Distributions keep the soft
/// limit at 1024 for the sake of `select(2)`, which nothing here uses.
pub fn raise_descriptors() -> io::Result<usize> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    // No limit at all is not offered by Linux for descriptors (fs.nr_open bounds it).
    Ok(maximum.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX))
}

/// Descriptors that sessions may take of `limit`, when there are `listening` listening sockets.
/// A TCP session takes two, a UDP association one.
#[must_use]
pub fn for_sessions(limit: usize, listening: usize) -> usize {
    // Never nothing: a tiny limit fails in the open, by errors that say so, not by serving nobody.
    limit.saturating_sub(RESERVED + listening).max(2)
}

/// UDP associations there may be, of `wanted`, where sessions may take `descriptors`: half of them at
/// most. A flood of datagrams needs no handshake, and would else keep every TCP client out for as long
/// as associations idle.
#[must_use]
pub fn for_associations(wanted: usize, descriptors: usize) -> usize {
    wanted.min(descriptors / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_back() {
        assert_eq!(for_sessions(1024, 16), 880);
        assert_eq!(for_sessions(64, 16), 2);
    }

    #[test]
    fn associations_leave_room_for_connections() {
        assert_eq!(for_associations(65_536, 19_000), 9_500);
        assert_eq!(for_associations(100, 19_000), 100);
        assert_eq!(for_associations(100, 1), 1);
    }

    #[test]
    fn soft_limit_is_the_hard_one_afterwards() {
        let raised = raise_descriptors().unwrap();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, now.current), (now.maximum, Some(raised as u64)));
    }
}
