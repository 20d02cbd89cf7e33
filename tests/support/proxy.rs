//! A TCP proxy whose connections a test can cut.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards to one address until it is told otherwise.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Counts cuts: connections of an earlier generation end.
    generation: u64,
    /// New connections are closed at once.
    blocked: bool,
}

impl Proxy {
    /// A proxy on a free port.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (state, states) = watch::channel(State::default());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, to, states.clone()));
            }
        });
        Self { addr, state }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Ends every connection; new ones are welcome.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Ends every connection and takes no new ones.
    pub fn block(&self) {
        self.state.send_modify(|state| *state = State { generation: state.generation + 1, blocked: true });
    }

    /// Takes connections again.
    pub fn unblock(&self) {
        self.state.send_modify(|state| state.blocked = false);
    }
}

async fn forward(mut client: TcpStream, to: SocketAddr, mut states: watch::Receiver<State>) {
    let now = *states.borrow_and_update();
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    if now.blocked || client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = states.wait_for(|state| state.generation != now.generation) => {}
    }
}
