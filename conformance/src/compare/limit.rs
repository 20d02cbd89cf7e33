//! What is required of streamgate beside its peers, beside itself, and of its figures alone.

use super::metric::Metric;
use super::proxy::Proxy;
use super::results::{Results, Spread};

/// One requirement. A median is held to it; the spread around it is for the reader.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Of this metric.
    pub metric: Metric,
    /// What it is held against.
    pub against: Against,
    /// What must be reached; none where the figure is recorded only.
    pub required: Option<f64>,
    /// What would be better still.
    pub stretch: Option<f64>,
}

/// What a figure of streamgate is held against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Against {
    /// The same figure of this peer: the limit is of the ratio.
    Peer(Proxy),
    /// Another figure of streamgate: the limit is of the ratio.
    Own(Metric),
    /// Another figure of streamgate: the limit is of what is added to it.
    Above(Metric),
    /// The same figure of streamgate set up in the one way, beside the other way: the limit is of the ratio.
    Ways(Proxy, Proxy),
    /// Nothing: the limit is of the figure.
    Nothing,
}

impl Against {
    /// In a word: the name of the peer or of the other metric; none where there is neither.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Peer(proxy) => Some(proxy.name()),
            Self::Own(metric) | Self::Above(metric) => Some(metric.id()),
            Self::Ways(_, other) => Some(other.name()),
            Self::Nothing => None,
        }
    }
}

/// How a figure stands to its limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// As good as the stretch.
    Stretch,
    /// As good as required.
    Met,
    /// Not.
    Missed,
    /// Nothing is required.
    Recorded,
}

const fn limit(metric: Metric, against: Proxy, required: Option<f64>, stretch: Option<f64>) -> Limit {
    Limit { metric, against: Against::Peer(against), required, stretch }
}

const fn beside(metric: Metric, other: Metric, required: f64) -> Limit {
    Limit { metric, against: Against::Own(other), required: Some(required), stretch: None }
}

const fn own(metric: Metric, required: Option<f64>, stretch: Option<f64>) -> Limit {
    Limit { metric, against: Against::Nothing, required, stretch }
}

/// All of them, in the order they are shown.
pub const LIMITS: &[Limit] = &[
    limit(Metric::BulkOne, Proxy::Nginx, Some(0.36), Some(0.28)),
    limit(Metric::BulkOne, Proxy::NginxLargeBuffer, None, None),
    limit(Metric::BulkOne, Proxy::Haproxy, Some(0.36), None),
    limit(Metric::BulkOne, Proxy::HaproxySplice, Some(1.0), Some(0.80)),
    limit(Metric::BulkOne, Proxy::Envoy, Some(0.65), Some(0.45)),
    limit(Metric::BulkEight, Proxy::Nginx, Some(0.36), Some(0.28)),
    limit(Metric::BulkEight, Proxy::NginxLargeBuffer, None, None),
    limit(Metric::BulkEight, Proxy::Haproxy, Some(0.36), None),
    limit(Metric::BulkEight, Proxy::HaproxySplice, Some(1.0), Some(0.80)),
    limit(Metric::BulkEight, Proxy::Envoy, Some(0.65), Some(0.45)),
    limit(Metric::Connection, Proxy::Nginx, Some(1.05), Some(0.90)),
    limit(Metric::Connection, Proxy::Haproxy, Some(1.05), Some(0.88)),
    limit(Metric::Connection, Proxy::Envoy, Some(0.55), Some(0.47)),
    limit(Metric::Request, Proxy::Nginx, Some(1.0), Some(0.87)),
    limit(Metric::Request, Proxy::Haproxy, Some(1.1), Some(0.90)),
    limit(Metric::Request, Proxy::Envoy, Some(0.70), Some(0.60)),
    limit(Metric::Paced, Proxy::Nginx, None, None),
    limit(Metric::Paced, Proxy::Haproxy, None, None),
    limit(Metric::Paced, Proxy::Envoy, None, None),
    limit(Metric::FirstByte, Proxy::Nginx, None, None),
    limit(Metric::FirstByte, Proxy::Haproxy, None, None),
    limit(Metric::FirstByte, Proxy::Envoy, None, None),
    limit(Metric::Churn, Proxy::Nginx, None, None),
    limit(Metric::Churn, Proxy::Haproxy, None, None),
    limit(Metric::Churn, Proxy::Envoy, None, None),
    limit(Metric::Datagram, Proxy::Nginx, Some(0.80), Some(0.70)),
    limit(Metric::Datagram, Proxy::Envoy, Some(0.60), Some(0.52)),
    limit(Metric::Segment, Proxy::Nginx, None, None),
    limit(Metric::Segment, Proxy::Envoy, None, None),
    limit(Metric::SegmentRate, Proxy::Nginx, Some(6.0), Some(9.0)),
    limit(Metric::SegmentRate, Proxy::Envoy, None, Some(3.0)),
    limit(Metric::LeastConn, Proxy::Nginx, Some(1.05), None),
    beside(Metric::LeastConn, Metric::Connection, 1.05),
    limit(Metric::Hash, Proxy::Nginx, Some(1.05), None),
    beside(Metric::Hash, Metric::Connection, 1.05),
    Limit {
        metric: Metric::Connection,
        against: Against::Ways(Proxy::StreamgateLogged, Proxy::StreamgateSilent),
        required: Some(1.1),
        stretch: None,
    },
    Limit {
        metric: Metric::Plugins,
        against: Against::Above(Metric::Greeting),
        required: Some(15.0),
        stretch: None,
    },
    own(Metric::IdleMemory, Some(2560.0), Some(1536.0)),
    own(Metric::IdleCpu, Some(1.0), None),
    limit(Metric::TlsHandshake, Proxy::Nginx, Some(1.0), Some(0.75)),
    limit(Metric::TlsResumed, Proxy::Nginx, Some(1.0), None),
    beside(Metric::TlsResumed, Metric::TlsHandshake, 1.0),
    limit(Metric::TlsBulkOne, Proxy::Nginx, Some(1.0), None),
    limit(Metric::TlsBulkEight, Proxy::Nginx, Some(1.0), None),
    limit(Metric::TlsUploadOne, Proxy::Nginx, Some(1.0), None),
    limit(Metric::TlsUploadEight, Proxy::Nginx, Some(1.0), None),
    own(Metric::TlsIdleMemory, Some(25.0 * 1024.0), Some(12.0 * 1024.0)),
    beside(Metric::PassthroughBulk, Metric::PlainBulk, 1.1),
    limit(Metric::PassthroughBulk, Proxy::Nginx, None, None),
    beside(Metric::PassthroughUpload, Metric::PlainUpload, 1.1),
    limit(Metric::PassthroughUpload, Proxy::Nginx, None, None),
];

impl Limit {
    /// What was measured of it; none where one of the two was not.
    #[must_use]
    pub fn measured(&self, results: &Results) -> Option<Spread> {
        match self.against {
            Against::Peer(peer) => results.ratio(self.metric, peer),
            Against::Own(other) => results.own_ratio(self.metric, other),
            Against::Above(other) => results.own_difference(self.metric, other),
            Against::Ways(one, other) => results.ratio_of(self.metric, one, other),
            Against::Nothing => results.figure(self.metric, Proxy::Streamgate),
        }
    }

    /// How a value stands to it.
    #[must_use]
    pub fn verdict(&self, value: f64) -> Verdict {
        let keeps = |bound: f64| if self.metric.is_rate() { value >= bound } else { value <= bound };
        match (self.required, self.stretch) {
            (_, Some(stretch)) if keeps(stretch) => Verdict::Stretch,
            (Some(required), _) if keeps(required) => Verdict::Met,
            (Some(_), _) => Verdict::Missed,
            (None, _) => Verdict::Recorded,
        }
    }
}

impl Verdict {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stretch => "stretch",
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Recorded => "-",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(metric: Metric, peer: Proxy, value: f64, verdict: Verdict) {
        let limit = LIMITS
            .iter()
            .find(|limit| limit.metric == metric && limit.against == Against::Peer(peer))
            .unwrap();
        assert_eq!(limit.verdict(value), verdict, "{limit:?} with {value}");
    }

    #[test]
    fn less_is_better_but_for_rates() {
        check(Metric::BulkOne, Proxy::Nginx, 0.28, Verdict::Stretch);
        check(Metric::BulkOne, Proxy::Nginx, 0.36, Verdict::Met);
        check(Metric::BulkOne, Proxy::Nginx, 0.37, Verdict::Missed);
        check(Metric::SegmentRate, Proxy::Nginx, 9.0, Verdict::Stretch);
        check(Metric::SegmentRate, Proxy::Nginx, 6.0, Verdict::Met);
        check(Metric::SegmentRate, Proxy::Nginx, 5.9, Verdict::Missed);
    }

    #[test]
    fn what_is_not_required_cannot_be_missed() {
        check(Metric::SegmentRate, Proxy::Envoy, 1.0, Verdict::Recorded);
        check(Metric::SegmentRate, Proxy::Envoy, 3.0, Verdict::Stretch);
        check(Metric::BulkOne, Proxy::NginxLargeBuffer, 9.0, Verdict::Recorded);
        check(Metric::BulkOne, Proxy::Haproxy, f64::NAN, Verdict::Missed);
    }
}
