//! Descriptors: how many the process may have, and how many of them sessions may take.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept back from sessions: etcd, name servers, admin requests, probes, log files, and
/// the runtimes' own.
const RESERVED: usize = 128;

/// Half of what a user's pipes may hold where the kernel does not say (pipe(7): 64 MiB).
const PIPE_MEMORY: usize = 32 << 20;

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

/// Descriptors that sessions may take of `limit`, when listening sockets and pipes take `others`.
/// A TCP session takes two, a UDP association one.
#[must_use]
pub fn for_sessions(limit: usize, others: usize) -> usize {
    // Never nothing: a tiny limit fails in the open, by errors that say so, not by serving nobody.
    limit.saturating_sub(RESERVED + others).max(2)
}

/// Pipes there may be, each of `size` bytes and two descriptors. They take a small part of `limit`, and
/// half of what the kernel lets the pipes of a user hold: another process may be the same user's, and
/// over the limit pipes are too small to be of use.
#[must_use]
pub fn for_pipes(limit: usize, size: usize) -> usize {
    let pages = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").ok();
    let pages: Option<usize> = pages.and_then(|pages| pages.trim().parse().ok());
    pipes(limit, size, pages.map(|pages| pages.saturating_mul(rustix::param::page_size())))
}

/// `allowed` in bytes; 0 is no limit.
fn pipes(limit: usize, size: usize, allowed: Option<usize>) -> usize {
    let memory = allowed.filter(|allowed| *allowed > 0).map_or(PIPE_MEMORY, |allowed| allowed / 2);
    (limit / 64).min(memory / size)
}

/// UDP associations there may be, of `wanted`, where sessions may take `descriptors`: two thirds of them
/// at most. A flood of datagrams needs no handshake, and would else keep every TCP client out for as long
/// as associations idle.
#[must_use]
pub fn for_associations(wanted: usize, descriptors: usize) -> usize {
    wanted.min(descriptors / 3 * 2).max(1)
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
        assert_eq!(for_associations(65_536, 19_500), 13_000);
        assert_eq!(for_associations(100, 19_500), 100);
        assert_eq!(for_associations(100, 1), 1);
    }

    #[test]
    fn pipes_stay_below_both_limits() {
        assert_eq!(pipes(20_000, 256 << 10, Some(64 << 20)), 128);
        assert_eq!(pipes(20_000, 256 << 10, Some(0)), 128);
        assert_eq!(pipes(1024, 256 << 10, None), 16);
        assert_eq!(pipes(20_000, 256 << 10, Some(4096)), 0);
    }

    #[test]
    fn soft_limit_is_the_hard_one_afterwards() {
        let raised = raise_descriptors().unwrap();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, now.current), (now.maximum, Some(raised as u64)));
    }
}
