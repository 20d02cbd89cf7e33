//! `discovery.dns`.

use super::*;

fn with_dns(dns: &str) -> String {
    with(&format!("discovery: {{dns: {dns}}}\n"))
}

#[test]
fn a_registry_is_there_where_its_section_is() {
    assert_eq!(read(BASE).registries, Registries::default());
    assert!(!read(&with("discovery: {dns: null}\n")).registries.has("dns"));
    let config = read(&with_dns("{servers: [127.0.0.1, \"[::1]:1053\"]}"));
    assert_eq!(config.warnings, [""; 0]);
    assert!(config.registries.has("dns") && !config.registries.has("consul"));
    let dns = config.registries.dns.unwrap();
    assert_eq!(dns.servers, ["127.0.0.1:53".parse().unwrap(), "[::1]:1053".parse().unwrap()]);
    assert_eq!((dns.resolv_conf, dns.timeout), (None, Duration::from_secs(5)));
    let dns = read(&with_dns("{resolv_conf: /etc/other.conf}")).registries.dns.unwrap();
    assert_eq!((dns.servers.len(), dns.resolv_conf), (0, Some("/etc/other.conf".into())));
}

#[test]
fn servers_stand_in_the_list_or_in_a_file() {
    check(&with_dns("{order: [A]}"), &["discovery.dns: has neither servers nor resolv_conf; write one"]);
    check(&with_dns("{servers: [1.1.1.1], resolv_conf: /x}"), &["discovery.dns: has both servers and"]);
    check(&with_dns("{servers: []}"), &["discovery.dns.servers: is an empty list"]);
    check(&with_dns("{servers: [a.b]}"), &["discovery.dns.servers[0]: is \"a.b\"; write an address"]);
    check(&with_dns("{resolv_conf: /absent.pem}"), &["discovery.dns.resolv_conf: there is no file"]);
}

#[track_caller]
fn check_order(written: &str, apisix: &str, order: &[DnsRecord]) {
    let text = with_dns(&format!("{{servers: [1.1.1.1], {written}}}")).replace("stream_proxy", apisix);
    assert_eq!(read(&text).registries.dns.unwrap().order, order, "{written}");
}

#[test]
fn the_order_is_that_of_apisix_where_none_is_written() {
    use DnsRecord::{A, Aaaa, Cname, Last, Srv};
    check_order("", "stream_proxy", &[Last, Srv, A, Aaaa, Cname]);
    check_order("order: [A, SRV]", "stream_proxy", &[A, Srv]);
    check_order("", "enable_ipv6: false\n  stream_proxy", &[Last, Srv, A, Cname]);
    let wrong = |order: &str| with_dns(&format!("{{servers: [1.1.1.1], order: {order}}}"));
    check(&wrong("[]"), &["discovery.dns.order: is an empty list"]);
    check(&wrong("[A, A]"), &["discovery.dns.order[1]: stands in the list already"]);
    check(&wrong("[MX]"), &["discovery.dns.order[0]: is \"MX\"; allowed are last, SRV, A, AAAA, CNAME"]);
}
