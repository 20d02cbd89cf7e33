//! What holds of every reading of a CONNECT, whatever the bytes.
//!
//! Whoever includes this file has the module `connect` in the root of its crate.

use crate::connect::{Connect, Malformed, Reading, read};

/// One type byte, four of length, and what four of seven bits can say.
const MOST: usize = 5 + (1 << 28) - 1;

/// Panics where something does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let reading = read(bytes);
    match reading {
        Reading::Need(count) => {
            assert!(count > bytes.len() && count <= MOST, "needs {count} of {}", bytes.len());
            assert!(bytes.first().is_none_or(|first| *first == 0x10 || bytes.len() < 5));
        }
        Reading::Malformed(why) => {
            let text = why.to_string();
            assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text}");
            if let Malformed::Truncated { length, .. } = why {
                assert!(length <= bytes.len(), "{length} of {}", bytes.len());
            }
        }
        Reading::Connect(connect) => check_connect(bytes, &connect),
    }
    check_prefixes(bytes, &reading);
}

/// A shorter prefix asks for more or says the same, and asks for nothing that does not come.
fn check_prefixes(bytes: &[u8], whole: &Reading<'_>) {
    let coming = match whole {
        Reading::Need(count) => *count,
        Reading::Connect(connect) => connect.length,
        Reading::Malformed(_) => bytes.len(),
    };
    for cut in cuts(bytes, bytes.len()) {
        match read(&bytes[..cut]) {
            Reading::Need(count) => {
                assert!(count > cut && count <= coming.max(5), "cut after {cut}: {count}");
            }
            verdict => assert_eq!(verdict, *whole, "cut after {cut}"),
        }
    }
    // Asked as it asks for more, it comes to the same, whatever the segments.
    let mut have = 0;
    while let Reading::Need(count) = read(&bytes[..have]) {
        if count > bytes.len() {
            assert!(matches!(whole, Reading::Need(_)), "gives up at {have}");
            return;
        }
        have = count;
    }
    assert_eq!(read(&bytes[..have]), *whole, "asked step by step");
}

fn check_connect(bytes: &[u8], connect: &Connect<'_>) {
    assert!(connect.length <= bytes.len(), "{} of {}", connect.length, bytes.len());
    let packet = &bytes[..connect.length];
    assert_eq!(read(packet), Reading::Connect(*connect), "what follows counts");
    let parts = connect.name.len() + connect.client_id.len();
    assert!(parts + 10 <= packet.len(), "{parts} bytes of texts");
    for text in [connect.name, connect.client_id] {
        assert!(text.is_empty() || packet.windows(text.len()).any(|place| place == text));
    }
    // Written anew it says the same.
    let mut body = Vec::new();
    let text = |body: &mut Vec<u8>, text: &[u8]| {
        body.extend(u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
        body.extend(text);
    };
    text(&mut body, connect.name);
    body.extend([connect.level, 2, 0, 60]);
    if connect.level == 5 {
        body.push(0);
    }
    text(&mut body, connect.client_id);
    let mut again = vec![0x10];
    let mut left = body.len();
    while left > 0x7f {
        again.push(u8::try_from(left & 0x7f).unwrap_or_default() | 0x80);
        left >>= 7;
    }
    again.push(u8::try_from(left).unwrap_or_default());
    again.extend(body);
    let length = again.len();
    assert_eq!(read(&again), Reading::Connect(Connect { length, ..*connect }));
}

/// A few lengths up to `most`, chosen by the bytes: the ends, and some between.
fn cuts(bytes: &[u8], most: usize) -> impl Iterator<Item = usize> {
    let mix = |sum: usize, byte: &u8| sum.wrapping_mul(31).wrapping_add(usize::from(*byte));
    let sum = bytes.iter().rev().take(64).fold(7, mix);
    let middle = (1..5).map(move |turn| sum.rotate_right(turn * 11) % (most + 1));
    [0, 5.min(most), most.saturating_sub(1), most].into_iter().chain(middle)
}
