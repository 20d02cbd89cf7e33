//! `traffic-split`: other upstreams for a share of the sessions.

use serde_json::Value;

use super::{Ground, Stage};

/// A configuration of `traffic-split`.
#[derive(Debug)]
pub struct TrafficSplit;

impl Stage for TrafficSplit {
    const NAME: &'static str = "traffic-split";
    const PRIORITY: i32 = 966;

    fn compile(_conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        Err("it is not built into this version".into())
    }
}
