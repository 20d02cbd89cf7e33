//! `prometheus`: the route has `apisix_stream_*` series.

use serde_json::Value;

use super::{Ground, Stage};

/// A configuration of `prometheus`.
#[derive(Debug)]
pub struct Prometheus {
    /// The route label is its name where it has one.
    pub prefer_name: bool,
}

impl Stage for Prometheus {
    const NAME: &'static str = "prometheus";
    const PRIORITY: i32 = 500;
    const REPORTS: bool = true;

    fn compile(conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        let prefer_name = conf.get("prefer_name").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { prefer_name })
    }
}
