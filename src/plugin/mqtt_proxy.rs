//! `mqtt-proxy`: only MQTT clients of one version, by their first packet, and who they say they are.
//!
//! The packet is looked at and passed on like everything else (`apisix/stream/plugins/mqtt-proxy.lua`).

pub mod connect;

use serde_json::Value;

use self::connect::{Connect, Reading};
use super::{Decision, Ground, Scene, Stage};

/// What APISIX's metrics call its refusals by.
const CODE: u16 = 503;
/// Bytes of a protocol name that the log shows.
const SHOWN: usize = 16;

/// A configuration of `mqtt-proxy`.
#[derive(Debug)]
pub struct MqttProxy {
    name: Box<str>,
    /// Absent where the number is none that a client can send: then nobody is let in.
    level: Option<u8>,
    /// It as it is written.
    written: Box<str>,
}

impl MqttProxy {
    /// Why a client is not let in.
    fn objection(&self, packet: &Connect<'_>) -> Option<String> {
        if packet.name != self.name.as_bytes() {
            let shown = packet.name.get(..SHOWN).unwrap_or(packet.name).escape_ascii();
            return Some(format!(
                "the client's protocol is \"{shown}\", and protocol_name is \"{}\"",
                self.name
            ));
        }
        if Some(packet.level) != self.level {
            return Some(format!(
                "the client's protocol level is {}, and protocol_level is {}",
                packet.level, self.written
            ));
        }
        None
    }
}

impl Stage for MqttProxy {
    const NAME: &'static str = "mqtt-proxy";
    const PRIORITY: i32 = 1000;

    fn compile(conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        let written = conf.get("protocol_level").ok_or("protocol_level is missing: 3, 4 or 5")?;
        let number = written.as_f64().unwrap_or(f64::NAN);
        Ok(Self {
            name: conf.get("protocol_name").and_then(Value::as_str).unwrap_or("MQTT").into(),
            level: (0..=u8::MAX).find(|level| f64::from(*level).total_cmp(&number).is_eq()),
            written: written.to_string().into(),
        })
    }

    fn preread(&self, scene: &mut Scene<'_>) -> Decision {
        let packet = match connect::read(scene.first) {
            Reading::Need(count) => return Decision::Read(count),
            Reading::Malformed(why) => return Decision::Deny { code: CODE, why: why.to_string() },
            Reading::Connect(packet) => packet,
        };
        if let Some(why) = self.objection(&packet) {
            return Decision::Deny { code: CODE, why };
        }
        // A client may leave the name to the server. What is no UTF-8 is none that a server may take
        // (MQTT 3.1.1, 1.5.3).
        let name = std::str::from_utf8(packet.client_id).ok().filter(|name| !name.is_empty());
        scene.inbound.mqtt_client_id = name.map(Into::into);
        Decision::Pass
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;
    use crate::live::Live;
    use crate::plugin::{Kept, RouteFacts};
    use crate::resource::{Key, Kind};
    use crate::session::{Host, Inbound, Transport};

    /// What becomes of a client, and the name it leaves.
    fn asked(conf: &Value, first: &[u8]) -> (Decision, Option<String>) {
        let (owner, live) = (Key::new(Kind::StreamRoute, "r1"), Live::default());
        let plugin = MqttProxy::compile(conf, &Ground { owner: &owner, live: &live }).unwrap();
        let addr = "127.0.0.1:1883".parse().unwrap();
        let mut inbound = Inbound::new(Transport::Tcp, addr, addr);
        let mut scene = Scene {
            inbound: &mut inbound,
            route: RouteFacts::default(),
            host: &Host::default(),
            first,
            now: tokio::time::Instant::now().into_std(),
            time: SystemTime::UNIX_EPOCH,
            kept: &mut Kept::default(),
            given: None,
            preview: false,
        };
        let decision = plugin.preread(&mut scene);
        (decision, inbound.mqtt_client_id.map(|id| id.as_ref().to_owned()))
    }

    #[track_caller]
    fn check(conf: &Value, first: &[u8], words: Option<&str>, id: Option<&str>) {
        let (decision, found) = asked(conf, first);
        match (decision, words) {
            (Decision::Pass, None) => {}
            (Decision::Deny { code: 503, why }, Some(words)) => assert!(why.contains(words), "{why}"),
            (decision, _) => panic!("{decision:?}"),
        }
        assert_eq!(found.as_deref(), id);
    }

    #[test]
    fn name_and_level_are_what_is_asked_for() {
        let v4 = b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02c1";
        let v5 = b"\x10\x0f\0\x04MQTT\x05\x02\0\x3c\0\0\x02c1";
        let old = b"\x10\x10\0\x06MQIsdp\x03\x02\0\x3c\0\x02c1";
        let (four, five) = (json!({"protocol_level": 4}), json!({"protocol_level": 5.0}));
        check(&four, v4, None, Some("c1"));
        check(&five, v5, None, Some("c1"));
        check(&json!({"protocol_level": 3, "protocol_name": "MQIsdp"}), old, None, Some("c1"));
        check(&four, v5, Some("level is 5, and protocol_level is 4"), None);
        check(&five, v4, Some("level is 4, and protocol_level is 5"), None);
        check(&json!({"protocol_level": 3}), old, Some("\"MQIsdp\", and protocol_name is \"MQTT\""), None);
        check(&json!({"protocol_level": 1e20}), v4, Some("level is 4"), None);
        check(&four, b"GET / HTTP/1.1\r\n", Some("0x47"), None);
        check(&four, b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x02c1", Some("client identifier"), None);
    }

    #[test]
    fn only_a_text_is_a_name() {
        let four = json!({"protocol_level": 4});
        check(&four, b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0", None, None);
        check(&four, b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02\xff\xfe", None, None);
        check(&four, b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x03\xe2\x82\xac", None, Some("\u{20ac}"));
    }

    #[test]
    fn it_asks_for_what_is_missing() {
        let four = json!({"protocol_level": 4});
        assert_eq!(asked(&four, b"").0, Decision::Read(5));
        assert_eq!(asked(&four, b"\x10\x0e\0\x04M").0, Decision::Read(16));
    }
}
