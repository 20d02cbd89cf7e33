//! Hellos made here, whole, cut, split and broken. Captured ones are in `tests/client_hello.rs`.

use proptest::prelude::*;

use super::*;

const RANDOM: [u8; 32] = [7; 32];

fn vector8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn codes(codes: &[u16]) -> Vec<u8> {
    codes.iter().flat_map(|code| code.to_be_bytes()).collect()
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], body].concat()
}

/// A hello of TLS 1.2 with these suites and with what is to follow the compression methods.
fn hello(suites: &[u16], rest: &[u8]) -> Vec<u8> {
    let body = [&[3, 3], &RANDOM[..], &vector8(&[5; 32]), &vector16(&codes(suites)), &vector8(&[0]), rest];
    handshake(1, &body.concat())
}

fn extensions(list: &[(u16, &[u8])]) -> Vec<u8> {
    let each = list.iter().flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), vector16(data)].concat());
    vector16(&each.collect::<Vec<_>>())
}

fn name_entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind], &vector16(name)[..]].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    vector16(&name_entry(0, name))
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[HANDSHAKE, 3, 1], &vector16(fragment)[..]].concat()
}

/// The message in records of so many bytes, the sizes taken in turns.
fn split(mut message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for size in sizes.iter().cycle() {
        if message.is_empty() {
            break;
        }
        let (fragment, rest) = message.split_at((*size).min(message.len()));
        bytes.extend(record(fragment));
        message = rest;
    }
    bytes
}

/// What a recent browser sends: GREASE everywhere and a key share of 1.2 KB.
fn browser() -> Vec<u8> {
    const GREASE: u16 = 0x3a3a;
    let share = |group: u16, key: &[u8]| [&group.to_be_bytes(), &vector16(key)[..]].concat();
    let shares = [share(GREASE, &[0]), share(0x11ec, &[9; 1216]), share(0x1d, &[8; 32])].concat();
    let list = extensions(&[
        (GREASE, &[]),
        (10, &vector16(&codes(&[GREASE, 0x11ec, 0x1d, 0x17]))),
        (51, &vector16(&shares)),
        (16, &vector16(&[vector8(b"h2"), vector8(b"http/1.1")].concat())),
        (43, &vector8(&codes(&[GREASE, 0x0304, 0x0303]))),
        (13, &vector16(&codes(&[0x0403, 0x0804, GREASE]))),
        (0, &server_name(b"WWW.Example.com")),
        (65037, &[1; 250]),
        (0xfafa, &[0]),
    ]);
    hello(&[GREASE, 0x1301, 0xc02b], &list)
}

/// What reading a message in one record gives, without the message.
#[track_caller]
fn check_message(message: &[u8], expected: Result<Option<&str>, &str>) {
    let bytes = record(message);
    let mut joined = Vec::new();
    let found = match read(&bytes, &mut joined) {
        Reading::Hello(hello) => Ok(hello.server_name()),
        Reading::Malformed(why) => Err(why),
        other => panic!("{other:?}"),
    };
    assert_eq!(found, expected);
    assert_eq!(joined.capacity(), 0, "one record needs no joining");
    assert_eq!(parse_message(message).map(|hello| hello.server_name()), expected.ok());
}

#[track_caller]
fn check_extensions(list: &[(u16, &[u8])], expected: Result<Option<&str>, &str>) {
    check_message(&hello(&[0x1301], &extensions(list)), expected);
}

#[track_caller]
fn check(bytes: &[u8], expected: Reading<'_>) {
    assert_eq!(read(bytes, &mut Vec::new()), expected, "{bytes:02x?}");
}

/// Every shorter prefix asks for more, never for more than there will be.
fn check_prefixes(bytes: &[u8], length: usize) -> Result<(), TestCaseError> {
    let mut joined = Vec::new();
    for cut in 0..length {
        match read(&bytes[..cut], &mut joined) {
            Reading::Need(count) => prop_assert!(count > cut && count <= length, "{cut}: {count}"),
            other => prop_assert!(false, "{cut}: {other:?}"),
        }
    }
    Ok(())
}

#[test]
fn browser_hello_gives_what_it_says() {
    let message = browser();
    let mut bytes = record(&message);
    let length = bytes.len();
    bytes.extend(b"\x14\x03\x03\x00\x01\x01");
    let mut joined = Vec::new();
    let Reading::Hello(hello) = read(&bytes, &mut joined) else { panic!("no hello") };
    assert_eq!(hello.server_name(), Some("WWW.Example.com"));
    assert_eq!(hello.normalized_name().as_deref(), Some("www.example.com"));
    assert_eq!(hello.alpn().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
    assert_eq!(hello.versions().collect::<Vec<_>>(), [0x0304, 0x0303]);
    assert_eq!(hello.suites().collect::<Vec<_>>(), [0x1301, 0xc02b]);
    assert_eq!(hello.groups().collect::<Vec<_>>(), [0x11ec, 0x1d, 0x17]);
    assert_eq!(hello.signature_schemes().collect::<Vec<_>>(), [0x0403, 0x0804]);
    assert_eq!(hello.max_fragment_length(), None);
    assert_eq!((hello.message(), hello.consumed()), (&message[..], length));
    check_prefixes(&bytes, length).unwrap();
}

#[test]
fn need_is_exact_as_soon_as_a_header_says_so() {
    let message = browser();
    let whole = record(&message);
    check(&[], Reading::Need(1));
    check(&whole[..1], Reading::Need(2));
    check(&whole[..3], Reading::Need(6));
    check(&whole[..6], Reading::Need(9));
    check(&whole[..9], Reading::Need(whole.len()));
    let two = split(&message, &[1000]);
    // The second record is known by the length of the message before its header is there.
    check(&two[..9], Reading::Need(two.len()));
    // Six records, of which three headers are not known to come.
    let six = split(&message, &[1, 600]);
    check(&six[..6], Reading::Need(14));
    check(&six[..14], Reading::Need(six.len() - 3 * RECORD_HEADER));
}

#[test]
fn other_protocols_are_told_by_the_first_byte_that_differs() {
    let other = [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x10",                                 // MQTT CONNECT
        b"\x80\x2e\x01\x00\x02",                 // SSL 2
        b"\x15\x03\x01\x00\x02\x02\x28",         // an alert
        b"\x16\x02",                             // no version of TLS
        b"\x16\x03\x05",                         // nor this
        b"\x16\x03\x01\x00\x04\x02",             // a server hello
        b"\x16\x03\x01\x00\x01\x00\x16\x03\x01", // a hello request
    ];
    for bytes in other {
        check(bytes, Reading::NotTls);
    }
}

#[test]
fn records_that_no_hello_has_are_malformed() {
    let message = browser();
    let (left, right) = message.split_at(100);
    let between = "something else comes between its records";
    check(&[record(left), b"\x15\x03\x01\x00\x02\x02\x28".to_vec()].concat(), Reading::Malformed(between));
    check(&[record(left), b"\x16\x02\x01\x00\x02".to_vec()].concat(), Reading::Malformed(between));
    check(b"\x16\x03\x01\x00\x00", Reading::Malformed("a record of it is empty"));
    check(
        &[record(left), record(&[]), record(right)].concat(),
        Reading::Malformed("a record of it is empty"),
    );
    check(b"\x16\x03\x01\x40\x01", Reading::Malformed("a record of it is over 16384 bytes long"));
}

#[test]
fn long_hellos_are_read_up_to_the_limit() {
    let of_length = |bytes: usize| hello(&[0x1301], &extensions(&[(21, &vec![0; bytes])]));
    let others = of_length(0).len() + RECORD_HEADER;
    let bytes = record(&of_length(MOST - others));
    assert_eq!(bytes.len(), MOST);
    let mut joined = Vec::new();
    assert!(matches!(read(&bytes, &mut joined), Reading::Hello(_)));
    check(&bytes[..9], Reading::Need(MOST));
    let over = record(&of_length(MOST - others + 1));
    check(&over[..9], Reading::TooLarge);
    check(&over, Reading::TooLarge);
    // What was decided stands, also where the next record would be none.
    let (begun, next) = (record(&[1, 0, 0x40, 0]), b"\x15\x03\x01\x00\x02\x02\x28");
    check(&begun, Reading::TooLarge);
    check(&[&begun[..], next].concat(), Reading::TooLarge);
    // Headers count too.
    let many = split(&of_length(MOST - others), &[8000]);
    check(&many[..8200], Reading::TooLarge);
    let tiny = split(&of_length(2000), &[1]);
    assert!(matches!(read(&tiny, &mut joined), Reading::Hello(_)));
    assert!(joined.capacity() <= MOST);
}

#[test]
fn tiny_records_are_not_looked_at_for_each_of_them() {
    let bytes = split(&browser(), &[1]);
    let (mut length, mut readings) = (0, 0);
    while let Reading::Need(count) = read(&bytes[..length], &mut Vec::new()) {
        (length, readings) = (count, readings + 1);
    }
    assert_eq!(length, bytes.len());
    assert!(readings < 100, "{readings} readings of {} records", bytes.len() / 6);
}

#[test]
fn names_are_given_as_sent() {
    check_extensions(&[(0, &server_name(b"db.example.com"))], Ok(Some("db.example.com")));
    check_extensions(&[(0, &server_name(b"under_score.[::1]"))], Ok(Some("under_score.[::1]")));
    check_extensions(&[(5, &[]), (0, &server_name(b"x"))], Ok(Some("x")));
    check_extensions(&[(0, &[])], Ok(None));
    check_extensions(&[(0, &vector16(&[]))], Ok(None));
    check_extensions(&[(0, &vector16(&name_entry(9, b"?")))], Ok(None));
    let two_kinds = [name_entry(9, b"?"), name_entry(0, b"x")].concat();
    check_extensions(&[(0, &vector16(&two_kinds))], Ok(Some("x")));
    check_extensions(&[(0, &server_name(&[b'a'; 255]))], Ok(Some(&"a".repeat(255))));
    check_extensions(&[], Ok(None));
    check_message(&hello(&[0x2f], &[]), Ok(None));
}

#[test]
fn names_that_cannot_be_routed_by_are_malformed() {
    let unprintable = Err("its server name has a byte that is no printable ASCII character");
    let broken = Err("its server_name extension is malformed");
    check_extensions(&[(0, &server_name(b""))], Err("its server name is empty"));
    check_extensions(&[(0, &server_name(&[b'a'; 256]))], Err("its server name is over 255 bytes long"));
    check_extensions(&[(0, &server_name(b"a\0.com"))], unprintable);
    check_extensions(&[(0, &server_name(b"a.com\n"))], unprintable);
    check_extensions(&[(0, &server_name("ü.com".as_bytes()))], unprintable);
    check_extensions(&[(0, &[0])], broken);
    check_extensions(&[(0, &[0, 5, 0, 0, 3, b'a'])], broken);
    check_extensions(&[(0, &vector16(&[0, 0, 3, b'a']))], broken);
    check_extensions(&[(0, &[server_name(b"a"), vec![0]].concat())], broken);
    let two = [name_entry(0, b"a"), name_entry(0, b"b")].concat();
    check_extensions(&[(0, &vector16(&two))], Err("it has two server names"));
    let twice = [(0, &server_name(b"a")[..]), (0, &server_name(b"a"))];
    check_extensions(&twice, Err("it has two server_name extensions"));
    check_extensions(&[(0, &[]), (0, &server_name(b"a"))], Err("it has two server_name extensions"));
    check_extensions(&[(16, &[]), (16, &[])], Err("it has two ALPN extensions"));
}

#[test]
fn messages_that_end_too_early_are_malformed() {
    /// Version, random, session, three suites, compression.
    const FIXED: usize = 2 + 32 + 33 + 8 + 2;
    let whole = browser();
    for length in 0..whole.len() - MESSAGE_HEADER {
        let cut = handshake(1, &whole[MESSAGE_HEADER..MESSAGE_HEADER + length]);
        // The one place a hello may end before its end: where extensions would begin.
        let (bytes, mut joined) = (record(&cut), Vec::new());
        let Reading::Malformed(why) = read(&bytes, &mut joined) else {
            assert_eq!(length, FIXED, "{length} bytes");
            continue;
        };
        let expected = if length < FIXED { "it is cut short" } else { "its extensions are cut short" };
        assert_eq!(why, expected, "{length} bytes");
    }
    check_message(&hello(&[0x2f], &vector16(&[0, 16, 0, 1])), Err("an extension of it is cut short"));
}

#[test]
fn mistakes_that_do_not_concern_the_name_are_left_to_others() {
    let lax = extensions(&[
        (16, &[9, 9, 9]),
        (43, &[9]),
        (10, &[0, 3, 0, 29, 1]),
        (13, &[]),
        (1, &[5]),
        (10, &vector16(&codes(&[0x17]))),
        (1, &[2]),
        (0, &server_name(b"x")),
    ]);
    let message = hello(&[0x2f, 0x35], &[&lax[..], b"trailing"].concat());
    check_message(&message, Ok(Some("x")));
    let hello = parse_message(&message).unwrap();
    assert_eq!(hello.alpn().count(), 0);
    assert_eq!(hello.versions().collect::<Vec<_>>(), [0x0303]);
    assert_eq!(hello.groups().collect::<Vec<_>>(), [29], "the first counts, its odd byte does not");
    assert_eq!(hello.signature_schemes().count(), 0);
    assert_eq!(hello.max_fragment_length(), Some(1024));
}

#[test]
fn normalised_names_have_no_case_and_no_root() {
    let cases = [("Db.X.com.", Some("db.x.com")), ("x..", Some("x.")), (".", None), ("x", Some("x"))];
    for (name, expected) in cases {
        let message = hello(&[0x2f], &extensions(&[(0, &server_name(name.as_bytes()))]));
        assert_eq!(parse_message(&message).unwrap().normalized_name().as_deref(), expected, "{name}");
    }
}

#[test]
fn only_a_whole_message_is_parsed_again() {
    let message = browser();
    assert_eq!(parse_message(&message).unwrap().consumed(), message.len());
    assert_eq!(parse_message(&message[..message.len() - 1]), None);
    assert_eq!(parse_message(&[&message[..], &[0]].concat()), None);
    assert_eq!(parse_message(&handshake(2, &message[4..])), None);
    assert_eq!(parse_message(&[]), None);
}

#[track_caller]
fn check_offer(message: &[u8], expected: &str) {
    assert_eq!(Offer(parse_message(message).unwrap()).to_string(), expected);
}

#[test]
fn offers_read_as_operators_write_them() {
    check_offer(
        &hello(&[0xc013, 0x00ff, 0x002f, 0x1234, 0x5600], &extensions(&[(10, &vector16(&codes(&[29, 23])))])),
        "versions TLSv1.2; suites ECDHE-RSA-AES128-SHA, AES128-SHA, 0x1234; groups x25519, secp256r1",
    );
    check_offer(
        &browser(),
        "versions TLSv1.3, TLSv1.2; suites TLS_AES_128_GCM_SHA256, ECDHE-ECDSA-AES128-GCM-SHA256; \
         groups X25519MLKEM768, x25519, secp256r1",
    );
    check_offer(
        &hello(&(1..=19).collect::<Vec<_>>(), &[]),
        "versions TLSv1.2; suites 0x0001, 0x0002, 0x0003, RC4-MD5, RC4-SHA, 0x0006, 0x0007, 0x0008, \
         DES-CBC-SHA, DES-CBC3-SHA, 0x000b, 0x000c, 0x000d, 0x000e, 0x000f, 0x0010 and 3 more; groups none",
    );
}

proptest! {
    #[test]
    fn records_and_segments_change_nothing(
        sizes in prop::collection::vec(1..400usize, 1..6),
        padding in 0..3000usize,
        after in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let list = extensions(&[(21, &vec![0; padding]), (0, &server_name(b"db.example.com"))]);
        let message = hello(&[0x1301, 0xc02b], &list);
        let mut bytes = split(&message, &sizes);
        let length = bytes.len();
        prop_assume!(length <= MOST);
        check_prefixes(&bytes, length)?;
        bytes.extend(after);
        let mut joined = b"what an earlier reading left".to_vec();
        let Reading::Hello(hello) = read(&bytes, &mut joined) else {
            return Err(TestCaseError::fail("no hello"));
        };
        prop_assert_eq!(hello.consumed(), length);
        prop_assert_eq!(hello.message(), &message[..]);
        prop_assert_eq!(hello.server_name(), Some("db.example.com"));
    }

    #[test]
    fn changed_bytes_never_panic(
        sizes in prop::collection::vec(1..700usize, 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = split(&browser(), &sizes);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        match read(&bytes, &mut Vec::new()) {
            Reading::Need(count) => prop_assert!(count > bytes.len() && count <= MOST),
            Reading::Hello(hello) => prop_assert!(!Offer(hello).to_string().is_empty()),
            Reading::NotTls | Reading::Malformed(_) | Reading::TooLarge => {}
        }
    }
}
