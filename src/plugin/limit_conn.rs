//! `limit-conn`: how many sessions a key may have at the same time.

use serde_json::Value;

use super::{Ground, Stage};

/// A configuration of `limit-conn`.
#[derive(Debug)]
pub struct LimitConn;

impl Stage for LimitConn {
    const NAME: &'static str = "limit-conn";
    const PRIORITY: i32 = 1003;

    fn compile(_conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        Err("it is not built into this version".into())
    }
}

/// A session's place in a count, given back when it is dropped.
#[derive(Debug)]
pub struct Place;
