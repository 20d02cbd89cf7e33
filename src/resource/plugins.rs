//! The `plugins` of a route or service (`stream_check_schema`, `apisix/plugin.lua:1258`).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::document::is_reference;
use super::explain::{brief, distance, escaped};
use super::rules::{Notes, Rejection, Remark, Rules};
use super::{PluginConf, Split, reference, schema, traffic_split};
use crate::addr::IpMatcher;
use crate::expr::Expr;

/// Whose plugins they are: APISIX checks those of a service in its HTTP part alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Owner {
    StreamRoute,
    Service,
}

/// Checks all plugins, in the order written.
pub(super) fn parse(
    rules: &Rules,
    plugins: Map<String, Value>,
    owner: Owner,
    notes: &mut Notes,
) -> Result<Vec<PluginConf>, Rejection> {
    plugins.into_iter().map(|(name, conf)| one(rules, name, conf, owner, notes)).collect()
}

/// Checks one plugin.
pub(super) fn one(
    rules: &Rules,
    name: String,
    mut conf: Value,
    owner: Owner,
    notes: &mut Notes,
) -> Result<PluginConf, Rejection> {
    let at = format!("/plugins/{}", escaped(&name));
    if !conf.is_object() && !conf.is_array() {
        return Err(format!("{at} is {}; an object is allowed", brief(&conf)).into());
    }
    let enabled = rules.stream_plugins.iter().any(|plugin| **plugin == *name);
    let disabled = conf.pointer("/_meta/disable") == Some(&Value::Bool(true));
    let mut made = PluginConf { disabled, enabled, ..PluginConf::default() };
    match rules.schemas.plugin(&name) {
        _ if !enabled => unknown(rules, &name, &at, notes)?,
        None => {
            notes.differs("SG-015", format!("{at}: this program has no plugin {name}; it is NOT ENFORCED"));
        }
        Some(schema) => match check(schema, &name, &mut conf, &at, notes) {
            Ok(()) => {
                if !disabled {
                    use_it(rules, (schema, &name), &mut conf, &mut made, notes);
                }
                let unfilled =
                    (owner == Owner::Service && !rules.standalone && !disabled).then(|| conf.clone());
                schema.fill(&mut conf);
                if unfilled.is_some_and(|unfilled| unfilled != conf) {
                    let text =
                        format!("{at} gets its defaults here; APISIX runs a service's plugins without them");
                    notes.differs("SG-001", text);
                }
            }
            Err(why) if disabled => {
                notes.warn(format!("{why} (accepted, because `_meta.disable` is set)"));
            }
            Err(why) if owner == Owner::Service && !rules.standalone => {
                notes.differs(
                    "SG-001",
                    format!("{why} (APISIX does not check the plugins of a service; this one refuses every session)"),
                );
                made.broken = Some(Remark { rule: Some("SG-001"), text: why.to_string() });
            }
            Err(why) => return Err(why),
        },
    }
    Ok(PluginConf { name: name.into(), conf: conf.into(), ..made })
}

/// Makes a configuration that passed its check ready for use: what it refers to, what it holds, what of it
/// has no effect.
fn use_it(
    rules: &Rules,
    (schema, name): (&schema::Schema, &str),
    conf: &mut Value,
    made: &mut PluginConf,
    notes: &mut Notes,
) {
    let at = format!("/plugins/{}", escaped(name));
    if conf.pointer("/_meta/pre_function").is_some() {
        notes.differs("SG-134", format!("{at}/_meta/pre_function is Lua and is never run"));
    }
    if conf.pointer("/_meta/priority").is_some() {
        let text = "has no effect: plugins of a stream run in their fixed order (as in APISIX)";
        notes.warn(format!("{at}/_meta/priority {text}"));
    }
    match ready(rules, (schema, name), conf, made, notes) {
        Ok(split) => made.split = split,
        Err(text) => {
            let effect = "APISIX goes on with the reference itself, this plugin refuses every session";
            notes.differs("SG-133", format!("{text}; {effect}"));
            made.broken = Some(Remark { rule: Some("SG-133"), text });
        }
    }
}

/// Puts what references stand for in their place: it has to pass the check as if it were written there. Then
/// reads what of it is an object of its own. Nothing that is said may show what references stand for.
fn ready(
    rules: &Rules,
    (schema, name): (&schema::Schema, &str),
    conf: &mut Value,
    made: &mut PluginConf,
    notes: &mut Notes,
) -> Result<Option<Arc<Split>>, String> {
    let at = format!("/plugins/{}", escaped(name));
    let (mut replaced, mut secrets) = (conf.clone(), Vec::new());
    reference::replace(&rules.environment, &mut replaced, &at, &mut secrets)?;
    if !secrets.is_empty() {
        made.secret = true;
        check(schema, name, &mut replaced, &at, &mut Notes::default()).map_err(|_| {
            format!(
                "{at}: what its references to secrets stand for is not allowed there; look at the variables"
            )
        })?;
        *conf = replaced;
    }
    if name != "traffic-split" {
        return Ok(None);
    }
    let mut told = Notes::default();
    let split = traffic_split::read(rules, conf, &at, &mut told);
    let hidden = told.warnings.into_iter().map(|remark| {
        let text = reference::without(&secrets, remark.text);
        Remark { text, ..remark }
    });
    notes.warnings.extend(hidden);
    split.map(|split| Some(Arc::new(split))).map_err(|why| reference::without(&secrets, why))
}

fn unknown(rules: &Rules, name: &str, at: &str, notes: &mut Notes) -> Result<(), Rejection> {
    let near = rules.stream_plugins.iter().find(|known| distance(name, known) <= 2);
    let hint = near.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
    let sentence =
        format!("{at}: plugin {name} is not among the enabled stream_plugins of config.yaml{hint}");
    if rules.standalone {
        return Err(sentence.into());
    }
    notes.warn(format!("{sentence}: NOT ENFORCED (as in APISIX)"));
    Ok(())
}

/// The plugin's own check: its schema, then what it does in code.
fn check(
    schema: &schema::Schema,
    name: &str,
    conf: &mut Value,
    at: &str,
    notes: &mut Notes,
) -> Result<(), Rejection> {
    schema.check(conf, at)?;
    match name {
        "ip-restriction" => networks(conf, at)?,
        "limit-conn" => without_effect(conf, at, notes),
        "traffic-split" => matches(conf, at, notes)?,
        _ => {}
    }
    if let Some(filter) = conf.pointer("/_meta/filter") {
        // APISIX compiles it at the first session, logs the failure and runs the plugin.
        match Expr::compile(filter) {
            Err(error) => notes
                .warn(format!("{at}/_meta/filter{}: {error}; the plugin runs on every session", error.path)),
            Ok(expr) => dead_patterns(&expr, &format!("{at}/_meta/filter"), notes),
        }
    }
    Ok(())
}

/// The schema lets references pass; the list cannot hold one (APISIX raises there).
fn networks(conf: &Value, at: &str) -> Result<(), Rejection> {
    let lists = ["whitelist", "blacklist"].into_iter();
    let lists = lists.filter_map(|name| Some((name, conf.get(name)?.as_array()?)));
    let entries =
        lists.flat_map(|(name, list)| list.iter().enumerate().map(move |(i, entry)| (name, i, entry)));
    let (mut mistakes, mut reference) = (Vec::new(), false);
    for (name, i, entry) in entries {
        let Some(text) = entry.as_str() else { continue };
        if let Err(error) = IpMatcher::parse_apisix(text) {
            mistakes.push(format!("{at}/{name}/{i}: {error}"));
            reference |= is_reference(text);
        }
    }
    match (mistakes.is_empty(), reference) {
        (true, _) => Ok(()),
        (false, true) => Err(Rejection::from(mistakes).by("SG-003")),
        (false, false) => Err(mistakes.into()),
    }
}

/// What the code of limit-conn for HTTP reads beside the schema for streams; `None`: whatever its value.
const OF_HTTP: [(&str, Option<&str>); 6] = [
    ("allow_degradation", Some("false")),
    ("key_ttl", None),
    ("policy", Some("\"local\"")),
    ("rejected_code", Some("503")),
    ("rejected_msg", None),
    ("rules", None),
];

/// APISIX reads them unchecked (`apisix/plugins/limit-conn/init.lua:158`).
fn without_effect(conf: &Value, at: &str, notes: &mut Notes) {
    for (name, as_here) in OF_HTTP {
        let Some(value) = conf.get(name).filter(|value| as_here != Some(&*value.to_string())) else {
            continue;
        };
        let text = format!(
            "{at}/{name} is {} and has no effect: sessions are counted in this process and refused with 503",
            brief(value)
        );
        notes.differs("SG-120", text);
    }
}

fn matches(conf: &Value, at: &str, notes: &mut Notes) -> Result<(), Vec<String>> {
    for (i, rule) in list(conf, "rules").iter().enumerate() {
        for (j, entry) in list(rule, "match").iter().enumerate() {
            let at = format!("{at}/rules/{i}/match/{j}");
            let Some(vars) = entry.get("vars") else {
                return Err(vec![format!("{at} lacks `vars`: a list of conditions")]);
            };
            let expr =
                Expr::compile(vars).map_err(|error| vec![format!("{at}/vars{}: {error}", error.path)])?;
            dead_patterns(&expr, &format!("{at}/vars"), notes);
        }
    }
    Ok(())
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn dead_patterns(expr: &Expr, at: &str, notes: &mut Notes) {
    for pattern in expr.dead_patterns() {
        let text = format!(
            "{at}: the pattern {pattern:?} does not compile and never matches; look-around and back references are not supported"
        );
        notes.differs("SG-010", text);
    }
}
