//! `ip-restriction`: who may connect, by address.

use serde_json::Value;

use super::{Ground, Stage};

/// A configuration of `ip-restriction`.
#[derive(Debug)]
pub struct IpRestriction;

impl Stage for IpRestriction {
    const NAME: &'static str = "ip-restriction";
    const PRIORITY: i32 = 3000;

    fn compile(_conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        Err("it is not built into this version".into())
    }
}
