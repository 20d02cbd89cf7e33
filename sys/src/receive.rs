//! Datagrams in, many with one call (recvmmsg(2)), into memory that is used again.

use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::address::RawAddress;
use crate::arena::Arena;
use crate::control::{self, Space};
use crate::datagram::Local;
use crate::places::Places;

/// Space between the places of messages. Places at a power of two would share the same few sets of
/// the processor's caches.
const STAGGER: usize = 64;

/// A received message: one datagram, or with GRO several of one size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Received {
    /// Where it begins in [`RecvBatch::bytes`].
    pub start: usize,
    /// How many bytes it has; 0 is a datagram too.
    pub len: usize,
    /// It holds several datagrams of so many bytes, the last of which may be shorter.
    pub segment: Option<NonZeroUsize>,
    /// It was longer than its place: the rest is lost.
    pub truncated: bool,
    /// Who sent it, where that was asked for.
    pub peer: Option<SocketAddr>,
    /// The address it was sent to, where packet info is enabled.
    pub local: Option<Local>,
}

/// Messages received from one socket or from several, until it is cleared. Nothing is allocated by
/// receiving. Pages that no message has touched take no memory.
pub struct RecvBatch {
    received: Vec<Received>,
    longest: usize,
    /// What the kernel is given: without room for a peer, and with it. All pointers were set once.
    headers: [Places<libc::mmsghdr>; 2],
    peers: Places<RawAddress>,
    /// Kept because headers lead here.
    _slices: Places<libc::iovec>,
    _spaces: Places<Space>,
    arena: Arena,
}

impl RecvBatch {
    /// Room for so many messages, none longer than `longest` bytes.
    pub fn new(messages: usize, longest: usize) -> io::Result<Self> {
        let arena = Arena::new(messages * (longest + STAGGER))?;
        // SAFETY: mmsghdr and iovec are plain old data for which all zeroes is a value.
        let (header, slice): (libc::mmsghdr, libc::iovec) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let headers = [Places::new(header, messages), Places::new(header, messages)];
        let (slices, spaces) = (Places::new(slice, messages), Places::new(Space::default(), messages));
        let peers = Places::new(RawAddress::empty(), messages);
        for place in 0..messages {
            let iov_base = arena.at(place * (longest + STAGGER)).cast();
            // SAFETY: nothing else refers to the slice.
            unsafe { slices.at(place).write(libc::iovec { iov_base, iov_len: longest }) };
            for (headers, named) in headers.iter().zip([false, true]) {
                // SAFETY: nothing else refers to the header.
                let message = unsafe { &mut (*headers.at(place)).msg_hdr };
                message.msg_iov = slices.at(place);
                message.msg_iovlen = 1;
                message.msg_control = spaces.at(place).cast();
                message.msg_controllen = Space::LEN;
                if named {
                    // SAFETY: the address is live; only a pointer into it is made.
                    message.msg_name = unsafe { &raw mut (*peers.at(place)).storage }.cast();
                    message.msg_namelen = RawAddress::LEN;
                }
            }
        }
        let received = Vec::with_capacity(messages);
        Ok(Self { received, longest, headers, peers, _slices: slices, _spaces: spaces, arena })
    }

    /// Takes what waits at the socket without waiting, as far as there is room: how many messages that
    /// were. Less than [`RecvBatch::room`] says that nothing more is there. `WouldBlock` where there
    /// was nothing at all. Peers are noted only where `peers` asks for it.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, peers: bool) -> io::Result<usize> {
        let (first, room) = (self.received.len(), self.room());
        if room == 0 {
            return Ok(0);
        }
        // SAFETY: the descriptor is open for the life of the borrow. There are `room` headers from
        // `first` on. Every pointer of theirs leads to memory of `self`, of the length given beside it,
        // which `read` has restored; nothing else refers to any of it.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers[usize::from(peers)].at(first),
                libc::c_uint::try_from(room).unwrap_or(libc::c_uint::MAX),
                libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for place in first..first + count {
            // SAFETY: recvmmsg has just filled this header; nothing has touched its buffers since.
            let message = unsafe { self.read(place, peers) };
            self.received.push(message);
        }
        Ok(count)
    }

    /// How many more messages it takes.
    #[must_use]
    pub fn room(&self) -> usize {
        self.peers.len() - self.received.len()
    }

    /// The messages, in the order they were received.
    #[must_use]
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// Where the messages lie.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.arena.bytes()
    }

    /// Forgets the messages.
    pub fn clear(&mut self) {
        self.received.clear();
    }

    /// Forgets the messages and gives their memory back to the system.
    pub fn release(&mut self) {
        self.clear();
        self.arena.release();
    }

    /// Reads a message, and makes its header ready to be filled again.
    ///
    /// # Safety
    /// The header of `place` must be as recvmmsg left it, its buffers alive and unchanged since.
    unsafe fn read(&self, place: usize, peers: bool) -> Received {
        // SAFETY: nothing else refers to the header.
        let header = unsafe { &mut *self.headers[usize::from(peers)].at(place) };
        let message = &mut header.msg_hdr;
        // SAFETY: by the contract of this function.
        let told = unsafe { control::read(message) };
        let mut peer = None;
        if peers {
            // SAFETY: nothing else refers to the address.
            let raw = unsafe { &mut *self.peers.at(place) };
            raw.len = message.msg_namelen;
            peer = raw.decode();
            message.msg_namelen = RawAddress::LEN;
        }
        message.msg_controllen = Space::LEN;
        Received {
            start: place * (self.longest + STAGGER),
            len: header.msg_len as usize,
            segment: told.segment,
            truncated: message.msg_flags & libc::MSG_TRUNC != 0,
            peer,
            local: told.local,
        }
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBatch({:?}, {:?})", self.arena, self.received)
    }
}
