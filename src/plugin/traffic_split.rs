//! `traffic-split`: other upstreams for a share of the sessions (`apisix/plugins/traffic-split.lua`).
//!
//! The first rule whose conditions hold takes the session; its entries take turns by weight, one round for
//! all workers. Upstreams written in the plugin are pools of the snapshot like all others: it chooses, and
//! does not hold them.

use std::sync::Arc;

use serde_json::Value;

use super::{Choice, Decision, Ground, Scene, Stage};
use crate::live::turns::Turns;
use crate::resource::{Destination, Key, PluginConf, Split, Upstream};
use crate::session::Variable;

/// A configuration of `traffic-split`.
#[derive(Debug)]
pub struct TrafficSplit {
    split: Arc<Split>,
    /// As many as it has rules.
    ready: Box<[Ready]>,
}

/// What a rule chooses from.
#[derive(Debug)]
struct Ready {
    /// Where each entry leads; `None`: where the session would go anyhow.
    choices: Box<[Option<Choice>]>,
    /// Needless where there is but one.
    turns: Option<Arc<Turns>>,
}

/// An upstream written in a plugin, as a choice.
#[derive(Clone, Debug)]
pub struct Inline {
    /// The stream_route or service whose plugin it is.
    pub owner: Key,
    /// Its place among the upstreams written in that plugin.
    pub place: usize,
    /// It, as it was when the plugin was made.
    pub upstream: Arc<Upstream>,
}

/// The id of the pool of an upstream written in the `traffic-split` of `owner`, such as
/// `services/7/traffic-split/0/1` for the second entry of the first rule.
#[must_use]
pub fn pool_id(owner: &Key, rule: usize, entry: usize) -> Arc<str> {
    format!("{owner}/traffic-split/{rule}/{entry}").into()
}

/// The object whose plugin an upstream of this pool id is written in; `None` for all other pools.
#[must_use]
pub fn owner_of(pool_id: &str) -> Option<Key> {
    let (owner, _) = pool_id.rsplit_once("/traffic-split/")?;
    Key::from_path(owner)
}

impl Stage for TrafficSplit {
    const NAME: &'static str = "traffic-split";
    const PRIORITY: i32 = 966;

    fn compile(_conf: &Value, _ground: &Ground<'_>) -> Result<Self, String> {
        Err("its upstreams were not read".into())
    }

    fn of(conf: &PluginConf, ground: &Ground<'_>) -> Result<Self, String> {
        let split = conf.split.as_ref().ok_or("its rules were not read")?.clone();
        let mut place = 0;
        let mut choice = |to: &Destination| match to {
            Destination::Own => None,
            Destination::Upstream(id) => Some(Choice::Upstream(id.clone())),
            Destination::Inline(upstream) => {
                let inline = Inline { owner: ground.owner.clone(), place, upstream: upstream.clone() };
                place += 1;
                Some(Choice::Inline(Arc::new(inline)))
            }
        };
        let rules = split.rules.iter().enumerate();
        let ready = rules.map(|(i, rule)| {
            let weights: Box<[u32]> = rule.shares.iter().map(|share| share.weight).collect();
            let made = Turns::new(&weights);
            let owner: Arc<str> = format!("{}/traffic-split/{i}", ground.owner).into();
            let turns = (weights.len() > 1).then(|| ground.live.turns.entry((owner, weights), || made));
            Ready { choices: rule.shares.iter().map(|share| choice(&share.to)).collect(), turns }
        });
        let ready = ready.collect();
        Ok(Self { split, ready })
    }

    fn preread(&self, scene: &mut Scene<'_>) -> Decision {
        let holds = |(_, rule): &(usize, &crate::resource::SplitRule)| {
            let variable = |name: &str| scene.variable(name).map(Variable::text);
            rule.conditions.is_empty() || rule.conditions.iter().any(|any| any.holds(&variable))
        };
        let taking = self.split.rules.iter().enumerate().find(holds).map(|(place, _)| place);
        if let Some(ready) = taking.and_then(|place| self.ready.get(place)) {
            let place = match &ready.turns {
                None => 0,
                Some(turns) if scene.preview => turns.preview(),
                Some(turns) => turns.next(),
            };
            scene.kept.choice = ready.choices.get(place).cloned().flatten();
        }
        Decision::Pass
    }
}

impl TrafficSplit {
    /// What it may choose.
    pub fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.chosen().flatten()
    }

    /// Reports whether some session goes where it would have gone without the plugin.
    #[must_use]
    pub fn passes_some(&self) -> bool {
        !self.split.rules.iter().any(|rule| rule.conditions.is_empty())
            || self.chosen().any(|choice| choice.is_none())
    }

    /// Where entries lead that get sessions: those of rules that are asked, with a weight.
    fn chosen(&self) -> impl Iterator<Item = Option<&Choice>> {
        let mut all_taken = false;
        let asked = self
            .split
            .rules
            .iter()
            .zip(&self.ready)
            .take_while(move |(rule, _)| !std::mem::replace(&mut all_taken, rule.conditions.is_empty()));
        asked.flat_map(|(rule, ready)| {
            let equal = rule.shares.iter().all(|share| share.weight == 0);
            let entries = rule.shares.iter().zip(&ready.choices);
            entries.filter(move |(share, _)| equal || share.weight > 0).map(|(_, choice)| choice.as_ref())
        })
    }
}
