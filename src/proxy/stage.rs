//! The plugins of a session's route, which may refuse it, let it wait, read its first bytes or choose
//! another upstream.
//!
//! What they read is passed on like everything else; of TLS they see what was inside.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, timeout};

use crate::balance::Pool;
use crate::net::buffer::{Buffer, SIZE};
use crate::net::tls::{Opened, Session};
use crate::net::transfer::{receive, send_some};
use crate::plugin::{Kept, Run, Scene, Step};
use crate::proxy::opening;
use crate::proxy::record::Record;
use crate::proxy::worker::Refusal;
use crate::session::{Denied, End};
use crate::snapshot::Route;

/// `preread_timeout` of nginx, which APISIX leaves as it is: how long plugins wait for bytes.
const PREREAD_TIMEOUT: Duration = Duration::from_secs(30);
/// `preread_buffer_size` of nginx, likewise: more first bytes are not looked at.
const PREREAD_SIZE: usize = 16 * 1024;

/// The client's side of a connection.
pub(super) struct Speaker<'a> {
    pub(super) stream: &'a TcpStream,
    /// TLS with it.
    pub(super) tls: Option<&'a mut Session>,
    /// Read and not yet passed on.
    pub(super) preread: &'a mut Vec<u8>,
}

/// Asks the plugins about a connection, then for its pool.
pub(super) async fn connection(
    record: &mut Record,
    route: &Route,
    mut speaker: Speaker<'_>,
    mut timer: Pin<&mut Sleep>,
) -> Result<Arc<Pool>, Refusal> {
    let (mut run, mut asked) = (Run::default(), None);
    loop {
        match step(record, route, &mut run, speaker.preread) {
            Step::Done => return record.pool(route),
            Step::Deny { denied, why } => return Err(deny(record, denied, why)),
            Step::Wait(time) => speaker.wait(time).await?,
            Step::Read(wanted) => {
                let who = run.asking(&route.plugins);
                if wanted > PREREAD_SIZE {
                    let why = format!("{who} wants {wanted} first bytes; it sees {PREREAD_SIZE}");
                    return Err((End::PrereadOverflow, why));
                }
                let until = *asked.get_or_insert_with(|| Instant::now() + PREREAD_TIMEOUT);
                timer.as_mut().reset(until);
                while speaker.preread.len() < wanted {
                    match speaker.more(timer.as_mut()).await {
                        Ok(true) => {}
                        Ok(false) => {
                            let length = speaker.preread.len();
                            let why = format!("the client closed after {length} of {wanted} bytes for {who}");
                            return Err((End::ClientClosed, why));
                        }
                        Err((End::PrereadTimeout, _)) => {
                            let length = speaker.preread.len();
                            let why = format!(
                                "{who} waited {PREREAD_TIMEOUT:?} for {wanted} bytes; the client sent {length}"
                            );
                            return Err((End::PrereadTimeout, why));
                        }
                        Err(refusal) => return Err(refusal),
                    }
                }
            }
        }
    }
}

/// The same about the client of a datagram, which cannot be held up: what would delay a connection lets
/// it through at once.
pub(super) fn datagram(record: &mut Record, route: &Route, first: &[u8]) -> Result<Arc<Pool>, Refusal> {
    let mut run = Run::default();
    loop {
        match step(record, route, &mut run, first) {
            Step::Done => return record.pool(route),
            Step::Deny { denied, why } => return Err(deny(record, denied, why)),
            Step::Wait(_) => {}
            Step::Read(wanted) => {
                let (who, length) = (run.asking(&route.plugins), first.len());
                let why = format!("{who}: wants {wanted} bytes, and the datagram has {length}");
                record.denied = None;
                return Err((End::PluginDenied, why));
            }
        }
    }
}

fn step(record: &mut Record, route: &Route, run: &mut Run, first: &[u8]) -> Step {
    let worker = record.worker.clone();
    let kept: &mut Kept = record.kept.get_or_insert_default();
    let mut scene = Scene {
        inbound: &mut record.inbound,
        route: route.facts(),
        host: &worker.shared.host,
        first,
        now: Instant::now().into_std(),
        time: SystemTime::now(),
        kept,
        given: None,
        preview: false,
    };
    run.step(&route.plugins, &mut scene)
}

fn deny(record: &mut Record, denied: Denied, why: String) -> Refusal {
    record.denied = Some(denied);
    (End::PluginDenied, why)
}

impl Speaker<'_> {
    /// Lets the client wait, unless it resets the connection: what it holds is others' then. One that has
    /// said all may still want its answer.
    async fn wait(&self, time: Duration) -> Result<(), Refusal> {
        match timeout(time, self.stream.ready(Interest::ERROR)).await {
            Err(_) => Ok(()),
            Ok(ready) => {
                let error = ready.and_then(|_| self.stream.take_error()).unwrap_or_else(Some);
                let error = error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
                Err(opening::lost(&error))
            }
        }
    }

    /// Waits for more and takes it; false where the client sends no more.
    async fn more(&mut self, mut timer: Pin<&mut Sleep>) -> Result<bool, Refusal> {
        poll_fn(|cx| {
            loop {
                match self.take() {
                    Err(error) => return Poll::Ready(Err(opening::lost(&error))),
                    Ok(Opened::Closed) => return Poll::Ready(Ok(false)),
                    Ok(Opened::Bytes(0)) => continue,
                    Ok(Opened::Bytes(_)) if self.preread.len() > SIZE => {
                        let why =
                            format!("the client sent more than {SIZE} bytes before its plugins let it in");
                        return Poll::Ready(Err((End::PrereadOverflow, why)));
                    }
                    Ok(Opened::Bytes(_)) => return Poll::Ready(Ok(true)),
                    Ok(Opened::Blocked) => {}
                }
                match self.stream.poll_read_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(opening::lost(&error))),
                    Poll::Pending => {
                        return timer.as_mut().poll(cx).map(|()| Err((End::PrereadTimeout, String::new())));
                    }
                }
            }
        })
        .await
    }

    /// Reads once what there is.
    fn take(&mut self) -> io::Result<Opened> {
        let mut place = Buffer::take();
        let opened = match &mut self.tls {
            None => match receive(self.stream, place.get_mut(..PREREAD_SIZE).unwrap_or_default())? {
                None => Opened::Blocked,
                Some(0) => Opened::Closed,
                Some(count) => Opened::Bytes(count),
            },
            Some(tls) => {
                let opened = tls.open(&mut place, |room| receive(self.stream, room))?;
                // What the session itself has to say; what does not fit leaves with the first answer.
                tls.outgoing().send(|bytes| send_some(self.stream, bytes))?;
                opened
            }
        };
        if let Opened::Bytes(count) = opened {
            self.preread.extend_from_slice(place.get(..count).unwrap_or_default());
        }
        Ok(opened)
    }
}
