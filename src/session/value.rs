//! The value of a variable.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::{Moment, Outcome};

/// The value of a variable. Its text is made where it is written: a hash key needs no string.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Variable<'a> {
    /// An address.
    Ip(IpAddr),
    /// The 4 or 16 bytes of an address.
    Binary(IpAddr),
    /// A port.
    Port(u16),
    /// A count.
    Number(u64),
    /// Seconds with milliseconds, such as `0.002`.
    Seconds(Duration),
    /// A point in time.
    Moment(Moment),
    /// One item for each attempt to reach a node, `, ` between them.
    Attempts(Attempts<'a>),
    /// One of our own words: letters, digits, `_`, `-` and dots.
    Word(&'static str),
    /// Anything else.
    Text(&'a str),
}

impl<'a> Variable<'a> {
    /// Its text.
    #[must_use]
    pub fn text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) | Self::Word(text) => Cow::Borrowed(text),
            other => Cow::Owned(other.to_string()),
        }
    }
}

impl fmt::Display for Variable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            // A character for each byte, so that different addresses have different texts.
            Self::Binary(IpAddr::V4(ip)) => latin(f, &ip.octets()),
            Self::Binary(IpAddr::V6(ip)) => latin(f, &ip.octets()),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Seconds(time) => write!(f, "{}.{:03}", time.as_secs(), time.subsec_millis()),
            Self::Moment(moment) => moment.fmt(f),
            Self::Attempts(attempts) => attempts.fmt(f),
            Self::Text(text) | Self::Word(text) => f.write_str(text),
        }
    }
}

fn latin(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| fmt::Write::write_char(f, char::from(*byte)))
}

/// What is told of each attempt to reach a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Each {
    /// The node.
    Addr,
    /// Bytes from it.
    Received,
    /// Bytes to it.
    Sent,
    /// Time to connect; none where it failed.
    Connect,
    /// Until its first byte; none where there was none.
    FirstByte,
    /// How long it took, of the last one until the end of the session.
    Session,
}

/// A list over the attempts of a session (`ngx_stream_upstream.c`).
#[derive(Clone, Copy, Debug)]
pub struct Attempts<'a> {
    outcome: &'a Outcome,
    each: Each,
}

impl<'a> Attempts<'a> {
    /// The list; `None` where no node was tried.
    #[must_use]
    pub fn new(outcome: &'a Outcome, each: Each) -> Option<Self> {
        (outcome.attempts > 0).then_some(Self { outcome, each })
    }

    /// The items in order; `None` stands for a value that an attempt has not.
    pub fn items(&self) -> impl Iterator<Item = Option<Variable<'a>>> + use<'a> {
        let Self { outcome, each } = *self;
        let failed = &outcome.course.failed;
        let last = (outcome.attempts as usize > failed.len()).then(|| last(outcome, each));
        let failed = failed.iter().map(move |attempt| match each {
            Each::Addr => Some(Variable::Text(&attempt.node)),
            Each::Received | Each::Sent => Some(Variable::Number(0)),
            Each::Connect | Each::FirstByte => None,
            Each::Session => Some(Variable::Seconds(attempt.took)),
        });
        failed.chain(last)
    }
}

/// The item of the attempt that did not fail.
fn last(outcome: &Outcome, each: Each) -> Option<Variable<'_>> {
    let course = &outcome.course;
    Some(match each {
        Each::Addr => Variable::Text(outcome.node.as_deref()?),
        Each::Received => Variable::Number(outcome.traffic.sent),
        Each::Sent => Variable::Number(outcome.traffic.received),
        Each::Connect => Variable::Seconds(outcome.connect?),
        Each::FirstByte => Variable::Seconds(course.first_byte?),
        Each::Session => Variable::Seconds(outcome.duration.saturating_sub(course.attempted)),
    })
}

/// The same list of the same session.
impl PartialEq for Attempts<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.outcome, other.outcome) && self.each == other.each
    }
}

impl Eq for Attempts<'_> {}

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, item) in self.items().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            match item {
                Some(item) => item.fmt(f)?,
                None => f.write_str("-")?,
            }
        }
        Ok(())
    }
}
