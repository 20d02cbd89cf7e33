//! Text to [`Config`]: YAML, variables, defaults, then every section in turn.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use super::Config;
use super::Environment;
use super::Listen;
use super::Mistakes;
use super::RulesConfig;
use super::Source;
use super::Variables;
use super::apisix;
use super::defaults;
use super::deployment;
use super::env::substitute;
use super::extensions;
use super::files::Files;
use super::known;
use super::listen;
use super::merge::merge;
use super::nginx;
use super::ours;
use super::prometheus;
use super::read::Node;
use super::registries;
use super::report::Report;
use super::session_log;
use super::upstream_tls;
use super::yaml;
use crate::session::Transport;

impl Config {
    /// Reads the text of the config.yaml that lies at `file`; relative paths in it start there.
    ///
    /// # Errors
    /// Every mistake of the text, in its order.
    pub fn from_text(text: &str, file: &Path, env: &Environment) -> Result<Self, Mistakes> {
        let document = yaml::parse(text).map_err(|why| Mistakes::one(file.display().to_string(), why))?;
        let report = Report::default();
        let document = substitute(Value::Object(document), "", env, &report);
        let mut tree = defaults::tree();
        if let Value::Object(user) = document.clone() {
            merge(&mut tree, user, "", &report);
        }
        let tree = Value::Object(tree);
        let root = Node::root(&tree, &report);
        let mut config = read(&root, &Files::around(file, env));
        known::warn_of_slips(&root);
        config.warnings = report.close(&document)?;
        Ok(config)
    }
}

fn read(root: &Node<'_>, files: &Files<'_>) -> Config {
    for section in ["apisix", "deployment"] {
        let node = root.at(section);
        if node.is_absent() {
            node.mistake(
                "is empty, which removes all its defaults; leave the key out, or write settings below it",
            );
        }
    }
    let (apisix, nginx) = (root.at("apisix"), root.at("nginx_config"));
    let stream = nginx.at("stream");
    let ours = ours::read(&root.at("streamgate"));
    let mut listens = listen::read(&apisix, ours.allow_port_zero);
    apisix::proxy_mode(&apisix, !listens.is_empty());
    ours.apply(&mut listens);
    let ssl = apisix::ssl(&apisix, files);
    apisix::warn_of_protocols(&apisix, &listens);
    let upstream_tls = upstream_tls::read(&root.at("streamgate"), ssl.trusted.as_deref(), files);
    let extensions = extensions::read(&root.at("streamgate").at("upstreams"));
    let deployment = deployment::read(root, &ours, ssl.trusted.clone(), files);
    let stream_plugins = root.at("stream_plugins").strings();
    let prometheus = prometheus::read(root, &stream_plugins, &ours);
    let status = apisix::status(&apisix, ours.allow_port_zero);
    let control = apisix::control(&apisix, ours.allow_port_zero);
    let dns = apisix::dns(&apisix);
    let registries = registries::read(root, &dns, files);
    nginx::snippets(&nginx, &ours);
    nginx::warn_of_the_idle(root);
    let mut config = Config {
        rules: RulesConfig {
            stream_plugins,
            xrpc_protocols: apisix::xrpc_protocols(root),
            keyring: apisix::keyring(&apisix),
            plugins_key_counts: !deployment.enable_admin,
            standalone: matches!(deployment.source, Source::File(_)),
            environment: Variables::new(files.env.vars.clone()),
        },
        source: deployment.source,
        dns,
        registries,
        ssl,
        upstream_tls,
        extensions,
        prometheus,
        status,
        control,
        workers: nginx::workers(root, files),
        cpu_affinity: nginx.at("enable_cpu_affinity").boolean().unwrap_or(false),
        shutdown_timeout: nginx::shutdown_timeout(&nginx),
        real_ip_from: nginx::real_ip_from(&stream),
        log_level: nginx::log_level(&nginx),
        access_log: nginx::access_log(&stream, files),
        session_log: session_log::read(&root.at("streamgate").at("session_log"), files),
        disable_healthcheck: apisix.at("disable_upstream_healthcheck").boolean().unwrap_or(false),
        limits: ours.limits,
        listens,
        warnings: Vec::new(),
    };
    yield_default_control(&mut config, root);
    refuse_shared_addresses(&config, root);
    config
}

/// Nobody who wrote 9090 for something else asked for the control API there: it gives way.
fn yield_default_control(config: &mut Config, root: &Node<'_>) {
    let Some(control) = config.control.filter(|control| !control.written) else { return };
    let tcp = config.listens.iter().filter(|listen| listen.transport == Transport::Tcp);
    let others = tcp.map(|listen| listen.addr);
    let others = others.chain(config.prometheus.as_ref().map(|it| it.addr)).chain(config.status);
    let overlaps = |other: SocketAddr| {
        other.port() == control.addr.port()
            && (other.ip() == control.addr.ip() || other.ip().is_unspecified())
    };
    if let Some(other) = { others }.find(|other| overlaps(*other)) {
        root.report().warn(
            "apisix.control",
            format!(
                "the control API is off: its default {} is taken by {other}; write another port",
                control.addr
            ),
        );
        config.control = None;
    }
}

/// Two servers of this process on one address: one would never answer.
fn refuse_shared_addresses(config: &Config, root: &Node<'_>) {
    let tcp = |listen: &&Listen| listen.transport == Transport::Tcp;
    let mut taken: HashMap<SocketAddr, String> = config
        .listens
        .iter()
        .filter(tcp)
        .map(|listen| (listen.addr, format!("the listen {}", listen.written)))
        .collect();
    let servers = [
        ("plugin_attr.prometheus.export_addr", config.prometheus.as_ref().map(|it| it.addr)),
        ("apisix.status", config.status),
        ("apisix.control", config.control.map(|it| it.addr)),
    ];
    for (path, addr) in servers {
        let Some(addr) = addr.filter(|addr| addr.port() != 0) else { continue };
        if let Some(other) = taken.insert(addr, path.to_owned()) {
            root.report().mistake(
                path,
                format!("{addr} is the address of {other} too; give one of them another port"),
            );
        }
    }
}
