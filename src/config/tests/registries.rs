//! The sections of `discovery`.

use super::*;

#[track_caller]
fn registries(discovery: &str) -> Registries {
    read(&with(&format!("discovery: {discovery}\n"))).registries
}

#[track_caller]
fn check_mistakes(discovery: &str, mistakes: &[&str]) {
    check(&with(&format!("discovery: {discovery}\n")), mistakes);
}

#[test]
fn what_is_not_written_is_apisix_default_for_registries() {
    assert_eq!(read(BASE).registries, Registries::default());
    let all = registries(
        "{consul: {servers: ['http://a:8500']}, dns: {servers: [1.1.1.1]}, nacos: {host: ['http://b:8848']}, eureka: {host: ['http://c:8761']}}",
    );
    assert!(Registries::BUILT.into_iter().all(|kind| all.has(kind)) && !all.has("kubernetes"));
    let consul = all.consul.unwrap();
    assert_eq!(format!("{:?}", consul.servers), "[http://a:8500]");
    assert_eq!([consul.connect, consul.read, consul.wait], [2, 2, 60].map(Duration::from_secs));
    assert_eq!((consul.keepalive, consul.fetch_interval), (true, Duration::from_secs(3)));
    assert_eq!(
        (consul.weight, consul.sort, consul.skip_services.join(" ")),
        (1, ConsulSort::Host, "consul".into())
    );
    assert_eq!((&*consul.token, consul.default_service), ("", None));
    let nacos = all.nacos.unwrap();
    assert_eq!(
        (&*nacos.prefix, nacos.fetch_interval, nacos.weight),
        ("/nacos/v1", Duration::from_secs(30), 100)
    );
    assert_eq!((nacos.waits.connect, nacos.waits.answer), (Duration::from_secs(2), Duration::from_secs(7)));
    assert_eq!(nacos.keys, None);
    let eureka = all.eureka.unwrap();
    assert_eq!((&*eureka.prefix, eureka.fetch_interval, eureka.weight), ("", Duration::from_secs(30), 100));
}

#[test]
fn every_key_is_read() {
    let consul = registries(
        "{consul: {servers: ['http://a:8500', 'https://b'], token: t, fetch_interval: 5, keepalive: false, weight: 7, \
         timeout: {connect: 100, read: 200, wait: 9}, sort_type: port_sort, skip_services: [x], shared_size: 1m, \
         default_service: {host: 10.0.0.1, port: 20999}}}",
    )
    .consul
    .unwrap();
    assert_eq!(format!("{:?}", consul.servers), "[http://a:8500, https://b:443]");
    assert_eq!([consul.connect, consul.read, consul.wait], [100, 200, 9000].map(Duration::from_millis));
    assert_eq!((consul.keepalive, consul.fetch_interval), (false, Duration::from_secs(5)));
    assert_eq!((consul.weight, consul.sort), (7, ConsulSort::Port));
    assert_eq!(consul.skip_services.join(" "), "x consul");
    assert_eq!(consul.default_service, Some(DefaultService { host: "10.0.0.1".into(), port: 20999 }));
    let nacos = registries(
        "{nacos: {host: ['http://u:p@b:1'], prefix: /v1/, weight: 3, timeout: {read: 300}, access_key: a, secret_key: s}}",
    )
    .nacos
    .unwrap();
    assert_eq!(nacos.servers[0].auth, Some(("u".into(), "p".into())));
    assert_eq!((&*nacos.prefix, nacos.weight), ("/v1", 3));
    assert_eq!(
        (nacos.waits.connect, nacos.waits.answer),
        (Duration::from_secs(2), Duration::from_millis(2300))
    );
    assert_eq!(nacos.keys, Some(("a".into(), "s".into())));
    let eureka = registries("{eureka: {host: ['http://c'], prefix: /eureka/, weight: 0}}").eureka.unwrap();
    assert_eq!((&*eureka.prefix, eureka.weight), ("/eureka", 0));
    let eureka = registries("{eureka: {host: ['http://c'], prefix: ''}}").eureka.unwrap();
    assert_eq!(&*eureka.prefix, "");
}

#[test]
fn what_cannot_be_meant_is_told() {
    check_mistakes("{nacos: {}}", &["discovery.nacos.host: is missing; write a list such as"]);
    check_mistakes("{eureka: {host: []}}", &["discovery.eureka.host: is missing"]);
    check_mistakes(
        "{consul: {servers: [a]}}",
        &["discovery.consul.servers[0]: has \"a\", which is no server"],
    );
    check_mistakes(
        "{consul: {servers: ['http://a/v1']}}",
        &["discovery.consul.servers: has more than scheme"],
    );
    check_mistakes(
        "{consul: {servers: ['http://u:p@a']}}",
        &["discovery.consul.servers: has more than scheme"],
    );
    check_mistakes(
        "{consul: {servers: ['http://a'], weight: 0, sort_type: no, timeout: {wait: 0}, token: 'a b'}}",
        &[
            "discovery.consul.weight: is 0; a whole number",
            "discovery.consul.sort_type: is false; allowed are origin",
            "discovery.consul.timeout.wait: is 0; a whole number",
            "discovery.consul.token: has characters",
        ],
    );
    check_mistakes(
        "{consul: {servers: ['http://a'], default_service: {host: 'a b'}}}",
        &[
            "discovery.consul.default_service.port: is missing",
            "discovery.consul.default_service.host: is \"a b\", which is no host",
        ],
    );
    check_mistakes(
        "{nacos: {host: ['http://a'], prefix: v1}}",
        &["discovery.nacos.prefix: is \"v1\"; a path"],
    );
    check_mistakes("{eureka: 5}", &["discovery.eureka: is 5; a map is allowed"]);
}

#[test]
fn secrets_of_registries_are_not_shown() {
    let all = registries(
        "{consul: {servers: ['http://a'], token: hidden}, eureka: {host: ['http://u:hidden@c']}, \
         nacos: {host: ['http://u:hidden@b'], access_key: a, secret_key: hidden}}",
    );
    let shown = format!("{all:?}");
    assert!(!shown.contains("hidden") && shown.contains("http://b:80"), "{shown}");
    let told = told(&with("discovery: {nacos: {host: ['ftp://u:hidden@b']}}\n"));
    assert!(!told.contains("hidden") && told.contains("\"b\""), "{told}");
}

#[test]
fn what_has_no_effect_brings_a_warning() {
    let text = "discovery: {kubernetes: {}, consul: {servers: ['http://a'], dump: {path: x}}, \
                nacos: {host: ['http://b'], acces_key: a, access_key: b}}\n";
    let warnings = read(&with(text)).warnings.join("\n");
    for part in [
        "discovery.kubernetes: discovery by kubernetes is not built",
        "discovery.consul.dump: has no effect",
        "discovery.nacos.access_key: is set without secret_key",
        "discovery.nacos.acces_key: is no key that APISIX or streamgate knows and has no effect; is access_key meant?",
    ] {
        assert!(warnings.contains(part), "{part} is not in\n{warnings}");
    }
}

#[test]
fn another_registry_needs_a_restart() {
    let old = read(BASE);
    let new = read(&with("discovery: {eureka: {host: ['http://c']}}\n"));
    assert_eq!(old.changes_needing_restart(&new), ["discovery: takes effect after a restart"]);
}
