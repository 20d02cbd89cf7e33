//! What plugins see of a session before its node is chosen, and what they leave with it.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::limit_conn;
use super::traffic_split::Inline;
use crate::live::bandwidth::Bandwidth;
pub use crate::session::RouteFacts;
use crate::session::{Denied, Host, Inbound, Variable, View};

/// One session, as plugins see it.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The client.
    pub inbound: &'a mut Inbound,
    /// Its route.
    pub route: RouteFacts<'a>,
    /// This process.
    pub host: &'a Host,
    /// What the client has sent, as far as it was read; of a datagram all there will be.
    pub first: &'a [u8],
    /// For rates.
    pub now: Instant,
    /// For variables.
    pub time: SystemTime,
    /// What plugins leave with the session.
    pub kept: &'a mut Kept,
    /// Values that replace those of the session: what `explain` is asked with.
    pub given: Option<&'a dyn Given>,
    /// Nobody comes: answer as if, and change nothing that other sessions see.
    pub preview: bool,
}

/// Variables by name.
pub trait Given: std::fmt::Debug {
    /// The value, or that there is none; `None` where the session's own counts.
    fn variable(&self, name: &str) -> Option<Option<&str>>;
}

impl Scene<'_> {
    /// The value of a variable, without its `$`; `None` where the session has none.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<Variable<'_>> {
        if let Some(value) = self.given.and_then(|given| given.variable(name)) {
            return value.map(Variable::Text);
        }
        let Self { inbound, route, host, time, .. } = self;
        View { inbound, route: Some(*route), outcome: None, host, time: *time }.variable(name)
    }
}

/// What plugins leave with a session, dropped at its end.
#[derive(Debug, Default)]
pub struct Kept {
    /// Places in the counts of limit-conn.
    pub places: Vec<limit_conn::Place>,
    /// What bounds its bytes.
    pub bandwidth: Option<Bandwidth>,
    /// Who refused the session.
    pub denied: Option<Denied>,
    /// The upstream that traffic-split chose in place of the route's.
    pub choice: Option<Choice>,
}

/// An upstream that a plugin chose.
#[derive(Clone, Debug)]
pub enum Choice {
    /// The upstream object of this id.
    Upstream(Arc<str>),
    /// One written inside the plugin.
    Inline(Arc<Inline>),
}
