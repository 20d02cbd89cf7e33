//! Records on their way to the peer.

use std::io;

use crate::net::buffer::Buffer;

/// Sealed bytes in the order they have to leave, in a pooled buffer that is only held while there are any.
#[derive(Debug, Default)]
pub struct Outgoing {
    held: Option<Buffer>,
    start: usize,
    end: usize,
}

impl Outgoing {
    /// Nothing has to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Adds what `fill` writes into the place it is given, of which it tells the length.
    pub(super) fn put<E>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let held = self.held.get_or_insert_with(Buffer::take);
        let written = held.get_mut(self.end..).map_or(Ok(0), fill)?;
        self.end = held.len().min(self.end + written);
        Ok(())
    }

    /// Sends by `send`, which tells how much it took, `None` where nothing can be sent now. Reports
    /// whether all is sent.
    pub fn send(&mut self, mut send: impl FnMut(&[u8]) -> io::Result<Option<usize>>) -> io::Result<bool> {
        while let Some(rest) = self.held.as_ref().and_then(|held| held.get(self.start..self.end)) {
            if rest.is_empty() {
                break;
            }
            match send(rest)? {
                Some(taken) => self.start += taken,
                None => return Ok(false),
            }
        }
        *self = Self::default();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_however_few_are_taken() {
        let mut outgoing = Outgoing::default();
        let put = |outgoing: &mut Outgoing, bytes: &[u8]| {
            outgoing
                .put::<()>(|room| Ok(bytes.iter().zip(room).map(|(from, to)| *to = *from).count()))
                .unwrap();
        };
        put(&mut outgoing, b"abc");
        let (mut sent, mut turns) = (Vec::<u8>::new(), 0);
        let all = outgoing.send(|rest| {
            turns += 1;
            sent.extend(rest.first());
            Ok((turns < 3).then_some(1))
        });
        assert!(!all.unwrap() && !outgoing.is_empty());
        put(&mut outgoing, b"d");
        sent.pop();
        let all = outgoing.send(|rest| {
            sent.extend(rest);
            Ok(Some(rest.len()))
        });
        assert!(all.unwrap() && outgoing.is_empty());
        assert_eq!(sent, b"abcd");
    }
}
