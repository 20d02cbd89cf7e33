//! `apisix.control`: on by default, and giving way where nobody asked for it.

use super::*;

fn of(apisix: &str) -> String {
    format!("apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [9100]}}{apisix}}}\n")
}

#[track_caller]
fn check_control(text: &str, expected: Option<(&str, bool)>) {
    let expected = expected.map(|(addr, written)| Control { addr: addr.parse().unwrap(), written });
    assert_eq!(read(text).control, expected, "{text}");
}

#[test]
fn it_is_on_unless_it_is_switched_off() {
    check_control(BASE, Some(("127.0.0.1:9090", false)));
    check_control(&of(", control: {ip: \"::1\"}"), Some(("[::1]:9090", true)));
    check_control(&of(", control: {port: 9092}"), Some(("127.0.0.1:9092", true)));
    check_control(&of(", enable_control: false, control: {port: 9092}"), None);
    check_control(&of(", enable_control: null"), None);
    check_control(
        &format!("{}streamgate: {{allow_port_zero: true}}\n", of(", control: {port: 0}")),
        Some(("127.0.0.1:0", true)),
    );
    check(
        &of(", control: {ip: host, port: 0}"),
        &["apisix.control.ip: is \"host\"", "apisix.control.port: is 0"],
    );
}

#[test]
fn its_default_gives_way_and_a_written_one_does_not() {
    let taken = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [9090]}CONTROL}\n";
    let config = read(&taken.replace("CONTROL", ""));
    assert_eq!(config.control, None);
    assert!(
        config.warnings[0].starts_with("apisix.control: the control API is off"),
        "{:?}",
        config.warnings
    );
    let of_other_address =
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [\"127.0.0.2:9090\"], udp: [9090]}}\n";
    check_control(of_other_address, Some(("127.0.0.1:9090", false)));
    check(
        &of(", status: {port: 9092}, control: {port: 9092}"),
        &["apisix.control: 127.0.0.1:9092 is the address of apisix.status too"],
    );
}

#[test]
fn it_moves_only_by_a_restart() {
    let new = read(&of(", enable_control: false"));
    assert_eq!(
        read(&of("")).changes_needing_restart(&new),
        ["apisix.control: 127.0.0.1:9090 to off: takes effect after a restart"]
    );
}
