//! `limit-bandwidth`: how many bytes a second a connection and a key may move. Ours: APISIX does not know it.

use serde_json::Value;

use super::{Ground, Stage};

/// A configuration of `limit-bandwidth`.
#[derive(Debug)]
pub struct LimitBandwidth;

impl Stage for LimitBandwidth {
    const NAME: &'static str = "limit-bandwidth";
    const PRIORITY: i32 = 900;

    fn compile(_conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        Err("it is not built into this version".into())
    }
}
