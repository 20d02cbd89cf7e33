//! What holds of every reading of a hello, whatever the bytes.
//!
//! Whoever includes this file has the module `hello` in the root of its crate.

use crate::hello::{Hello, MOST, Offer, Reading, parse_message, read};

/// Panics where something does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let mut joined = b"what an earlier reading left".to_vec();
    let reading = read(bytes, &mut joined);
    if let Reading::Need(count) = reading {
        assert!(count > bytes.len() && count <= MOST, "needs {count} of {}", bytes.len());
    }
    check_prefixes(bytes, &reading);
    if let Reading::Hello(hello) = reading {
        check_hello(bytes, hello);
        check_split(bytes, hello);
    }
    assert!(joined.capacity() <= MOST, "{} bytes of scratch", joined.capacity());
}

/// A shorter prefix asks for more or says the same, and asks for nothing that does not come.
fn check_prefixes(bytes: &[u8], whole: &Reading<'_>) {
    let coming = match whole {
        Reading::Need(count) => *count,
        Reading::Hello(hello) => hello.consumed(),
        Reading::NotTls | Reading::Malformed(_) | Reading::TooLarge => MOST,
    };
    let mut joined = Vec::new();
    for cut in cuts(bytes, bytes.len()) {
        match read(&bytes[..cut], &mut joined) {
            Reading::Need(count) => assert!(count > cut && count <= coming, "cut after {cut}: {count}"),
            verdict => assert_eq!(verdict, *whole, "cut after {cut}"),
        }
    }
    if let Reading::Hello(hello) = whole {
        for cut in cuts(bytes, hello.consumed() - 1) {
            let reading = read(&bytes[..cut], &mut joined);
            assert!(matches!(reading, Reading::Need(_)), "cut after {cut}: {reading:?}");
        }
        assert_eq!(read(&bytes[..hello.consumed()], &mut joined), *whole, "what follows counts");
    }
}

fn check_hello(bytes: &[u8], hello: Hello<'_>) {
    assert!(hello.consumed() <= bytes.len().min(MOST), "{} of {}", hello.consumed(), bytes.len());
    assert!(hello.message().len() < hello.consumed(), "a message of {} bytes", hello.message().len());
    if let Some(name) = hello.server_name() {
        assert!(
            (1..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()),
            "{name:?}"
        );
    }
    let normal = hello.server_name().map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
    assert_eq!(hello.normalized_name(), normal.filter(|name| !name.is_empty()));
    assert!(hello.alpn().map(<[u8]>::len).sum::<usize>() <= hello.message().len());
    let codes = hello.versions().chain(hello.suites()).chain(hello.groups()).chain(hello.signature_schemes());
    for code in codes {
        let [high, low] = code.to_be_bytes();
        assert!(high != low || low & 0xf != 0xa, "{code:#06x} says nothing");
    }
    assert!(hello.max_fragment_length().is_none_or(|length| [512, 1024, 2048, 4096].contains(&length)));
    let offer = Offer(hello).to_string();
    assert!(offer.is_ascii() && offer.len() < 2000, "{offer}");

    let again = parse_message(hello.message());
    assert_eq!(again.map(|again| Offer(again).to_string()), Some(offer));
    assert_eq!(again.map(|again| again.server_name()), Some(hello.server_name()));
    assert!(again.is_some_and(|again| again.alpn().eq(hello.alpn())));
    assert_eq!(parse_message(&hello.message()[..hello.message().len() - 1]), None);
}

/// The same message says the same in records of other sizes.
fn check_split(bytes: &[u8], hello: Hello<'_>) {
    for size in cuts(bytes, hello.message().len()) {
        let mut records = Vec::new();
        for fragment in hello.message().chunks(size.max(1)) {
            records.extend([0x16, 3, 3]);
            records.extend(u16::try_from(fragment.len()).unwrap_or_default().to_be_bytes());
            records.extend(fragment);
        }
        let mut joined = Vec::new();
        match read(&records, &mut joined) {
            Reading::Hello(again) => {
                assert_eq!(again.consumed(), records.len());
                assert_eq!(again.message(), hello.message());
                assert_eq!(again.server_name(), hello.server_name());
            }
            reading => assert!(records.len() > MOST && reading == Reading::TooLarge, "{reading:?}"),
        }
        assert!(joined.capacity() <= MOST, "{} bytes of scratch", joined.capacity());
    }
}

/// A few lengths up to `most`, chosen by the bytes: the ends, and some between.
fn cuts(bytes: &[u8], most: usize) -> impl Iterator<Item = usize> {
    let mix = |sum: usize, byte: &u8| sum.wrapping_mul(31).wrapping_add(usize::from(*byte));
    let sum = bytes.iter().rev().take(64).fold(7, mix);
    let middle = (1..5).map(move |turn| sum.rotate_right(turn * 11) % (most + 1));
    [0, 9.min(most), most.saturating_sub(1), most].into_iter().chain(middle)
}
