//! The configurations of the proxies, from the templates in `benches/peers`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::{HASH, LEAST_CONN, PLUGINS, Proxy, Stage};
use crate::compare::tls::{PASSTHROUGH, PLAIN};
use crate::compare::upstream::{DATAGRAMS, DRAIN, ECHO, NODES, SINK, SOURCE};
use crate::routes::other_route;

/// Routes that streamgate has beside those in use.
const OTHER_ROUTES: usize = 1_000;

const STREAMGATE: &str = include_str!("../../../../benches/peers/streamgate.yaml");
const STREAMGATE_TLS: &str = include_str!("../../../../benches/peers/streamgate-tls.yaml");
const NGINX: &str = include_str!("../../../../benches/peers/nginx.conf");
const NGINX_TLS: &str = include_str!("../../../../benches/peers/nginx-tls.conf");
const HAPROXY: &str = include_str!("../../../../benches/peers/haproxy.cfg");
const ENVOY: &str = include_str!("../../../../benches/peers/envoy.yaml");
const SPLICE: &[(&str, &str)] =
    &[("@PIPES@", "maxpipes 200"), ("@SPLICE@", "option splice-request\n  option splice-response")];

/// What every session of a route with six plugins goes through and none is refused by: the greeting of
/// [`client::GREETING`](crate::compare::client::GREETING) is an MQTT CONNECT.
const SIX_PLUGINS: &str = r#"{"ip-restriction": {"blacklist": ["203.0.113.0/24", "2001:db8::/32"]}, "limit-conn": {"conn": 10000, "burst": 100, "default_conn_delay": 0.1, "key": "remote_addr"}, "mqtt-proxy": {"protocol_level": 4}, "traffic-split": {"rules": [{"match": [{"vars": [["server_port", "==", "7008"]]}], "weighted_upstreams": [{"weight": 1}]}]}, "prometheus": {}, "syslog": {"host": "@UPSTREAM@", "port": 7005, "sock_type": "udp", "log_format": {"client": "$remote_addr", "port": "$remote_port", "status": "$status", "sent": "$bytes_sent", "received": "$bytes_received", "time": "$session_time", "upstream": "$upstream_addr"}}}"#;

type Template = (&'static str, &'static [(&'static str, &'static str)]);

/// Writes the configuration of a proxy on the first of two addresses with its upstream on the second; the
/// arguments of the program, the file last.
pub(in crate::compare) fn set_up(
    proxy: Proxy,
    stage: Stage,
    folder: &Path,
    [ip, upstream]: [Ipv4Addr; 2],
) -> io::Result<Vec<String>> {
    let (template, values) = template(proxy, stage)?;
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let mut text = template
        .replace("@LISTEN@", &ip.to_string())
        .replace("@UPSTREAM@", &upstream.to_string())
        .replace("@SERVERS@", &servers(upstream))
        .replace("@ACCESS_LOG@", if proxy == Proxy::StreamgateLogged { "true" } else { "false" })
        .replace("@FOLDER@", &folder.to_string_lossy())
        .replace("@FILES@", &files.to_string());
    for (name, value) in values {
        text = text.replace(name, value);
    }
    // Envoy reads YAML only from a file of that ending.
    let file = folder.join("config.yaml");
    fs::write(&file, text)?;
    let mut objects = objects(stage, upstream);
    if proxy == Proxy::StreamgateSilent {
        objects = objects.replace(r#""plugins": {"prometheus": {}}, "#, "");
    }
    fs::write(folder.join("apisix.yaml"), objects)?;
    if let Stage::Tls(certificate) = stage {
        fs::write(folder.join("certificate.pem"), &certificate.pem)?;
        fs::write(folder.join("key.pem"), &certificate.key_pem)?;
    }
    let words = match proxy {
        Proxy::Streamgate | Proxy::StreamgateSilent | Proxy::StreamgateLogged => "run -c",
        Proxy::Nginx | Proxy::NginxLargeBuffer => "-e stderr -c",
        Proxy::Haproxy | Proxy::HaproxySplice => "-db -f",
        Proxy::Envoy => "--concurrency 1 --disable-hot-restart --log-level error -c",
    };
    Ok(words.split(' ').map(str::to_owned).chain([file.to_string_lossy().into_owned()]).collect())
}

fn template(proxy: Proxy, stage: Stage) -> io::Result<Template> {
    Ok(match (stage, proxy) {
        (Stage::Plain, Proxy::Streamgate | Proxy::StreamgateSilent | Proxy::StreamgateLogged) => {
            (STREAMGATE, &[])
        }
        (Stage::Plain, Proxy::Nginx) => (NGINX, &[("@BUFFER@", "")]),
        (Stage::Plain, Proxy::NginxLargeBuffer) => (NGINX, &[("@BUFFER@", "proxy_buffer_size 64k;")]),
        (Stage::Plain, Proxy::Haproxy) => (HAPROXY, &[("@PIPES@", ""), ("@SPLICE@", "")]),
        (Stage::Plain, Proxy::HaproxySplice) => (HAPROXY, SPLICE),
        (Stage::Plain, Proxy::Envoy) => (ENVOY, &[]),
        (Stage::Tls(_), Proxy::Streamgate) => (STREAMGATE_TLS, &[]),
        (Stage::Tls(_), Proxy::Nginx) => (NGINX_TLS, &[]),
        (Stage::Tls(_), other) => {
            return Err(io::Error::other(format!("{} is not measured with TLS", other.name())));
        }
    })
}

/// The ports in use: those of the proxy, each with that of the upstream.
fn ports(stage: Stage) -> Vec<(u16, u16)> {
    let same = |ports: &[u16]| ports.iter().map(|port| (*port, *port)).collect();
    match stage {
        Stage::Plain => same(&[ECHO, SOURCE, DATAGRAMS, SINK]),
        Stage::Tls(_) => {
            let mut ports: Vec<_> = same(&[ECHO, SOURCE, DRAIN]);
            for more in [PASSTHROUGH, PLAIN] {
                ports.extend([SOURCE, DRAIN].map(|port| (port + more, port)));
            }
            ports
        }
    }
}

/// Streamgate's `apisix.yaml`: the routes in use among many others, and the certificate.
fn objects(stage: Stage, upstream: Ipv4Addr) -> String {
    let mut text = String::from("stream_routes:\n");
    for (port, to) in ports(stage) {
        let node = SocketAddr::from((IpAddr::from(upstream), to));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            r#"  - {{"id": "in-use-{port}", "server_port": {port}, "plugins": {{"prometheus": {{}}}}, "upstream": {{"type": "roundrobin", "timeout": {{"connect": 5, "send": 600, "read": 600}}, "nodes": {{"{node}": 1}}}}}}"#
        );
    }
    if matches!(stage, Stage::Plain) {
        text.push_str(&balanced(upstream));
        let (node, plugins) = (SocketAddr::from((IpAddr::from(upstream), ECHO)), six_plugins(upstream));
        let _ = writeln!(
            text,
            r#"  - {{"id": "through-{PLUGINS}", "server_port": {PLUGINS}, "plugins": {plugins}, "upstream": {{"type": "roundrobin", "nodes": {{"{node}": 1}}}}}}"#
        );
    }
    for (key, value) in (0..OTHER_ROUTES).map(other_route) {
        let id = key.rsplit('/').next().unwrap_or_default();
        let fields = value.trim_start_matches('{');
        let _ = writeln!(text, r#"  - {{"id": "{id}", {fields}"#);
    }
    if let Stage::Tls(certificate) = stage {
        // The string escapes of JSON are among those of YAML.
        let _ = writeln!(text, "ssls:\n  - {}", certificate.ssl(1));
    }
    text.push_str("#END\n");
    text
}

fn six_plugins(upstream: Ipv4Addr) -> String {
    SIX_PLUGINS.replace("@UPSTREAM@", &upstream.to_string())
}

/// The routes of streamgate with several nodes.
fn balanced(upstream: Ipv4Addr) -> String {
    let nodes: Vec<String> = NODES.map(|port| format!(r#""{upstream}:{port}": 1"#)).collect();
    let nodes = nodes.join(", ");
    let how = [
        (LEAST_CONN, r#""type": "least_conn""#),
        (HASH, r#""type": "chash", "hash_on": "vars_combinations", "key": "$remote_addr$remote_port""#),
    ];
    how.map(|(port, how)| {
        format!(
            r#"  - {{"id": "among-{port}", "server_port": {port}, "plugins": {{"prometheus": {{}}}}, "upstream": {{{how}, "nodes": {{{nodes}}}}}}}
"#
        )
    })
    .concat()
}

/// The servers of nginx's upstreams.
fn servers(upstream: Ipv4Addr) -> String {
    NODES.map(|port| format!("server {upstream}:{port};")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Certificate;
    use crate::compare::metric::Work;

    const IPS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 71, 0, 3), Ipv4Addr::new(127, 71, 0, 2)];

    #[test]
    fn templates_are_filled_whole() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::ecdsa("a.test").unwrap();
        for stage in [Stage::Plain, Stage::Tls(&certificate)] {
            let works: Vec<Work> = Work::all().filter(|work| stage.has(*work)).collect();
            for proxy in Proxy::all().filter(|proxy| works.iter().any(|work| proxy.does(*work))) {
                let arguments = set_up(proxy, stage, folder.path(), IPS).unwrap();
                let text = fs::read_to_string(arguments.last().unwrap()).unwrap();
                assert!(text.contains("127.71.0.3"), "{text}");
                assert!(!text.contains('@') || proxy == Proxy::Envoy, "{text}");
                assert!(!text.contains("@LISTEN@") && !text.contains("@UPSTREAM@"), "{text}");
            }
        }
        assert!(set_up(Proxy::Envoy, Stage::Tls(&certificate), folder.path(), IPS).is_err());
    }

    #[test]
    fn every_port_in_use_has_a_listen_and_a_route() {
        let certificate = Certificate::ecdsa("a.test").unwrap();
        let plain = (Stage::Plain, STREAMGATE, NGINX);
        for (stage, own, peer) in [plain, (Stage::Tls(&certificate), STREAMGATE_TLS, NGINX_TLS)] {
            for (port, to) in ports(stage) {
                let (listen, to) = (format!("@LISTEN@:{port}"), format!("@UPSTREAM@:{to}"));
                assert!(own.contains(&listen), "{listen}");
                assert!(peer.lines().any(|line| line.contains(&listen) && line.contains(&to)), "{listen}");
            }
            let objects = objects(stage, IPS[1]);
            assert_eq!(objects.matches("\"id\": \"in-use-").count(), ports(stage).len());
            let among = objects.matches("\"id\": \"among-").count();
            assert_eq!(among, if matches!(stage, Stage::Plain) { 2 } else { 0 });
            assert_eq!(
                objects.matches("{\"id\"").count(),
                ports(stage).len()
                    + among
                    + objects.matches("\"id\": \"through-").count()
                    + OTHER_ROUTES
                    + objects.matches("ssls:").count()
            );
            assert_eq!(objects.contains("BEGIN CERTIFICATE"), matches!(stage, Stage::Tls(_)));
        }
    }
}
