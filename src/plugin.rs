//! What runs between the choice of a route and the choice of a node, and what hears of a session's end.
//!
//! A plugin is a file here that implements [`Stage`], and a line in the list `stages!`. They are variants of an
//! enum, not trait objects: the pipeline is known. Whatever the order of a configuration, they run by
//! their fixed priority, as in APISIX.
//!
//! Plugins see and change a session through its [`Scene`] and tell what they want by a [`Decision`];
//! they never wait, read or send themselves. `proxy` does what they ask for, `explain` only tells it.

pub mod ip_restriction;
mod judge;
pub mod limit_bandwidth;
pub mod limit_conn;
mod limit_key;
pub mod limit_rate;
pub mod mqtt_proxy;
pub mod prometheus;
mod run;
mod scene;
pub mod syslog;
pub mod traffic_split;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

pub use self::judge::{Said, Verdict, judge};
pub use self::run::{Decision, MOST_FIRST_BYTES, Run, Step};
pub use self::scene::{Choice, Given, Kept, RouteFacts, Scene};
use crate::expr::Expr;
use crate::live::Live;
use crate::resource::{Key, PluginConf};
use crate::session::Variable;
use traffic_split::TrafficSplit;

/// One kind of plugin.
pub trait Stage: fmt::Debug + Sized {
    /// The name in `plugins`.
    const NAME: &'static str;
    /// Higher ones run earlier (`apisix/stream/plugins/*.lua`).
    const PRIORITY: i32;
    /// It only hears of the end of a session: without it lines or series are missing, not protection.
    const REPORTS: bool = false;

    /// Makes one of a configuration that its schema has accepted and filled. The error is a sentence
    /// that reads on after the name of the plugin.
    fn compile(conf: &Value, ground: &Ground<'_>) -> Result<Self, String>;

    /// The same, for a plugin that is made of what was read with its configuration.
    fn of(conf: &PluginConf, ground: &Ground<'_>) -> Result<Self, String> {
        Self::compile(&conf.conf, ground)
    }

    /// Decides about a session before a node is chosen.
    fn preread(&self, scene: &mut Scene<'_>) -> Decision {
        let _ = scene;
        Decision::Pass
    }
}

/// What a plugin is made with besides its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The stream_route or service whose configuration it is.
    pub owner: &'a Key,
    /// State that outlives snapshots.
    pub live: &'a Live,
}

/// A configuration with the object it stands in.
#[derive(Clone, Debug)]
pub struct Attached<'a> {
    /// The stream_route or service.
    pub owner: Key,
    /// The entry of its `plugins`.
    pub conf: &'a PluginConf,
}

/// Declares [`Plugin`] and what is done with each kind, from one list.
macro_rules! stages {
    ($($module:ident::$stage:ident),* $(,)?) => {
        /// A plugin of a route, ready to run.
        #[derive(Debug)]
        pub enum Plugin {
            $(#[doc = concat!("`", stringify!($module), "`.")] $stage($module::$stage),)*
            /// One whose configuration cannot be used: why. It refuses every session.
            Unusable(Box<str>),
        }

        impl Plugin {
            fn preread(&self, scene: &mut Scene<'_>) -> Decision {
                match self {
                    $(Self::$stage(stage) => stage.preread(scene),)*
                    Self::Unusable(why) => Decision::Deny { code: 500, why: format!("it cannot be used: {why}") },
                }
            }
        }

        /// Every plugin of this program: name, priority, whether it only reports.
        pub const KINDS: &[Class] = &[
            $(Class {
                name: <$module::$stage as Stage>::NAME,
                priority: <$module::$stage as Stage>::PRIORITY,
                reports: <$module::$stage as Stage>::REPORTS,
                compile: |conf, ground| <$module::$stage as Stage>::of(conf, ground).map(Plugin::$stage),
            },)*
        ];
    };
}

stages! {
    ip_restriction::IpRestriction,
    limit_bandwidth::LimitBandwidth,
    limit_conn::LimitConn,
    limit_rate::LimitRate,
    mqtt_proxy::MqttProxy,
    prometheus::Prometheus,
    syslog::Syslog,
    traffic_split::TrafficSplit,
}

/// What is known of one kind of plugin.
#[derive(Debug)]
pub struct Class {
    /// [`Stage::NAME`].
    pub name: &'static str,
    /// [`Stage::PRIORITY`].
    pub priority: i32,
    /// [`Stage::REPORTS`].
    pub reports: bool,
    compile: fn(&PluginConf, &Ground<'_>) -> Result<Plugin, String>,
}

/// A plugin with the sessions it applies to.
#[derive(Debug)]
pub struct Armed {
    /// What kind it is.
    pub class: &'static Class,
    /// It.
    pub plugin: Plugin,
    /// The difference to APISIX that makes it [`Plugin::Unusable`], where one does.
    pub rule: Option<&'static str>,
    /// `_meta.filter`; none: every session.
    filter: Option<Expr>,
}

impl Armed {
    /// Makes one; `None` where it is switched off, not enabled or unknown. Sentences about what it asks
    /// for and does not get go to `degraded`.
    #[must_use]
    pub fn new(attached: &Attached<'_>, live: &Live, degraded: &mut Vec<String>) -> Option<Self> {
        let conf = attached.conf;
        let class = KINDS.iter().find(|class| *class.name == *conf.name)?;
        if conf.disabled || !conf.enabled {
            return None;
        }
        let ground = Ground { owner: &attached.owner, live };
        let made = match &conf.broken {
            Some(why) => Err(why.text.clone()),
            None if conf.secret => (class.compile)(conf, &ground)
                .map_err(|_| "what its references to secrets stand for cannot be used".into()),
            None => (class.compile)(conf, &ground),
        };
        let plugin = made.unwrap_or_else(|why| {
            let effect = if class.reports { "it does nothing" } else { "its sessions are refused" };
            degraded.push(format!("plugin {}: {why}; {effect}", class.name));
            Plugin::Unusable(why.into())
        });
        let filter = conf.conf.pointer("/_meta/filter");
        let filter = filter.and_then(|filter| read_filter(class.name, filter, degraded));
        let rule = conf.broken.as_ref().and_then(|why| why.rule);
        Some(Self { class, plugin, rule, filter })
    }

    /// Reports whether its filter lets it run; `variable` gives the values of the session.
    pub fn applies<'a>(&self, variable: &impl Fn(&str) -> Option<Variable<'a>>) -> bool {
        let Some(filter) = &self.filter else { return true };
        filter.holds(&|name: &str| variable(name).map(Variable::text))
    }
}

/// A filter; `None` where it does not compile: the plugin then runs on every session, as in APISIX
/// (`apisix/plugin.lua:528`). A slip in it is told of for as long as it is there.
fn read_filter(plugin: &str, filter: &Value, degraded: &mut Vec<String>) -> Option<Expr> {
    let expr = match Expr::compile(filter) {
        Ok(expr) => expr,
        Err(error) => {
            let path = &error.path;
            degraded.push(format!(
                "plugin {plugin}: _meta.filter{path}: {error}; the plugin runs on every session"
            ));
            return None;
        }
    };
    for pattern in expr.dead_patterns() {
        degraded.push(format!(
            "plugin {plugin}: _meta.filter: the pattern {pattern:?} does not compile and never matches; mend \
             it, or the plugin may run on no session"
        ));
    }
    Some(expr)
}

/// The plugins of a route, in the order they run.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    armed: Arc<[Arc<Armed>]>,
    /// What each session asks: some have a say before a node is chosen,
    decide: bool,
    /// some hear of the end,
    report: bool,
    /// and of those some send a line somewhere.
    send: bool,
}

impl Plugins {
    /// Puts plugins in their order.
    #[must_use]
    pub fn new(mut armed: Vec<Arc<Armed>>) -> Self {
        // Of nothing, one for all: a conversion would allocate for each route.
        if armed.is_empty() {
            return Self::default();
        }
        armed.sort_by_key(|one| std::cmp::Reverse(one.class.priority));
        let sends = |one: &Arc<Armed>| matches!(one.plugin, Plugin::Syslog(_));
        Self {
            decide: armed.iter().any(|one| !one.class.reports),
            report: armed.iter().any(|one| one.class.reports),
            send: armed.iter().any(sends),
            armed: armed.into(),
        }
    }

    /// Reports whether none of them has a say before a node is chosen.
    #[must_use]
    pub fn only_report(&self) -> bool {
        !self.decide
    }

    /// Reports whether none of them hears of the end of a session.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        !self.report
    }

    /// Reports whether one of them sends a line somewhere at the end of a session.
    #[must_use]
    pub fn sends_lines(&self) -> bool {
        self.send
    }

    /// Those that hear of the end of a session.
    pub fn reporting(&self) -> impl Iterator<Item = &Armed> {
        self.iter().filter(|one| one.class.reports)
    }

    /// The upstreams that one of them may choose in place of the route's.
    pub fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.splits().flat_map(|(_, split)| split.choices())
    }

    /// Reports whether some session goes to the upstream of the route itself.
    #[must_use]
    pub fn pass_some(&self) -> bool {
        self.splits().all(|(armed, split)| armed.filter.is_some() || split.passes_some())
    }

    fn splits(&self) -> impl Iterator<Item = (&Armed, &TrafficSplit)> {
        self.iter().filter_map(|armed| match &armed.plugin {
            Plugin::TrafficSplit(split) => Some((armed, split)),
            _ => None,
        })
    }

    /// In the order they run.
    pub fn iter(&self) -> impl Iterator<Item = &Armed> {
        self.armed.iter().map(|one| &**one)
    }

    fn get(&self, place: usize) -> Option<&Armed> {
        self.armed.get(place).map(|one| &**one)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Kind;

    #[track_caller]
    fn check_filter(filter: &Value, told: &[&str]) {
        let conf = PluginConf {
            name: "ip-restriction".into(),
            conf: Arc::new(json!({"blacklist": ["10.0.0.1"], "_meta": {"filter": filter}})),
            enabled: true,
            ..PluginConf::default()
        };
        let attached = Attached { owner: Key::new(Kind::StreamRoute, "1"), conf: &conf };
        let mut degraded = Vec::new();
        Armed::new(&attached, &Live::default(), &mut degraded).unwrap();
        assert_eq!(degraded.len(), told.len(), "{degraded:?}");
        for (sentence, words) in degraded.iter().zip(told) {
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn a_slip_in_a_filter_is_told_of_as_long_as_it_is_there() {
        check_filter(&json!([["remote_addr", "==", "10.0.0.1"]]), &[]);
        check_filter(&json!([["remote_addr", "smells", "x"]]), &["the plugin runs on every session"]);
        check_filter(&json!([["remote_addr", "~~", "("]]), &["never matches"]);
    }

    #[test]
    fn priorities_and_names_are_unique() {
        for class in KINDS {
            let same = |other: &&Class| other.priority == class.priority || other.name == class.name;
            assert_eq!(KINDS.iter().filter(same).count(), 1, "{}", class.name);
        }
    }
}
