//! Datagrams on their way out: which of them leave as segments of one message.
//!
//! Datagrams of one association that follow each other and have one size leave with one call and one
//! walk through the kernel's stack (GSO); one shorter datagram may close such a message. Order is
//! kept, each datagram arrives alone, and an empty one, which no segment can be, goes by itself.
//! Pure: no I/O.

use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroUsize};
use std::ops::Range;
use std::time::Instant;

use rustix::io::Errno;
use streamgate_sys::datagram::Local;
use streamgate_sys::receive::Received;
use streamgate_sys::send::{Outgoing, Piece};

use crate::flow::Id;
use crate::live::bandwidth::Bounds;

/// Segments of one message. Linux before 6.9 makes no more of one (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 64;
/// Headers of an IP packet with a datagram, of at most 65,535 bytes in all.
const HEADERS: (usize, usize) = (20 + 8, 40 + 8);

/// Bytes that lie together: one datagram, or several of one size of which the last may be shorter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    start: usize,
    len: usize,
    /// Present only where there are several.
    segment: Option<NonZeroUsize>,
}

impl From<&Received> for Part {
    fn from(message: &Received) -> Self {
        let segment = message.segment.filter(|size| size.get() < message.len);
        Self { start: message.start, len: message.len, segment }
    }
}

impl Part {
    /// How many datagrams there are.
    pub(super) fn datagrams(self) -> usize {
        self.segment.map_or(1, |size| self.len.div_ceil(size.get()))
    }

    /// Where its bytes lie.
    pub(super) fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The size of its datagrams but for the last.
    fn size(self) -> usize {
        self.segment.map_or(self.len, NonZeroUsize::get)
    }

    /// The first `count` datagrams, and the others if there are any.
    pub(super) fn split(self, count: usize) -> (Self, Option<Self>) {
        let Some(size) = self.segment else { return (self, None) };
        let len = count.saturating_mul(size.get());
        if len >= self.len {
            return (self, None);
        }
        let cut = |start, len| Self { start, len, segment: self.segment.filter(|size| size.get() < len) };
        (cut(self.start, len), Some(cut(self.start + len, self.len - len)))
    }

    /// It in runs of `count` datagrams.
    pub(super) fn runs(self, count: usize) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let (run, others) = rest?.split(count.max(1));
            rest = others;
            Some(run)
        })
    }
}

/// Drops the datagrams that are too fast; how many those are. What comes together is as fast as what comes
/// before it, so of a part the first ones stay.
pub(super) fn admit(bounds: &Bounds, parts: &mut Vec<Part>, now: Instant) -> u64 {
    let mut dropped = 0;
    parts.retain_mut(|part| {
        let taken = part.runs(1).take_while(|datagram| bounds.take(datagram.len, now)).count();
        dropped += (part.datagrams() - taken) as u64;
        *part = part.split(taken).0;
        taken > 0
    });
    dropped
}

/// What the system makes segments of, on one way. Sizes it has refused are not tried again: a segment
/// must fit into a packet, and some ways have nobody to compute checksums of segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segments {
    refused: usize,
}

impl Default for Segments {
    fn default() -> Self {
        Self { refused: usize::MAX }
    }
}

impl Segments {
    /// Reports whether `error` may be the answer to a message in segments, rather than to its datagrams.
    pub(super) fn are_refused(error: &io::Error) -> bool {
        matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::INVAL | Errno::MSGSIZE))
    }

    /// Learns from such an error.
    pub(super) fn learn(&mut self, size: usize, error: &io::Error) {
        let refused = if Errno::from_io_error(error) == Some(Errno::IO) { 0 } else { size };
        self.refused = self.refused.min(refused);
    }

    fn take(self, size: usize) -> bool {
        size < self.refused
    }
}

/// Where datagrams go, and for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// To whom; absent on a connected socket.
    pub(super) peer: Option<SocketAddr>,
    /// From which local address; absent: the socket's own.
    pub(super) from: Option<Local>,
    /// The receiver's address is of IPv6.
    pub(super) ipv6: bool,
    pub(super) segments: Segments,
    pub(super) owner: Id,
}

impl Way {
    /// The most bytes of a message.
    fn most(&self) -> usize {
        usize::from(u16::MAX) - if self.ipv6 { HEADERS.1 } else { HEADERS.0 }
    }

    /// How many datagrams of `size` may leave in one message.
    fn run(&self, size: usize) -> usize {
        if size == 0 || !self.segments.take(size) { 1 } else { (self.most() / size).clamp(1, MOST_SEGMENTS) }
    }
}

/// One message: one datagram, or several in segments.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) outgoing: Outgoing,
    pub(super) owner: Id,
    pub(super) datagrams: usize,
    pub(super) bytes: usize,
    /// The size of its datagrams but for the last.
    pub(super) size: usize,
}

/// Messages in the order they leave.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pieces: Vec<Piece>,
    messages: Vec<Message>,
    /// The last message takes more.
    open: bool,
}

impl Flight {
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.messages.clear();
    }

    /// The messages from `first` on.
    pub(super) fn messages(&self, first: usize) -> &[Message] {
        self.messages.get(first..).unwrap_or_default()
    }

    /// What their pieces are counted in.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Adds datagrams of one association.
    pub(super) fn add(&mut self, way: &Way, parts: &[Part]) {
        self.open = false;
        for part in parts {
            let runs = part.runs(way.run(part.size()));
            runs.for_each(|run| self.put(way, run));
        }
    }

    /// Makes a message of each datagram of a message that the system refused.
    pub(super) fn split(&mut self, place: usize) {
        let Some(message) = self.messages.get(place) else { return };
        let Outgoing { peer, from, .. } = message.outgoing;
        let (owner, size) = (message.owner, NonZeroUsize::new(message.size));
        let mut alone = Vec::with_capacity(message.datagrams);
        for piece in message.outgoing.pieces.clone() {
            let Some(&Piece { start, len }) = self.pieces.get(piece) else { continue };
            let part = Part { start, len, segment: size.filter(|size| size.get() < len) };
            for datagram in part.runs(1) {
                let pieces = push(&mut self.pieces, datagram);
                let outgoing = Outgoing { peer, from, segment: None, pieces };
                let len = datagram.len;
                alone.push(Message { outgoing, owner, datagrams: 1, bytes: len, size: len });
            }
        }
        self.messages.splice(place..=place, alone);
    }

    /// Adds what fits into one message: to the last one where it may go with it.
    fn put(&mut self, way: &Way, run: Part) {
        let (size, datagrams) = (run.size(), run.datagrams());
        let last = self.messages.last_mut().filter(|_| self.open);
        if let Some(message) = last.filter(|message| goes_with(way, message, run)) {
            message.outgoing.pieces.end = push(&mut self.pieces, run).end;
            message.outgoing.segment = segment(message.size);
            message.datagrams += datagrams;
            message.bytes += run.len;
            self.open = run.len.is_multiple_of(message.size);
            return;
        }
        self.open = size > 0 && run.len.is_multiple_of(size) && way.segments.take(size);
        let outgoing = Outgoing {
            peer: way.peer,
            from: way.from,
            segment: segment(size).filter(|_| datagrams > 1),
            pieces: push(&mut self.pieces, run),
        };
        self.messages.push(Message { outgoing, owner: way.owner, datagrams, bytes: run.len, size });
    }
}

/// Reports whether `run` may be the next segments of `message`, which has full ones so far.
fn goes_with(way: &Way, message: &Message, run: Part) -> bool {
    let alike = run.size() == message.size || (run.segment.is_none() && run.len < message.size);
    alike
        && run.len > 0
        && message.datagrams + run.datagrams() <= MOST_SEGMENTS
        && message.bytes + run.len <= way.most()
}

fn segment(size: usize) -> Option<NonZeroU16> {
    u16::try_from(size).ok().and_then(NonZeroU16::new)
}

/// Adds a piece; the range of it alone.
fn push(pieces: &mut Vec<Piece>, part: Part) -> Range<usize> {
    pieces.push(Piece { start: part.start, len: part.len });
    pieces.len() - 1..pieces.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn way(segments: Segments, ipv6: bool) -> Way {
        Way { peer: None, from: None, ipv6, segments, owner: Id::from_bits(7) }
    }

    fn refusing(size: usize, errno: Errno) -> Segments {
        let mut segments = Segments::default();
        segments.learn(size, &errno.into());
        segments
    }

    /// Parts that lie one behind the other, by their length and the size of their segments (0: alone).
    fn parts(of: &[(usize, usize)]) -> Vec<Part> {
        let mut start = 0;
        let part = |&(len, size): &(usize, usize)| {
            let segment = NonZeroUsize::new(size).filter(|size| size.get() < len);
            start += len;
            Part { start: start - len, len, segment }
        };
        of.iter().map(part).collect()
    }

    /// The datagrams a message makes, by where they begin and how long they are.
    fn datagrams(flight: &Flight, message: &Message) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for piece in &flight.pieces[message.outgoing.pieces.clone()] {
            let size = message.outgoing.segment.map_or(usize::MAX, |size| usize::from(size.get()));
            if piece.len == 0 {
                found.push((piece.start, 0));
            }
            let offsets = (0..piece.len).step_by(size);
            found.extend(offsets.map(|at| (piece.start + at, size.min(piece.len - at))));
        }
        found
    }

    /// Messages as lists of the lengths of their datagrams.
    #[track_caller]
    fn check(way: &Way, given: &[(usize, usize)], expected: &[&[usize]]) {
        let mut flight = Flight::default();
        flight.add(way, &parts(given));
        let lengths = |message| datagrams(&flight, message).iter().map(|(_, len)| *len).collect();
        let messages: Vec<Vec<usize>> = flight.messages(0).iter().map(lengths).collect();
        assert_eq!(messages, expected, "{given:?}");
    }

    #[test]
    fn equal_datagrams_and_a_shorter_one_leave_together() {
        let way = way(Segments::default(), false);
        check(&way, &[(100, 0), (100, 0), (100, 0)], &[&[100, 100, 100]]);
        check(&way, &[(100, 0), (40, 0), (40, 0)], &[&[100, 40], &[40]]);
        check(&way, &[(40, 0), (100, 0)], &[&[40], &[100]]);
        check(&way, &[(100, 0), (250, 100), (100, 0)], &[&[100, 100, 100, 50], &[100]]);
        check(&way, &[(200, 100), (300, 150)], &[&[100, 100], &[150, 150]]);
        check(&way, &[(200, 100), (1, 0)], &[&[100, 100, 1]]);
    }

    #[test]
    fn an_empty_datagram_goes_alone() {
        let way = way(Segments::default(), false);
        check(&way, &[(0, 0), (0, 0)], &[&[0], &[0]]);
        check(&way, &[(9, 0), (9, 0), (0, 0), (9, 0)], &[&[9, 9], &[0], &[9]]);
    }

    #[test]
    fn a_message_keeps_the_limits_of_ip_and_of_the_kernel() {
        let (four, six) = (way(Segments::default(), false), way(Segments::default(), true));
        check(&four, &[(65_507, 0), (1, 0)], &[&[65_507], &[1]]);
        check(&four, &[(32_753, 0), (32_754, 0)], &[&[32_753], &[32_754]]);
        check(&four, &[(32_754, 0), (32_753, 0)], &[&[32_754, 32_753]]);
        check(&six, &[(32_754, 0), (32_753, 0)], &[&[32_754], &[32_753]]);
        check(&six, &[(32_753 * 2, 32_753)], &[&[32_753], &[32_753]]);
        check(&four, &[(65, 1)], &[&[1; 64], &[1]]);
        check(&four, &[(1, 0); 65], &[&[1; 64], &[1]]);
    }

    #[test]
    fn what_was_refused_is_not_tried_again() {
        let large = way(refusing(1500, Errno::MSGSIZE), false);
        check(&large, &[(1500, 0), (1500, 0)], &[&[1500], &[1500]]);
        check(&large, &[(3100, 1550)], &[&[1550], &[1550]]);
        check(&large, &[(1499, 0), (1499, 0)], &[&[1499, 1499]]);
        let all = way(refusing(1500, Errno::IO), false);
        check(&all, &[(1, 0), (1, 0)], &[&[1], &[1]]);
    }

    #[test]
    fn only_errors_about_segments_are_taken_for_that() {
        for (errno, refused) in [(Errno::IO, true), (Errno::INVAL, true), (Errno::MSGSIZE, true)]
            .into_iter()
            .chain([(Errno::AGAIN, false), (Errno::CONNREFUSED, false), (Errno::NOBUFS, false)])
        {
            assert_eq!(Segments::are_refused(&errno.into()), refused, "{errno}");
        }
    }

    #[test]
    fn associations_do_not_share_a_message() {
        let mut flight = Flight::default();
        for owner in [7, 8] {
            let way = Way { owner: Id::from_bits(owner), ..way(Segments::default(), false) };
            flight.add(&way, &parts(&[(10, 0), (10, 0)]));
        }
        let owners: Vec<_> = flight.messages(0).iter().map(|message| message.owner.to_bits()).collect();
        assert_eq!(owners, [7, 8]);
    }

    fn given() -> impl Strategy<Value = Vec<(usize, usize)>> {
        let alone =
            prop_oneof![Just(0), 1..4_usize, 100..103_usize, 20_000..65_536_usize].prop_map(|len| (len, 0));
        let several = (prop_oneof![1..4_usize, 100..103_usize, 1200..1202_usize], 1..130_usize, 0..100_usize)
            .prop_map(|(size, count, rest)| ((size * count + rest % size).min(65_535), size));
        prop::collection::vec(prop_oneof![2 => alone, 1 => several], 0..20)
    }

    proptest! {
        #[test]
        fn each_datagram_leaves_once_and_in_order(given in given(), ipv6: bool, refused in 0..2000_usize) {
            let segments = if refused < 1000 { Segments::default() } else { refusing(refused, Errno::INVAL) };
            let (way, parts) = (way(segments, ipv6), parts(&given));
            let mut flight = Flight::default();
            flight.add(&way, &parts);
            let alone = parts.iter().flat_map(|part| part.runs(1));
            let expected: Vec<_> = alone.map(|datagram| (datagram.start, datagram.len)).collect();
            let all = |flight: &Flight| -> Vec<_> {
                flight.messages(0).iter().flat_map(|message| datagrams(flight, message)).collect()
            };
            prop_assert_eq!(all(&flight), &expected[..]);
            for message in flight.messages(0) {
                let lengths: Vec<_> = datagrams(&flight, message).iter().map(|(_, len)| *len).collect();
                prop_assert_eq!((lengths.len(), lengths.iter().sum()), (message.datagrams, message.bytes));
                let (last, full) = lengths.split_last().unwrap();
                prop_assert!(full.iter().all(|len| *len == message.size && *len > 0));
                prop_assert!(*last <= message.size && (full.is_empty() || *last > 0));
                if !full.is_empty() {
                    prop_assert!(message.size < segments.refused);
                    prop_assert!(lengths.len() <= 64 && message.bytes <= way.most());
                }
            }
            // As if the system refused every one.
            let mut place = 0;
            while place < flight.messages(0).len() {
                flight.split(place);
                place += 1;
            }
            prop_assert_eq!(all(&flight), expected);
            prop_assert!(flight.messages(0).iter().all(|message| message.outgoing.segment.is_none()));
        }
    }
}
