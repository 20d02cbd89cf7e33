//! Following one service: what of the answers counts, when to ask again, what the log says.
//!
//! An answer without instances counts when nothing else was known, or when it has been given for
//! [`GRACE`] without another in between; an error is another: a registry that fails has not said that
//! there is nobody.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::{Means, Registry};
use crate::live::node_state::Problem;
use crate::live::registries::Failing;
use crate::net::clock::unix_ms;
use crate::resource::{Discovery, Node};
use crate::store::{Batch, Event};

/// How long a registry has to say that a service has no instances before that counts.
const GRACE: Duration = Duration::from_secs(30);
/// How soon to ask again after a failure: at first, and at most.
pub(super) const AFTER_FAILURE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Keeps the instances of one service known, until nobody listens.
pub(super) async fn follow(mut registry: impl Registry, mut standing: Standing, out: mpsc::Sender<Batch>) {
    let mut state = Following::default();
    let mut pause = AFTER_FAILURE[0];
    let mut last: Option<Arc<[Node]>> = None;
    loop {
        let answer = registry.instances(state.patience(Instant::now())).await;
        let now = Instant::now();
        let (counts, again) = match answer {
            Ok(found) => {
                pause = AFTER_FAILURE[0];
                standing.works();
                let counts = state.takes(&standing.service, found.nodes, now);
                (counts, found.again.min(state.patience(now)))
            }
            Err(error) => {
                standing.fails(&error, state.serving);
                let again = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                pause = (pause * 2).min(AFTER_FAILURE[1]);
                (state.fails(), again)
            }
        };
        if let Some(mut nodes) = counts {
            if nodes.is_empty() {
                nodes.extend(registry.fallback());
            }
            let nodes: Arc<[Node]> = nodes.into();
            // Each event makes a snapshot; most answers are the one before.
            if last.as_ref() != Some(&nodes) {
                last = Some(nodes.clone());
                let event = Event::Nodes { service: standing.service.clone(), nodes };
                if out.send(Batch { events: vec![event], revision: 0 }).await.is_err() {
                    return;
                }
            }
        }
        sleep(again).await;
    }
}

/// What has been told about a service.
#[derive(Debug, Default)]
struct Following {
    /// Something has been told.
    told: bool,
    /// What was told last has instances of the registry.
    serving: bool,
    /// Since when there is no instance, where that does not count yet.
    empty_since: Option<Instant>,
}

impl Following {
    /// How long the next answer may take: an empty one is to be confirmed in time.
    fn patience(&self, now: Instant) -> Duration {
        self.empty_since.map_or(Duration::MAX, |since| (since + GRACE).saturating_duration_since(now))
    }

    /// What is to be told after this answer.
    fn takes(&mut self, service: &Discovery, nodes: Vec<Node>, now: Instant) -> Option<Vec<Node>> {
        let empty = nodes.is_empty();
        if !empty || !self.serving {
            if self.told && !empty && !self.serving {
                tracing::info!("service {service} has instances again");
            }
            if empty && !self.told {
                tracing::warn!("service {service}: its registry knows no instance of that name");
            }
            (self.told, self.serving, self.empty_since) = (true, !empty, None);
            return Some(nodes);
        }
        let since = *self.empty_since.get_or_insert_with(|| {
            tracing::warn!(
                "service {service}: its registry knows no instance any more; the last ones serve for {GRACE:?} more"
            );
            now
        });
        if now.duration_since(since) < GRACE {
            return None;
        }
        tracing::warn!("service {service} has had no instance for {GRACE:?}; now that counts");
        (self.serving, self.empty_since) = (false, None);
        Some(nodes)
    }

    /// What is to be told after a failure: where nobody knows anything yet, sessions need not wait.
    fn fails(&mut self) -> Option<Vec<Node>> {
        self.empty_since = None;
        (!std::mem::replace(&mut self.told, true)).then(Vec::new)
    }
}

/// How the registry of one service is doing, for operators. Nothing is left of it when it is dropped.
#[derive(Debug)]
pub(super) struct Standing {
    service: Arc<Discovery>,
    failing: Arc<Failing>,
    gauge: Gauge,
    follower: u64,
    /// What went wrong the last time.
    problem: Option<Problem>,
}

impl Standing {
    pub(super) fn new(service: Arc<Discovery>, means: &Means) -> Self {
        let (failing, gauge) = (means.failing.clone(), means.metrics.discovery_failing.clone());
        Self { service, follower: failing.follower(), failing, gauge, problem: None }
    }

    fn works(&mut self) {
        if self.problem.take().is_some() {
            tracing::info!("service {}: its registry answers again", self.service);
            self.set(None);
        }
    }

    /// The log says it once for each time it begins; the status page has the last reason.
    fn fails(&mut self, error: &dyn fmt::Display, serving: bool) {
        let text = error.to_string();
        let since_unix_ms = match &self.problem {
            Some(problem) if problem.text == text => return,
            Some(problem) => problem.since_unix_ms,
            None => {
                let serves = if serving { "its last instances keep serving" } else { "it has no instance" };
                tracing::warn!("service {}: {text}; {serves}", self.service);
                unix_ms()
            }
        };
        let problem = self.problem.insert(Problem { text, since_unix_ms }).clone();
        self.set(Some((self.service.to_string().into(), problem)));
    }

    fn set(&self, failing: Option<(Box<str>, Problem)>) {
        self.gauge.set(crate::metrics::count(self.failing.set(self.follower, failing)));
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.set(None);
    }
}

#[cfg(test)]
mod tests;
