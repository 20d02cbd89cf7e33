//! What is asked, and what the answers mean, without a server.

use super::*;

#[track_caller]
fn check_candidates(resolv_conf: &str, search: bool, name: &str, expected: &[&str]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), resolv_conf).unwrap();
    let servers = ["127.0.0.1:1".parse().unwrap()];
    let resolver = Resolver::new(&Settings {
        servers: &servers,
        resolv_conf: file.path(),
        search,
        hosts: false,
        timeout: Duration::from_secs(1),
    });
    let names = resolver.unwrap().candidates(name);
    assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{name}");
}

#[test]
fn the_search_list_is_gone_through_as_by_glibc() {
    let conf = "nameserver 127.0.0.9\nsearch a.test b.test\n";
    check_candidates(conf, true, "db", &["db.a.test.", "db.b.test.", "db."]);
    check_candidates(conf, true, "db.x", &["db.x.", "db.x.a.test.", "db.x.b.test."]);
    check_candidates(conf, true, "db.x.", &["db.x."]);
    check_candidates(conf, false, "db", &["db."]);
    check_candidates(conf, true, "my_db.x", &["my_db.x.", "my_db.x.a.test.", "my_db.x.b.test."]);
    check_candidates(
        &format!("{conf}options ndots:2\n"),
        true,
        "db.x",
        &["db.x.a.test.", "db.x.b.test.", "db.x."],
    );
    check_candidates("domain c.test\n", true, "db", &["db.c.test.", "db."]);
    check_candidates("", true, "db", &["db."]);
    check_candidates("", true, "a..b", &[]);
}

#[track_caller]
fn check_hosts(resolver: &Resolver, name: &str, ipv6: bool, expected: Option<&str>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(resolver.addresses(name, ipv6)).ok();
    let expected =
        expected.map(|ip| Answer::Records { data: vec![ip.parse().unwrap()], ttl: Duration::from_hours(24) });
    assert_eq!(found, expected, "{name}");
}

#[test]
fn the_hosts_file_is_asked_first_and_ipv4_counts_before_ipv6() {
    // Nobody serves DNS there: what is found comes from the file.
    let servers = ["127.0.0.1:1".parse().unwrap()];
    let settings = Settings {
        servers: &servers,
        resolv_conf: Path::new("/nowhere"),
        search: false,
        hosts: false,
        timeout: Duration::from_secs(1),
    };
    let mut resolver = Resolver::new(&settings).unwrap();
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf("127.0.0.2 a.test Other.test # x\n::1 a.test six.test\n".as_bytes()).unwrap();
    Arc::get_mut(&mut resolver.0).unwrap().hosts = hosts;
    check_hosts(&resolver, "a.test", true, Some("127.0.0.2"));
    check_hosts(&resolver, "oTHER.test", false, Some("127.0.0.2"));
    check_hosts(&resolver, "six.test", true, Some("::1"));
    check_hosts(&resolver, "six.test", false, None);
    check_hosts(&resolver, "b.test", true, None);
}

#[test]
fn servers_come_from_the_file_where_none_are_given() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let new = |path: &Path| {
        let timeout = Duration::from_secs(1);
        Resolver::new(&Settings { servers: &[], resolv_conf: path, search: true, hosts: false, timeout })
    };
    fs::write(file.path(), "nameserver 127.0.0.9\nnameserver ::1\n").unwrap();
    assert_eq!(new(file.path()).unwrap().0.servers, "127.0.0.9:53, [::1]:53");
    fs::write(file.path(), "search x\n").unwrap();
    let error = new(file.path()).unwrap_err().to_string();
    assert!(error.starts_with("no DNS server is found in /"), "{error}");
    assert!(new(Path::new("/nowhere/resolv.conf")).is_err());
}

#[test]
fn an_answer_that_there_is_nothing_is_told_from_none() {
    use hickory_resolver::net::{DnsError, NoRecords};
    use hickory_resolver::proto::op::ResponseCode;
    let nothing = |code| NetError::from(NoRecords::new(Query::default(), code));
    let says = |error| format!("{:?}", known(error, "s"));
    assert_eq!(says(nothing(ResponseCode::NXDomain)), "Nothing(NoName)");
    assert_eq!(says(nothing(ResponseCode::NoError)), "Nothing(NoRecords)");
    for (error, silence) in [
        (nothing(ResponseCode::ServFail), false),
        (DnsError::ResponseCode(ResponseCode::Refused).into(), false),
        (NetError::Timeout, true),
        (NetError::NoConnections, true),
        (io::Error::from(io::ErrorKind::ConnectionRefused).into(), true),
        (NetError::Truncated, false),
    ] {
        match known(error.clone(), "s") {
            Known::Failure(failure) => assert_eq!(failure.is_silence(), silence, "{error}"),
            Known::Nothing(_) => panic!("{error}"),
        }
    }
}
