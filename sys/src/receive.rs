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
    arena: Arena,
    longest: usize,
    headers: Box<[libc::mmsghdr]>,
    slices: Box<[libc::iovec]>,
    peers: Box<[RawAddress]>,
    spaces: Box<[Space]>,
    received: Vec<Received>,
}

impl RecvBatch {
    /// Room for so many messages, none longer than `longest` bytes.
    pub fn new(messages: usize, longest: usize) -> io::Result<Self> {
        // SAFETY: mmsghdr and iovec are plain old data for which all zeroes is a value.
        let (header, slice) = unsafe { (mem::zeroed(), mem::zeroed()) };
        Ok(Self {
            arena: Arena::new(messages * (longest + STAGGER))?,
            longest,
            headers: vec![header; messages].into_boxed_slice(),
            slices: vec![slice; messages].into_boxed_slice(),
            peers: vec![RawAddress::empty(); messages].into_boxed_slice(),
            spaces: vec![Space::default(); messages].into_boxed_slice(),
            received: Vec::with_capacity(messages),
        })
    }

    /// Takes what waits at the socket without waiting, as far as there is room: how many messages that
    /// were. Less than [`RecvBatch::room`] says that nothing more is there. `WouldBlock` where there
    /// was nothing at all. Peers are noted only where `peers` asks for it.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, peers: bool) -> io::Result<usize> {
        let first = self.received.len();
        let room = self.prepare(peers);
        // SAFETY: the descriptor is open for the life of the borrow. `prepare` has just made every
        // pointer of the `room` headers from `first` on lead to memory of the length given beside it,
        // which is exclusively ours and outlives the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers[first..].as_mut_ptr(),
                room,
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
        self.headers.len() - self.received.len()
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

    fn stride(&self) -> usize {
        self.longest + STAGGER
    }

    /// Makes the headers of free places ready; how many there are.
    fn prepare(&mut self, peers: bool) -> libc::c_uint {
        let (first, stride) = (self.received.len(), self.stride());
        let arena = self.arena.bytes_mut().as_mut_ptr();
        for place in first..self.headers.len() {
            let message = &mut self.headers[place].msg_hdr;
            // SAFETY: the arena has `stride` bytes for each place.
            self.slices[place].iov_base = unsafe { arena.add(place * stride) }.cast();
            self.slices[place].iov_len = self.longest;
            message.msg_iov = &raw mut self.slices[place];
            message.msg_iovlen = 1;
            message.msg_control = self.spaces[place].pointer();
            message.msg_controllen = Space::LEN;
            message.msg_flags = 0;
            if peers {
                message.msg_name = (&raw mut self.peers[place].storage).cast();
                message.msg_namelen = RawAddress::LEN;
            } else {
                message.msg_name = ptr::null_mut();
                message.msg_namelen = 0;
            }
        }
        // The constructor's argument is a small number.
        libc::c_uint::try_from(self.room()).unwrap_or(libc::c_uint::MAX)
    }

    /// # Safety
    /// The header of `place` must be as recvmmsg left it, its buffers alive and unchanged since.
    unsafe fn read(&mut self, place: usize, peers: bool) -> Received {
        let header = &self.headers[place];
        let message = &header.msg_hdr;
        // SAFETY: by the contract of this function.
        let told = unsafe { control::read(message) };
        let peer = &mut self.peers[place];
        peer.len = message.msg_namelen;
        Received {
            start: place * (self.longest + STAGGER),
            len: header.msg_len as usize,
            segment: told.segment,
            truncated: message.msg_flags & libc::MSG_TRUNC != 0,
            peer: if peers { peer.decode() } else { None },
            local: told.local,
        }
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBatch({:?}, {:?})", self.arena, self.received)
    }
}
