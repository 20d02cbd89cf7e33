//! Child processes that end with the value that holds them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command with its output going to `log`.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let log = std::fs::File::create(log)?;
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().map_err(|error| {
                let program = command.get_program().to_string_lossy().into_owned();
                io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
            })?;
        Ok(Self { child })
    }

    /// Reports whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Finds a program in `PATH`.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// `wanted` where it is free for TCP and UDP on loopback, else some port that is.
pub fn free_port(wanted: u16) -> io::Result<u16> {
    let free = |port| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let tcp = TcpListener::bind(address)?;
        let port = tcp.local_addr()?.port();
        UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).map(|_| port)
    };
    free(wanted).or_else(|_| free(0))
}

/// Tries until it works or `limit` has passed; the last error then.
pub fn until<T>(limit: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let begun = SystemTime::now();
    loop {
        match attempt() {
            Err(_) if begun.elapsed().unwrap_or(limit) < limit => sleep(Duration::from_millis(2)),
            done => return done,
        }
    }
}
