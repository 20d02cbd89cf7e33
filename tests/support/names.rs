//! A name server for tests that can do what real ones are not asked to: fail, be silent, give any TTL, and change
//! while it runs. It answers over UDP alone and denies what it does not know. Include it with
//! `#[path = "support/names.rs"] mod names;`.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// What it says of a name.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// These addresses, good for so many seconds; the type that was asked for, or none.
    Addresses(Vec<IpAddr>, u32),
    /// SERVFAIL for IPv4 addresses, and these IPv6 ones.
    HalfFails(Vec<IpAddr>),
    /// NXDOMAIN.
    NoName,
    /// The name is there, without records.
    NoRecords,
    /// SERVFAIL.
    Fails,
    /// REFUSED.
    Refuses,
    /// Nothing.
    Silence,
}

impl Reply {
    /// Addresses as text.
    pub(crate) fn addresses(all: &[&str], ttl: u32) -> Self {
        Self::Addresses(all.iter().map(|ip| ip.parse().unwrap()).collect(), ttl)
    }
}

/// Answers until the process ends.
#[derive(Debug)]
pub(crate) struct Names {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By the name with its final dot, lower case.
    replies: HashMap<String, Reply>,
    /// Questions for A by name.
    asked: HashMap<String, usize>,
}

impl Names {
    /// Serves these names for a minute each on a free port of 127.0.0.1.
    pub(crate) fn start(names: &[(&str, &[&str])]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let server = Self { addr, state: state.clone() };
        for (name, all) in names {
            server.set(name, Reply::addresses(all, 60));
        }
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut query) {
                if let Some(answer) = answer(&query[..len], &mut state.lock().unwrap()) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        server
    }

    /// Says this of a name from now on.
    pub(crate) fn set(&self, name: &str, reply: Reply) {
        self.state.lock().unwrap().replies.insert(format!("{name}."), reply);
    }

    /// How often the IPv4 addresses of a name have been asked for.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.state.lock().unwrap().asked.get(&format!("{name}.")).copied().unwrap_or_default()
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// RFC 1035, section 4.1.
fn answer(query: &[u8], state: &mut State) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name += &String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase();
        name.push('.');
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let kind = u16::from_be_bytes([*question.get(question.len() - 4)?, *question.get(question.len() - 3)?]);
    if kind == A {
        *state.asked.entry(name.clone()).or_default() += 1;
    }
    let (code, addresses, ttl) = match state.replies.get(&name) {
        Some(Reply::Addresses(all, ttl)) => (0, all.clone(), *ttl),
        Some(Reply::HalfFails(_)) if kind == A => (2, vec![], 0),
        Some(Reply::HalfFails(all)) => (0, all.clone(), 60),
        Some(Reply::NoRecords) => (0, vec![], 0),
        Some(Reply::Fails) => (2, vec![], 0),
        Some(Reply::Refuses) => (5, vec![], 0),
        Some(Reply::Silence) => return None,
        Some(Reply::NoName) | None => (3, vec![], 0),
    };
    let records: Vec<Vec<u8>> =
        addresses.iter().map(rdata).filter(|(of, _)| *of == kind).map(|(_, data)| data).collect();
    // A response, recursion there.
    let mut answer = vec![*query.first()?, *query.get(1)?, 0x81, 0x80 | code, 0, 1, 0];
    answer.push(u8::try_from(records.len()).ok()?);
    answer.extend([0, 0, 0, 0]);
    answer.extend(question);
    for data in records {
        // The name of the question, its type, IN.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, u8::try_from(data.len()).ok()?]);
        answer.extend(data);
    }
    Some(answer)
}

const A: u16 = 1;
const AAAA: u16 = 28;

fn rdata(ip: &IpAddr) -> (u16, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (A, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AAAA, ip.octets().to_vec()),
    }
}
