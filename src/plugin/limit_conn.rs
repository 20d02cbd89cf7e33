//! `limit-conn`: how many sessions a key may have at the same time
//! (`apisix/plugins/limit-conn/init.lua`, `resty/limit/conn.lua`).

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::limit_key::{self, Key};
use super::{Decision, Ground, Scene, Stage};
use crate::live::limits::CountLimit;

pub use crate::live::limits::Place;

/// Nothing shows it but metrics.
const CODE: u16 = 503;

/// A configuration of `limit-conn`.
#[derive(Debug)]
pub struct LimitConn {
    limit: Arc<CountLimit>,
    key: Key,
    /// Sessions that are let in at once.
    conn: u64,
    /// Sessions above that, which wait first.
    burst: u64,
    /// How long the first `conn` of them wait; the next as many wait twice that, and so on.
    delay: f64,
}

impl Stage for LimitConn {
    const NAME: &'static str = "limit-conn";
    const PRIORITY: i32 = 1003;

    fn compile(conf: &Value, ground: &Ground<'_>) -> Result<Self, String> {
        Ok(Self {
            limit: ground.live.limits.count(&limit_key::identity(ground.owner, conf)),
            key: Key::new(conf),
            conn: limit_key::count(conf, "conn")?.max(1),
            burst: limit_key::count(conf, "burst")?,
            delay: limit_key::number(conf, "default_conn_delay")?,
        })
    }

    fn preread(&self, scene: &mut Scene<'_>) -> Decision {
        let (mut key, most) = (self.limit.key(), self.conn.saturating_add(self.burst));
        self.key.write(scene, &mut key);
        let entered = if scene.preview {
            let sessions = self.limit.sessions(&key);
            if sessions < most { Ok(sessions + 1) } else { Err(sessions) }
        } else {
            self.limit.enter(&key, most).map(|(number, place)| {
                scene.kept.places.push(place);
                number
            })
        };
        match entered {
            Ok(number) if number <= self.conn => Decision::Pass,
            Ok(number) => Decision::Wait(self.wait(number)),
            Err(sessions) => {
                let (conn, burst, key) = (self.conn, self.burst, key.shown());
                let why = format!("{key:?} has {sessions} sessions, as many as conn {conn} and burst {burst} allow");
                Decision::Deny { code: CODE, why }
            }
        }
    }
}

impl LimitConn {
    #[expect(clippy::cast_precision_loss, reason = "the product is a time")]
    fn wait(&self, number: u64) -> Duration {
        let times = (number - 1) / self.conn;
        Duration::try_from_secs_f64(self.delay * times as f64).unwrap_or(Duration::MAX)
    }
}
