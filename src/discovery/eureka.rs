//! Eureka: the instances of an application that are up, asked for every `fetch_interval`.
//!
//! `/apps/<APP>` of its REST operations (<https://github.com/Netflix/eureka/wiki/Eureka-REST-operations>),
//! below `prefix`. What counts of an instance is what counts in APISIX
//! (`apisix/discovery/eureka/init.lua`): `overriddenstatus` before `status`, the secure port where it is on
//! before the other, `metadata.weight`.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::servers::{Client, Polled, Turn, poll};
use super::{Found, Registry, RegistryError, nodes};
use crate::config::EurekaRegistry;
use crate::net::http::{Request, encoded};
use crate::resource::{Discovery, Node};

/// What all applications of Eureka share.
#[derive(Debug)]
pub(super) struct Shared {
    config: EurekaRegistry,
    client: Client,
}

impl Shared {
    pub(super) fn new(config: &EurekaRegistry) -> Self {
        Self { config: config.clone(), client: Client::trusting() }
    }
}

/// One application.
pub(super) struct Eureka {
    shared: Arc<Shared>,
    path: String,
    turn: Turn,
}

impl Eureka {
    pub(super) fn new(shared: Arc<Shared>, service: &Discovery) -> Self {
        let path = format!("{}/apps/{}", shared.config.prefix, encoded(&service.service_name));
        Self { path, turn: Turn::new(&shared.config.servers), shared }
    }
}

impl Polled for Eureka {
    async fn query(&self, place: usize) -> Result<Vec<Node>, RegistryError> {
        let config = &self.shared.config;
        let Some(server) = config.servers.get(place) else {
            return Err(RegistryError("discovery.eureka.host is empty".into()));
        };
        let basic = server.auth.as_ref().map(|(user, password)| {
            let pair = STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {pair}")
        });
        let mut headers = vec![("Accept", "application/json")];
        headers.extend(basic.as_deref().map(|basic| ("Authorization", basic)));
        let said = self.shared.client.ask(server, Request::get(&self.path, &headers), config.waits).await?;
        if said.status == 404 {
            // It knows no application of that name.
            return Ok(Vec::new());
        }
        parse(&said.json()?, config).map_err(|why| said.odd(&why))
    }

    fn turn(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn interval(&self) -> Duration {
        self.shared.config.fetch_interval
    }
}

impl Registry for Eureka {
    async fn instances(&mut self, _: Duration) -> Result<Found, RegistryError> {
        poll(self).await
    }
}

/// The instances of an answer. One alone is an object and not a list at some servers.
fn parse(answer: &Value, config: &EurekaRegistry) -> Result<Vec<Node>, String> {
    let application = answer.get("application").filter(|application| application.is_object());
    let instances = match application.ok_or("it has no application")?.get("instance") {
        Some(Value::Array(instances)) => instances.as_slice(),
        Some(one @ Value::Object(_)) => std::slice::from_ref(one),
        None | Some(Value::Null) => &[],
        Some(_) => return Err("its instance is neither a list nor an object".into()),
    };
    nodes::collect(instances, |instance| {
        if status(instance) != "UP" {
            return Ok(None);
        }
        let port = port(instance, "securePort").or_else(|| port(instance, "port"));
        let weight = nodes::number(instance.get("metadata").and_then(|metadata| metadata.get("weight")));
        let weight = weight.map_or(config.weight, nodes::weight);
        Node::discovered(nodes::text(instance, "ipAddr"), port.ok_or("has no port that is on")?, weight)
            .map(Some)
    })
}

fn status(instance: &Value) -> &str {
    ["overriddenstatus", "overriddenStatus"]
        .into_iter()
        .map(|key| nodes::text(instance, key))
        .find(|status| !status.is_empty() && *status != "UNKNOWN")
        .unwrap_or_else(|| nodes::text(instance, "status"))
}

/// A port that is on: `{"$": 8080, "@enabled": "true"}`.
fn port(instance: &Value, key: &str) -> Option<u16> {
    let port = instance.get(key)?;
    let on = match port.get("@enabled")? {
        Value::Bool(on) => *on,
        Value::String(text) => text == "true",
        _ => false,
    };
    nodes::port(port.get("$")).filter(|_| on)
}

#[cfg(test)]
mod tests;
