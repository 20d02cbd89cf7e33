//! `nginx_config`: what of it a gateway that is no nginx can honour.

use std::time::Duration;

use serde_json::Value;

use super::AccessLog;
use super::files::Files;
use super::ours::Ours;
use super::read::Node;
use super::read::show;
use super::snippet;
use super::snippet::Context;
use super::time;
use crate::addr::IpMatcher;
use crate::session::line::{Escape, Format};

/// Overrides the worker count (`apisix/cli/ops.lua:817-820`).
const WORKERS_VARIABLE: &str = "APISIX_WORKER_PROCESSES";
/// More workers than that are surely a slip.
const MOST_WORKERS: usize = 1024;
/// `worker_shutdown_timeout: 0` sets no limit in nginx; a year is none.
const NO_LIMIT: Duration = Duration::from_hours(365 * 24);

/// The worker count: `worker_processes`, one in dev mode, the variable above all.
pub(super) fn workers(root: &Node<'_>, files: &Files<'_>) -> usize {
    let dev_mode = root.at("apisix").at("enable_dev_mode").boolean().unwrap_or(false);
    let node = root.at("nginx_config").at("worker_processes");
    if let Some(text) = files.env.var(WORKERS_VARIABLE) {
        let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let count = number.and_then(|number| worker_count(&Value::from(number.floor())));
        return count.unwrap_or_else(|| {
            let allowed = format!("is {text:?}; a whole number 1..{MOST_WORKERS} is allowed");
            root.report().mistake(WORKERS_VARIABLE, allowed);
            1
        });
    }
    if dev_mode {
        return 1;
    }
    match node.value() {
        None => files.env.cores,
        Some(Value::String(text)) => match text.trim().parse::<f64>() {
            // Whatever is no number means auto (ops.lua:781).
            Err(_) => files.env.cores,
            Ok(number) => counted(&node, &Value::from(number)),
        },
        Some(value) => counted(&node, value),
    }
    .max(1)
}

fn counted(node: &Node<'_>, value: &Value) -> usize {
    worker_count(value).unwrap_or_else(|| {
        node.mistake(format!("is {}; auto or a whole number 1..{MOST_WORKERS} is allowed", show(value)));
        1
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just before")]
fn worker_count(value: &Value) -> Option<usize> {
    let number = value.as_f64()?;
    let fits = number.fract() == 0.0 && (1.0..=1024.0).contains(&number);
    fits.then_some(number as usize)
}

/// `worker_shutdown_timeout`.
pub(super) fn shutdown_timeout(nginx: &Node<'_>) -> Duration {
    let node = nginx.at("worker_shutdown_timeout");
    let text = match node.value() {
        None => return NO_LIMIT,
        Some(Value::Number(number)) => number.to_string(),
        Some(value) => value.as_str().unwrap_or_default().to_owned(),
    };
    match time::parse(&text) {
        Some(Duration::ZERO) => NO_LIMIT,
        Some(time) => time,
        None => {
            node.mistake(format!(
                "is {text:?}; allowed is a time as nginx writes it, such as 240s or 1m 30s"
            ));
            NO_LIMIT
        }
    }
}

/// `error_log_level` as a tracing level.
pub(super) fn log_level(nginx: &Node<'_>) -> Box<str> {
    let node = nginx.at("error_log_level");
    let levels = ["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"];
    match node.choice(&levels) {
        Some("debug") => "debug".into(),
        Some("info" | "notice") => "info".into(),
        Some("error" | "crit" | "alert" | "emerg") => "error".into(),
        _ => "warn".into(),
    }
}

/// `stream.real_ip_from`: what `set_real_ip_from` of nginx takes, but for host names, which it resolves
/// once, at its start.
pub(super) fn real_ip_from(stream: &Node<'_>) -> Vec<IpMatcher> {
    let read = |node: &Node<'_>| {
        let text = node.string()?;
        if text == "unix:" {
            node.warn("has no effect; no listen is a unix socket, so no peer comes through one");
            return None;
        }
        text.parse().map_err(|error: crate::addr::IpMatcherError| node.mistake(error.to_string())).ok()
    };
    stream.at("real_ip_from").items().unwrap_or_default().iter().filter_map(read).collect()
}

/// `stream.access_log*`.
pub(super) fn access_log(stream: &Node<'_>, files: &Files<'_>) -> AccessLog {
    let path = stream.at("access_log");
    let text = path.string().unwrap_or("logs/access_stream.log");
    let enabled = stream.at("enable_access_log").boolean().unwrap_or(false) && text != "off";
    if enabled && (text.starts_with("syslog:") || text.contains(['$', ' ', ';'])) {
        path.mistake(format!("is {text:?}; one file name is allowed, without variables, options or syslog"));
    }
    let text_of = stream.at("access_log_format");
    let format = unescape(text_of.string().unwrap_or_default().trim_end_matches(['\n', '\r']));
    let escape = stream.at("access_log_format_escape").choice(&["default", "json", "none"]);
    let escape = escape.and_then(Escape::parse).unwrap_or_default();
    if enabled {
        if let Err(error) = Format::new(&format, escape) {
            text_of.mistake(error.to_string());
        }
        let idle = Format::idle_names(&format);
        if !idle.is_empty() {
            text_of.warn(format!("names what no session has a value of here: {}", idle.join(", ")));
        }
    }
    AccessLog { enabled, path: files.prefix.join(text), format: format.into(), escape }
}

/// Takes out the backslashes: the template puts the format between quotes (`ngx_tpl.lua:190-194`),
/// where nginx reads them so.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let meant = match (c, chars.peek()) {
            ('\\', Some(quoted @ ('"' | '\'' | '\\'))) => Some(*quoted),
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some('n')) => Some('\n'),
            _ => None,
        };
        plain.push(meant.unwrap_or(c));
        if meant.is_some() {
            chars.next();
        }
    }
    plain
}

/// Refuses the snippets' directives that would change traffic, and says what stands without effect.
pub(super) fn snippets(nginx: &Node<'_>, ours: &Ours<'_>) {
    let snippets =
        [("main_configuration_snippet", Context::Main), ("stream_configuration_snippet", Context::Stream)];
    let mut seen = Vec::new();
    for (key, context) in snippets {
        let node = nginx.at(key);
        let Some(text) = node.string() else { continue };
        match snippet::directives(text) {
            Err(error) => node.mistake(error.to_string()),
            Ok(directives) => judge(&node, context, &directives, ours),
        }
        seen.extend(snippet::directives(text).unwrap_or_default().into_iter().map(|it| it.name));
    }
    for (name, node) in &ours.ignored_directives {
        if !seen.iter().any(|seen| **seen == **name) {
            node.warn(format!("no snippet has the directive {name}; the entry can go"));
        }
    }
}

fn judge(node: &Node<'_>, context: Context, directives: &[snippet::Directive], ours: &Ours<'_>) {
    let mut idle: Vec<&str> = Vec::new();
    for directive in directives {
        let name = directive.name.as_str();
        let ignored = ours.ignored_directives.iter().any(|(known, _)| **known == *name);
        if !ignored && !context.harmless(name) {
            node.mistake(format!(
                "line {}: `{}` may change traffic, and snippets are not obeyed; remove it, or name {name} under \
                 streamgate.ignored_directives if clients do well without",
                directive.line, directive.text
            ));
        } else if !idle.contains(&name) {
            idle.push(name);
        }
    }
    if !idle.is_empty() {
        node.warn(format!("without effect: {}", idle.join(", ")));
    }
}

/// Says what is accepted and has no effect, where an operator would count on it.
pub(super) fn warn_of_the_idle(root: &Node<'_>) {
    let user = root.at("nginx_config").at("user");
    if let Some(name) = user.string().filter(|name| !name.is_empty()) {
        user.warn(format!("has no effect; start streamgate as {name}, with systemd by User={name}"));
    }
    let reuseport = root.at("apisix").at("enable_reuseport");
    if reuseport.boolean() == Some(false) {
        reuseport.warn("has no effect; each worker always has a socket of its own");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_as_between_nginx_quotes() {
        assert_eq!(unescape(r#"\"$remote_addr\" \\ \t \x"#), "\"$remote_addr\" \\ \t \\x");
    }
}
