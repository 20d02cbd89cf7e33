//! The answer for one connection, as text.

use std::io::{self, Write};
use std::path::Path;

use streamgate::admin::explain::{Answer, Certificate, Health};

/// Who worked the answer out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// This command, from the objects of etcd.
    Etcd,
    /// This command, from a file.
    File(&'a Path),
    /// A running node, which knows the health of its nodes.
    Node,
}

/// Writes the listen, the certificate, the route, the node and why every other candidate fell out.
pub(super) fn write(answer: &Answer, origin: Origin<'_>, out: &mut impl Write) -> io::Result<()> {
    if let Some(listen) = &answer.listen {
        writeln!(out, "listen {listen}")?;
    }
    if let Some(ssl) = &answer.ssl {
        certificate(ssl, out)?;
    }
    winner(answer, out)?;
    for voice in &answer.plugins {
        writeln!(out, "plugin {} {}", voice.plugin, voice.says)?;
    }
    for other in &answer.others {
        writeln!(out, "not    {}: {}", title(&other.route, other.name.as_deref()), other.why)?;
    }
    for rest in &answer.rest {
        writeln!(out, "not    {rest}")?;
    }
    for refused in &answer.rejected {
        writeln!(out, "rejected {}: {}", refused.object, refused.reason)?;
    }
    let from_etcd = answer.source == "etcd";
    match origin {
        Origin::Etcd => writeln!(out, "config revision {}\nfrom etcd, health unknown", answer.revision),
        Origin::File(path) => writeln!(out, "from {}, health unknown", path.display()),
        Origin::Node => {
            health(answer, out)?;
            dns(answer, out)?;
            if from_etcd {
                writeln!(out, "config revision {} (of the running node)", answer.revision)
            } else {
                writeln!(out, "config of the running node, from its file")
            }
        }
    }
}

fn certificate(ssl: &Certificate, out: &mut impl Write) -> io::Result<()> {
    match (&ssl.id, &ssl.name) {
        (Some(id), name) => {
            let shows = if ssl.verifies_clients { "; the client has to show a certificate" } else { "" };
            writeln!(out, "ssl    {id} for {}{shows}", name.as_deref().unwrap_or_default())
        }
        (None, Some(name)) => {
            writeln!(out, "ssl    none has a certificate for {name}; closed: tls_no_certificate")
        }
        (None, None) => writeln!(
            out,
            "ssl    none: the client names no server and apisix.ssl.fallback_sni is not set; closed: tls_no_sni"
        ),
    }
}

fn title(id: &str, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{} {name:?}", id.escape_debug()),
        None => id.escape_debug().to_string(),
    }
}

fn winner(answer: &Answer, out: &mut impl Write) -> io::Result<()> {
    let Some(route) = &answer.route else {
        if answer.end.as_deref() == Some("no_route") {
            writeln!(out, "route  none: the connection would be closed (no_route)")?;
        }
        return Ok(());
    };
    write!(out, "route  {}", title(&route.id, route.name.as_deref()))?;
    if answer.source == "etcd" {
        write!(out, " (revision {})", route.revision)?;
    }
    if let Some(service) = &answer.service {
        write!(out, "   service {service}")?;
    }
    if let Some(upstream) = &answer.upstream {
        write!(out, "   upstream {upstream}")?;
    }
    match (&answer.node, &answer.end) {
        (Some(node), _) => {
            let method = answer.method.as_deref().unwrap_or_default();
            writeln!(out, "   node {node} ({method}, 1 of {})", answer.nodes)?;
        }
        (None, Some(end)) => {
            writeln!(out, "   closed: {end}: {}", answer.reason.as_deref().unwrap_or_default())?;
        }
        (None, None) => {
            let why = answer.reason.as_deref().unwrap_or("nothing says why");
            writeln!(out, "   node none yet: {why}")?;
        }
    }
    for why in &answer.degraded {
        writeln!(out, "       {why}")?;
    }
    Ok(())
}

fn health(answer: &Answer, out: &mut impl Write) -> io::Result<()> {
    let Some(upstream) = &answer.upstream else { return Ok(()) };
    if answer.health.is_empty() {
        let why = if answer.node.is_none() { "no node" } else { "no checks" };
        return writeln!(out, "health unknown: upstream {upstream} has {why}");
    }
    for Health { node, status, since, by, why } in &answer.health {
        write!(out, "health {node} {status}")?;
        if let Some(since) = since {
            write!(out, " since {since}")?;
        }
        if let Some(by) = by {
            write!(out, " ({by})")?;
        }
        writeln!(out, ": {why}")?;
    }
    Ok(())
}

fn dns(answer: &Answer, out: &mut impl Write) -> io::Result<()> {
    let Some(dns) = &answer.dns else { return Ok(()) };
    for resolved in &dns.names {
        let addresses = resolved.addresses.join(", ");
        let addresses = if addresses.is_empty() { "has no address" } else { &addresses };
        writeln!(out, "dns    {}: {addresses}", resolved.name)?;
    }
    for name in &dns.pending {
        writeln!(out, "dns    {name}: no answer yet")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use streamgate::admin::explain::{Chosen, Dns, Resolved};

    use super::*;

    #[track_caller]
    fn check(answer: &Answer, origin: Origin<'_>, expected: &str) {
        let mut text = Vec::new();
        write(answer, origin, &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    fn answer() -> Answer {
        let health = Health {
            node: "10.0.0.1:80".into(),
            status: "unhealthy".into(),
            since: Some("2026-01-01T00:00:00Z".into()),
            by: Some("active".into()),
            why: "the connection was refused".into(),
        };
        let resolved = |name: &str, addresses: &[&str]| Resolved {
            name: name.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        Answer {
            revision: 7,
            source: "etcd".into(),
            route: Some(Chosen { id: "r".into(), name: Some("n".into()), revision: 3 }),
            upstream: Some("u".into()),
            method: Some("roundrobin".into()),
            node: Some("10.0.0.2:80".into()),
            nodes: 2,
            health: vec![health],
            dns: Some(Dns {
                names: vec![resolved("a", &["10.0.0.1", "10.0.0.2"]), resolved("b", &[])],
                pending: vec!["c".into()],
            }),
            ..Answer::default()
        }
    }

    const ROUTE: &str = "route  r \"n\" (revision 3)   upstream u   node 10.0.0.2:80 (roundrobin, 1 of 2)\n";

    #[test]
    fn a_running_node_tells_health_and_dns() {
        let more = "health 10.0.0.1:80 unhealthy since 2026-01-01T00:00:00Z (active): the connection was refused\n\
                    dns    a: 10.0.0.1, 10.0.0.2\ndns    b: has no address\ndns    c: no answer yet\n\
                    config revision 7 (of the running node)\n";
        check(&answer(), Origin::Node, &format!("{ROUTE}{more}"));
        let unchecked = Answer { health: vec![], dns: None, ..answer() };
        let more = "health unknown: upstream u has no checks\nconfig revision 7 (of the running node)\n";
        check(&unchecked, Origin::Node, &format!("{ROUTE}{more}"));
    }

    #[test]
    fn without_a_node_health_is_unknown() {
        check(&answer(), Origin::Etcd, &format!("{ROUTE}config revision 7\nfrom etcd, health unknown\n"));
        let of_file = Answer { source: "file".into(), ..answer() };
        let route = ROUTE.replace(" (revision 3)", "");
        check(
            &of_file,
            Origin::File(Path::new("conf/apisix.yaml")),
            &format!("{route}from conf/apisix.yaml, health unknown\n"),
        );
    }
}
