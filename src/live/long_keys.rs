//! What stands for a key of a table that clients may choose: they must not choose how much is kept of it.

use std::borrow::Cow;
use std::hash::BuildHasher;

/// Keys longer than this, in bytes, are not kept as they are.
pub(super) const LONG: usize = 128;

/// The key itself, or of a long one its beginning with a hash that nobody can aim at: `hasher` has a key of
/// its own.
pub(super) fn short<'a>(key: &'a str, hasher: &impl BuildHasher) -> Cow<'a, str> {
    if key.len() <= LONG {
        return Cow::Borrowed(key);
    }
    let begin = key.get(..key.floor_char_boundary(LONG / 2)).unwrap_or_default();
    let sums = [0_u8, 1].map(|turn| hasher.hash_one((turn, key)));
    Cow::Owned(format!("{begin}…{:016x}{:016x}", sums[0], sums[1]))
}
