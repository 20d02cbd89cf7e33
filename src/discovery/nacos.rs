//! Nacos: the healthy instances of a service, asked for every `fetch_interval`.
//!
//! `/nacos/v1/ns/instance/list` of its open API; with a user a token is fetched first from
//! `auth/login`, kept until a tenth before its end and shared by all services
//! (<https://nacos.io/en/docs/v1/open-api/>, <https://nacos.io/en/docs/v1/auth/>).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::servers::{Client, Polled, Said, Turn, poll};
use super::{Found, Registry, RegistryError, nodes};
use crate::config::NacosRegistry;
use crate::net::http::{Request, encoded};
use crate::resource::{Discovery, Node};

/// How long a token is good where the server does not say.
const TOKEN_LIFE: Duration = Duration::from_hours(5);
/// Nacos has weights with fractions; all of a service are taken a hundred times where one has.
const HUNDREDTHS: f64 = 100.0;

/// What all services of Nacos share.
#[derive(Debug)]
pub(super) struct Shared {
    config: NacosRegistry,
    client: Client,
    /// The token of each server.
    tokens: Vec<Mutex<Option<Token>>>,
}

#[derive(Clone)]
struct Token {
    text: Arc<str>,
    until: Instant,
}

/// Without its text.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(config: &NacosRegistry, trusted: Option<&Path>) -> Self {
        let tokens = config.servers.iter().map(|_| Mutex::default()).collect();
        Self { config: config.clone(), client: Client::verifying(&config.servers, trusted), tokens }
    }

    /// The token of a server, where it has users; another than `refused`.
    async fn token(&self, place: usize, refused: Option<&str>) -> Result<Option<Arc<str>>, RegistryError> {
        let with_user =
            self.config.servers.get(place).and_then(|server| Some((server, server.auth.as_ref()?)));
        let (Some((server, (user, password))), Some(slot)) = (with_user, self.tokens.get(place)) else {
            return Ok(None);
        };
        // Held while logging in: who comes meanwhile takes the token of that.
        let mut slot = slot.lock().await;
        let good =
            slot.as_ref().filter(|token| token.until > Instant::now() && Some(&*token.text) != refused);
        if let Some(token) = good {
            return Ok(Some(token.text.clone()));
        }
        *slot = None;
        let body = format!("username={}&password={}", encoded(user), encoded(password));
        let path = format!("{}/auth/login", self.config.prefix);
        let request = Request {
            method: "POST",
            headers: &[("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "application/json")],
            body: body.as_bytes(),
            path: &path,
        };
        let said = self.client.ask(server, request, self.config.waits).await?;
        let token = token(&said.json()?).ok_or_else(|| said.odd("the login gives no accessToken"))?;
        Ok(Some(slot.insert(token).text.clone()))
    }
}

/// One service.
pub(super) struct Nacos {
    shared: Arc<Shared>,
    service: Box<str>,
    group: Box<str>,
    query: String,
    turn: Turn,
}

impl Nacos {
    pub(super) fn new(shared: Arc<Shared>, service: &Discovery) -> Self {
        let name = &service.service_name;
        let group = service.group_name.as_deref().unwrap_or("DEFAULT_GROUP");
        let namespace = service.namespace_id.as_deref().unwrap_or("public");
        Self {
            query: format!(
                "{}/ns/instance/list?healthyOnly=true&serviceName={}&namespaceId={}&groupName={}",
                shared.config.prefix,
                encoded(name),
                encoded(namespace),
                encoded(group),
            ),
            service: name.clone(),
            group: group.into(),
            turn: Turn::new(&shared.config.servers),
            shared,
        }
    }

    async fn list(&self, place: usize, token: Option<&str>) -> Result<Said, RegistryError> {
        let config = &self.shared.config;
        let Some(server) = config.servers.get(place) else {
            return Err(RegistryError("discovery.nacos.host is empty".into()));
        };
        let mut path = self.query.clone();
        if let Some(token) = token {
            path = format!("{path}&accessToken={}", encoded(token));
        }
        if let Some(keys) = &config.keys {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            path += &signed(keys, &format!("{}@@{}@@{}", now.as_millis(), self.group, self.service));
        }
        let request = Request::get(&path, &[("Accept", "application/json")]);
        self.shared.client.ask(server, request, config.waits).await
    }
}

impl Polled for Nacos {
    async fn query(&self, place: usize) -> Result<Vec<Node>, RegistryError> {
        let token = self.shared.token(place, None).await?;
        let mut said = self.list(place, token.as_deref()).await?;
        if let (Some(refused), 401 | 403) = (&token, said.status) {
            let token = self.shared.token(place, Some(refused)).await?;
            said = self.list(place, token.as_deref()).await?;
        }
        parse(&said.json()?, &self.shared.config).map_err(|why| said.odd(&why))
    }

    fn turn(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn interval(&self) -> Duration {
        self.shared.config.fetch_interval
    }
}

impl Registry for Nacos {
    async fn instances(&mut self, _: Duration) -> Result<Found, RegistryError> {
        poll(self).await
    }
}

/// What a login gives.
fn token(answer: &Value) -> Option<Token> {
    let text = Some(nodes::text(answer, "accessToken")).filter(|text| !text.is_empty())?;
    let life = nodes::number(answer.get("tokenTtl")).and_then(|life| Duration::try_from_secs_f64(life).ok());
    let life = life.unwrap_or(TOKEN_LIFE).min(TOKEN_LIFE);
    Some(Token { text: text.into(), until: Instant::now() + life - life / 10 })
}

/// The parameters of a signed request, as Nacos checks them: HMAC-SHA1 of `data`.
fn signed((access, secret): &(Box<str>, Box<str>), data: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    let signature = STANDARD.encode(hmac::sign(&key, data.as_bytes()));
    format!("&ak={}&data={}&signature={}", encoded(access), encoded(data), encoded(&signature))
}

/// The instances of an answer.
fn parse(answer: &Value, config: &NacosRegistry) -> Result<Vec<Node>, String> {
    let hosts = match answer.get("hosts") {
        Some(Value::Array(hosts)) => hosts.as_slice(),
        Some(Value::Null) => &[],
        _ => return Err("it has no list of hosts".into()),
    };
    let told = |host: &Value| nodes::number(host.get("weight"));
    let fractions = hosts.iter().filter_map(told).any(|weight| weight.fract() != 0.0);
    let scale = if fractions { HUNDREDTHS } else { 1.0 };
    nodes::collect(hosts, |host| {
        let off = |key| host.get(key).and_then(Value::as_bool) == Some(false);
        if off("enabled") || off("healthy") {
            return Ok(None);
        }
        let port = nodes::port(host.get("port")).ok_or("has no port")?;
        let weight = told(host).unwrap_or_else(|| f64::from(config.weight)) * scale;
        Node::discovered(nodes::text(host, "ip"), port, nodes::weight(weight)).map(Some)
    })
}

#[cfg(test)]
mod tests;
