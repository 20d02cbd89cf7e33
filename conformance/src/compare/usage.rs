//! What a process and its children use, from `/proc` (proc(5)).

use std::fs;
use std::io;

/// A process with all that descend from it.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    root: u32,
}

impl Tree {
    /// The tree below this process.
    #[must_use]
    pub fn new(root: u32) -> Self {
        Self { root }
    }

    /// CPU time so far in seconds: the nanoseconds that each thread ran, user and kernel. Threads
    /// that have ended are not in it. What the kernel does for a packet of loopback is mostly done
    /// by the thread that sends it, and so counted.
    pub fn cpu_seconds(self) -> io::Result<f64> {
        let mut total = 0.0;
        for thread in self.threads()? {
            // One that ended meanwhile takes its time with it.
            let ran = fs::read_to_string(format!("{thread}/schedstat")).unwrap_or_default();
            total += ran.split(' ').next().and_then(|ran| ran.parse::<f64>().ok()).unwrap_or(0.0);
        }
        Ok(total / 1e9)
    }

    /// Resident memory in bytes, counted page by page: `VmRSS` is off by up to half a megabyte, as
    /// the kernel sums it up per core and lazily. What sockets take in the kernel is not in it.
    pub fn resident_bytes(self) -> io::Result<f64> {
        let mut total = 0.0;
        for pid in self.processes()? {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            total += 1024.0 * kib.ok_or_else(|| io::Error::other(format!("no Rss of process {pid}")))?;
        }
        Ok(total)
    }

    /// Open descriptors.
    pub fn descriptors(self) -> io::Result<usize> {
        let mut total = 0;
        for pid in self.processes()? {
            total += fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        }
        Ok(total)
    }

    fn processes(self) -> io::Result<Vec<u32>> {
        let mut found = vec![self.root];
        let mut next = 0;
        while let Some(pid) = found.get(next).copied() {
            for thread in threads(pid)? {
                let children = fs::read_to_string(format!("{thread}/children")).unwrap_or_default();
                found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            next += 1;
        }
        Ok(found)
    }

    fn threads(self) -> io::Result<Vec<String>> {
        let each: Result<Vec<_>, _> = self.processes()?.into_iter().map(threads).collect();
        Ok(each?.concat())
    }
}

/// The folders of the threads of one process.
fn threads(pid: u32) -> io::Result<Vec<String>> {
    let folder = format!("/proc/{pid}/task");
    fs::read_dir(&folder)
        .map_err(|error| io::Error::new(error.kind(), format!("process {pid} is gone: {error}")))?
        .map(|entry| Ok(entry?.path().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Tree {
        Tree::new(std::process::id())
    }

    #[test]
    fn work_takes_cpu_time() {
        let before = own().cpu_seconds().unwrap();
        // schedstat is brought up to date when the thread is switched or its time is up.
        crate::process::until(std::time::Duration::from_secs(5), || {
            let sum =
                (0..1_000_000_u64).fold(0, |sum: u64, i| sum.wrapping_mul(31) ^ std::hint::black_box(i));
            std::hint::black_box(sum);
            let grew = own().cpu_seconds()? > before;
            if grew { Ok(()) } else { Err(io::Error::other("no CPU time")) }
        })
        .unwrap();
    }

    #[test]
    fn memory_that_is_written_is_resident() {
        let before = own().resident_bytes().unwrap();
        let held = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(own().resident_bytes().unwrap() - before > f64::from(32 << 20));
        drop(held);
    }

    #[test]
    fn children_belong_to_it() {
        let before = own().processes().unwrap().len();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let with = own().processes().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(with.contains(&child.id()) && with.len() == before + 1, "{with:?}");
        assert!(Tree::new(child.id()).cpu_seconds().is_err());
    }
}
