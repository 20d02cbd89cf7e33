//! Why an attempt to reach a node failed.

/// The kinds of failed attempts that are counted apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectFailure {
    /// Nothing listens there, or a firewall rejects. Of datagrams: the node's host said so by ICMP.
    Refused,
    /// No answer within `timeout.connect`.
    TimedOut,
    /// It was reset before it stood.
    Reset,
    /// There is no way to the host.
    Unreachable,
    /// TLS with the node failed.
    Tls,
    /// This host has no port or descriptor left for it.
    Exhausted,
    /// Something else; the log has the error.
    Other,
}

impl ConnectFailure {
    /// Every kind, in the order of [`Self::index`].
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::TimedOut,
        Self::Reset,
        Self::Unreachable,
        Self::Tls,
        Self::Exhausted,
        Self::Other,
    ];

    /// The place in arrays of counters.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// The label of metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Exhausted => "exhausted",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_places() {
        for (place, failure) in ConnectFailure::ALL.iter().enumerate() {
            assert_eq!(failure.index(), place);
        }
    }
}
