//! What proxies are given to do, and what is measured of them.

/// A kind of load.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// Idle connections are held, and others come and go beside them.
    Idle,
    /// Connections that come and go.
    Connections,
    /// Small messages on open connections, as many as can be.
    Requests,
    /// Small messages on open connections, so many a second.
    Paced,
    /// As many bytes as can be, over one connection.
    BulkOne,
    /// The same over eight.
    BulkEight,
    /// One connection after another, timed.
    FirstBytes,
    /// Datagrams and their echoes.
    Datagrams,
    /// Datagrams one way, many handed to the kernel at once.
    Segments,
    /// Connections that come and go, each to the least loaded of twenty nodes.
    LeastConn,
    /// The same, the node found by hashing the client.
    Hash,
    /// Connections that begin with an MQTT CONNECT, without plugins and with six of them.
    Plugins,
    /// TLS connections are held.
    TlsIdle,
    /// TLS connections that come and go, each with a full handshake.
    TlsHandshakes,
    /// The same, each resuming the one before.
    TlsResumed,
    /// As many bytes as can be from the upstream, over one TLS connection.
    TlsBulkOne,
    /// The same over eight.
    TlsBulkEight,
    /// As many bytes as can be to the upstream, over one TLS connection.
    TlsUploadOne,
    /// The same over eight.
    TlsUploadEight,
    /// As many bytes as can be through a listen that reads the ClientHello and no more, and through a
    /// plain one.
    Passthrough,
}

/// In the order they are done, each with its name: memory is measured on proxies that have done
/// nothing yet. Those of TLS have processes of their own.
const WORKS: [(Work, &str); 20] = [
    (Work::Idle, "idle"),
    (Work::Connections, "connections"),
    (Work::Requests, "requests"),
    (Work::Paced, "paced"),
    (Work::BulkOne, "bulk-1"),
    (Work::BulkEight, "bulk-8"),
    (Work::FirstBytes, "first-bytes"),
    (Work::Datagrams, "datagrams"),
    (Work::Segments, "segments"),
    (Work::LeastConn, "least-conn"),
    (Work::Hash, "hash"),
    (Work::Plugins, "plugins"),
    (Work::TlsIdle, "tls-idle"),
    (Work::TlsHandshakes, "tls-handshake"),
    (Work::TlsResumed, "tls-resumed"),
    (Work::TlsBulkOne, "tls-bulk-1"),
    (Work::TlsBulkEight, "tls-bulk-8"),
    (Work::TlsUploadOne, "tls-upload-1"),
    (Work::TlsUploadEight, "tls-upload-8"),
    (Work::Passthrough, "passthrough"),
];

impl Work {
    /// All, in the order they are done.
    pub fn all() -> impl Iterator<Item = Self> {
        WORKS.into_iter().map(|(work, _)| work)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        WORKS[self as usize].1
    }

    /// The one of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::all().find(|work| work.name() == name)
    }

    /// How often it comes round where loads come `turns` times: what is measured of processes that
    /// have done nothing yet, once.
    #[must_use]
    pub fn turns(self, turns: usize) -> usize {
        if matches!(self, Self::Idle | Self::TlsIdle) { 1 } else { turns }
    }

    /// Reports whether only a proxy that forwards datagrams can do it.
    #[must_use]
    pub fn is_of_datagrams(self) -> bool {
        matches!(self, Self::Datagrams | Self::Segments)
    }

    /// Reports whether a node has to be chosen among several.
    #[must_use]
    pub fn is_of_balancing(self) -> bool {
        matches!(self, Self::LeastConn | Self::Hash)
    }

    /// Reports whether only streamgate has what it is about.
    #[must_use]
    pub fn is_of_plugins(self) -> bool {
        matches!(self, Self::Plugins)
    }

    /// Reports whether it is done by proxies that are set up for TLS.
    #[must_use]
    pub fn is_of_tls(self) -> bool {
        self as usize >= Self::TlsIdle as usize
    }
}

/// One figure of a proxy.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Metric {
    /// CPU time for a gigabyte over one connection.
    BulkOne,
    /// The same over eight at once.
    BulkEight,
    /// CPU time for a connection: connect, a byte each way, close.
    Connection,
    /// How many of them.
    ConnectionRate,
    /// CPU time for 64 bytes each way on an open connection, as many as can be.
    Request,
    /// How many of them.
    RequestRate,
    /// CPU time for one of 5,000 a second.
    Paced,
    /// From the start of a connect to the first byte back, median.
    FirstByte,
    /// The same, 99th percentile.
    FirstByteTail,
    /// Resident memory of an idle connection.
    IdleMemory,
    /// CPU time while connections are idle.
    IdleCpu,
    /// CPU time for a connection while idle ones are held.
    Churn,
    /// How many of them.
    ChurnRate,
    /// CPU time for a datagram and its answer.
    Datagram,
    /// How many of them.
    DatagramRate,
    /// CPU time for a datagram, one way, of a sender that hands many to the kernel at once.
    Segment,
    /// How many of them arrive.
    SegmentRate,
    /// CPU time for a connection to the least loaded of twenty nodes.
    LeastConn,
    /// The same to the one that the client's address and port hash to.
    Hash,
    /// CPU time for a connection that begins with an MQTT CONNECT.
    Greeting,
    /// The same through ip-restriction, limit-conn, mqtt-proxy, traffic-split, prometheus and syslog.
    Plugins,
    /// Resident memory of an idle TLS connection.
    TlsIdleMemory,
    /// CPU time for a TLS connection: connect, full handshake, a byte each way, close.
    TlsHandshake,
    /// The same with a handshake that resumes.
    TlsResumed,
    /// CPU time for a gigabyte from the upstream over one TLS connection.
    TlsBulkOne,
    /// The same over eight at once.
    TlsBulkEight,
    /// CPU time for a gigabyte to the upstream over one TLS connection.
    TlsUploadOne,
    /// The same over eight at once.
    TlsUploadEight,
    /// CPU time for a gigabyte from the upstream through a plain listen of the same proxy.
    PlainBulk,
    /// The same through a listen that passes TLS on.
    PassthroughBulk,
    /// CPU time for a gigabyte to the upstream through a plain listen of the same proxy.
    PlainUpload,
    /// The same through a listen that passes TLS on.
    PassthroughUpload,
}

/// Each with its name in the results, what it is, and its unit.
const METRICS: [(Metric, &str, &str, &str); 32] = [
    (Metric::BulkOne, "bulk_1_cpu", "bulk, 1 connection: CPU for a gigabyte", "s"),
    (Metric::BulkEight, "bulk_8_cpu", "bulk, 8 connections: CPU for a gigabyte", "s"),
    (Metric::Connection, "connection_cpu", "connect, 1 byte each way, close: CPU", "us"),
    (Metric::ConnectionRate, "connection_rate", "connect, 1 byte each way, close: rate", "1/s"),
    (Metric::Request, "request_cpu", "64 bytes each way, 32 open connections: CPU", "us"),
    (Metric::RequestRate, "request_rate", "64 bytes each way, 32 open connections: rate", "1/s"),
    (Metric::Paced, "paced_cpu", "64 bytes each way, 5,000 a second one by one: CPU", "us"),
    (Metric::FirstByte, "first_byte_p50", "connect to first byte back: median", "us"),
    (Metric::FirstByteTail, "first_byte_p99", "connect to first byte back: 99th percentile", "us"),
    (Metric::IdleMemory, "idle_memory", "idle connection: resident memory", "B"),
    (Metric::IdleCpu, "idle_cpu", "all idle: CPU in a second", "ms"),
    (Metric::Churn, "churn_cpu", "a connection while the idle ones are held: CPU", "us"),
    (Metric::ChurnRate, "churn_rate", "a connection while the idle ones are held: rate", "1/s"),
    (Metric::Datagram, "datagram_cpu", "UDP, 64 bytes and their echo, 16 clients: CPU", "us"),
    (Metric::DatagramRate, "datagram_rate", "UDP, 64 bytes and their echo, 16 clients: rate", "1/s"),
    (Metric::Segment, "segment_cpu", "UDP, 1,200 bytes one way, GSO sender: CPU for a datagram", "us"),
    (
        Metric::SegmentRate,
        "segment_rate",
        "UDP, 1,200 bytes one way, GSO sender: datagrams that arrive",
        "1/s",
    ),
    (Metric::LeastConn, "least_conn_cpu", "the same connection, least_conn of 20 nodes: CPU", "us"),
    (Metric::Hash, "hash_cpu", "the same connection, consistent hash over 20 nodes: CPU", "us"),
    (Metric::Greeting, "greeting_cpu", "connect, MQTT CONNECT and its echo, close: CPU", "us"),
    (Metric::Plugins, "plugins_cpu", "the same through six plugins: CPU", "us"),
    (Metric::TlsIdleMemory, "tls_idle_memory", "TLS, idle connection: resident memory", "B"),
    (Metric::TlsHandshake, "tls_handshake_cpu", "TLS, full handshake, 1 byte each way, close: CPU", "us"),
    (Metric::TlsResumed, "tls_resumed_cpu", "TLS, resumed, 1 byte each way, close: CPU", "us"),
    (Metric::TlsBulkOne, "tls_bulk_1_cpu", "TLS, bulk, 1 connection: CPU for a gigabyte", "s"),
    (Metric::TlsBulkEight, "tls_bulk_8_cpu", "TLS, bulk, 8 connections: CPU for a gigabyte", "s"),
    (Metric::TlsUploadOne, "tls_upload_1_cpu", "TLS, upload, 1 connection: CPU for a gigabyte", "s"),
    (Metric::TlsUploadEight, "tls_upload_8_cpu", "TLS, upload, 8 connections: CPU for a gigabyte", "s"),
    (Metric::PlainBulk, "plain_bulk_cpu", "beside TLS, plain bulk: CPU for a gigabyte", "s"),
    (Metric::PassthroughBulk, "passthrough_bulk_cpu", "TLS passed on, bulk: CPU for a gigabyte", "s"),
    (Metric::PlainUpload, "plain_upload_cpu", "beside TLS, plain upload: CPU for a gigabyte", "s"),
    (Metric::PassthroughUpload, "passthrough_upload_cpu", "TLS passed on, upload: CPU for a gigabyte", "s"),
];

impl Metric {
    /// All, in the order they are shown.
    pub fn all() -> impl Iterator<Item = Self> {
        METRICS.into_iter().map(|(metric, ..)| metric)
    }

    /// Its name in the results.
    #[must_use]
    pub fn id(self) -> &'static str {
        self.described().1
    }

    /// What it is, for a reader.
    #[must_use]
    pub fn what(self) -> &'static str {
        self.described().2
    }

    /// Its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        self.described().3
    }

    /// The one of this name.
    #[must_use]
    pub fn of_id(id: &str) -> Option<Self> {
        Self::all().find(|metric| metric.id() == id)
    }

    /// What it is measured of.
    #[must_use]
    pub fn work(self) -> Work {
        match self {
            Self::BulkOne => Work::BulkOne,
            Self::BulkEight => Work::BulkEight,
            Self::Connection | Self::ConnectionRate => Work::Connections,
            Self::Request | Self::RequestRate => Work::Requests,
            Self::Paced => Work::Paced,
            Self::FirstByte | Self::FirstByteTail => Work::FirstBytes,
            Self::IdleMemory | Self::IdleCpu | Self::Churn | Self::ChurnRate => Work::Idle,
            Self::Datagram | Self::DatagramRate => Work::Datagrams,
            Self::Segment | Self::SegmentRate => Work::Segments,
            Self::LeastConn => Work::LeastConn,
            Self::Hash => Work::Hash,
            Self::Greeting | Self::Plugins => Work::Plugins,
            Self::TlsIdleMemory => Work::TlsIdle,
            Self::TlsHandshake => Work::TlsHandshakes,
            Self::TlsResumed => Work::TlsResumed,
            Self::TlsBulkOne => Work::TlsBulkOne,
            Self::TlsBulkEight => Work::TlsBulkEight,
            Self::TlsUploadOne => Work::TlsUploadOne,
            Self::TlsUploadEight => Work::TlsUploadEight,
            Self::PlainBulk | Self::PassthroughBulk | Self::PlainUpload | Self::PassthroughUpload => {
                Work::Passthrough
            }
        }
    }

    /// Reports whether more is better.
    #[must_use]
    pub fn is_rate(self) -> bool {
        self.unit() == "1/s"
    }

    fn described(self) -> (Self, &'static str, &'static str, &'static str) {
        // The table is in the order of the declaration; a test holds it to that.
        METRICS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_order_of_the_declaration_and_no_name_twice() {
        for (row, work) in Work::all().enumerate() {
            assert_eq!(work as usize, row, "{work:?}");
            assert_eq!(Work::of_name(work.name()), Some(work));
            assert!(Metric::all().any(|metric| metric.work() == work));
        }
        for (row, metric) in Metric::all().enumerate() {
            assert_eq!(metric as usize, row, "{metric:?}");
            assert_eq!(Metric::of_id(metric.id()), Some(metric));
        }
        assert_eq!(Metric::of_id("other"), None);
    }
}
