//! `streamgate.listens`: what each setting means, and where it would be without effect.

use super::*;

/// Listens of every kind, each under a port of its own, with these settings of theirs.
fn kinds(listens: &str) -> String {
    format!(
        "apisix:\n  proxy_mode: stream\n  stream_proxy:\n    udp: [53, 9100]\n    tcp:\n    - 9100\n    - {{addr: 1, tls: true}}\n    - {{addr: 2, tls_passthrough: true}}\n\
         \x20   - {{addr: 3, proxy_protocol: true}}\n    - {{addr: 4, proxy_protocol_to_upstream: true}}\n\
         \x20   - {{addr: 5-6, tls: true, tls_passthrough: true, proxy_protocol: true, proxy_protocol_to_upstream: true}}\n\
         streamgate: {{listens: {listens}}}\n"
    )
}

/// The listens at a port, which must be accepted.
#[track_caller]
fn at(port: u16, settings: &str) -> Listen {
    let config = read(&kinds(&format!("{{{port}: {settings}}}")));
    config.listens.into_iter().find(|it| it.addr.port() == port && it.transport == Transport::Tcp).unwrap()
}

#[test]
fn what_is_not_written_is_the_default_of_nginx() {
    for listen in read(&kinds("{}")).listens {
        assert_eq!(listen.handshake_timeout, Duration::from_mins(1));
        assert_eq!(listen.proxy_protocol_timeout, Duration::from_secs(30));
        assert!(!listen.proxy_protocol_optional);
        assert_eq!(listen.proxy_protocol_version, ProxyVersion::V1);
        assert_eq!(listen.proxy_protocol_tlvs, ProxyTlvs::NONE);
    }
}

#[test]
fn each_setting_reaches_its_listen() {
    assert_eq!(at(1, "{handshake_timeout: 5}").handshake_timeout, Duration::from_secs(5));
    assert_eq!(at(2, "{handshake_timeout: 500ms}").handshake_timeout, Duration::from_millis(500));
    assert_eq!(at(3, "{proxy_protocol_timeout: 1m}").proxy_protocol_timeout, Duration::from_mins(1));
    assert!(at(3, "{proxy_protocol_optional: true}").proxy_protocol_optional);
    assert_eq!(at(4, "{proxy_protocol_version: 2}").proxy_protocol_version, ProxyVersion::V2);
    assert_eq!(at(4, "{proxy_protocol_version: 1}").proxy_protocol_version, ProxyVersion::V1);
    let config = read(&kinds("{5-6: {handshake_timeout: 2, proxy_protocol_optional: true}}"));
    let both = config.listens.iter().filter(|it| &*it.written == "5-6");
    assert_eq!(
        both.filter(|it| it.proxy_protocol_optional && it.handshake_timeout.as_secs() == 2).count(),
        2
    );
}

#[test]
fn a_listen_of_both_kinds_may_send_a_header() {
    let config = read(&kinds("{}"));
    let mixed = config.listens.iter().find(|it| &*it.written == "5-6").unwrap();
    assert!(mixed.tls && mixed.tls_passthrough && mixed.proxy_protocol_to_upstream);
}

#[track_caller]
fn check_tlvs(settings: &str, expected: ProxyTlvs) {
    assert_eq!(at(4, settings).proxy_protocol_tlvs, expected, "{settings}");
}

#[test]
fn tlvs_are_all_or_those_named() {
    check_tlvs("{}", ProxyTlvs::NONE);
    check_tlvs("{proxy_protocol_version: 2}", ProxyTlvs::ALL);
    check_tlvs("{proxy_protocol_version: 2, proxy_protocol_tlvs: []}", ProxyTlvs::NONE);
    check_tlvs(
        "{proxy_protocol_version: 2, proxy_protocol_tlvs: [sni, unique_id]}",
        ProxyTlvs { sni: true, unique_id: true, ..ProxyTlvs::NONE },
    );
    check_tlvs(
        "{proxy_protocol_version: 2, proxy_protocol_tlvs: [received, alpn]}",
        ProxyTlvs { alpn: true, received: true, ..ProxyTlvs::NONE },
    );
}

/// The settings of `listen` are refused, one line each, below its path.
#[track_caller]
fn refused(listen: &str, settings: &str, mistakes: &[&str]) {
    let paths: Vec<_> = mistakes.iter().map(|it| format!("streamgate.listens.{listen}.{it}")).collect();
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    check(&kinds(&format!("{{{listen}: {settings}}}")), &paths);
}

#[test]
fn settings_without_effect_are_mistakes() {
    refused(
        "53",
        "{half_close: true, half_close_timeout: 1, handshake_timeout: 1, proxy_protocol_timeout: 1, proxy_protocol_optional: true, \
         proxy_protocol_version: 2, proxy_protocol_tlvs: []}",
        &[
            "half_close: is for tcp, and this listen is udp",
            "half_close_timeout: is for tcp, and this listen is udp",
            "handshake_timeout: is for tcp, and this listen is udp",
            "proxy_protocol_timeout: is for tcp, and this listen is udp",
            "proxy_protocol_optional: is for tcp, and this listen is udp",
            "proxy_protocol_version: is for tcp, and this listen is udp",
            "proxy_protocol_tlvs: is for tcp, and this listen is udp",
        ],
    );
    refused(
        "1",
        "{idle_timeout: 1, responses: 1}",
        &[
            "idle_timeout: is for udp, and this listen is tcp",
            "responses: is for udp, and this listen is tcp",
        ],
    );
    refused(
        "9100",
        "{handshake_timeout: 1, idle_timeout: 1}",
        &["handshake_timeout: is for listens with tls or tls_passthrough, and this one has neither"],
    );
    refused(
        "4",
        "{proxy_protocol_timeout: 1, proxy_protocol_optional: false}",
        &[
            "proxy_protocol_timeout: is for listens with proxy_protocol: true, and this one expects no PROXY header",
            "proxy_protocol_optional: is for listens with proxy_protocol: true",
        ],
    );
    refused(
        "3",
        "{proxy_protocol_version: 1, proxy_protocol_tlvs: [sni]}",
        &[
            "proxy_protocol_version: is for listens with proxy_protocol_to_upstream: true, and this one sends no",
            "proxy_protocol_tlvs: is for listens with proxy_protocol_to_upstream: true",
        ],
    );
    for version in ["", ", proxy_protocol_version: 1"] {
        refused(
            "4",
            &format!("{{proxy_protocol_tlvs: [sni]{version}}}"),
            &[
                "proxy_protocol_tlvs: needs proxy_protocol_version: 2; a PROXY header of version 1 has no room",
            ],
        );
    }
}

#[test]
fn values_that_no_setting_has_are_mistakes() {
    refused("9100", "{half_close_timeout: 0}", &["half_close_timeout: is 0; allowed is a number of seconds"]);
    refused(
        "1",
        "{handshake_timeout: 2y}",
        &["handshake_timeout: is \"2y\"; allowed is a number of seconds"],
    );
    refused("3", "{proxy_protocol_optional: 1}", &["proxy_protocol_optional: is 1; true or false"]);
    refused(
        "4",
        "{proxy_protocol_version: 3, proxy_protocol_tlvs: [sni, crc32c, sni]}",
        &[
            "proxy_protocol_version: is 3; a whole number 1..2 is allowed",
            "proxy_protocol_tlvs[1]: is \"crc32c\"; allowed are sni, alpn, unique_id, received",
            "proxy_protocol_tlvs[2]: stands twice in the list",
        ],
    );
    refused(
        "4",
        "{proxy_protocol_tlvs: sni, proxy_protocol_version: 2}",
        &["proxy_protocol_tlvs: is \"sni\"; a list"],
    );
    refused(
        "9100",
        "{timeout: 1}",
        &[
            "timeout: timeout is no setting here; known are half_close, half_close_timeout, handshake_timeout, idle_timeout, \
             proxy_protocol_optional, proxy_protocol_timeout, proxy_protocol_tlvs, proxy_protocol_version, responses",
        ],
    );
}

#[test]
fn a_hup_follows_the_settings_of_listens() {
    let old = read(&kinds("{}"));
    let new = read(&kinds(
        "{1: {handshake_timeout: 1}, 3: {proxy_protocol_timeout: 1, proxy_protocol_optional: true}, 4: {proxy_protocol_version: 2}, \
         5-6: {proxy_protocol_version: 2, proxy_protocol_tlvs: [sni]}}",
    ));
    assert!(old.changes_needing_restart(&new).is_empty());
    let changed = old.listens.iter().zip(&new.listens).filter(|(old, new)| old != new);
    let changed: Vec<_> = changed.map(|(_, new)| new.addr.port()).collect();
    assert_eq!(changed, [1, 3, 4, 5, 6]);
}
