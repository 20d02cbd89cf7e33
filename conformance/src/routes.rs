//! Routes that fill a configuration beside those that a measurement uses.

/// Key and value in etcd of the `i`-th: mixed ports, client networks and server names, none of which
/// takes the traffic of a client on loopback to a port below 10,000.
#[must_use]
pub fn other_route(i: usize) -> (String, String) {
    let (b, c) = (i / 256 % 256, i % 256);
    let conditions = conditions(i);
    let node = format!(r#"{{"nodes":{{"10.200.{b}.{c}:3306":1,"10.201.{b}.{c}:3306":2}}}}"#);
    (format!("/apisix/stream_routes/r{i:06}"), format!(r#"{{{conditions},"upstream":{node}}}"#))
}

/// The conditions of the `i`-th, as members of its object.
#[must_use]
pub fn conditions(i: usize) -> String {
    let (a, b, c) = (i / 65_536 % 256, i / 256 % 256, i % 256);
    match i % 4 {
        0 => format!(r#""server_port":{},"remote_addr":"10.{b}.{c}.0/24""#, 10_000 + i % 20_000),
        1 => format!(r#""server_port":{},"remote_addr":"172.{a}.{b}.{c}""#, 20_000 + i % 100),
        2 => format!(r#""sni":"host{i}.example.com""#),
        _ => format!(r#""server_addr":"192.168.{b}.{c}","server_port":{}"#, 30_000 + i % 1000),
    }
}
