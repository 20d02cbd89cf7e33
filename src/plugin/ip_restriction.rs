//! `ip-restriction`: who may connect, by address (`apisix/plugins/ip-restriction/init.lua`).

use std::net::IpAddr;

use serde_json::Value;

use super::{Decision, Ground, Scene, Stage};
use crate::addr::{Host, IpMatcher, Networks};
use crate::session::Variable;

/// A configuration of `ip-restriction`.
#[derive(Debug)]
pub struct IpRestriction {
    list: List,
    /// `response_code`.
    code: u16,
}

#[derive(Debug)]
enum List {
    /// Those may connect.
    White(Networks),
    /// Those may not.
    Black(Networks),
}

impl Stage for IpRestriction {
    const NAME: &'static str = "ip-restriction";
    const PRIORITY: i32 = 3000;

    fn compile(conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        // A list of which a part is left out would let in whom it keeps out.
        let list = match (networks(conf, "whitelist")?, networks(conf, "blacklist")?) {
            (Some(list), None) => List::White(list),
            (None, Some(list)) => List::Black(list),
            _ => return Err("it has not exactly one of whitelist and blacklist".into()),
        };
        let code = conf.get("response_code").and_then(Value::as_f64);
        Ok(Self { list, code: if code == Some(404.0) { 404 } else { 403 } })
    }

    fn preread(&self, scene: &mut Scene<'_>) -> Decision {
        let client = scene.variable("remote_addr");
        let address = client.and_then(address);
        let why = match (&self.list, address) {
            (List::White(list), Some(address)) if list.find(address).is_some() => return Decision::Pass,
            (List::White(_), _) => "is not on the whitelist".to_owned(),
            (List::Black(list), address) => match address.and_then(|address| list.find(address)) {
                Some(network) => format!("is on the blacklist ({network})"),
                None => return Decision::Pass,
            },
        };
        let client = client.unwrap_or(Variable::Text("without an address"));
        Decision::Deny { code: self.code, why: format!("client {client} {why}") }
    }
}

/// What is no address, such as `unix:`, lies in no network.
fn address(client: Variable<'_>) -> Option<IpAddr> {
    match client {
        Variable::Ip(address) => Some(address),
        other => Host::parse(&other.text()).ip(),
    }
}

fn networks(conf: &Value, name: &str) -> Result<Option<Networks>, String> {
    let Some(list) = conf.get(name) else { return Ok(None) };
    let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let entries = entries.iter().map(|entry| {
        let text = entry.as_str().ok_or_else(|| format!("{name} has {entry}, which is no text"))?;
        IpMatcher::parse_apisix(text).map_err(|error| format!("{name}: {error}"))
    });
    entries.collect::<Result<_, _>>().map(Some)
}
