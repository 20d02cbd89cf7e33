//! What is about to run out, each with its limit: memory, ports towards nodes, and what sessions may
//! take of descriptors and pipes.
//!
//! Read at each scrape from `/proc` and from the control groups of the process; what cannot be read
//! has no line.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::admin::Budgets;
use crate::admin::text::{self, Kind};

/// Appends the families.
pub(crate) fn render(out: &mut String, budgets: &Budgets) {
    let root = Path::new("/");
    let ports = local_ports(root);
    let help = "Local ports for TCP connections to one address of a node, and for all UDP associations";
    one(out, "streamgate_local_ports", help, ports);
    let memory = memory(root);
    let help = "Memory in use below the limit that is nearest: that of the control group, or the host's";
    one(out, "streamgate_memory_bytes", help, memory.map(|memory| memory.used));
    let help = "That limit";
    one(out, "streamgate_memory_limit_bytes", help, memory.map(|memory| memory.limit));
    let (descriptors, pipes) = (&budgets.descriptors, &budgets.pipes);
    one(out, "streamgate_pipes", "Pipes for splice that are open", Some(pipes.used()));
    one(out, "streamgate_pipes_limit", "Pipes for splice that may be open", Some(pipes.limit()));
    let help = "Descriptors that sessions and probes hold";
    one(out, "streamgate_session_descriptors", help, Some(descriptors.used()));
    let help = "Descriptors that sessions and probes may hold";
    one(out, "streamgate_session_descriptors_limit", help, Some(descriptors.limit()));
    let help = "TCP connections of this network namespace that are over and keep their port for a minute";
    one(out, "streamgate_time_wait_sockets", help, time_wait(root));
}

fn one<N: std::fmt::Display>(out: &mut String, name: &str, help: &str, value: Option<N>) {
    if let Some(value) = value {
        text::family(out, name, Kind::Gauge, help);
        text::sample(out, name, "", value);
    }
}

/// How many ports the system chooses from for outgoing connections (ip(7), `ip_local_port_range`).
fn local_ports(root: &Path) -> Option<usize> {
    let ipv4 = root.join("proc/sys/net/ipv4");
    let text = fs::read_to_string(ipv4.join("ip_local_port_range")).ok()?;
    let mut bounds = text.split_ascii_whitespace().map(str::parse::<usize>);
    let range = bounds.next()?.ok()?..=bounds.next()?.ok()?;
    let reserved = fs::read_to_string(ipv4.join("ip_local_reserved_ports")).unwrap_or_default();
    let reserved: usize =
        reserved.trim().split(',').filter_map(ports).map(|some| shared(&range, &some)).sum();
    Some(range.count().saturating_sub(reserved))
}

/// One entry of `ip_local_reserved_ports`: `8080`, or `9000-9010`.
fn ports(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn shared(one: &RangeInclusive<usize>, other: &RangeInclusive<usize>) -> usize {
    (*one.start().max(other.start())..=*one.end().min(other.end())).count()
}

/// The field `tw` of the line `TCP:` (proc(5), `/proc/net/sockstat`); it counts IPv6 too.
fn time_wait(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/net/sockstat")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = line.split_ascii_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Memory {
    used: u64,
    limit: u64,
}

/// Of all limits that hold for this process, the one that is nearest to its end.
fn memory(root: &Path) -> Option<Memory> {
    let host = host_memory(root);
    let groups = groups(root);
    let limits = groups.iter().filter_map(Group::memory).chain(host);
    // A group without a limit shows a number greater than any host has.
    let real = limits.filter(|memory| host.is_none_or(|host| memory.limit <= host.limit));
    real.min_by_key(|memory| memory.limit.saturating_sub(memory.used))
}

fn host_memory(root: &Path) -> Option<Memory> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = |name: &str| number_after(&text, name).map(|kib| kib.saturating_mul(1024));
    let limit = kib("MemTotal:")?;
    Some(Memory { used: limit.saturating_sub(kib("MemAvailable:")?), limit })
}

/// The number behind the first line that begins with this word.
fn number_after(text: &str, word: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// A control group with a memory controller, of version 1 or 2 (cgroups(7)).
#[derive(Debug)]
struct Group {
    folder: PathBuf,
    second: bool,
}

impl Group {
    /// `None` where it has no limit. Pages of files that were not used of late are given back when
    /// others are wanted, so they are not counted.
    fn memory(&self) -> Option<Memory> {
        let [limit, used, inactive] = if self.second {
            ["memory.max", "memory.current", "inactive_file "]
        } else {
            ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "]
        };
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let inactive = number_after(&read("memory.stat").unwrap_or_default(), inactive).unwrap_or_default();
        Some(Memory { limit: number(limit)?, used: number(used)?.saturating_sub(inactive) })
    }
}

/// The group of this process and those around it. In a container the path that `/proc` tells may be
/// that of the host; its ends are then tried down to the root of what is mounted.
fn groups(root: &Path) -> Vec<Group> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, second) = match controllers {
            "" => ("sys/fs/cgroup", true),
            _ if controllers.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", false),
            _ => continue,
        };
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            found.push(Group { folder: root.join(mount).join(ancestor), second });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Budget;

    /// A system with these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const HOST: (&str, &str) =
        ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:        100 kB\nMemAvailable:    600 kB\n");

    #[track_caller]
    fn check(files: &[(&str, &str)], used: u64, limit: u64) {
        let root = system(files);
        assert_eq!(memory(root.path()), Some(Memory { used, limit }));
    }

    #[test]
    fn without_a_limit_memory_is_that_of_the_host() {
        check(&[HOST], 400 << 10, 1000 << 10);
        let unlimited = [
            HOST,
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.current", "5\n"),
        ];
        check(&unlimited, 400 << 10, 1000 << 10);
        let unlimited = [
            HOST,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "9223372036854771711\n"),
        ];
        check(&unlimited, 400 << 10, 1000 << 10);
    }

    #[test]
    fn the_nearest_limit_of_all_groups_counts() {
        let nested = [
            HOST,
            ("proc/self/cgroup", "1:cpu:/x\n0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "5000\n"),
            ("sys/fs/cgroup/a/memory.current", "4900\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 4700\ninactive_file 100\n"),
            ("sys/fs/cgroup/a/b/memory.max", "4000\n"),
            ("sys/fs/cgroup/a/b/memory.current", "1000\n"),
        ];
        check(&nested, 4800, 5000);
    }

    #[test]
    fn version_1_is_read_where_the_path_is_the_hosts() {
        let container = [
            HOST,
            ("proc/self/cgroup", "4:cpu,memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "700\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 200\n"),
        ];
        check(&container, 500, 2000);
    }

    #[track_caller]
    fn check_ports(range: &str, reserved: &str, count: usize) {
        let root = system(&[
            ("proc/sys/net/ipv4/ip_local_port_range", range),
            ("proc/sys/net/ipv4/ip_local_reserved_ports", reserved),
        ]);
        assert_eq!(local_ports(root.path()), Some(count), "{range} without {reserved}");
    }

    #[test]
    fn reserved_ports_are_no_local_ports() {
        check_ports("32768\t60999\n", "\n", 28_232);
        check_ports("40000\t40009\n", "80,39999-40001,40009,50000-50001\n", 7);
    }

    #[test]
    fn every_family_is_there_on_linux() {
        let mut out = String::new();
        let budgets = Budgets { descriptors: Budget::new(100), pipes: Budget::new(8) };
        let _taken = (budgets.descriptors.take(2), budgets.pipes.take(1));
        render(&mut out, &budgets);
        let names: Vec<&str> = out
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE streamgate_")?.split(' ').next())
            .collect();
        assert_eq!(
            names,
            [
                "local_ports",
                "memory_bytes",
                "memory_limit_bytes",
                "pipes",
                "pipes_limit",
                "session_descriptors",
                "session_descriptors_limit",
                "time_wait_sockets"
            ]
        );
        for line in [
            "streamgate_pipes 1",
            "streamgate_pipes_limit 8",
            "streamgate_session_descriptors 2",
            "streamgate_session_descriptors_limit 100",
        ] {
            assert!(out.lines().any(|present| present == line), "no {line} in\n{out}");
        }
    }
}
