//! Whether a flow is bulk: worth a pipe.

use crate::net::buffer::SIZE;

/// A read of so much says bulk: half of what a buffer takes.
const FULL: usize = SIZE / 2;
/// So many of them in a row make a flow bulk.
const FULL_READS: u8 = 4;
/// A read of less than so much says that it is not.
const SMALL: usize = 16 * 1024;
/// So many of those in a row end it.
const SMALL_READS: u8 = 8;

/// What the last reads say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    bulk: bool,
    /// How many reads in a row have spoken against what `bulk` says.
    against: u8,
    /// Its sockets cannot be spliced.
    never: bool,
}

impl Pace {
    /// The next read may go through a pipe.
    pub(super) fn is_bulk(self) -> bool {
        self.bulk
    }

    /// Notes a read of so many bytes; reports whether it made the flow bulk.
    pub(super) fn note(&mut self, read: usize) -> bool {
        let (against, reads) =
            if self.bulk { (read < SMALL, SMALL_READS) } else { (read >= FULL, FULL_READS) };
        self.against = if against && !self.never { self.against + 1 } else { 0 };
        let turned = self.against >= reads;
        if turned {
            *self = Self { bulk: !self.bulk, ..Self::default() };
        }
        turned && self.bulk
    }

    /// There was no pipe: it is asked for again after as many full reads as the first time.
    pub(super) fn refused(&mut self) {
        *self = Self { never: self.never, ..Self::default() };
    }

    /// The kernel does not splice these sockets.
    pub(super) fn never(&mut self) {
        *self = Self { never: true, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pace: &mut Pace, reads: &[usize]) -> bool {
        for read in reads {
            let before = pace.is_bulk();
            assert_eq!(pace.note(*read), !before && pace.is_bulk());
        }
        pace.is_bulk()
    }

    #[test]
    fn full_reads_in_a_row_make_bulk_and_small_ones_end_it() {
        let mut pace = Pace::default();
        assert!(!after(&mut pace, &[FULL, FULL, FULL, FULL - 1, FULL, FULL, FULL]));
        assert!(after(&mut pace, &[FULL]));
        assert!(after(&mut pace, &[1, 1, 1, 1, 1, 1, 1, SMALL, 1, 1, 1, 1, 1, 1, 1]));
        assert!(!after(&mut pace, &[SMALL - 1]));
        assert!(!after(&mut pace, &[FULL, FULL, FULL]), "it starts anew");
    }

    #[test]
    fn without_a_pipe_it_is_asked_for_later() {
        let mut pace = Pace::default();
        assert!(after(&mut pace, &[FULL; 4]));
        pace.refused();
        assert!(!after(&mut pace, &[FULL; 3]));
        assert!(after(&mut pace, &[FULL]));
        pace.never();
        assert!(!after(&mut pace, &[FULL; 100]));
    }
}
