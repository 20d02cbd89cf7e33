//! Which outlet a line goes to.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Way;
use super::outlet::{Entrance, open};
use crate::plugin::syslog::Settings;

/// How long an outlet stays that no configuration asks for: an edit of a route makes a new configuration of
/// the same settings, which is seen with its next session.
const LINGER: Duration = Duration::from_mins(1);
/// `max_pending_entries` where the metadata says nothing (`apisix/utils/batch-processor-manager.lua:30`).
const PENDING: usize = 8192;

/// All of them.
#[derive(Debug)]
pub(super) struct Outlets {
    way: Arc<Way>,
    /// Lines of one that may wait.
    pending: usize,
    /// By the address of a configuration, which the weak pointer keeps from being anybody else's.
    known: HashMap<usize, (Weak<Settings>, Arc<Settings>)>,
    open: HashMap<Arc<Settings>, Open>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Open {
    entrance: Entrance,
    /// A configuration that asked for it was last seen then.
    wanted: Instant,
}

impl Outlets {
    pub(super) fn new(way: Arc<Way>) -> Self {
        Self { way, pending: PENDING, known: HashMap::new(), open: HashMap::new(), tasks: JoinSet::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// So many lines of an outlet may wait from now on.
    pub(super) fn bound(&mut self, pending: Option<usize>) {
        let pending = pending.unwrap_or(PENDING);
        if pending != self.pending {
            self.pending = pending;
            self.open.values().for_each(|open| open.entrance.bound(pending));
        }
    }

    /// Hands a line to the outlet of these settings.
    pub(super) fn push(&mut self, settings: &Arc<Settings>, line: &[u8]) {
        let address = Arc::as_ptr(settings).addr();
        // Most lines come by a configuration that is known: no text of it has to be looked at.
        let (_, shared) = self.known.entry(address).or_insert_with(|| {
            let shared = self.open.get_key_value(settings).map_or(settings, |(shared, _)| shared);
            // What is shared outlives the configuration it came from, so it is a copy.
            let shared =
                if Arc::ptr_eq(shared, settings) { Arc::new((**settings).clone()) } else { shared.clone() };
            (Arc::downgrade(settings), shared)
        });
        let open = self.open.entry(shared.clone()).or_insert_with(|| {
            let (entrance, task) = open(shared.clone(), self.way.clone(), self.pending);
            self.tasks.spawn(task);
            Open { entrance, wanted: Instant::now() }
        });
        open.entrance.push(line, &self.way.node.lines);
    }

    /// Lets those end that no configuration asks for.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.known.retain(|_, (configuration, _)| configuration.strong_count() > 0);
        for (_, shared) in self.known.values() {
            if let Some(open) = self.open.get_mut(shared) {
                open.wanted = now;
            }
        }
        self.open.retain(|_, open| now.duration_since(open.wanted) < LINGER);
        // A task that has ended keeps its memory until it is joined.
        while self.tasks.try_join_next().is_some() {}
    }

    /// Lets all end, and waits until they have sent or given up what they have.
    pub(super) async fn finish(&mut self) {
        self.open.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::json;
    use tokio::net::UdpSocket;
    use tokio::sync::Mutex;

    use super::*;
    use crate::config::Dns;
    use crate::live::{Live, NodeCounters};
    use crate::net::trust::Trust;
    use crate::plugin::syslog::Syslog;
    use crate::plugin::{Ground, Stage as _};
    use crate::report::Names;
    use crate::resource::{Key, Kind};

    fn outlets() -> (Outlets, Arc<NodeCounters>) {
        let dns =
            Dns { servers: vec![], valid: None, timeout: Duration::from_secs(1), search: false, ipv6: true };
        let node = Arc::<NodeCounters>::default();
        let names = Names { dns, resolver: Mutex::default() };
        let way = Way { names, trust: Trust::default(), node: node.clone() };
        (Outlets::new(Arc::new(way)), node)
    }

    /// A configuration that sends datagrams to `server`, with more members.
    fn settings(server: SocketAddr, more: &[(&str, u64)]) -> Arc<Settings> {
        let mut conf = json!({"host": server.ip(), "port": server.port(), "sock_type": "udp"});
        for (name, value) in more {
            conf[name] = json!(value);
        }
        let (owner, live) = (Key::new(Kind::StreamRoute, "1"), Live::default());
        Syslog::compile(&conf, &Ground { owner: &owner, live: &live }).unwrap().settings
    }

    async fn server() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        (socket, addr)
    }

    async fn next(server: &UdpSocket) -> String {
        let mut datagram = [0; 1024];
        let count = server.recv(&mut datagram).await.unwrap();
        String::from_utf8(datagram[..count].to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_for_more_lines_but_not_for_ever() {
        let (server, addr) = server().await;
        let (mut outlets, _) = outlets();
        // Far from 1000 lines and from 4096 bytes.
        let (conf, begin) = (settings(addr, &[]), Instant::now());
        outlets.push(&conf, b"a");
        assert_eq!(next(&server).await, "a");
        assert_eq!(begin.elapsed().as_secs(), 5, "inactive_timeout");

        let conf = settings(addr, &[("inactive_timeout", 30), ("buffer_duration", 7)]);
        let begin = Instant::now();
        outlets.push(&conf, b"b");
        tokio::time::sleep(Duration::from_secs(4)).await;
        outlets.push(&conf, b"c");
        assert_eq!([next(&server).await, next(&server).await], ["b", "c"]);
        assert_eq!(begin.elapsed().as_secs(), 7, "buffer_duration");
    }

    #[track_caller]
    fn at_once(begin: Instant) {
        assert!(begin.elapsed() < Duration::from_secs(1), "after {:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_with_its_lines_and_bytes_leaves_at_once() {
        let (server, addr) = server().await;
        let (mut outlets, _) = outlets();
        let begin = Instant::now();
        let conf = settings(addr, &[("batch_max_size", 2), ("flush_limit", 4)]);
        outlets.push(&conf, b"a");
        outlets.push(&conf, b"b");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(server.try_recv(&mut [0; 8]).is_err(), "two lines, but less than flush_limit");
        outlets.push(&conf, b"cd");
        assert_eq!([next(&server).await, next(&server).await, next(&server).await], ["a", "b", "cd"]);
        at_once(begin);
        // Half of what may wait does.
        let conf = settings(addr, &[("drop_limit", 10)]);
        outlets.push(&conf, b"12345");
        assert_eq!(next(&server).await, "12345");
        at_once(begin);
    }

    #[tokio::test(start_paused = true)]
    async fn lines_above_the_limits_are_lost_and_counted() {
        let (_server, addr) = server().await;
        let (mut outlets, node) = outlets();
        let conf = settings(addr, &[("drop_limit", 10)]);
        // The task has not had its turn.
        for line in [b"12345".as_slice(), b"1234567", b"12345", b"1"] {
            outlets.push(&conf, line);
        }
        assert_eq!((node.lines.dropped.count(), node.lines.waiting.now()), (2, 2));
        outlets.bound(Some(1));
        let conf = settings(addr, &[]);
        outlets.push(&conf, b"1");
        outlets.push(&conf, b"2");
        assert_eq!((node.lines.dropped.count(), node.lines.waiting.now()), (3, 3));
        outlets.finish().await;
        assert_eq!((node.lines.sent.count(), node.lines.waiting.now()), (3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outlet_that_nobody_asks_for_sends_what_it_has_and_ends() {
        let (server, addr) = server().await;
        let (mut outlets, _) = outlets();
        let conf = settings(addr, &[("inactive_timeout", 1_000_000), ("buffer_duration", 1_000_000)]);
        let edited = settings(addr, &[("inactive_timeout", 1_000_000), ("buffer_duration", 1_000_000)]);
        outlets.push(&conf, b"a");
        outlets.push(&edited, b"b");
        assert_eq!((outlets.open.len(), outlets.known.len()), (1, 2), "equal settings share an outlet");
        drop(conf);
        outlets.sweep(Instant::now() + LINGER * 2);
        assert_eq!((outlets.open.len(), outlets.known.len()), (1, 1));
        drop(edited);
        outlets.sweep(Instant::now() + LINGER / 2);
        assert_eq!(outlets.open.len(), 1, "an edit may bring it back");
        outlets.sweep(Instant::now() + LINGER * 4);
        assert!(outlets.is_empty() && outlets.known.is_empty());
        assert_eq!([next(&server).await, next(&server).await], ["a", "b"]);
        outlets.finish().await;
    }
}
