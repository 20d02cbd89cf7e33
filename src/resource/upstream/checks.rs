//! Health checks of an upstream (`apisix/schema_def.lua:149-324`).
//!
//! The schema has filled in what it fills in. An absent `healthy` or `unhealthy` it leaves absent, and
//! then lua-resty-healthcheck takes an interval of 0, which means that targets in that state are not
//! probed at all (`resty/healthcheck.lua:1489-1520`).

use std::fmt::Write as _;
use std::time::Duration;

use super::super::document::Document;
use super::super::rules::Notes;
use super::{clamped, port, seconds};
use crate::health::{Limits, Report};

/// The HTTP statuses that count where the object names none.
const WELL: &[u16] = &[200, 302];
/// Those that say that the node is not well.
const UNWELL: &[u16] = &[429, 404, 500, 501, 502, 503, 504, 505];

/// The fields of each part. The schema lets others pass, as APISIX does, and nothing reads them.
const FIELDS: &[(&str, &[&str])] = &[
    ("/checks", &["active", "passive"]),
    (
        "/checks/active",
        &[
            "concurrency",
            "healthy",
            "host",
            "http_method",
            "http_path",
            "http_req_body",
            "https_verify_certificate",
            "port",
            "req_headers",
            "timeout",
            "type",
            "unhealthy",
        ],
    ),
    ("/checks/active/healthy", &["http_statuses", "interval", "successes"]),
    ("/checks/active/unhealthy", &["http_failures", "http_statuses", "interval", "tcp_failures", "timeouts"]),
    ("/checks/passive", &["healthy", "type", "unhealthy"]),
    ("/checks/passive/healthy", &["http_statuses", "successes"]),
    ("/checks/passive/unhealthy", &["http_failures", "http_statuses", "tcp_failures", "timeouts"]),
];

/// `checks` of an upstream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checks {
    /// `active`: what is probed, and how.
    pub active: ActiveCheck,
    /// `passive`: failed sessions count, the last attempt of each too. Absent: only attempts that are
    /// followed by another count (`apisix/balancer.lua:283-296`, `apisix/init.lua:1061-1087`).
    pub passive: Option<Limits>,
}

/// `checks.active`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ActiveCheck {
    /// `type`.
    pub kind: CheckKind,
    /// `timeout`: of connecting, of sending and of receiving each.
    pub timeout: Duration,
    /// `concurrency`: probes of this upstream under way at most.
    pub concurrency: usize,
    /// `port`: probed instead of the node's.
    pub port: Option<u16>,
    /// `host`: the name that the node is called by, instead of its own.
    pub host: Option<Box<str>>,
    /// `upstream_host`, where `pass_host` is `rewrite`: the Host header (`apisix/healthcheck_manager.lua:70`).
    pub host_header: Option<Box<str>>,
    /// What is asked by HTTP.
    pub request: HttpCheck,
    /// Time between probes of a usable target; absent: it is not probed.
    pub healthy_interval: Option<Duration>,
    /// Time between probes of one that is not usable.
    pub unhealthy_interval: Option<Duration>,
    /// `healthy.http_statuses`.
    pub healthy_statuses: Box<[u16]>,
    /// `unhealthy.http_statuses`.
    pub unhealthy_statuses: Box<[u16]>,
    /// How many results turn the state.
    pub limits: Limits,
}

/// `type` of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CheckKind {
    /// A connection.
    Tcp,
    /// An HTTP request. APISIX's default.
    Http,
    /// The same over TLS.
    Https,
}

impl CheckKind {
    /// APISIX's word.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The request of a check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpCheck {
    /// `http_method`.
    pub method: Box<str>,
    /// `http_path`.
    pub path: Box<str>,
    /// `http_req_body`.
    pub body: Box<str>,
    /// `req_headers`: each `Name: value`; others are left out with a warning.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// `https_verify_certificate`.
    pub verify: bool,
}

impl ActiveCheck {
    /// How long a target in this state waits for its next probe; `None`: for ever.
    #[must_use]
    pub fn interval(&self, usable: bool) -> Option<Duration> {
        if usable { self.healthy_interval } else { self.unhealthy_interval }
    }

    /// What an HTTP status says; `None`: nothing (`resty/healthcheck.lua:870-900`).
    #[must_use]
    pub fn judge(&self, status: u16) -> Option<Report> {
        if self.healthy_statuses.contains(&status) {
            Some(Report::Success)
        } else {
            self.unhealthy_statuses.contains(&status).then_some(Report::HttpFailure)
        }
    }
}

/// Reads the object, which its schema has accepted. `host_header` as [`ActiveCheck::host_header`].
pub(super) fn read(
    mut written: Document,
    host_header: Option<Box<str>>,
    owner: &str,
    notes: &mut Notes,
) -> Checks {
    unread(&written, "/checks", owner, notes);
    let active = written.nested("active");
    let passive = written.take("passive").map(|passive| {
        let mut passive = Document::from(passive);
        unread(&passive, "/checks/passive", owner, notes);
        let (healthy, unhealthy) = (passive.nested("healthy"), passive.nested("unhealthy"));
        unread(&healthy, "/checks/passive/healthy", owner, notes);
        unread(&unhealthy, "/checks/passive/unhealthy", owner, notes);
        limits(&healthy, &unhealthy, Limits::PASSIVE)
    });
    Checks { active: read_active(active, host_header, owner, notes), passive }
}

fn read_active(
    mut active: Document,
    host_header: Option<Box<str>>,
    owner: &str,
    notes: &mut Notes,
) -> ActiveCheck {
    unread(&active, "/checks/active", owner, notes);
    let (healthy, unhealthy) = (active.nested("healthy"), active.nested("unhealthy"));
    unread(&healthy, "/checks/active/healthy", owner, notes);
    unread(&unhealthy, "/checks/active/unhealthy", owner, notes);
    let interval = |half: &Document| half.number("interval").filter(|every| *every > 0.0).map(seconds);
    let kind = match active.text("type") {
        Some("tcp") => CheckKind::Tcp,
        Some("https") => CheckKind::Https,
        _ => CheckKind::Http,
    };
    ActiveCheck {
        kind,
        timeout: seconds(active.number("timeout").filter(|limit| *limit > 0.0).unwrap_or(1.0)),
        concurrency: active.number("concurrency").map_or(10, clamped).max(1) as usize,
        port: active.number("port").and_then(port),
        host: active.boxed("host"),
        host_header,
        request: HttpCheck {
            method: active.boxed("http_method").unwrap_or_else(|| "GET".into()),
            path: path(&active, owner, notes),
            body: active.boxed("http_req_body").unwrap_or_default(),
            headers: headers(&mut active, owner, notes),
            verify: active
                .get("https_verify_certificate")
                .and_then(serde_json::Value::as_bool)
                .unwrap_or(true),
        },
        healthy_interval: interval(&healthy),
        unhealthy_interval: interval(&unhealthy),
        healthy_statuses: statuses(healthy.get("http_statuses"), WELL),
        unhealthy_statuses: statuses(unhealthy.get("http_statuses"), UNWELL),
        limits: limits(&healthy, &unhealthy, Limits::ACTIVE),
    }
}

/// Says which fields of a part nothing reads.
fn unread(part: &Document, at: &str, owner: &str, notes: &mut Notes) {
    let known = FIELDS.iter().find(|(path, _)| *path == at).map_or(&[][..], |(_, known)| known);
    for name in part.names().filter(|name| !known.contains(name)) {
        notes
            .warn(format!("{owner}: {at} has {name:?}, which nothing reads; there are {}", known.join(", ")));
    }
}

fn limits(healthy: &Document, unhealthy: &Document, default: Limits) -> Limits {
    let count = |half: &Document, name: &str, default: u8| {
        half.number(name).map_or(default, |number| u8::try_from(clamped(number)).unwrap_or(u8::MAX))
    };
    Limits {
        successes: count(healthy, "successes", default.successes),
        http_failures: count(unhealthy, "http_failures", default.http_failures),
        tcp_failures: count(unhealthy, "tcp_failures", default.tcp_failures),
        timeouts: count(unhealthy, "timeouts", default.timeouts),
    }
}

fn statuses(written: Option<&serde_json::Value>, default: &[u16]) -> Box<[u16]> {
    let Some(list) = written.and_then(serde_json::Value::as_array) else { return default.into() };
    let number = |status: &serde_json::Value| u16::try_from(clamped(status.as_f64()?)).ok();
    list.iter().filter_map(number).collect()
}

/// `http_path` as it can be sent: it begins with a slash, and what no path may hold is percent-encoded
/// (RFC 3986, 3.3). APISIX sends it as it is.
fn path(active: &Document, owner: &str, notes: &mut Notes) -> Box<str> {
    let written = active.text("http_path").unwrap_or("/");
    let mut path = String::with_capacity(written.len() + 1);
    if !written.starts_with('/') {
        path.push('/');
    }
    for byte in written.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    if path != written {
        let why = format!("{owner}: /checks/active/http_path is {written:?}, which is asked for as {path:?}");
        notes.differs("SG-104", why);
    }
    path.into()
}

/// `req_headers`, each cut at its colon.
fn headers(active: &mut Document, owner: &str, notes: &mut Notes) -> Vec<(Box<str>, Box<str>)> {
    let written = active.take("req_headers");
    let mut found = Vec::new();
    for line in written.as_ref().and_then(serde_json::Value::as_array).into_iter().flatten() {
        let line = line.as_str().unwrap_or_default();
        match line.split_once(':') {
            Some((name, value)) if is_token(name.trim()) && !value.contains(|c: char| c.is_control() && c != '\t') => {
                found.push((name.trim().into(), value.trim().into()));
            }
            _ => notes.differs(
                "SG-104",
                format!(
                    "{owner}: /checks/active/req_headers has {line:?}, which is no header (`Name: value`); it is left out"
                ),
            ),
        }
    }
    found
}

/// The characters of a header's name (RFC 9110, section 5.6.2).
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
