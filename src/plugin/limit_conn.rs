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

/// Nobody waits less (`apisix/plugins/limit-conn/init.lua`).
const LEAST_WAIT: Duration = Duration::from_millis(1);

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
            Ok(number) => match self.wait(number) {
                time if time < LEAST_WAIT => Decision::Pass,
                time => Decision::Wait(time),
            },
            Err(sessions) => {
                let (conn, burst, key) = (self.conn, self.burst, key.shown());
                let why = format!(
                    "{key:?} has {sessions} sessions, as many as conn {conn} and burst {burst} allow"
                );
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;
    use crate::live::Live;
    use crate::plugin::{Kept, RouteFacts};
    use crate::resource::{Key as Owner, Kind};
    use crate::session::{Host, Inbound, Transport};

    fn made(conf: &Value, live: &Live) -> LimitConn {
        let owner = Owner::new(Kind::StreamRoute, "1");
        LimitConn::compile(conf, &Ground { owner: &owner, live }).unwrap()
    }

    fn ask(limit: &LimitConn, preview: bool, kept: &mut Kept) -> Decision {
        let addr = "10.0.0.1:5000".parse().unwrap();
        let mut scene = Scene {
            inbound: &mut Inbound::new(Transport::Tcp, addr, addr),
            route: RouteFacts::default(),
            host: &Host::default(),
            first: &[],
            now: tokio::time::Instant::now().into_std(),
            time: SystemTime::now(),
            kept,
            given: None,
            preview,
        };
        limit.preread(&mut scene)
    }

    #[test]
    fn a_preview_tells_what_would_be_and_counts_nothing() {
        let (live, mut kept) = (Live::default(), Kept::default());
        let conf = json!({"conn": 1, "burst": 1, "default_conn_delay": 0.5, "key": "remote_addr"});
        let limit = made(&conf, &live);
        let wait = Decision::Wait(Duration::from_millis(500));
        for decision in [Decision::Pass, wait] {
            assert_eq!(ask(&limit, true, &mut kept), decision);
            assert_eq!(ask(&limit, true, &mut kept), decision);
            assert_eq!(ask(&limit, false, &mut kept), decision);
        }
        assert!(matches!(ask(&limit, true, &mut kept), Decision::Deny { code: 503, .. }));
        assert_eq!(kept.places.len(), 2);
    }

    #[test]
    fn the_order_of_fields_makes_no_other_limit() {
        let (live, mut kept) = (Live::default(), Kept::default());
        let conf =
            json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "a", "x": {"y": 1, "z": [1]}});
        let other =
            json!({"x": {"z": [1], "y": 1}, "key": "a", "default_conn_delay": 1, "burst": 0, "conn": 1});
        let nested =
            json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "a", "x": {"y": 1}, "z": [1]});
        let (first, same, another) = (made(&conf, &live), made(&other, &live), made(&nested, &live));
        assert_eq!(ask(&first, false, &mut kept), Decision::Pass);
        assert!(matches!(ask(&same, false, &mut kept), Decision::Deny { .. }));
        assert_eq!(ask(&another, false, &mut kept), Decision::Pass);
    }

    /// What a schema lets in and no count or clock can hold.
    #[test]
    fn huge_numbers_are_taken_as_the_largest() {
        let (live, mut kept) = (Live::default(), Kept::default());
        let conf = json!({"conn": 1, "burst": 1e30, "default_conn_delay": 1e300, "key": "remote_addr"});
        let limit = made(&conf, &live);
        assert_eq!(ask(&limit, false, &mut kept), Decision::Pass);
        assert_eq!(ask(&limit, false, &mut kept), Decision::Wait(Duration::MAX));
    }
}
