//! `limit-rate`: how many sessions a second a key may begin. Ours: APISIX does not know it.

use std::sync::Arc;

use serde_json::Value;

use super::limit_key::{self, Key};
use super::{Decision, Ground, Scene, Stage};
use crate::live::limits::{Pace, RateLimit};

/// A configuration of `limit-rate`.
#[derive(Debug)]
pub struct LimitRate {
    limit: Arc<RateLimit>,
    key: Key,
    pace: Pace,
    /// `rate`, for the sentence.
    rate: f64,
    /// `rejected_code`.
    code: u16,
}

impl Stage for LimitRate {
    const NAME: &'static str = "limit-rate";
    const PRIORITY: i32 = 1004;

    fn compile(conf: &Value, ground: &Ground<'_>) -> Result<Self, String> {
        let rate = limit_key::number(conf, "rate")?;
        let burst = limit_key::number(conf, "burst")?;
        let code = limit_key::count(conf, "rejected_code")?;
        Ok(Self {
            limit: ground.live.limits.rate(&limit_key::identity(ground.owner, conf)),
            key: Key::new(conf),
            pace: Pace::new(rate, burst),
            rate,
            code: u16::try_from(code).unwrap_or(503),
        })
    }

    fn preread(&self, scene: &mut Scene<'_>) -> Decision {
        let mut key = self.limit.key();
        self.key.write(scene, &mut key);
        let taken = if scene.preview {
            self.limit.look(&key, self.pace, scene.now)
        } else {
            self.limit.take(&key, self.pace, scene.now)
        };
        match taken {
            Ok(()) => Decision::Pass,
            Err(left) => {
                let (rate, key) = (self.rate, key.shown());
                let why =
                    format!("{key:?} begins more than {rate} sessions a second; the next may in {left:.1?}");
                Decision::Deny { code: self.code, why }
            }
        }
    }
}
