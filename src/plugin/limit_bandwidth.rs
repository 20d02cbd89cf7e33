//! `limit-bandwidth`: how many bytes a second a connection and a key may move. Ours: APISIX does not know it.
//!
//! The plugin only leaves the bounds with the session; `proxy` keeps to them, by not reading where a
//! connection is too fast and by dropping where datagrams are. A session keeps the bounds it began with.

use std::sync::Arc;

use serde_json::Value;

use super::limit_key::{self, Key};
use super::{Decision, Ground, Scene, Stage};
use crate::live::bandwidth::{Table, Wanted};

/// A configuration of `limit-bandwidth`.
#[derive(Debug)]
pub struct LimitBandwidth {
    /// Of each session.
    each: Wanted,
    /// Of all sessions of a key.
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    wanted: Wanted,
    key: Key,
    table: Arc<Table>,
}

impl Stage for LimitBandwidth {
    const NAME: &'static str = "limit-bandwidth";
    const PRIORITY: i32 = 900;

    fn compile(conf: &Value, ground: &Ground<'_>) -> Result<Self, String> {
        let burst = bytes(conf, "burst")?;
        let wanted =
            |up, down| Ok::<_, String>(Wanted { up: bytes(conf, up)?, down: bytes(conf, down)?, burst });
        let (each, all) = (wanted("upload", "download")?, wanted("key_upload", "key_download")?);
        let shared = (!all.is_none()).then(|| {
            // Another configuration is another table: nothing of the old one would fit.
            let named = limit_key::identity(ground.owner, conf).into();
            let table = ground.live.bandwidth.entry(named, Table::default);
            Shared { wanted: all, key: Key::new(conf), table }
        });
        if each.is_none() && shared.is_none() {
            return Err("it sets none of upload, download, key_upload and key_download".into());
        }
        Ok(Self { each, shared })
    }

    fn preread(&self, scene: &mut Scene<'_>) -> Decision {
        if scene.preview {
            return Decision::Pass;
        }
        let shared =
            self.shared.as_ref().map(|one| one.table.rates(&one.key.text(scene), &one.wanted, scene.now));
        scene.kept.bandwidth = Some(self.each.bandwidth(shared.as_ref(), scene.now));
        Decision::Pass
    }
}

/// A number of bytes, whole and more than none.
fn bytes(conf: &Value, name: &str) -> Result<Option<u64>, String> {
    let Some(value) = conf.get(name) else { return Ok(None) };
    let whole = value.as_f64().filter(|number| *number >= 1.0 && number.fract() == 0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it saturates, and is none below 1"
    )]
    let whole = whole.map(|number| value.as_u64().unwrap_or(number as u64));
    whole.map(Some).ok_or_else(|| format!("{name} is {value}; a whole number of bytes from 1 on is allowed"))
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use serde_json::json;

    use super::*;
    use crate::live::Live;
    use crate::live::bandwidth::Bandwidth;
    use crate::plugin::{Kept, RouteFacts};
    use crate::resource::{Key as Named, Kind};
    use crate::session::{Host, Inbound, Transport};

    fn compiled(conf: &Value, live: &Live) -> Result<LimitBandwidth, String> {
        let owner = Named::new(Kind::StreamRoute, "r1");
        LimitBandwidth::compile(conf, &Ground { owner: &owner, live })
    }

    /// What a client from `ip` gets.
    fn begun(plugin: &LimitBandwidth, ip: &str, now: Instant, preview: bool) -> Option<Bandwidth> {
        let server = "127.0.0.1:80".parse().unwrap();
        let mut inbound = Inbound::new(Transport::Tcp, format!("{ip}:1").parse().unwrap(), server);
        let mut kept = Kept::default();
        let mut scene = Scene {
            inbound: &mut inbound,
            route: RouteFacts::default(),
            host: &Host::default(),
            first: b"",
            now,
            time: SystemTime::UNIX_EPOCH,
            kept: &mut kept,
            given: None,
            preview,
        };
        assert_eq!(plugin.preread(&mut scene), Decision::Pass);
        kept.bandwidth
    }

    #[test]
    fn each_session_has_its_own_and_a_key_one_for_all() {
        let (live, now) = (Live::default(), tokio::time::Instant::now().into_std());
        let plugin = compiled(&json!({"download": 1000, "key_upload": 2000}), &live).unwrap();
        let begin = |ip| begun(&plugin, ip, now, false).unwrap();
        let (first, second, other) = (begin("10.0.0.1"), begin("10.0.0.1"), begin("10.0.0.2"));
        assert!(first.up.take(10_000, now) && first.down.take(10_000, now));
        assert!(!second.up.take(1, now), "one key");
        assert!(second.down.take(1, now), "another session");
        assert!(other.up.take(1, now), "another key");
        assert!(begun(&plugin, "10.0.0.1", now, true).is_none(), "nobody comes");
    }

    #[test]
    fn keys_are_variables_or_texts_with_variables() {
        let (live, now) = (Live::default(), tokio::time::Instant::now().into_std());
        let one_for_all = json!({"key_upload": 1, "key": "server_port"});
        let combined = json!({"key_upload": 1, "key": "$server_port", "key_type": "var_combination"});
        let unknown = json!({"key_upload": 1, "key": "mqtt_client_id"});
        for (conf, common) in [(one_for_all, true), (combined, true), (unknown, false)] {
            let plugin = compiled(&conf, &live).unwrap();
            let begin = |ip| begun(&plugin, ip, now, false).unwrap();
            assert!(begin("10.0.0.1").up.take(100, now));
            assert_ne!(begin("10.0.0.2").up.take(1, now), common, "{conf}");
        }
    }

    #[test]
    fn what_a_key_owes_outlives_the_snapshot_and_not_its_limits() {
        let (live, now) = (Live::default(), tokio::time::Instant::now().into_std());
        let conf = json!({"key_upload": 1000});
        let old = compiled(&conf, &live).unwrap();
        assert!(begun(&old, "10.0.0.1", now, false).unwrap().up.take(5000, now));
        let same = compiled(&conf, &live).unwrap();
        drop(old);
        assert!(!begun(&same, "10.0.0.1", now, false).unwrap().up.take(1, now));
        let edited = compiled(&json!({"key_upload": 1001}), &live).unwrap();
        assert!(begun(&edited, "10.0.0.1", now, false).unwrap().up.take(1, now));
    }

    #[test]
    fn what_limits_nothing_is_refused() {
        let live = Live::default();
        for (conf, words) in [
            (json!({"burst": 1}), "none of upload"),
            (json!({"upload": 0}), "upload is 0"),
            (json!({"key_download": 1.5}), "key_download is 1.5"),
        ] {
            let why = compiled(&conf, &live).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
        assert!(compiled(&json!({"upload": 1e20}), &live).is_ok());
    }
}
