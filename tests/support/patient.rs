//! Servers that are probed: each notes who came when and what was said, and behaves as it is told to.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::time::Instant;

/// What a server does with who comes.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Hears everything and says nothing.
    Silent,
    /// Closes at once.
    Closes,
    /// Says this at once.
    Says(Vec<u8>),
    /// Says the second once it has heard the first.
    Replies(&'static [u8], &'static [u8]),
    /// Answers an HTTP request with this status, after a while.
    Answers(u16, Duration),
}

/// Who came.
#[derive(Clone, Debug)]
pub struct Visit {
    pub at: Instant,
    pub heard: Vec<u8>,
}

#[derive(Debug, Default)]
struct Notes {
    visits: Vec<Visit>,
    manner: Option<Manner>,
}

/// How many visits were not answered yet, of several servers.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<(usize, usize)>>);

impl Waiting {
    fn change(&self, change: impl FnOnce(&mut usize)) {
        let (now, most) = &mut *lock(&self.0);
        change(now);
        *most = (*most).max(*now);
    }

    /// At most, so far.
    pub fn most(&self) -> usize {
        lock(&self.0).1
    }
}

/// A server on a port that nobody else can have, listening or not.
#[derive(Debug)]
pub struct Patient {
    pub addr: SocketAddr,
    notes: Arc<Mutex<Notes>>,
    waiting: Waiting,
    listener: Option<TcpListener>,
    _keeper: Socket,
}

impl Patient {
    /// One that listens.
    pub fn new(manner: Manner) -> Self {
        let mut patient = Self::away(Waiting::default());
        patient.behave(manner);
        patient.listen();
        patient
    }

    /// One that answers with 200 after a while, its visits counted in `waiting`.
    pub fn slow(waiting: &Waiting, after: Duration) -> Self {
        let mut patient = Self::away(waiting.clone());
        patient.behave(Manner::Answers(200, after));
        patient.listen();
        patient
    }

    /// One that refuses.
    pub fn refusing() -> Self {
        let patient = Self::away(Waiting::default());
        patient.behave(Manner::Silent);
        patient
    }

    fn away(waiting: Waiting) -> Self {
        let keeper = reusable(([127, 0, 0, 1], 0).into());
        let addr = keeper.local_addr().unwrap().as_socket().unwrap();
        Self { addr, notes: Arc::default(), waiting, listener: None, _keeper: keeper }
    }

    pub fn behave(&self, manner: Manner) {
        lock(&self.notes).manner = Some(manner);
    }

    /// Takes connections from now on.
    pub fn listen(&mut self) {
        let socket = reusable(self.addr);
        socket.listen(1024).unwrap();
        let listener = TcpListener::from(socket);
        self.listener = Some(listener.try_clone().unwrap());
        let (notes, waiting) = (self.notes.clone(), self.waiting.clone());
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (notes, waiting) = (notes.clone(), waiting.clone());
                waiting.change(|now| *now += 1);
                let at = Instant::now();
                thread::spawn(move || serve(stream, at, &notes, &waiting));
            }
        });
    }

    /// Refuses from now on.
    pub fn refuse(&mut self) {
        let listener = self.listener.take().unwrap();
        // Wakes who waits in accept(), too.
        SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
    }

    pub fn visits(&self) -> Vec<Visit> {
        lock(&self.notes).visits.clone()
    }

    pub fn count(&self) -> usize {
        lock(&self.notes).visits.len()
    }

    /// What was heard last, as text.
    pub fn heard(&self) -> String {
        let last = self.visits().pop().map(|visit| visit.heard);
        String::from_utf8(last.unwrap_or_default()).unwrap()
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        if self.listener.is_some() {
            self.refuse();
        }
    }
}

fn reusable(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket
}

fn serve(mut stream: TcpStream, at: Instant, notes: &Mutex<Notes>, waiting: &Waiting) {
    let manner = lock(notes).manner.clone().unwrap();
    let (mut heard, mut said) = (Vec::new(), false);
    let enough = |heard: &[u8]| match &manner {
        Manner::Silent => None,
        Manner::Closes => Some(Vec::new()),
        Manner::Says(words) => Some(words.clone()),
        Manner::Replies(question, answer) => heard.ends_with(question).then(|| answer.to_vec()),
        Manner::Answers(status, after) => is_request(heard).then(|| {
            thread::sleep(*after);
            format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into()
        }),
    };
    let mut buffer = [0; 4096];
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    loop {
        if let Some(words) = enough(&heard).filter(|_| !said) {
            said = true;
            // Noted before whoever hears it can do anything further.
            lock(notes).visits.push(Visit { at, heard: heard.clone() });
            waiting.change(|now| *now -= 1);
            if words.is_empty() || stream.write_all(&words).is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => heard.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    if !said {
        lock(notes).visits.push(Visit { at, heard });
        waiting.change(|now| *now -= 1);
    }
}

/// A whole head, and a body as long as it says.
fn is_request(heard: &[u8]) -> bool {
    let text = String::from_utf8_lossy(heard).to_lowercase();
    let Some((lines, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = lines.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.is_none_or(|length| body.len() >= length.trim().parse::<usize>().unwrap())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
