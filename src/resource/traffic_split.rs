//! The configuration of `traffic-split` (`apisix/plugins/traffic-split.lua:34-124`): which share of the
//! sessions goes to which upstream.

use std::sync::Arc;

use serde_json::Value;

use super::document::Document;
use super::rules::{Notes, Rules};
use super::{Upstream, upstream};
use crate::expr::Expr;

/// Members of an upstream that APISIX does not take along from inside the plugin
/// (`apisix/plugins/traffic-split.lua:146-198`).
const LEFT_BEHIND: &[&str] =
    &["checks", "retries", "retry_timeout", "tls", "service_name", "discovery_type", "labels"];

/// Rules, of which the first that takes a session counts.
#[derive(Clone, Debug)]
pub struct Split {
    /// In the order written.
    pub rules: Box<[SplitRule]>,
}

/// Which sessions a rule takes, and how they are shared out.
#[derive(Clone, Debug)]
pub struct SplitRule {
    /// One of them has to hold; none: every session is taken.
    pub conditions: Box<[Expr]>,
    /// At least one.
    pub shares: Box<[Share]>,
}

/// An entry of `weighted_upstreams`.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its share; a huge value is cut to `u32::MAX`.
    pub weight: u32,
    /// Where its sessions go.
    pub to: Destination,
}

/// Where a share of the sessions goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Where they would have gone without the plugin.
    Own,
    /// To the `upstreams` object of this id.
    Upstream(Arc<str>),
    /// To an upstream written in the plugin.
    Inline(Arc<Upstream>),
}

impl Split {
    /// The entries that get sessions, with the places of their rule and their own.
    pub fn shares(&self) -> impl Iterator<Item = (usize, usize, &Share)> {
        let rules = self.rules.iter().enumerate();
        rules.flat_map(|(i, rule)| rule.shares.iter().enumerate().map(move |(j, share)| (i, j, share)))
    }

    /// The upstreams written in it, with the places of their rule and their entry.
    pub fn inline(&self) -> impl Iterator<Item = (usize, usize, &Arc<Upstream>)> {
        self.shares().filter_map(|(i, j, share)| match &share.to {
            Destination::Inline(upstream) => Some((i, j, upstream)),
            _ => None,
        })
    }

    /// The ids of the upstreams it names; one may come twice.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.shares().filter_map(|(.., share)| match &share.to {
            Destination::Upstream(id) => Some(id),
            _ => None,
        })
    }
}

/// Reads one that passed its schema and whose references were replaced. The error is about an
/// expression, and reads on after the path of the plugin.
pub(super) fn read(rules: &Rules, conf: &Value, at: &str, notes: &mut Notes) -> Result<Split, String> {
    let written = conf.get("rules").and_then(Value::as_array);
    if written.is_some_and(Vec::is_empty) {
        let text = format!("{at}/rules is empty: the plugin does nothing, where APISIX fails each session");
        notes.differs("SG-132", text);
    }
    let written = written.map(Vec::as_slice).unwrap_or_default();
    let mut read = Vec::with_capacity(written.len());
    let mut all_taken = None;
    for (i, rule) in written.iter().enumerate() {
        let at = format!("{at}/rules/{i}");
        if let Some(earlier) = all_taken {
            notes.warn(format!("{at} is never asked: rules/{earlier} takes every session"));
        }
        let conditions = conditions(rule, i, &at, notes)?;
        if conditions.is_empty() {
            all_taken = all_taken.or(Some(i));
        }
        read.push(SplitRule { conditions, shares: shares(rules, rule, &at, notes) });
    }
    Ok(Split { rules: read.into() })
}

fn conditions(rule: &Value, place: usize, at: &str, notes: &mut Notes) -> Result<Box<[Expr]>, String> {
    let Some(entries) = rule.get("match").and_then(Value::as_array) else { return Ok(Box::default()) };
    if entries.is_empty() && place > 0 {
        let text = format!("{at}/match is empty: the rule takes every session, in APISIX none");
        notes.differs("SG-132", text);
    }
    let compiled = entries.iter().map(|entry| {
        let vars = entry.get("vars").unwrap_or(&Value::Null);
        Expr::compile(vars).map_err(|error| format!("{at}/match: {error}"))
    });
    compiled.collect()
}

fn shares(rules: &Rules, rule: &Value, at: &str, notes: &mut Notes) -> Box<[Share]> {
    let own = || Share { weight: 1, to: Destination::Own };
    let Some(entries) = rule.get("weighted_upstreams").and_then(Value::as_array) else {
        return [own()].into();
    };
    let mut shares = Vec::with_capacity(entries.len());
    for (j, entry) in entries.iter().enumerate() {
        let at = format!("{at}/weighted_upstreams/{j}");
        let fields = Document::from(entry.clone());
        let weight = fields.number("weight").map_or(1, upstream::clamped);
        shares.push(Share { weight, to: destination(rules, fields, &at, notes) });
    }
    if shares.iter().all(|share| share.weight == 0) {
        let text = "is 0 everywhere: the entries take turns as if each weight were 1 (as in APISIX)";
        notes.warn(format!("{at}/weighted_upstreams: the weight {text}"));
    }
    shares.into()
}

fn destination(rules: &Rules, mut fields: Document, at: &str, notes: &mut Notes) -> Destination {
    let (id, inline) = (fields.id("upstream_id"), fields.take("upstream"));
    match (id, inline) {
        (Some(id), inline) => {
            if inline.is_some() {
                notes.warn(format!("{at} has upstream_id and upstream: upstream_id counts (as in APISIX)"));
            }
            Destination::Upstream(id)
        }
        (None, Some(inline)) => {
            let inline = Document::from(inline);
            let tls = inline.text("scheme") == Some("tls");
            let mut more: Vec<&str> =
                LEFT_BEHIND.iter().copied().filter(|name| inline.get(name).is_some()).collect();
            more.extend(tls.then_some("scheme tls"));
            if !more.is_empty() {
                let more = more.join(", ");
                let text =
                    format!("{at}/upstream: {more} counts here; APISIX leaves it out inside this plugin");
                notes.differs("SG-131", text);
            }
            let owner = format!("the upstream at {at}/upstream");
            Destination::Inline(Arc::new(upstream::inline(rules, inline, &owner, notes)))
        }
        (None, None) => Destination::Own,
    }
}
