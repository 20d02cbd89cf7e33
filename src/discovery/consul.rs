//! Consul: the passing instances of a service, by blocking queries.
//!
//! `/v1/health/service/<name>?passing` answers with an index; asked again with it, Consul answers when
//! something has changed or `wait` and a sixteenth of it are over
//! (<https://developer.hashicorp.com/consul/api-docs/features/blocking>). An index that goes backwards or
//! is 0 is forgotten, and the next query does not wait.
//!
//! APISIX takes the services of all `servers` together, so they may be of several clusters: where a
//! server knows no instance the next is asked, and that there is none counts only when all have said so.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::servers::{Client, Said, Turn, all, spread};
use super::{Found, Registry, RegistryError, nodes};
use crate::config::{ConsulRegistry, ConsulSort, Waits};
use crate::net::http::{Request, encoded};
use crate::resource::{Discovery, Node};

/// Consul asks clients not to follow each change of a busy service at once.
const BETWEEN: Duration = Duration::from_millis(100);
/// An answer that comes sooner and brings no other index did not wait: the server is not to be hurried.
const TOO_SOON: Duration = Duration::from_secs(1);
/// How often a service is looked at that is skipped: never, in effect.
const NEVER: Duration = Duration::from_hours(24);

/// What all services of Consul share.
#[derive(Debug)]
pub(super) struct Shared {
    config: ConsulRegistry,
    client: Client,
}

impl Shared {
    pub(super) fn new(config: &ConsulRegistry, trusted: Option<&Path>) -> Self {
        Self { config: config.clone(), client: Client::verifying(&config.servers, trusted) }
    }
}

/// One service.
pub(super) struct Consul {
    shared: Arc<Shared>,
    path: String,
    skipped: bool,
    turn: Turn,
    /// What the first server told last; 0: nothing to wait from.
    index: u64,
}

/// What one server said.
struct Answer {
    nodes: Vec<Node>,
    /// What the next query waits from; 0: it does not.
    index: u64,
    again: Duration,
}

impl Consul {
    pub(super) fn new(shared: Arc<Shared>, service: &Discovery) -> Self {
        let config = &shared.config;
        let name = &*service.service_name;
        Self {
            path: format!("/v1/health/service/{}?passing=true", encoded(name)),
            skipped: config.skip_services.iter().any(|skipped| **skipped == *name),
            turn: Turn::new(&config.servers),
            index: 0,
            shared,
        }
    }

    /// Asks one server, from an index on.
    async fn query(&self, place: usize, index: u64, patience: Duration) -> Result<Answer, RegistryError> {
        let config = &self.shared.config;
        let Some(server) = config.servers.get(place) else {
            return Err(RegistryError("discovery.consul.servers is empty".into()));
        };
        let token = [("X-Consul-Token", &*config.token)];
        let headers = if config.token.is_empty() { &[] } else { token.as_slice() };
        let (client, begun) = (&self.shared.client, Instant::now());
        // While many wait the others poll.
        let free = if index > 0 { client.place() } else { None };
        let polls = !config.keepalive || (index > 0 && free.is_none());
        let waits = Waits { connect: config.connect, answer: config.read };
        let said = match free {
            Some(free) => {
                // Without a time Consul would hold it for five minutes.
                let wait = config.wait.min(patience).max(Duration::from_millis(1));
                let path = format!("{}&index={index}&wait={}ms", self.path, wait.as_millis());
                let waits = Waits { answer: waits.answer + wait + wait / 16, ..waits };
                free.ask(server, Request::get(&path, headers), waits).await?
            }
            None => client.ask(server, Request::get(&self.path, headers), waits).await?,
        };
        let nodes = parse(&said.json()?, config).map_err(|why| said.odd(&why))?;
        let told = told_index(&said);
        let again = match told {
            0 => spread(config.fetch_interval),
            _ if polls => spread(config.fetch_interval),
            same if same == index && begun.elapsed() < TOO_SOON => TOO_SOON,
            _ => BETWEEN,
        };
        let index = if config.keepalive { next_index(index, told) } else { 0 };
        Ok(Answer { nodes, index, again })
    }
}

impl Registry for Consul {
    async fn instances(&mut self, patience: Duration) -> Result<Found, RegistryError> {
        if self.skipped {
            return Ok(Found { nodes: Vec::new(), again: NEVER });
        }
        let (first, mut failures, mut empty) = (self.turn.first(), Vec::new(), None);
        for place in self.turn.round() {
            let index = if place == first { std::mem::take(&mut self.index) } else { 0 };
            match self.query(place, index, patience).await {
                Ok(answer) if answer.nodes.is_empty() => {
                    empty.get_or_insert(answer);
                }
                Ok(answer) => {
                    self.turn.stay(place);
                    self.index = answer.index;
                    return Ok(Found { nodes: answer.nodes, again: answer.again });
                }
                Err(error) => failures.push(error),
            }
        }
        // Who fails may know instances: those of before serve on.
        let Some(answer) = empty.filter(|_| failures.is_empty()) else { return Err(all(&failures)) };
        if self.shared.config.servers.len() > 1 {
            // A change at another server would not wake a query at the first.
            return Ok(Found { nodes: Vec::new(), again: spread(self.shared.config.fetch_interval) });
        }
        self.index = answer.index;
        Ok(Found { nodes: Vec::new(), again: answer.again })
    }

    fn fallback(&self) -> Option<Node> {
        let config = &self.shared.config;
        let node = config.default_service.as_ref()?;
        Node::discovered(&node.host, node.port, config.weight).ok()
    }
}

/// `X-Consul-Index`; 0 where there is none.
fn told_index(said: &Said) -> u64 {
    let text = said.headers.get("x-consul-index").and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What the next query waits from.
fn next_index(before: u64, told: u64) -> u64 {
    if told < before { 0 } else { told }
}

/// The instances of an answer (<https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service>).
fn parse(answer: &Value, config: &ConsulRegistry) -> Result<Vec<Node>, String> {
    let entries = answer.as_array().ok_or("it is no list")?;
    let mut nodes = nodes::collect(entries, |entry| {
        let service = entry.get("Service").filter(|service| service.is_object());
        let service = service.ok_or("has no Service")?;
        let own = nodes::text(service, "Address");
        // Consul leaves the address of a service out where it is that of its node.
        let host = if own.is_empty() {
            entry.get("Node").map_or("", |node| nodes::text(node, "Address"))
        } else {
            own
        };
        let port = match service.get("Port") {
            None | Some(Value::Null) => 0,
            port => nodes::port(port).ok_or("has a port that is none")?,
        };
        // As in APISIX (`apisix/discovery/consul/client.lua`).
        let port = if port == 0 { 80 } else { port };
        let told = nodes::number(service.get("Weights").and_then(|weights| weights.get("Passing")));
        Node::discovered(host, port, told.map_or(config.weight, nodes::weight)).map(Some)
    })?;
    if config.sort == ConsulSort::Port {
        nodes.sort_by_key(|node| node.port);
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests;
