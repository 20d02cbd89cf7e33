//! Whole configurations: text in, `Config` or mistakes out.

mod control;
mod listens;
mod per_listen;
mod registries;
mod registry_dns;
mod source;
mod ssl;
mod upstream_tls;

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use super::*;

/// What every test starts from: one listen, and the objects of etcd.
const BASE: &str = "apisix:\n  proxy_mode: http&stream\n  stream_proxy: {tcp: [9100]}\n";

fn world(vars: &[(&str, &str)]) -> Environment {
    let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let exists = |path: &Path| !path.ends_with("absent.pem");
    Environment { vars, cwd: "/work-dir".into(), cores: 4, exists, read: text_of }
}

/// What the files of the world hold, by the end of their name: a certificate but where it says otherwise.
fn text_of(path: &Path) -> io::Result<String> {
    match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("empty") => Ok("no certificate\n".into()),
        Some("cut") => Ok(CERTIFICATE.replace("-----END CERTIFICATE-----", "")),
        Some("nonsense") => Ok("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into()),
        Some("bytes") => Err(io::ErrorKind::InvalidData.into()),
        Some("secret") => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Ok(CERTIFICATE.clone()),
    }
}

static CERTIFICATE: LazyLock<String> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap();
    made.cert.pem()
});

fn read_in(env: &Environment, text: &str) -> Result<Config, Mistakes> {
    Config::from_text(text, Path::new("/gate/conf/config.yaml"), env)
}

#[track_caller]
fn read(text: &str) -> Config {
    read_in(&world(&[]), text).unwrap_or_else(|mistakes| panic!("{text}\n{mistakes}"))
}

/// All mistakes of a text, one a line.
#[track_caller]
fn told(text: &str) -> String {
    match read_in(&world(&[]), text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(mistakes) => mistakes.to_string(),
    }
}

#[track_caller]
fn check(text: &str, mistakes: &[&str]) {
    let told = told(text);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines.len(), mistakes.len(), "{text}\n{told}");
    for (line, start) in lines.iter().zip(mistakes) {
        assert!(line.starts_with(start), "{text}\n{line}\nis not {start}");
    }
}

/// The base with more sections.
fn with(more: &str) -> String {
    format!("{BASE}{more}")
}

fn etcd(config: &Config) -> &EtcdConfig {
    match &config.source {
        Source::Etcd(etcd) => etcd,
        Source::File(path) => panic!("{}", path.display()),
    }
}

#[test]
fn what_is_not_written_is_apisix_default() {
    let config = read(BASE);
    assert_eq!(config.listens.len(), 1);
    assert_eq!(config.listens[0].addr, "0.0.0.0:9100".parse().unwrap());
    assert_eq!(config.workers, 4);
    assert_eq!(config.shutdown_timeout, Duration::from_mins(4));
    assert_eq!(&*config.log_level, "warn");
    assert_eq!(config.status, None);
    assert_eq!(
        config.rules.stream_plugins.join(" "),
        "ip-restriction limit-bandwidth limit-conn limit-rate mqtt-proxy syslog traffic-split"
    );
    assert_eq!(config.rules.keyring.join(" "), "qeddd145sfvddff3 edd1c9f0985e76a2");
    assert!(!config.rules.plugins_key_counts && !config.rules.standalone);
    let prometheus = config.prometheus.as_ref().unwrap();
    assert_eq!(prometheus.addr, "127.0.0.1:9091".parse().unwrap());
    assert_eq!((&*prometheus.uri, &*prometheus.prefix), ("/apisix/prometheus/metrics", "apisix_"));
    assert_eq!(prometheus.max_series, 200_000);
    assert_eq!(config.limits, Limits { udp_associations: 65_536, sessions: None });
    assert!(!config.access_log.enabled);
    assert_eq!(config.access_log.path, PathBuf::from("/gate/logs/access_stream.log"));
    let etcd = etcd(&config);
    assert_eq!(etcd.hosts.join(" "), "http://127.0.0.1:2379");
    assert_eq!((&*etcd.prefix, etcd.timeout, etcd.tls_verify), ("/apisix", Duration::from_secs(30), true));
    assert_eq!(etcd.trusted, Some(PathBuf::from("/etc/ssl/certs/ca-certificates.crt")));
    assert_eq!(config.dns.timeout, Duration::from_secs(5));
    assert!(config.dns.search && config.dns.ipv6 && config.dns.servers.is_empty());
    assert_eq!(config.upstream_tls, UpstreamTlsConfig::default());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn an_empty_file_is_apisix_without_streams() {
    for text in ["", "# nothing\n", "apisix: {proxy_mode: http}"] {
        check(text, &["apisix.proxy_mode: is \"http\", APISIX's default"]);
    }
}

#[test]
fn all_mistakes_are_told_in_document_order() {
    check(
        "nginx_config: {worker_processes: 0}\ndeployment: {role: boss, etcd: {host: x}}\n\
         apisix:\n  ssl: 5\n  proxy_mode: stream\n  stream_proxy: {udp: [1-0], tcp: [0]}\n  resolver_timeout: fast\nstreamgate: {x: 1}\n",
        &[
            "nginx_config.worker_processes: is 0; auto or a whole number 1..1024",
            "deployment.role: is \"boss\"; allowed are",
            "deployment.etcd.host: is \"x\"; a map or list",
            "apisix.ssl: is 5; a map or list is expected",
            "apisix.stream_proxy.udp[0]: port out of range (1-65535): 0",
            "apisix.stream_proxy.tcp[0]: port out of range",
            "apisix.resolver_timeout: is \"fast\"; a number is expected",
            "streamgate.x: x is no setting here; known are allow_port_zero, ignored_directives,",
        ],
    );
    check("a: 1\na: 2\n", &["/gate/conf/config.yaml: cannot be read as YAML: "]);
    check("apisix:\n", &["apisix: is empty, which removes all its defaults"]);
}

#[test]
fn the_environment_has_its_say() {
    let env = world(&[
        ("APISIX_WORKER_PROCESSES", "2.7"),
        ("APISIX_DEPLOYMENT_ETCD_HOST", "[\"http://x:1\",\"http://y:2\"]"),
        ("PORT", "9105"),
    ]);
    let config = read_in(&env, &BASE.replace("9100", "\"${{PORT}}\", \"127.0.0.1:${{PORT}}\"")).unwrap();
    assert_eq!(config.workers, 2);
    assert_eq!(etcd(&config).hosts.join(" "), "http://x:1 http://y:2");
    let written: Vec<_> = config.listens.iter().map(|it| &*it.written).collect();
    assert_eq!(written, ["9105", "127.0.0.1:9105"]);
    for (name, value) in [
        ("APISIX_WORKER_PROCESSES", "many"),
        ("APISIX_WORKER_PROCESSES", "0"),
        ("APISIX_DEPLOYMENT_ETCD_HOST", "http://x:1"),
        ("APISIX_DEPLOYMENT_ETCD_HOST", "[1]"),
    ] {
        let told = read_in(&world(&[(name, value)]), BASE).unwrap_err().to_string();
        assert!(told.starts_with(&format!("{name}: is {value:?}")), "{told}");
    }
    check(&with("x: ${{NOT_SET}}"), &["x: can't find environment variable NOT_SET"]);
    let variables = &config.rules.environment;
    assert_eq!((variables.get("PORT"), variables.get("NOT_SET")), (Some("9105"), None));
    let debug = format!("{:?}", config.rules);
    assert!(debug.contains("Variables(3)") && !debug.contains("9105"), "{debug}");
    assert_eq!(RulesConfig::everything().environment, Variables::default());
}

#[track_caller]
fn check_workers(nginx: &str, workers: usize) {
    assert_eq!(read(&with(&format!("nginx_config: {nginx}\n"))).workers, workers, "{nginx}");
}

#[test]
fn workers() {
    check_workers("{worker_processes: auto}", 4);
    check_workers("{worker_processes: 3}", 3);
    check_workers("{worker_processes: \"3\"}", 3);
    check_workers("{worker_processes: all}", 4);
    check_workers("{worker_processes: null}", 4);
    let config = read("apisix: {enable_dev_mode: true, proxy_mode: stream, stream_proxy: {tcp: [1]}}");
    assert_eq!(config.workers, 1);
    check(&with("nginx_config: {worker_processes: 1.5}"), &["nginx_config.worker_processes: is 1.5"]);
}

#[test]
fn nginx_config_is_honoured_where_it_can_be() {
    let config = read(&with(
        "nginx_config:\n  worker_shutdown_timeout: 1m 30s\n  error_log_level: notice\n  user: nobody\n  http: {x: 1}\n  event: {worker_connections: 1}\n\
         \x20 stream:\n    real_ip_from: [10.1.2.3/8, \"unix:\", \"::1\"]\n    enable_access_log: true\n    access_log: /var/log/a.log\n\
         \x20   access_log_format: |\n      {\"a\": \\\"$remote_addr\\\"}\n    access_log_format_escape: json\n",
    ));
    assert_eq!(config.shutdown_timeout, Duration::from_secs(90));
    assert_eq!(&*config.log_level, "info");
    assert_eq!(
        config.real_ip_from.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "::1"]
    );
    assert_eq!(
        config.access_log,
        AccessLog {
            enabled: true,
            path: "/var/log/a.log".into(),
            format: "{\"a\": \"$remote_addr\"}".into(),
            escape: Escape::Json,
        }
    );
    let warnings = [
        "nginx_config.user: has no effect; start streamgate as nobody",
        "nginx_config.stream.real_ip_from[1]: has no effect; no listen is a unix socket",
    ];
    assert_eq!(config.warnings.len(), warnings.len(), "{:?}", config.warnings);
    for (warning, start) in config.warnings.iter().zip(warnings) {
        assert!(warning.starts_with(start), "{warning}");
    }
    assert_eq!(read(&with("nginx_config: {worker_shutdown_timeout: 240}")).shutdown_timeout.as_secs(), 240);
    assert!(read(&with("nginx_config: {worker_shutdown_timeout: 0}")).shutdown_timeout.as_secs() > 1_000_000);
    check(
        &with("nginx_config: {worker_shutdown_timeout: soon}"),
        &["nginx_config.worker_shutdown_timeout: is \"soon\""],
    );
    check(
        &with("nginx_config: {error_log_level: loud}"),
        &["nginx_config.error_log_level: is \"loud\"; allowed are debug"],
    );
    check(
        &with("nginx_config: {stream: {real_ip_from: [lb.internal, 10.0.0.0/33, \"unix:/x\", 5]}}"),
        &[
            "nginx_config.stream.real_ip_from[0]: `lb.internal` has no IPv4 or IPv6 address",
            "nginx_config.stream.real_ip_from[1]: `10.0.0.0/33` has a mask too long",
            "nginx_config.stream.real_ip_from[2]: `unix:/x` has no",
            "nginx_config.stream.real_ip_from[3]: is 5; a text",
        ],
    );
    check(
        &with("nginx_config: {stream: {real_ip_from: 10.0.0.1}}"),
        &["nginx_config.stream.real_ip_from: is \"10.0.0.1\"; a list is allowed"],
    );
    check(
        &with("nginx_config: {stream: {enable_access_log: true, access_log: \"syslog:server=x\"}}"),
        &["nginx_config.stream.access_log: is"],
    );
    check(&with("nginx_config: {stream: text}"), &["nginx_config.stream: is \"text\"; a map is allowed"]);
}

#[test]
fn snippets_that_change_traffic_stop_the_start() {
    let snippet = "nginx_config:\n  stream_configuration_snippet: |\n    # ours\n    log_format x '$status';\n    proxy_timeout 10m;\n    server {\n      listen 1;\n    }\n    allow 10.0.0.0/8; deny all;\n  main_configuration_snippet: |\n    include other.conf;\n";
    check(
        &with(snippet),
        &[
            "nginx_config.stream_configuration_snippet: line 3: `proxy_timeout 10m` may change traffic",
            "nginx_config.stream_configuration_snippet: line 4: `server` may change traffic",
            "nginx_config.stream_configuration_snippet: line 7: `allow 10.0.0.0/8` may",
            "nginx_config.stream_configuration_snippet: line 7: `deny all` may",
            "nginx_config.main_configuration_snippet: line 1: `include other.conf` may",
        ],
    );
    let ignored = with(&format!(
        "{snippet}streamgate: {{ignored_directives: [proxy_timeout, server, allow, deny, include, preread_timeout]}}\n"
    ));
    assert_eq!(
        read(&ignored).warnings,
        [
            "nginx_config.stream_configuration_snippet: without effect: log_format, proxy_timeout, server, allow, deny",
            "nginx_config.main_configuration_snippet: without effect: include",
            "streamgate.ignored_directives[5]: no snippet has the directive preread_timeout; the entry can go",
        ]
    );
    check(
        &with("nginx_config: {stream_configuration_snippet: \"allow all\"}"),
        &["nginx_config.stream_configuration_snippet: line 1: the directive has no `;`"],
    );
    assert!(read(&with("nginx_config: {http_configuration_snippet: \"deny all;\"}")).warnings.is_empty());
}

#[test]
fn plugins_and_prometheus() {
    let config = read(&with(
        "stream_plugins: [prometheus]\nxrpc: {protocols: [{name: redis}, {name: dubbo}]}\nplugin_attr:\n  prometheus:\n    export_addr: {ip: \"::1\", port: 9}\n    export_uri: /m\n    metric_prefix: x_\n\
         \x20   metrics:\n      stream_status: {extra_labels: [{upstream: $upstream_addr}, {peer: $remote_addr}]}\n      http_status: {extra_labels: 5}\n",
    ));
    assert_eq!(config.rules.stream_plugins.join(" "), "prometheus");
    assert_eq!(config.rules.xrpc_protocols.join(" "), "redis dubbo");
    let prometheus = config.prometheus.unwrap();
    assert_eq!(
        (prometheus.addr.to_string().as_str(), &*prometheus.uri, &*prometheus.prefix),
        ("[::1]:9", "/m", "x_")
    );
    let labels = vec![("upstream".into(), "upstream_addr".into()), ("peer".into(), "remote_addr".into())];
    assert_eq!(prometheus.extra_labels, [ExtraLabels { metric: "stream_status".into(), labels }]);
    assert!(read(&with("plugin_attr: {prometheus: {enable_export_server: false}}")).prometheus.is_none());
    assert!(
        read(&with("plugin_attr: {prometheus: null}\nstream_plugins: null")).rules.stream_plugins.is_empty()
    );
    check(
        &with("stream_plugins: [prometheus]\nplugin_attr: {prometheus: {enable_export_server: false}}"),
        &[
            "plugin_attr.prometheus.enable_export_server: L4 prometheus metric should be exposed via export server",
        ],
    );
    check(
        &with("stream_plugins: [1]\nxrpc: {protocols: [{name: mysql}, {}, x]}"),
        &[
            "stream_plugins[0]: is 1; a text",
            "xrpc.protocols[0].name: is \"mysql\"; allowed are redis, dubbo",
            "xrpc.protocols[1].name: is missing",
            "xrpc.protocols[2]: is \"x\"; a map",
        ],
    );
    check(
        &with("plugin_attr: {prometheus: {export_uri: m, metric_prefix: 1-x, export_addr: {ip: host}}}"),
        &[
            "plugin_attr.prometheus.export_uri: is \"m\"",
            "plugin_attr.prometheus.metric_prefix: is \"1-x\"",
            "plugin_attr.prometheus.export_addr.ip: is \"host\"",
        ],
    );
}

#[test]
fn servers_of_one_process_have_addresses_of_their_own() {
    let base =
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [\"127.0.0.1:7085\"]}, status: {port: 9091}}\n";
    check(base, &["apisix.status: 127.0.0.1:9091 is the address of plugin_attr.prometheus.export_addr too"]);
    check(
        &base.replace("9091", "7085"),
        &["apisix.status: 127.0.0.1:7085 is the address of the listen 127.0.0.1:7085 too"],
    );
    let config = read(
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [1]}, status: {ip: 10.0.0.1}, disable_upstream_healthcheck: true}",
    );
    assert_eq!(config.status, Some("10.0.0.1:7085".parse().unwrap()));
    assert!(config.disable_healthcheck);
}

#[test]
fn slips_of_the_pen_are_pointed_out() {
    let text = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [{addr: 1, tsl: true}]}, stream_prxy: {tcp: [2]}}\netcd: {host: [x]}\ndiscovery: {tars: {}}\nsomething_else: 1\n";
    assert_eq!(
        read(text).warnings,
        [
            "apisix.stream_proxy.tcp[0].tsl: is no key that APISIX or streamgate knows and has no effect; is tls meant?",
            "apisix.stream_prxy: is no key that APISIX or streamgate knows and has no effect; is stream_proxy meant?",
            "etcd: has no effect since APISIX 3.0; write it below deployment",
            "discovery.tars: discovery by tars is not built; upstreams that use it have no node",
        ]
    );
}

#[test]
fn a_hup_can_follow_some_changes_only() {
    let old = read(BASE);
    assert!(old.changes_needing_restart(&old).is_empty());
    let listens = read(&BASE.replace("9100", "9100, 9101"));
    assert!(old.changes_needing_restart(&listens).is_empty());
    let trusting = read(&with("nginx_config: {stream: {real_ip_from: [10.0.0.0/8]}}\n"));
    assert!(old.changes_needing_restart(&trusting).is_empty());
    let new = read(&with(
        "nginx_config: {worker_processes: 2, worker_shutdown_timeout: 1s}\ndeployment: {etcd: {host: [\"http://b:1\"], password: secret, user: u}}\n\
         plugin_attr: {prometheus: {export_addr: {port: 1}}}\nstream_plugins: []\nstreamgate: {max_sessions: 1}\n",
    ));
    assert_eq!(
        old.changes_needing_restart(&new),
        [
            "nginx_config.worker_processes: 4 to 2 workers: takes effect after a restart",
            "deployment: objects from etcd http://b:1 under /apisix instead of etcd http://127.0.0.1:2379 under /apisix: takes effect after a restart",
            "plugin_attr.prometheus.export_addr: 127.0.0.1:9091 to 127.0.0.1:1: takes effect after a restart",
            "stream_plugins, xrpc.protocols or apisix.data_encryption: takes effect after a restart",
            "streamgate.max_sessions or streamgate.udp.max_associations: takes effect after a restart",
        ]
    );
}

/// Every block of the page that is fenced as `yaml` alone is a whole configuration.
#[test]
fn the_examples_of_the_documentation_are_read() {
    let page = include_str!("../../docs/config.md");
    let blocks: Vec<_> =
        page.split("\n```yaml\n").skip(1).filter_map(|rest| rest.split_once("\n```")).collect();
    assert!(blocks.len() >= 2, "{} examples", blocks.len());
    for (block, _) in blocks {
        read_in(&world(&[("ETCD_PASSWORD", "pw")]), block)
            .unwrap_or_else(|mistakes| panic!("{block}\n{mistakes}"));
    }
}

/// The keys that the section of `entries`, which has one that is unknown, says it knows.
#[track_caller]
fn known_keys(entries: &str) -> Vec<String> {
    let told = told(&with(&format!("streamgate: {entries}\n")));
    let (_, known) = told.split_once(" is no setting here; known are ").unwrap();
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_documentation_names_every_key_of_ours() {
    let page = include_str!("../../docs/config.md");
    for (section, entries) in [
        ("", "{x: 1}"),
        ("listens.<listen>.", "{listens: {9100: {x: 1}}}"),
        ("metrics.", "{metrics: {x: 1}}"),
        ("udp.", "{udp: {x: 1}}"),
        ("upstream_tls.", "{upstream_tls: {x: 1}}"),
        ("upstreams.<id>.", "{upstreams: {7: {x: 1}}}"),
    ] {
        for key in known_keys(entries) {
            let row = |after| page.contains(&format!("\n| `{section}{key}{after}"));
            assert!(row('`') || row('.'), "streamgate.{section}{key} has no row in docs/config.md");
        }
    }
}
