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
use tokio::time::{Instant, Sleep};

use crate::balance::Pool;
use crate::net::buffer::{Buffer, SIZE};
use crate::net::tls::{Opened, Session};
use crate::net::transfer::{receive, send_some};
use crate::plugin::{Kept, MOST_FIRST_BYTES, Run, Scene, Step};
use crate::proxy::opening;
use crate::proxy::record::Record;
use crate::proxy::worker::Refusal;
use crate::session::{Denied, End};
use crate::snapshot::Route;

/// `preread_timeout` of nginx, which APISIX leaves as it is: how long plugins wait for bytes.
const PREREAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The code of a refusal because the first datagram is too short to decide.
const TOO_SHORT: u16 = 503;

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
    timer: Pin<&mut Sleep>,
) -> Result<Arc<Pool>, Refusal> {
    let asked = ask(record, route, &mut speaker, timer).await;
    if asked.is_err() && speaker.tls.is_none() && !speaker.preread.is_empty() {
        // nginx only peeks, and closing with bytes unread is a reset: so clients know it of APISIX.
        drop(speaker.stream.set_zero_linger());
    }
    asked?;
    record.pool(route)
}

/// Does what the plugins want until each has let the connection pass.
async fn ask(
    record: &mut Record,
    route: &Route,
    speaker: &mut Speaker<'_>,
    mut timer: Pin<&mut Sleep>,
) -> Result<(), Refusal> {
    let (mut run, mut left) = (Run::default(), PREREAD_TIMEOUT);
    loop {
        match step(record, route, &mut run, speaker.preread) {
            Step::Done => return Ok(()),
            Step::Deny { denied, why } => return Err(deny(record, denied, why)),
            Step::Wait(time) => {
                timer.as_mut().reset(Instant::now() + time);
                speaker.wait(timer.as_mut()).await?;
            }
            Step::Read(wanted) => {
                let (who, began) = (run.asking(&route.plugins), Instant::now());
                timer.as_mut().reset(began + left);
                speaker.until(wanted, who, timer.as_mut()).await?;
                // All plugins have that time together, as in nginx.
                left = left.saturating_sub(began.elapsed());
            }
        }
    }
}

/// The same about the client of a datagram, which cannot be held up: what would delay a connection lets
/// it through at once. What is not in its first datagram does not come.
pub(super) fn datagram(record: &mut Record, route: &Route, first: &[u8]) -> Result<Arc<Pool>, Refusal> {
    let mut run = Run::default();
    loop {
        match step(record, route, &mut run, first) {
            Step::Done => return record.pool(route),
            Step::Deny { denied, why } => return Err(deny(record, denied, why)),
            Step::Wait(_) => {}
            Step::Read(wanted) => {
                let (plugin, length) = (run.asking(&route.plugins), first.len());
                let why = format!("{plugin}: it needs {wanted} bytes, and the datagram has {length}");
                return Err(deny(record, Denied { plugin, code: TOO_SHORT }, why));
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

/// The client's connection failed. What is wrong with its TLS is its own doing, an alert too.
fn lost(error: &io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::InvalidData {
        return (End::ClientReset, error.to_string());
    }
    opening::lost(error)
}

fn deny(record: &mut Record, denied: Denied, why: String) -> Refusal {
    record.kept.get_or_insert_default().denied = Some(denied);
    (End::PluginDenied, why)
}

impl Speaker<'_> {
    /// Lets the time of the timer pass; ends before it where the client resets the connection. What it
    /// sends waits in the kernel, its FIN too: it may have said all and wait for the answer.
    async fn wait(&self, timer: Pin<&mut Sleep>) -> Result<(), Refusal> {
        tokio::select! {
            biased;
            Ok(_) = self.stream.ready(Interest::ERROR) => {}
            () = timer => return Ok(()),
        }
        let error = self.stream.take_error().ok().flatten();
        Err(opening::lost(&error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())))
    }

    /// Reads until so many bytes are there, for the plugin `who`.
    async fn until(&mut self, wanted: usize, who: &str, mut timer: Pin<&mut Sleep>) -> Result<(), Refusal> {
        if wanted > MOST_FIRST_BYTES {
            let why = format!("{who} needs the first {wanted} bytes; it may see {MOST_FIRST_BYTES}");
            return Err((End::PrereadOverflow, why));
        }
        while self.preread.len() < wanted {
            let (end, what) = match self.more(timer.as_mut()).await {
                Ok(true) => continue,
                Ok(false) => (End::ClientClosed, "the client closed".to_owned()),
                Err((end @ End::PrereadTimeout, _)) => (end, format!("{PREREAD_TIMEOUT:?} are over")),
                Err(refusal) => return Err(refusal),
            };
            let length = self.preread.len();
            return Err((end, format!("{what} after {length} of {wanted} bytes that {who} needs")));
        }
        Ok(())
    }

    /// Waits for more and takes it; false where the client sends no more.
    async fn more(&mut self, mut timer: Pin<&mut Sleep>) -> Result<bool, Refusal> {
        poll_fn(|cx| {
            loop {
                match self.take() {
                    Err(error) => return Poll::Ready(Err(lost(&error))),
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

    /// Reads once what there is, but no more than plugins look at: what else a client has sent waits
    /// where it is, however much that is.
    fn take(&mut self) -> io::Result<Opened> {
        let mut place = Buffer::take();
        let room = place.get_mut(..MOST_FIRST_BYTES).unwrap_or_default();
        let opened = match &mut self.tls {
            None => match receive(self.stream, room)? {
                None => Opened::Blocked,
                Some(0) => Opened::Closed,
                Some(count) => Opened::Bytes(count),
            },
            Some(tls) => {
                let opened = tls.open(room, |sealed| {
                    receive(self.stream, sealed.get_mut(..MOST_FIRST_BYTES).unwrap_or_default())
                })?;
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

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use socket2::SockRef;
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;

    /// A client and the gateway's end of its connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_waited_for_as_long_as_in_nginx() {
        let (client, stream) = pair().await;
        client.try_write(b"12345").unwrap();
        let (mut preread, began) = (Vec::new(), Instant::now());
        let mut speaker = Speaker { stream: &stream, tls: None, preread: &mut preread };
        let timer = pin!(sleep(PREREAD_TIMEOUT));
        let (end, why) = speaker.until(16, "mqtt-proxy", timer).await.unwrap_err();
        assert_eq!((end, began.elapsed().as_secs()), (End::PrereadTimeout, 30));
        assert!(why.contains("after 5 of 16 bytes that mqtt-proxy needs"), "{why}");
    }

    #[tokio::test]
    async fn who_has_to_wait_is_missed_when_it_resets_and_not_when_it_has_said_all() {
        for (gone, expected) in [(true, Some(End::ClientReset)), (false, None)] {
            let (client, stream) = pair().await;
            client.try_write(b"x").unwrap();
            if gone {
                client.set_zero_linger().unwrap();
                drop(client);
            } else {
                SockRef::from(&client).shutdown(std::net::Shutdown::Write).unwrap();
            }
            let mut preread = Vec::new();
            let speaker = Speaker { stream: &stream, tls: None, preread: &mut preread };
            let time = if gone { Duration::from_hours(1) } else { Duration::from_millis(20) };
            let waited = speaker.wait(pin!(sleep(time))).await;
            assert_eq!(waited.err().map(|(end, _)| end), expected);
        }
    }
}
