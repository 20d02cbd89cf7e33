//! Where objects come from, and what is needed to read them.

use super::*;

#[track_caller]
fn check_source(deployment: &str, expected: &str) {
    let text = with(&format!("deployment: {deployment}\n"));
    let source = match read_in(&world(&[]), &text) {
        Ok(config) => format!(
            "{} plugins_key={} standalone={}",
            config.source, config.rules.plugins_key_counts, config.rules.standalone
        ),
        Err(mistakes) => mistakes.to_string(),
    };
    assert!(source.starts_with(expected), "{deployment}: {source}");
}

#[test]
fn roles_and_providers() {
    let etcd = "etcd http://127.0.0.1:2379 under /apisix";
    check_source("{role: traditional}", &format!("{etcd} plugins_key=false standalone=false"));
    check_source(
        "{role: data_plane, role_data_plane: {config_provider: etcd}}",
        &format!("{etcd} plugins_key=true"),
    );
    check_source(
        "{role: control_plane, role_control_plane: {config_provider: etcd}}",
        &format!("{etcd} plugins_key=false"),
    );
    check_source(
        "{role: data_plane, role_data_plane: {config_provider: yaml}}",
        "the file /gate/conf/apisix.yaml plugins_key=true standalone=true",
    );
    check_source(
        "{role: data_plane, role_data_plane: {config_provider: json}}",
        "the file /gate/conf/apisix.json",
    );
    check_source(
        "{role: data_plane, role_data_plane: {config_provider: xds}}",
        "deployment.role_data_plane.config_provider: is \"xds\", which is not built",
    );
    check_source(
        "{role: data_plane}",
        "deployment.role_data_plane.config_provider: is missing; allowed are etcd, yaml, json, xds",
    );
    check_source("{role: control_plane}", "deployment.role_control_plane.config_provider: is missing");
    check_source(
        "{role: traditional, role_traditional: {config_provider: yaml}}",
        "deployment.role_traditional.config_provider: is \"yaml\" while apisix.enable_admin",
    );
    check_source(
        "{role_traditional: {config_provider: json}}",
        "deployment.role_traditional.config_provider: is \"json\"; allowed are etcd, yaml",
    );
    check_source("{role: standalone}", "deployment.role: is \"standalone\"");
    check_source("{etcd: null}", "deployment.etcd: is missing");
    let config = read(
        "apisix: {enable_admin: false, proxy_mode: stream, stream_proxy: {tcp: [1]}}\ndeployment: {role_traditional: {config_provider: yaml}}\n",
    );
    assert_eq!(config.source, Source::File("/gate/conf/apisix.yaml".into()));
    let told = read_in(&world(&[("APISIX_STAND_ALONE", "true")]), BASE).unwrap_err().to_string();
    assert!(told.starts_with("APISIX_STAND_ALONE: is true"), "{told}");
}

#[test]
fn the_standalone_file_may_be_named() {
    let data_plane = |file: &str| {
        with(&format!(
            "deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\nstreamgate: {{standalone_file: {file}}}\n"
        ))
    };
    assert_eq!(read(&data_plane("objects.yaml")).source, Source::File("/gate/conf/objects.yaml".into()));
    assert_eq!(read(&data_plane("/x/o.yml")).source, Source::File("/x/o.yml".into()));
    check(
        &data_plane("objects.json"),
        &[
            "streamgate.standalone_file: is objects.json; with this config_provider the name must end in .yaml or .yml",
        ],
    );
    check(
        &with("streamgate: {standalone_file: a.yaml}"),
        &["streamgate.standalone_file: has no effect with config_provider etcd"],
    );
}

#[test]
fn etcd_is_read_whole() {
    let config = read(&with(
        "deployment:\n  etcd:\n    host: [\"https://a:2379/\", \"https://[::1]:2379\"]\n    prefix: gate\n    user: u\n    password: p\n    timeout: 7\n\
         \x20   tls: {verify: false, sni: etcd.x, cert: certs/c.pem, key: /k.pem}\n",
    ));
    let etcd = etcd(&config);
    assert_eq!(etcd.hosts.join(" "), "https://a:2379 https://[::1]:2379");
    assert_eq!((&*etcd.prefix, etcd.timeout.as_secs(), etcd.tls_verify), ("gate", 7, false));
    assert_eq!(etcd.auth, Some(("u".into(), "p".into())));
    assert_eq!(etcd.tls_sni.as_deref(), Some("etcd.x"));
    assert_eq!(etcd.tls_cert, Some(("/gate/certs/c.pem".into(), "/k.pem".into())));
    let debug = format!("{config:?}");
    assert!(!debug.contains("\"p\"") && !debug.contains("qeddd145"), "{debug}");
}

#[track_caller]
fn check_etcd(section: &str, mistakes: &[&str]) {
    check(&with(&format!("deployment: {{etcd: {section}}}\n")), mistakes);
}

#[test]
fn etcd_mistakes() {
    check_etcd(
        "{host: \"http://a:1\"}",
        &["deployment.etcd.host: is \"http://a:1\"; a map or list is expected"],
    );
    check_etcd("{host: []}", &["deployment.etcd.host: is missing; write a list"]);
    check_etcd("{host: [\"a:2379\"]}", &["deployment.etcd.host[0]: is \"a:2379\", which is no endpoint"]);
    check_etcd("{prefix: null}", &["deployment.etcd.prefix: is missing"]);
    check_etcd("{timeout: 0}", &["deployment.etcd.timeout: is 0; a whole number 1..86400"]);
    check_etcd("{timeout: 1.5}", &["deployment.etcd.timeout: is 1.5"]);
    check_etcd("{password: 12345, user: x}", &["deployment.etcd.password: is a number; a text is allowed"]);
    check_etcd("{tls: {cert: a.pem}}", &["deployment.etcd.tls.key: is missing"]);
    check_etcd(
        "{tls: {cert: absent.pem, key: a.pem}}",
        &["deployment.etcd.tls.cert: there is no file /gate/absent.pem"],
    );
    let warned =
        |section: &str| read(&with(&format!("deployment: {{etcd: {section}}}\n"))).warnings.join("\n");
    assert!(warned("{user: x}").starts_with("deployment.etcd.user: is set without password"));
    assert!(warned("{prefix: /a/}").starts_with("deployment.etcd.prefix: ends in a slash"));
}

#[test]
fn the_ca_bundle_is_searched_as_apisix_does() {
    let config = read(
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [1]}, ssl: {ssl_trusted_certificate: certs/ca.pem}}",
    );
    assert_eq!(config.ssl.trusted, Some("/work-dir/certs/ca.pem".into()));
    check(
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [1]}, ssl: {ssl_trusted_certificate: absent.pem}}",
        &["apisix.ssl.ssl_trusted_certificate: there is no file /work-dir/absent.pem"],
    );
    let bare = Environment { exists: |_| false, ..world(&[]) };
    assert_eq!(read_in(&bare, BASE).unwrap().ssl.trusted, None);
    let https = with("deployment: {etcd: {host: [\"https://a:1\"]}}");
    let warnings = read_in(&bare, &https).unwrap().warnings;
    assert!(warnings[0].contains("no CA bundle"), "{warnings:?}");
}

#[test]
fn dns_servers() {
    let base = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [1]}, ";
    let config = read(&format!(
        "{base}dns_resolver: [1.1.1.1, \"1.1.1.1:5353\", \"[::1]:53\", \"::1\", \"[::2]\", \"fe80::1%eth0\"], dns_resolver_valid: 30, resolver_timeout: 2.5, enable_resolv_search_opt: false, enable_ipv6: false}}"
    ));
    let servers: Vec<_> = config.dns.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["1.1.1.1:53", "1.1.1.1:5353", "[::1]:53", "[::1]:53", "[::2]:53"]);
    assert_eq!(
        (config.dns.valid, config.dns.timeout),
        (Some(Duration::from_secs(30)), Duration::from_millis(2500))
    );
    assert!(!config.dns.search && !config.dns.ipv6);
    assert!(config.warnings[0].starts_with("apisix.dns_resolver[5]: fe80::1%eth0 has an IPv6 zone"));
    check(
        &format!("{base}dns_resolver: [dns.x, \"1.1.1.1:0\", 5]}}"),
        &[
            "apisix.dns_resolver[0]: is \"dns.x\"; write an address",
            "apisix.dns_resolver[1]",
            "apisix.dns_resolver[2]: is 5; a text",
        ],
    );
    check(&format!("{base}dns_resolver: []}}"), &["apisix.dns_resolver: is an empty list"]);
    check(
        &format!("{base}dns_resolver_valid: 1s}}"),
        &["apisix.dns_resolver_valid: is \"1s\"; a whole number"],
    );
}

#[track_caller]
fn check_keyring(data_encryption: &str, expected: &str) {
    let text = format!(
        "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [1]}}, data_encryption: {data_encryption}}}"
    );
    let found = match read_in(&world(&[]), &text) {
        Ok(config) => config.rules.keyring.join(" "),
        Err(mistakes) => mistakes.to_string(),
    };
    assert_eq!(found, expected, "{data_encryption}");
}

#[test]
fn keyrings() {
    check_keyring(
        "{keyring: [0123456789abcdef, \"0123456789abcdef0123456789abcdef\"]}",
        "0123456789abcdef 0123456789abcdef0123456789abcdef",
    );
    check_keyring("{keyring: 0123456789abcdef}", "0123456789abcdef");
    check_keyring("{keyring: null}", "");
    check_keyring("null", "");
    check_keyring("{enable_encrypt_fields: false}", "qeddd145sfvddff3 edd1c9f0985e76a2");
    check_keyring(
        "{keyring: [short]}",
        "apisix.data_encryption.keyring[0]: has 5 bytes; a key has exactly 16 or 32",
    );
    check_keyring(
        "{keyring: []}",
        "apisix.data_encryption.keyring: is an empty list; write at least one key, or null for no encryption",
    );
    check_keyring(
        "{keyring: 1234567890123456}",
        "apisix.data_encryption.keyring: is a number; a text is allowed: put it in quotes, and let `${{VAR}}` not be digits alone",
    );
}
