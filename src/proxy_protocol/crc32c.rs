//! CRC-32C, the checksum of SCTP and of headers of version 2 (RFC 4960, appendix B).

/// Castagnoli's polynomial, its bits in reverse.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What each byte does to the sum.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        #[expect(clippy::cast_possible_truncation, reason = "below 256, and From is not const")]
        let mut sum = index as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        table[index] = sum;
        index += 1;
    }
    table
};

/// The sum of the bytes, taken in turn.
pub(super) fn sum<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    let step = |sum: u32, byte: &u8| {
        let [low, ..] = sum.to_le_bytes();
        TABLE[usize::from(low ^ byte)] ^ sum >> 8
    };
    !bytes.into_iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: u32) {
        assert_eq!(sum(bytes), expected, "{bytes:02x?}");
    }

    #[test]
    fn sums_are_those_of_rfc_3720() {
        // Appendix B.4, read as little-endian, and the customary check value.
        check(&[0; 32], 0x8a91_36aa);
        check(&[0xff; 32], 0x62a8_ab43);
        check(&std::array::from_fn::<u8, 32, _>(|index| u8::try_from(index).unwrap()), 0x46dd_794e);
        check(b"123456789", 0xe306_9283);
        check(b"", 0);
    }
}
