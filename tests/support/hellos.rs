//! Hellos made by hand, and a node that tells which bytes arrived.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::binary::PATIENCE;

/// A node that reads each connection to its FIN and answers `ok` then.
#[derive(Debug)]
pub struct Recorder {
    pub address: SocketAddr,
    heard: Receiver<Vec<u8>>,
}

impl Recorder {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, (sender, heard)) = (listener.local_addr().unwrap(), channel());
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let sender = sender.clone();
                thread::spawn(move || {
                    let mut bytes = Vec::new();
                    let outcome = stream.read_to_end(&mut bytes).and_then(|_| stream.write_all(b"ok"));
                    // The test may be over.
                    let _ = sender.send(bytes);
                    outcome
                });
            }
        });
        Self { address, heard }
    }

    /// All bytes of the connection that ended next.
    #[track_caller]
    pub fn next(&self) -> Vec<u8> {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }
}

/// A handshake message in records of so many bytes (RFC 8446 5.1).
pub fn framed(message: &[u8], record: usize) -> Vec<u8> {
    let frame = |part: &[u8]| [&[22, 3, 1], &length(part.len())[..], part].concat();
    message.chunks(record).flat_map(frame).collect()
}

/// The hello of a browser: with GREASE (RFC 8701) in each list, a post-quantum key share beside that of
/// X25519, and two protocols.
pub fn browser(name: &str) -> Vec<u8> {
    framed(&message(name, 0), 1 << 14)
}

/// The same, so long in one record.
pub fn padded(name: &str, bytes: usize) -> Vec<u8> {
    let bare = message(name, 0).len() + 5;
    framed(&message(name, bytes - bare), 1 << 14)
}

/// RFC 8446 4.1.2. The padding extension is there in any case.
fn message(name: &str, padding: usize) -> Vec<u8> {
    let suites = [0x2a2a_u16, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030];
    let host = [&[0][..], &counted(name.as_bytes())].concat();
    let share = |group: u16, key: &[u8]| [&group.to_be_bytes()[..], &counted(key)].concat();
    let shares = [share(0x3a3a, &[0]), share(0x11ec, &[7; 1216]), share(0x001d, &[9; 32])].concat();
    let extensions = [
        extension(0x4a4a, &[]),
        extension(0, &counted(&host)),
        extension(10, &counted(&words(&[0x3a3a, 0x11ec, 0x001d, 0x0017]))),
        extension(11, &[1, 0]),
        extension(13, &counted(&words(&[0x0403, 0x0804, 0x0401, 0x0503, 0x0805]))),
        extension(16, &counted(b"\x02h2\x08http/1.1")),
        extension(43, &[&[6][..], &words(&[0x5a5a, 0x0304, 0x0303])].concat()),
        extension(45, &[1, 1]),
        extension(51, &counted(&shares)),
        extension(0x6a6a, &[0]),
        extension(21, &vec![0; padding]),
    ];
    let body = [
        &[3, 3][..],
        &[5; 32],
        &[32],
        &[6; 32],
        &counted(&words(&suites)),
        &[1, 0],
        &counted(&extensions.concat()),
    ]
    .concat();
    [&[1, 0][..], &length(body.len()), &body].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &counted(content)].concat()
}

fn counted(content: &[u8]) -> Vec<u8> {
    [&length(content.len())[..], content].concat()
}

fn words(list: &[u16]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn length(count: usize) -> [u8; 2] {
    u16::try_from(count).unwrap().to_be_bytes()
}
