//! What a measurement runs on.

use std::fmt;
use std::fs::read_to_string;

/// A machine, as far as it explains a figure.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Machine {
    /// Model of its CPU.
    pub cpu: String,
    /// How many cores the system uses.
    pub cores: usize,
    /// Version of the kernel.
    pub kernel: String,
    /// `net.core.rmem_max`, in bytes: the most that a receive buffer may be without privileges.
    pub rmem_max: String,
    /// `fs.pipe-user-pages-soft`: pages in pipes of a user without privileges.
    pub pipe_pages: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        let read = |path| read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        Self {
            cpu: model.trim_start_matches(['\t', ':', ' ']).to_owned(),
            cores: cpus.matches("processor\t").count(),
            kernel: read("/proc/sys/kernel/osrelease"),
            rmem_max: read("/proc/sys/net/core/rmem_max"),
            pipe_pages: read("/proc/sys/fs/pipe-user-pages-soft"),
        }
    }

    /// How many threads want to run, on average over 1, 5 and 15 minutes.
    #[must_use]
    pub fn load() -> String {
        let load = read_to_string("/proc/loadavg").unwrap_or_default();
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, kernel, .. } = self;
        // What its builder calls it says nothing to others.
        let kernel = kernel.split('-').next().unwrap_or_default();
        write!(f, "{cpu} x{cores}, Linux {kernel}")
    }
}
