//! Listens, and the settings of `streamgate:` that hang on them.

use super::*;

#[test]
fn every_form_of_a_listen() {
    let config = read(
        "apisix:\n  proxy_mode: stream\n  proxy_protocol: {enable_tcp_pp: true, enable_tcp_pp_to_upstream: true}\n  stream_proxy:\n\
         \x20   tcp:\n    - 9100\n    - \"127.0.0.1:9101\"\n    - \"[::1]:9102\"\n    - 2000-2002\n    - {addr: 9103, tls: true}\n\
         \x20   - {addr: \"9104\", tls_passthrough: true, proxy_protocol: false, proxy_protocol_to_upstream: false}\n    - 9105.0\n\
         \x20   udp: [9100, \"127.0.0.1:9201\", \"9300-9301\"]\n",
    );
    let show = |it: &Listen| {
        format!(
            "{}={}/{:?}{}{}{}{}",
            it.written,
            it.addr,
            it.transport,
            if it.tls { " tls" } else { "" },
            if it.tls_passthrough { " pass" } else { "" },
            if it.proxy_protocol { " in" } else { "" },
            if it.proxy_protocol_to_upstream { " out" } else { "" }
        )
    };
    let shown: Vec<_> = config.listens.iter().map(show).collect();
    assert_eq!(
        shown,
        [
            "9100=0.0.0.0:9100/Tcp in out",
            "127.0.0.1:9101=127.0.0.1:9101/Tcp in out",
            "[::1]:9102=[::1]:9102/Tcp in out",
            "2000-2002=0.0.0.0:2000/Tcp in out",
            "2000-2002=0.0.0.0:2001/Tcp in out",
            "2000-2002=0.0.0.0:2002/Tcp in out",
            "9103=0.0.0.0:9103/Tcp tls in out",
            "9104=0.0.0.0:9104/Tcp pass",
            "9105=0.0.0.0:9105/Tcp in out",
            "9100=0.0.0.0:9100/Udp",
            "127.0.0.1:9201=127.0.0.1:9201/Udp",
            "9300-9301=0.0.0.0:9300/Udp",
            "9300-9301=0.0.0.0:9301/Udp",
        ]
    );
}

#[track_caller]
fn check_listen(list: &str, mistakes: &[&str]) {
    check(&format!("apisix:\n  proxy_mode: stream\n  stream_proxy: {list}\n"), mistakes);
}

/// The cases of APISIX's `t/cli/test_stream_port_range.sh`, and ours.
#[test]
fn listens_that_are_refused() {
    check_listen(
        "{tcp: [0]}",
        &["apisix.stream_proxy.tcp[0]: port out of range (1-65535): 0; streamgate.allow_port_zero"],
    );
    check_listen("{udp: [65536]}", &["apisix.stream_proxy.udp[0]: port out of range (1-65535): 65536"]);
    check_listen("{tcp: [-1]}", &["apisix.stream_proxy.tcp[0]: port out of range (1-65535): -1"]);
    check_listen("{tcp: [80.5]}", &["apisix.stream_proxy.tcp[0]: port must be an integer, got: 80.5"]);
    check_listen(
        "{tcp: [\"3000-2000\"]}",
        &["apisix.stream_proxy.tcp[0]: invalid port range (start > end): 3000-2000"],
    );
    check_listen("{tcp: [\"0-100\"]}", &["apisix.stream_proxy.tcp[0]: port out of range (1-65535): 0"]);
    check_listen(
        "{tcp: [{addr: \"127.0.0.1:\"}]}",
        &["apisix.stream_proxy.tcp[0].addr: missing port: 127.0.0.1:"],
    );
    check_listen("{tcp: [{tls: true}]}", &["apisix.stream_proxy.tcp[0].addr: is missing"]);
    check_listen("{tcp: [{addr: 1, tls: 1}]}", &["apisix.stream_proxy.tcp[0].tls: is 1; true or false"]);
    check_listen("{udp: [{addr: 1}]}", &["apisix.stream_proxy.udp[0]: is a map; a udp listen"]);
    check_listen(
        "{tcp: [true, null]}",
        &["apisix.stream_proxy.tcp[0]: is true; allowed", "apisix.stream_proxy.tcp[1]: is null; allowed"],
    );
    check_listen("{tcp: []}", &["apisix.stream_proxy.tcp: is an empty list"]);
    check_listen("{tcp: 9100}", &["apisix.stream_proxy.tcp: is 9100; a list is allowed"]);
    check_listen("5", &["apisix.stream_proxy: is 5; a map is allowed"]);
    check_listen("{}", &["apisix.stream_proxy: is missing; write at least one listen"]);
    check_listen("{tcp: [\"unix:/x\"]}", &["apisix.stream_proxy.tcp[0]: unix:/x is a unix socket"]);
    check("apisix: {proxy_mode: stream}", &["apisix.stream_proxy: is missing"]);
    check(
        "apisix: {proxy_mode: streams}",
        &["apisix.proxy_mode: is \"streams\"; allowed are http, stream, http&stream"],
    );
}

#[test]
fn an_address_twice_is_a_mistake() {
    check_listen(
        "{tcp: [9100, \"9100\"]}",
        &["apisix.stream_proxy.tcp[1]: 9100 listens on 0.0.0.0:9100, which 9100 above"],
    );
    check_listen(
        "{tcp: [2000-2010, \"*:2005\"]}",
        &["apisix.stream_proxy.tcp[1]: *:2005 listens on 0.0.0.0:2005, which 2000-2010"],
    );
    check_listen(
        "{udp: [2000-2010, 2008-2020]}",
        &["apisix.stream_proxy.udp[1]: 2008-2020 listens on 0.0.0.0:2008, which"],
    );
    let free = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [9100, \"127.0.0.1:9100\", \"[::]:9100\"], udp: [9100]}}";
    assert_eq!(read(free).listens.len(), 4);
}

#[test]
fn port_zero_is_ours_and_asked_for() {
    let config = read(
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [\"127.0.0.1:0\", \"127.0.0.1:0\"], udp: [0]}, status: {port: 0}}\n\
         plugin_attr: {prometheus: {export_addr: {port: 0}}}\nstreamgate: {allow_port_zero: true}\n",
    );
    assert!(config.listens.len() == 3 && config.listens.iter().all(|it| it.addr.port() == 0));
    assert_eq!(config.status.unwrap().port(), 0);
    check(
        &with("plugin_attr: {prometheus: {export_addr: {port: 0}}}"),
        &["plugin_attr.prometheus.export_addr.port: is 0; a whole number 1..65535"],
    );
}

#[test]
fn the_streamgate_section_is_strict() {
    let config = read(
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [9100, \"2000-2001\"], udp: [9200, 9100, 53]}}\n\
         streamgate:\n  listens:\n    9100: {half_close: false, idle_timeout: 5}\n    \"2000-2001\": {half_close_timeout: 1m}\n    53: {idle_timeout: 10s, responses: 1}\n\
         \x20 metrics: {max_series: 5}\n  udp: {max_associations: 6}\n  max_sessions: 7\n",
    );
    let show = |it: &Listen| {
        format!(
            "{} {} {} {:?} {:?}",
            it.addr.port(),
            it.half_close,
            it.half_close_timeout.as_secs(),
            it.idle_timeout,
            it.responses
        )
    };
    assert_eq!(
        config.listens.iter().map(show).collect::<Vec<_>>(),
        [
            "9100 false 30 None None",
            "2000 true 60 None None",
            "2001 true 60 None None",
            "9200 true 30 None None",
            "9100 true 30 Some(5s) None",
            "53 true 30 Some(10s) Some(1)",
        ]
    );
    assert_eq!(config.prometheus.unwrap().max_series, 5);
    assert_eq!(config.limits, Limits { udp_associations: 6, sessions: Some(7) });
}

#[test]
fn mistakes_below_streamgate() {
    check(
        &with("streamgate: {listens: {9101: {}}}"),
        &[
            "streamgate.listens.9101: no listen is written so in apisix.stream_proxy; its key is the listen as written there: 9100",
        ],
    );
    check(
        &with("streamgate: {listens: {\"0.0.0.0:9100\": {}}}"),
        &["streamgate.listens.\"0.0.0.0:9100\": no listen is written so"],
    );
    check(
        &with("streamgate: {max_sessions: 0, udp: {max: 1}, metrics: [1]}"),
        &[
            "streamgate.max_sessions: is 0",
            "streamgate.udp.max: max is no setting",
            "streamgate.metrics: is a list; a map",
        ],
    );
    assert_eq!(read(&with("streamgate:\n")).limits.sessions, None);
}
