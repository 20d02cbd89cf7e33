//! Cases as JSON lines: the objects and the connections in, the route and the node of each out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use streamgate::admin::explain::from_hex;
use streamgate::balance::{Picked, Pool, Tried};
use streamgate::certs::Certificates;
use streamgate::config::RulesConfig;
use streamgate::live::Live;
use streamgate::matcher::Order;
use streamgate::net::this_host::this_host;
use streamgate::plugin::{Given, Kept, Scene, judge};
use streamgate::resource::{Key, Kind, Object, Ssl};
use streamgate::session::{End, Inbound, Transport};
use streamgate::snapshot::{Builder, Route, Snapshot};
use streamgate::store::{Batch, Event, Store};
use tokio::time::Instant;

/// The answer to one line, itself one line.
pub(super) fn answer(rules: &RulesConfig, line: &str) -> String {
    let case: Value = match serde_json::from_str(line) {
        Ok(case) => case,
        Err(error) => {
            return json!({"id": null, "error": format!("the line is no JSON: {error}")}).to_string();
        }
    };
    let id = case.get("id").cloned().unwrap_or_default();
    let (store, snapshot) = build(rules, &case);
    let certificates = certificates(&case, &store);
    let connections = case.get("connections").and_then(Value::as_array);
    // Sessions of one line are open together: least_conn counts them all.
    let mut open = Vec::new();
    let results: Vec<Value> = connections
        .into_iter()
        .flatten()
        .map(|connection| match inbound(&case, connection) {
            Ok(inbound) => {
                let mut routed = || result(&snapshot, &inbound, connection, &mut open);
                if is_tls(connection) {
                    secured(&certificates, &inbound, &snapshot, &mut routed)
                } else {
                    routed()
                }
            }
            Err(why) => json!({"route": null, "node": null, "reason": why}),
        })
        .collect();
    let rejected: Map<String, Value> =
        store.rejected().map(|one| (one.key.to_string(), json!(&*one.reason))).collect();
    let mut answer = json!({"id": id, "results": results});
    if !rejected.is_empty() {
        answer["rejected"] = rejected.into();
    }
    answer.to_string()
}

fn build(rules: &RulesConfig, case: &Value) -> (Store, Snapshot) {
    let kinds = [Kind::StreamRoute, Kind::Upstream, Kind::Service, Kind::Ssl];
    let mut objects = Vec::new();
    for kind in kinds {
        for (id, object) in listed(case, kind) {
            if kind != Kind::Ssl || has_certificate(object) {
                objects.push((Key::new(kind, id), Bytes::from(object.to_string()), 1));
            }
        }
    }
    let mut store = Store::new(rules.clone()).in_given_order();
    let mut builder = Builder::new(Arc::new(Live::default()), 0);
    let batch = Batch { events: vec![Event::Resync { objects, revision: 1 }], revision: 1 };
    let changes = store.apply(batch, 0);
    let snapshot = builder.build(&store, &changes);
    (store, snapshot)
}

/// The objects of a kind with their ids: each as it stands in a file, or as `{"id", "value"}`.
fn listed(case: &Value, kind: Kind) -> impl Iterator<Item = (Arc<str>, &Value)> {
    let list = case.get(kind.directory()).and_then(Value::as_array);
    list.into_iter().flatten().enumerate().map(|(at, object)| {
        let id: Arc<str> = match object.get("id") {
            Some(Value::String(id)) => id.as_str().into(),
            Some(id @ Value::Number(_)) => id.to_string().into(),
            _ => format!("arr_{}", at + 1).into(),
        };
        (id, object.get("value").filter(|value| value.is_object()).unwrap_or(object))
    })
}

fn has_certificate(ssl: &Value) -> bool {
    ssl.get("cert").is_some() && ssl.get("key").is_some()
}

/// Which object serves which name. One without certificate and key counts by its names alone: they are
/// not needed for the choice.
fn certificates(case: &Value, store: &Store) -> Certificates<Arc<str>> {
    let mut certificates = Certificates::default();
    for (place, (id, object)) in (0_u32..).zip(listed(case, Kind::Ssl)) {
        let ssl = if has_certificate(object) {
            match store.entry(&Key::new(Kind::Ssl, id.clone())).map(|entry| &entry.object) {
                Some(Object::Ssl(ssl)) => ssl.clone(),
                _ => continue,
            }
        } else {
            Arc::new(Ssl::of_names(id.clone(), object))
        };
        certificates.insert(Order(place.to_be_bytes().as_slice().into()), ssl, id);
    }
    certificates
}

/// A peer without an address, such as nginx's `unix:`: no rule about addresses holds for it.
fn is_unaddressed(text: &str) -> bool {
    !text.contains('.') && text.matches(':').count() < 2
}

/// Variables may be given that no real session has.
fn is_ip(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<IpAddr>().is_ok())
}

fn is_port(value: &Value) -> bool {
    value.as_str().is_none_or(|text| text.parse::<u16>().is_ok())
}

fn is_tls(connection: &Value) -> bool {
    connection.get("tls").and_then(Value::as_bool) == Some(true)
}

/// The answer for a TLS client: without a certificate there is no session, unless its route wants the TLS left
/// alone.
fn secured(
    certificates: &Certificates<Arc<str>>,
    inbound: &Inbound,
    snapshot: &Snapshot,
    routed: &mut dyn FnMut() -> Value,
) -> Value {
    let ssl = inbound.sni.as_deref().and_then(|name| certificates.find(name));
    let passed_through = snapshot.find(inbound).is_some_and(|route| route.tls_passthrough);
    let mut answer = match (ssl, &inbound.sni) {
        (Some(_), _) => routed(),
        _ if passed_through => routed(),
        (None, Some(name)) => {
            let reason = format!("tls_no_certificate: no ssl has a certificate for {name}");
            json!({"route": null, "node": null, "reason": reason})
        }
        (None, None) => {
            let reason = "tls_no_sni: the client names no server and there is no fallback_sni";
            json!({"route": null, "node": null, "reason": reason})
        }
    };
    answer["ssl"] = json!(ssl.map(|id| &**id));
    answer
}

fn inbound(case: &Value, connection: &Value) -> Result<Inbound, String> {
    let address = |member: &str, port: &str| -> Result<SocketAddr, String> {
        let var = || connection.get("vars").and_then(|vars| vars.get(member)).filter(|value| is_ip(value));
        let text = connection.get(member).or_else(var).and_then(Value::as_str).unwrap_or("0.0.0.0");
        let ip: IpAddr = match text.trim_matches(['[', ']']).parse() {
            Ok(ip) => ip,
            Err(_) if is_unaddressed(text) => Ipv4Addr::UNSPECIFIED.into(),
            Err(_) => return Err(format!("{member} is {text:?}, which is no address")),
        };
        let var = || connection.get("vars").and_then(|vars| vars.get(port)).filter(|value| is_port(value));
        let port = match connection.get(port).or_else(var) {
            None | Some(Value::Null) => 0,
            // Variables are texts, so a port may come as one.
            Some(Value::String(text)) => {
                text.parse().map_err(|_| format!("{port} is {text:?}, which is no port"))?
            }
            Some(number) => number
                .as_u64()
                .and_then(|number| u16::try_from(number).ok())
                .ok_or_else(|| format!("{port} is {number}, which is no port"))?,
        };
        Ok(SocketAddr::new(ip, port))
    };
    let client = address("remote_addr", "remote_port")?;
    let server = address("server_addr", "server_port")?;
    let mut inbound = Inbound::new(Transport::Tcp, client, server);
    let fallback = || case.get("fallback_sni").filter(|_| is_tls(connection));
    let sni = connection.get("sni").filter(|sni| sni.is_string()).or_else(fallback);
    inbound.sni = sni.and_then(Value::as_str).and_then(super::server_name);
    // A variable that is given is set, to nothing too; a plugin leaves an empty client id out.
    let client_id = connection.get("vars").and_then(|vars| vars.get("mqtt_client_id"));
    inbound.mqtt_client_id = client_id.and_then(Value::as_str).map(Arc::from);
    Ok(inbound)
}

fn result(snapshot: &Snapshot, inbound: &Inbound, connection: &Value, open: &mut Vec<Open>) -> Value {
    let Some(route) = snapshot.find(inbound) else {
        return json!({"route": null, "node": null, "reason": "no_route: no stream_route matches"});
    };
    let (mut inbound, mut kept) = (inbound.clone(), Kept::default());
    let mut answer = json!({"route": &*route.id, "node": null});
    let passed = asked(route, &mut inbound, connection, &mut kept, &mut answer);
    if passed {
        let choice = kept.choice.take();
        let pool =
            choice.as_ref().map_or_else(|| snapshot.pool(&route.target), |choice| snapshot.chosen(choice));
        match pool {
            Ok(pool) => {
                answer["upstream"] = json!(&*pool.id);
                let (node, reason) = pick(pool, &inbound, connection, open);
                (answer["node"], answer["reason"]) = (json!(node), json!(reason));
            }
            Err((end, why)) => answer["reason"] = json!(format!("{}: {why}", end.label())),
        }
    }
    open.push(Open::Kept(kept));
    answer
}

/// What sessions of one line hold until its end.
#[derive(Debug)]
enum Open {
    Node(#[expect(dead_code, reason = "counts as long as it lives")] Picked),
    Kept(#[expect(dead_code, reason = "counts as long as it lives")] Kept),
}

/// Asks the plugins of the route; false where the session gets no further.
fn asked(
    route: &Route,
    inbound: &mut Inbound,
    connection: &Value,
    kept: &mut Kept,
    answer: &mut Value,
) -> bool {
    let vars = Vars(connection);
    let first = connection.get("preread").and_then(Value::as_str).map_or(Some(Vec::new()), from_hex);
    let Some(first) = first else {
        answer["reason"] = json!("preread is no even number of hex digits");
        return false;
    };
    let mut scene = Scene {
        inbound,
        route: route.facts(),
        host: &this_host(),
        first: &first,
        now: Instant::now().into_std(),
        time: SystemTime::now(),
        kept,
        given: Some(&vars),
        preview: false,
    };
    let verdict = judge(&route.plugins, &mut scene);
    if !verdict.delay.is_zero() {
        answer["delay"] = json!(verdict.delay.as_secs_f64());
    }
    if let Some(id) = &inbound.mqtt_client_id {
        answer["mqtt_client_id"] = json!(&**id);
    }
    let plugin = verdict.said.last().map(|said| said.plugin);
    match (verdict.refused, verdict.wants) {
        (Some((denied, why)), _) => {
            answer["plugin"] = json!(denied.plugin);
            answer["code"] = json!(denied.code);
            answer["reason"] = json!(format!("{}: {why}", End::PluginDenied.label()));
            false
        }
        (None, Some(wanted)) => {
            answer["plugin"] = json!(plugin);
            answer["wants"] = json!(wanted);
            let who = plugin.unwrap_or_default();
            answer["reason"] = json!(format!("preread: {who} waits for {wanted} bytes in all"));
            false
        }
        (None, None) => true,
    }
}

/// The `vars` of a connection. What it tells neither there nor itself is not there.
#[derive(Debug)]
struct Vars<'a>(&'a Value);

impl Given for Vars<'_> {
    fn variable(&self, name: &str) -> Option<Option<&str>> {
        let value = self.0.get("vars").and_then(|vars| vars.get(name)).and_then(Value::as_str);
        let address = matches!(name, "remote_addr" | "remote_port" | "server_addr" | "server_port");
        let unaddressed = || self.0.get(name).and_then(Value::as_str).filter(|text| is_unaddressed(text));
        match value.or_else(|| unaddressed().filter(|_| name == "remote_addr")) {
            Some(value) => Some(Some(value)),
            None if address && self.0.get(name).is_none_or(Value::is_null) => Some(None),
            None => None,
        }
    }
}

/// The node, and why it is that one or none.
fn pick(
    pool: &Pool,
    inbound: &Inbound,
    connection: &Value,
    open: &mut Vec<Open>,
) -> (Option<Arc<str>>, &'static str) {
    let labels = |member: &str| -> Vec<&str> {
        connection
            .get(member)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    };
    let down = labels("down");
    let (mut tried, now) = (tried(pool, &labels("tried")), Instant::now().into_std());
    match pool.pick_where(inbound, now, |node| !down.contains(&&*node.label), &mut tried) {
        Some(picked) => {
            let node = picked.node.label.clone();
            open.push(Open::Node(picked));
            (Some(node), "matched")
        }
        None => (None, no_node(pool)),
    }
}

fn tried(pool: &Pool, labels: &[&str]) -> Tried {
    let mut tried = Tried::default();
    pool.nodes().iter().filter(|node| labels.contains(&&*node.label)).for_each(|node| tried.note(node));
    tried
}

fn no_node(pool: &Pool) -> &'static str {
    if pool.settings.pending {
        "no_node: names of nodes are not resolved here"
    } else if pool.nodes().is_empty() {
        "no_node: the upstream has no node that can be dialled"
    } else {
        "connect_failed: every node has been tried"
    }
}
