//! Datagrams out, many with one call (sendmmsg(2)), gathered from memory they already lie in.
//!
//! With a segment size (udp(7), `UDP_SEGMENT`, called GSO) one message leaves as several datagrams of
//! that size, of which the last may be shorter: the kernel walks its stack once for all of them.
//! Nothing here sets the don't-fragment bit beyond what an ordinary socket does.

use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::address::RawAddress;
use crate::control::{self, Space};
use crate::datagram::Local;

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Some bytes of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Where they begin in the bytes that are sent from.
    pub start: usize,
    /// How many they are.
    pub len: usize,
}

/// A message to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outgoing {
    /// To whom; absent on a connected socket.
    pub peer: Option<SocketAddr>,
    /// From which local address; absent: the socket's own.
    pub from: Option<Local>,
    /// It leaves as datagrams of so many bytes; absent: as one.
    pub segment: Option<NonZeroU16>,
    /// Which of the pieces it is made of, in order.
    pub pieces: Range<usize>,
}

/// What messages are made ready in. Nothing is allocated by sending once it has seen the usual number
/// of pieces.
pub struct SendBatch {
    headers: Box<[libc::mmsghdr]>,
    slices: Vec<libc::iovec>,
    peers: Box<[RawAddress]>,
    spaces: Box<[Space]>,
}

impl SendBatch {
    /// Sends so many messages with one call.
    #[must_use]
    pub fn new(messages: usize) -> Self {
        // SAFETY: mmsghdr is plain old data for which all zeroes is a value.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        Self {
            headers: vec![header; messages].into_boxed_slice(),
            slices: Vec::new(),
            peers: vec![RawAddress::empty(); messages].into_boxed_slice(),
            spaces: vec![Space::default(); messages].into_boxed_slice(),
        }
    }

    /// Sends the first of `messages` without waiting, gathered from `bytes`: how many were sent, at
    /// least one, perhaps not all. The error is that of the first one.
    pub fn send<'m>(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        pieces: &[Piece],
        messages: impl Iterator<Item = &'m Outgoing>,
    ) -> io::Result<usize> {
        let count = self.prepare(bytes, pieces, messages)?;
        let (socket, headers) = (socket.as_raw_fd(), &mut self.headers[..count]);
        let sent = match headers {
            [] => return Ok(0),
            [one] if is_plain(&one.msg_hdr) => {
                let slice = &self.slices[0];
                // SAFETY: the descriptor is open for the life of its borrow, and the slice is part of
                // `bytes`, which outlives the call; the kernel only reads it.
                unsafe { libc::send(socket, slice.iov_base, slice.iov_len, FLAGS) }.min(1)
            }
            // SAFETY: as above; `prepare` has just made every pointer of the header lead to memory of
            // the length given beside it that outlives the call, and the kernel only reads it.
            [one] => unsafe { libc::sendmsg(socket, &raw const one.msg_hdr, FLAGS) }.min(1),
            many => {
                let count = libc::c_uint::try_from(many.len()).unwrap_or(libc::c_uint::MAX);
                // SAFETY: as above for each header; `msg_len` of each is written, which is ours.
                unsafe { libc::sendmmsg(socket, many.as_mut_ptr(), count, FLAGS) as libc::ssize_t }
            }
        };
        match usize::try_from(sent) {
            // `send` and `sendmsg` return bytes, of which an empty datagram has none.
            Ok(sent) => Ok(sent.max(1)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Makes headers of as many messages as go with one call; how many those are.
    fn prepare<'m>(
        &mut self,
        bytes: &[u8],
        pieces: &[Piece],
        messages: impl Iterator<Item = &'m Outgoing>,
    ) -> io::Result<usize> {
        self.slices.clear();
        let mut count = 0;
        for (place, message) in messages.take(self.headers.len()).enumerate() {
            let first = self.slices.len();
            for piece in pieces.get(message.pieces.clone()).ok_or(io::ErrorKind::InvalidInput)? {
                let end = piece.start.checked_add(piece.len).ok_or(io::ErrorKind::InvalidInput)?;
                let part = bytes.get(piece.start..end).ok_or(io::ErrorKind::InvalidInput)?;
                // The kernel only reads; the structure has no const form.
                let iov_base = part.as_ptr().cast_mut().cast();
                self.slices.push(libc::iovec { iov_base, iov_len: part.len() });
            }
            let header = &mut self.headers[place].msg_hdr;
            header.msg_iovlen = self.slices.len() - first;
            (header.msg_name, header.msg_namelen) = (ptr::null_mut(), 0);
            if let Some(peer) = message.peer {
                self.peers[place] = peer.into();
                header.msg_name = (&raw mut self.peers[place].storage).cast();
                header.msg_namelen = self.peers[place].len;
            }
            // SAFETY: the header is used by the call that follows, which `spaces` outlives unchanged.
            unsafe { control::write(header, &mut self.spaces[place], message.from, message.segment) };
            count += 1;
        }
        // Only now, as the slices do not move any more.
        let mut slices = self.slices.as_mut_ptr();
        for header in &mut self.headers[..count] {
            header.msg_hdr.msg_iov = slices;
            // SAFETY: together the messages have as many slices as there are.
            slices = unsafe { slices.add(header.msg_hdr.msg_iovlen) };
        }
        Ok(count)
    }
}

/// Reports whether send(2) would do.
fn is_plain(message: &libc::msghdr) -> bool {
    message.msg_name.is_null() && message.msg_control.is_null() && message.msg_iovlen == 1
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendBatch({} messages)", self.headers.len())
    }
}
