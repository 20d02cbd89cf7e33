//! A name server for tests: answers A queries for the names it was given, denies the rest. Include it
//! with `#[path = "support/names.rs"] mod names;`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

/// Answers until the process ends.
#[derive(Debug)]
pub(crate) struct Names {
    addr: SocketAddr,
}

impl Names {
    /// Serves these names on a free port of 127.0.0.1.
    pub(crate) fn start(names: &[(&str, &[&str])]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let names: Vec<(String, Vec<Ipv4Addr>)> = names
            .iter()
            .map(|(name, all)| (format!("{name}."), all.iter().map(|ip| ip.parse().unwrap()).collect()))
            .collect();
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut query) {
                if let Some(answer) = answer(&query[..len], &names) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Self { addr }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// RFC 1035, section 4.1.
fn answer(query: &[u8], names: &[(String, Vec<Ipv4Addr>)]) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name += &String::from_utf8_lossy(query.get(at..at + length)?);
        name.push('.');
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let is_a = question.get(question.len() - 4..)? == [0, 1, 0, 1];
    let found = names.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name));
    let addresses = found.filter(|_| is_a).map(|(_, all)| all.as_slice()).unwrap_or_default();
    // A response, recursion there; NXDOMAIN for what is not known.
    let code = if found.is_some() { 0x80 } else { 0x83 };
    let mut answer =
        vec![*query.first()?, *query.get(1)?, 0x81, code, 0, 1, 0, u8::try_from(addresses.len()).ok()?];
    answer.extend([0, 0, 0, 0]);
    answer.extend(question);
    for ip in addresses {
        // The name of the question, A, IN, for a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ip.octets());
    }
    Some(answer)
}
