//! Clients over TCP: each function is one kind of load on a proxy.
//!
//! One thread drives all connections of a load. Connects are blocking: on loopback the kernel
//! completes them at once, whatever the proxy does.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::RecvFlags;

use crate::gateway::LIMIT;

/// Connections that are open at a time, where a load is of many.
pub(super) const CLIENTS: usize = 32;
/// Bytes of a request and of its answer.
const MESSAGE: usize = 64;
/// An MQTT CONNECT of version 3.1.1 with a client identifier.
pub const GREETING: &[u8] = b"\x10\x13\x00\x04MQTT\x04\x02\x00\x3c\x00\x07bench-1";
/// From one request to the next, where they come at a rate.
const PACE: Duration = Duration::from_micros(200);
/// The most that one read discards in bulk.
const CHUNK: usize = 1 << 20;
/// Bytes of one write of an upload.
const UPLOAD: usize = 256 * 1024;

/// What a load has done so far, and whether it shall end.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Units done: connections, requests, bytes, datagrams.
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Ends the load.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Counts more of them.
    pub fn add(&self, units: usize) {
        self.done.fetch_add(units as u64, Relaxed);
    }

    /// Reports whether to go on.
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }
}

/// The sockets of a load that wait for the proxy.
pub(super) struct Waiting {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Waiting {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    pub(super) fn add(&self, socket: impl std::os::fd::AsFd, index: usize) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)?)
    }

    /// The indices of those that can be read; after a while none.
    pub(super) fn ready(&mut self) -> io::Result<impl Iterator<Item = usize>> {
        let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        self.events.clear();
        epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&patience))?;
        Ok(self.events.iter().filter_map(|event| usize::try_from(event.data.u64()).ok()))
    }
}

/// Connect, a byte each way, close: several at a time, again and again.
pub fn connections(proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    connections_that_say(b"?", proxy, progress)
}

/// The same with [`GREETING`] in place of a byte.
pub fn greetings(proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    connections_that_say(GREETING, proxy, progress)
}

fn connections_that_say(said: &[u8], proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    let (mut waiting, mut echo) = (Waiting::new()?, vec![0; said.len()]);
    let ask = |waiting: &Waiting, index| {
        let mut stream = connect(proxy)?;
        stream.write_all(said)?;
        waiting.add(&stream, index)?;
        io::Result::Ok(stream)
    };
    let mut open: Vec<_> = (0..CLIENTS).map(|index| ask(&waiting, index)).collect::<io::Result<_>>()?;
    while progress.goes_on() {
        let ready: Vec<usize> = waiting.ready()?.collect();
        for index in ready {
            let Some(stream) = open.get_mut(index) else { continue };
            stream.read_exact(&mut echo)?;
            progress.add(1);
            // The old one closes as it is replaced.
            *stream = ask(&waiting, index)?;
        }
    }
    Ok(())
}

/// Small messages and their echoes on connections that stay open.
pub fn requests(proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    let mut waiting = Waiting::new()?;
    let mut message = [7; MESSAGE];
    let mut open = (0..CLIENTS).map(|_| connect(proxy)).collect::<io::Result<Vec<_>>>()?;
    for (index, stream) in open.iter_mut().enumerate() {
        waiting.add(&*stream, index)?;
        stream.write_all(&message)?;
    }
    while progress.goes_on() {
        for index in waiting.ready()? {
            let Some(stream) = open.get_mut(index) else { continue };
            stream.read_exact(&mut message)?;
            progress.add(1);
            stream.write_all(&message)?;
        }
    }
    Ok(())
}

/// The same at a rate that every proxy can follow: one request at a time, over the connections in
/// turn, so that each wakes the proxy.
pub fn paced(proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    let mut message = [7; MESSAGE];
    let mut open = (0..CLIENTS).map(|_| connect(proxy)).collect::<io::Result<Vec<_>>>()?;
    let mut due = SystemTime::now();
    while progress.goes_on() {
        for stream in &mut open {
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            progress.add(1);
            due += PACE;
            thread::sleep(due.duration_since(SystemTime::now()).unwrap_or_default());
        }
    }
    Ok(())
}

/// All that comes over so many connections, discarded in the kernel.
pub fn bulk(proxy: SocketAddr, connections: usize, progress: &Progress) -> io::Result<()> {
    discard(&several(connections, || connect(proxy))?, progress)
}

/// The same over one connection on which `first` is sent before.
pub fn download(proxy: SocketAddr, first: &[u8], progress: &Progress) -> io::Result<()> {
    discard(&[begin(proxy, first)?], progress)
}

/// As much as can be sent over one connection, `first` before all.
pub fn upload(proxy: SocketAddr, first: &[u8], progress: &Progress) -> io::Result<()> {
    let mut stream = begin(proxy, first)?;
    stream.set_write_timeout(Some(LIMIT))?;
    let chunk = vec![7; UPLOAD];
    while progress.goes_on() {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn begin(proxy: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    let mut stream = connect(proxy)?;
    stream.write_all(first)?;
    Ok(stream)
}

/// Discards in the kernel what comes over these.
pub(super) fn discard(open: &[TcpStream], progress: &Progress) -> io::Result<()> {
    let mut waiting = Waiting::new()?;
    let mut chunk = vec![0; CHUNK];
    for (index, stream) in open.iter().enumerate() {
        waiting.add(stream, index)?;
    }
    while progress.goes_on() {
        for index in waiting.ready()? {
            let Some(stream) = open.get(index) else { continue };
            // tcp(7): TRUNC discards the bytes instead of copying them.
            let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
            let (_, length) = rustix::net::recv(stream, &mut chunk[..], flags)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            progress.add(length);
        }
    }
    Ok(())
}

/// Microseconds from the start of a connect to the first byte back, one connection after another.
pub fn first_bytes(proxy: SocketAddr, count: usize) -> io::Result<Vec<f64>> {
    (0..count)
        .map(|_| {
            let begun = SystemTime::now();
            exchange(&mut connect(proxy)?)?;
            Ok(begun.elapsed().map_err(io::Error::other)?.as_secs_f64() * 1e6)
        })
        .collect()
}

/// So many connections on each of which a byte went each way.
pub fn hold(proxy: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    several(count, || {
        let mut stream = connect(proxy)?;
        exchange(&mut stream)?;
        Ok(stream)
    })
}

/// So many of what `open` opens; an error says how many there were.
pub(super) fn several<T>(count: usize, mut open: impl FnMut() -> io::Result<T>) -> io::Result<Vec<T>> {
    let mut opened = Vec::with_capacity(count);
    for number in 0..count {
        let one = open()
            .map_err(|error| io::Error::new(error.kind(), format!("after {number} connections: {error}")))?;
        opened.push(one);
    }
    Ok(opened)
}

/// As lean as can be, for its cost is the load's and not the proxy's.
pub(super) fn connect(proxy: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(proxy)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// A byte there and back.
fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}
