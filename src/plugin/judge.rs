//! What the plugins of a route say of a session that is told, not served: for explanations.

use std::time::Duration;

use super::{Choice, Decision, Plugins, Scene};
use crate::session::Denied;

/// What all plugins said, in their order, as far as they were asked.
#[derive(Debug, Default)]
pub struct Verdict {
    /// A sentence from each.
    pub said: Vec<Said>,
    /// How long the session waits in all.
    pub delay: Duration,
    /// Who refused it, and why.
    pub refused: Option<(Denied, String)>,
    /// How many first bytes a plugin needs that were not told.
    pub wants: Option<usize>,
}

/// What one plugin said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Said {
    /// Its name.
    pub plugin: &'static str,
    /// For the operator.
    pub text: String,
}

/// Asks plugin after plugin, until one refuses or needs bytes that are not there.
#[must_use]
pub fn judge(plugins: &Plugins, scene: &mut Scene<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    for armed in plugins.iter() {
        let plugin = armed.class.name;
        let mut say = |text: String| verdict.said.push(Said { plugin, text });
        if armed.class.reports {
            say("hears of the end".into());
            continue;
        }
        if !armed.applies(&|name| scene.variable(name)) {
            say("does not apply: its _meta.filter does not hold".into());
            continue;
        }
        match armed.plugin.preread(scene) {
            Decision::Pass => say(passed(plugin, scene)),
            Decision::Wait(time) => {
                say(format!("lets it wait {} s", time.as_secs_f64()));
                verdict.delay += time;
            }
            Decision::Read(wanted) => {
                let length = scene.first.len();
                say(format!("needs the first {wanted} bytes of the client; {length} are told"));
                verdict.wants = Some(wanted);
                break;
            }
            Decision::Deny { code, why } => {
                say(format!("refuses it ({code}): {why}"));
                verdict.refused = Some((Denied { plugin, code }, format!("{plugin}: {why}")));
                break;
            }
        }
    }
    verdict
}

fn passed(plugin: &str, scene: &Scene<'_>) -> String {
    match (plugin, &scene.kept.choice, &scene.inbound.mqtt_client_id) {
        ("traffic-split", Some(Choice::Upstream(id)), _) => format!("sends it to upstream {id}"),
        ("traffic-split", Some(Choice::Inline(_)), _) => "sends it to an upstream written in it".into(),
        ("traffic-split", None, _) => "leaves it to the route's own upstream".into(),
        ("mqtt-proxy", _, Some(id)) => format!("passes it; its client id is {id:?}"),
        _ => "passes it".into(),
    }
}
