//! `limit-rate`: how many sessions a second a key may begin. Ours: APISIX does not know it.

use serde_json::Value;

use super::{Ground, Stage};

/// A configuration of `limit-rate`.
#[derive(Debug)]
pub struct LimitRate;

impl Stage for LimitRate {
    const NAME: &'static str = "limit-rate";
    const PRIORITY: i32 = 1004;

    fn compile(_conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        Err("it is not built into this version".into())
    }
}
