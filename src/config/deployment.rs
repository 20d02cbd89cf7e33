//! `deployment`: the role of this node, and where its objects come from.
//!
//! Roles and providers: `apisix/cli/file.lua:289-312` and `cli/schema.lua:406-451`.

use std::path::PathBuf;
use std::time::Duration;

use super::EtcdConfig;
use super::Source;
use super::files::Files;
use super::ours::Ours;
use super::read::Node;

/// Replaces `deployment.etcd.host` (`apisix/cli/file.lua:163-175`).
const HOST_VARIABLE: &str = "APISIX_DEPLOYMENT_ETCD_HOST";

/// What the role says.
#[derive(Debug)]
pub(super) struct Deployment {
    /// Where objects come from.
    pub(super) source: Source,
    /// `apisix.enable_admin`, as the role forces it.
    pub(super) enable_admin: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Provider {
    Etcd,
    Yaml,
    Json,
}

/// Reads the section and what hangs on it. `trusted` is the CA bundle.
pub(super) fn read(
    root: &Node<'_>,
    ours: &Ours<'_>,
    trusted: Option<PathBuf>,
    files: &Files<'_>,
) -> Deployment {
    let deployment = root.at("deployment");
    let enable_admin = root.at("apisix").at("enable_admin").boolean().unwrap_or(true);
    let (provider, enable_admin) = provider(&deployment, enable_admin);
    let nothing = Source::File(PathBuf::new());
    let source = match provider {
        None => nothing,
        Some(Provider::Etcd) => {
            if let Some((_, node)) = &ours.standalone_file {
                node.mistake(
                    "has no effect with config_provider etcd; remove it, or set config_provider: yaml",
                );
            }
            if files.env.var("APISIX_STAND_ALONE") == Some("true") {
                root.report().mistake(
                    "APISIX_STAND_ALONE",
                    "is true, and the config_provider is etcd; unset the variable, or set config_provider: yaml",
                );
            }
            Source::Etcd(Box::new(etcd(&deployment.at("etcd"), trusted, files)))
        }
        Some(provider) => Source::File(object_file(provider, ours, files)),
    };
    Deployment { source, enable_admin }
}

/// The provider, where one is meant that can be had, and whether the Admin API is on.
fn provider(deployment: &Node<'_>, enable_admin: bool) -> (Option<Provider>, bool) {
    let role = deployment.at("role");
    match role.choice(&["traditional", "control_plane", "data_plane", "standalone"]) {
        Some("standalone") => {
            role.mistake("is \"standalone\", which APISIX knows and cannot start; write data_plane with config_provider: yaml");
            (None, enable_admin)
        }
        Some("data_plane") => {
            let node = deployment.at("role_data_plane").at("config_provider");
            (chosen(&node, &["etcd", "yaml", "json", "xds"]), false)
        }
        Some("control_plane") => {
            (chosen(&deployment.at("role_control_plane").at("config_provider"), &["etcd"]), true)
        }
        None if !role.is_absent() || deployment.is_absent() => (None, enable_admin),
        _ => {
            let node = deployment.at("role_traditional").at("config_provider");
            let provider = chosen(&node, &["etcd", "yaml"]);
            if provider == Some(Provider::Yaml) && enable_admin {
                node.mistake(
                    "is \"yaml\" while apisix.enable_admin is true: APISIX then takes its objects from its Admin API \
                     and reads no file, which is not built; to serve apisix.yaml set apisix.enable_admin: false, \
                     or role: data_plane",
                );
            }
            (provider, enable_admin)
        }
    }
}

fn chosen(node: &Node<'_>, allowed: &[&str]) -> Option<Provider> {
    if node.is_absent() {
        node.mistake(format!("is missing; allowed are {}", allowed.join(", ")));
    }
    match node.choice(allowed)? {
        "etcd" => Some(Provider::Etcd),
        "yaml" => Some(Provider::Yaml),
        "json" => Some(Provider::Json),
        _ => {
            node.mistake("is \"xds\", which is not built; allowed are etcd, yaml, json");
            None
        }
    }
}

/// The file of the objects: next to config.yaml, as `apisix/core/profile.lua` names it.
fn object_file(provider: Provider, ours: &Ours<'_>, files: &Files<'_>) -> PathBuf {
    let endings: &[&str] = if provider == Provider::Json { &["json"] } else { &["yaml", "yml"] };
    let Some((path, node)) = &ours.standalone_file else {
        return files.conf.join(files.profiled("apisix", endings.first().copied().unwrap_or_default()));
    };
    if !path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known)) {
        node.mistake(format!(
            "is {}; with this config_provider the name must end in .{}",
            path.display(),
            endings.join(" or .")
        ));
    }
    files.conf.join(path)
}

fn etcd(section: &Node<'_>, trusted: Option<PathBuf>, files: &Files<'_>) -> EtcdConfig {
    if section.is_absent() {
        section.mistake("is missing; write host and prefix, or choose another config_provider");
    }
    let hosts = match files.env.var(HOST_VARIABLE) {
        Some(text) => hosts_of_variable(text, section),
        None => hosts(&section.at("host")),
    };
    let prefix = section.at("prefix");
    if prefix.is_absent() && !section.is_absent() {
        prefix.mistake("is missing; APISIX's is /apisix");
    }
    let prefix_text = prefix.string().unwrap_or_default();
    if prefix_text.ends_with('/') {
        prefix.warn(format!("ends in a slash, which is kept, as in APISIX: keys begin with {prefix_text}/"));
    }
    let tls = section.at("tls");
    let config = EtcdConfig {
        prefix: prefix_text.into(),
        auth: auth(section),
        timeout: Duration::from_secs(section.at("timeout").integer(1..=86_400).unwrap_or(30)),
        tls_verify: tls.at("verify").boolean().unwrap_or(true),
        tls_sni: tls.at("sni").string().map(Into::into),
        tls_cert: client_certificate(&tls, files),
        trusted,
        hosts,
    };
    let https = config.hosts.iter().any(|host| host.starts_with("https:"));
    if https && config.tls_verify && config.trusted.is_none() {
        section.warn("no CA bundle was found to verify etcd with; set apisix.ssl.ssl_trusted_certificate");
    }
    config
}

fn auth(section: &Node<'_>) -> Option<(Box<str>, Box<str>)> {
    let (user, password) = (section.at("user"), section.at("password"));
    match (user.string(), password.secret()) {
        (Some(name), Some(word)) => Some((name.into(), word.into())),
        (Some(_), None) if password.is_absent() => {
            user.warn("is set without password: no authentication is made, as in APISIX");
            None
        }
        (None, Some(_)) if user.is_absent() => {
            password.warn("is set without user: no authentication is made, as in APISIX");
            None
        }
        _ => None,
    }
}

fn client_certificate(tls: &Node<'_>, files: &Files<'_>) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = (tls.at("cert"), tls.at("key"));
    for (present, absent) in [(&cert, &key), (&key, &cert)] {
        if !present.is_absent() && absent.is_absent() {
            absent.mistake("is missing; a client certificate needs both cert and key");
        }
    }
    let cert = files.existing(&cert, &files.prefix);
    let key = files.existing(&key, &files.prefix);
    cert.zip(key)
}

fn hosts(list: &Node<'_>) -> Vec<Box<str>> {
    if list.is_absent() || list.value().and_then(|value| value.as_array()).is_some_and(Vec::is_empty) {
        list.mistake("is missing; write a list such as [\"http://127.0.0.1:2379\"]");
    }
    let read = |node: &Node<'_>| {
        let text = node.string()?;
        endpoint(text).map_err(|why| node.mistake(format!("is {text:?}, {why}"))).ok()
    };
    list.items().unwrap_or_default().iter().filter_map(read).collect()
}

/// A JSON list of texts, or one text.
fn hosts_of_variable(text: &str, section: &Node<'_>) -> Vec<Box<str>> {
    let mistake = |why: String| section.report().mistake(HOST_VARIABLE, why);
    let list: Vec<String> = match serde_json::from_str(text) {
        Ok(serde_json::Value::String(host)) => vec![host],
        Ok(list @ serde_json::Value::Array(_)) => serde_json::from_value(list).unwrap_or_default(),
        _ => Vec::new(),
    };
    if list.is_empty() {
        mistake(format!("is {text:?}; a JSON list such as [\"http://10.0.0.1:2379\"] is allowed"));
    }
    let read = |text: String| endpoint(&text).map_err(|why| mistake(format!("has {text:?}, {why}"))).ok();
    list.into_iter().filter_map(read).collect()
}

/// Checks an endpoint and cuts off a final slash.
fn endpoint(text: &str) -> Result<Box<str>, &'static str> {
    const FORM: &str =
        "which is no endpoint; write such as http://10.0.0.1:2379 or https://etcd.internal:2379";
    let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).ok_or(FORM)?;
    let authority = authority.trim_end_matches('/');
    if authority.contains('@') {
        return Err("which holds a user; write deployment.etcd.user and password instead");
    }
    if authority.contains(['/', '?', '#']) || authority.contains(char::is_whitespace) {
        return Err("which has more than scheme, host and port");
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(FORM)?) };
            (host, port)
        }
        Some(_) => return Err(FORM),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if host.is_empty() || !port_fits {
        return Err(FORM);
    }
    Ok(text.trim_end_matches('/').into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(endpoint(text).ok().as_deref(), expected, "{text}");
    }

    #[test]
    fn endpoints_have_scheme_host_and_port_alone() {
        check("http://127.0.0.1:2379", Some("http://127.0.0.1:2379"));
        check("https://etcd.internal:2379/", Some("https://etcd.internal:2379"));
        check("http://[::1]:2379", Some("http://[::1]:2379"));
        check("http://[::1]", Some("http://[::1]"));
        check("http://etcd", Some("http://etcd"));
        check("127.0.0.1:2379", None);
        check("ftp://x:1", None);
        check("http://", None);
        check("http://x:0", None);
        check("http://x:99999", None);
        check("http://x:", None);
        check("http://::1:2379", None);
        check("http://[::1]x", None);
        check("http://user:pw@x:2379", None);
        check("http://x:2379/v3", None);
    }
}
