//! `mqtt-proxy`: only MQTT clients, by their first packet.

use serde_json::Value;

use super::{Ground, Stage};

/// A configuration of `mqtt-proxy`.
#[derive(Debug)]
pub struct MqttProxy;

impl Stage for MqttProxy {
    const NAME: &'static str = "mqtt-proxy";
    const PRIORITY: i32 = 1000;

    fn compile(_conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        Err("it is not built into this version".into())
    }
}
