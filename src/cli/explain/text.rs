//! The answer for one connection, as text.

use std::io::{self, Write};

use streamgate::balance::Tried;
use streamgate::config::Listen;
use streamgate::resource::{Key, Kind};
use streamgate::session::{Inbound, Transport};
use streamgate::snapshot::Route;
use tokio::time::Instant;

use crate::cli::load::Loaded;

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) inbound: &'a Inbound,
    /// The client speaks TLS.
    pub(super) tls: bool,
    /// Its TLS ends here where no listen says otherwise.
    pub(super) ends: bool,
    /// How many routes that fell out are listed.
    pub(super) others: usize,
    /// Those of config.yaml.
    pub(super) listens: &'a [Listen],
}

/// Writes the listen, the certificate, the route, the node and why every other candidate fell out.
pub(super) fn explain(loaded: &Loaded, question: &Question<'_>, out: &mut impl Write) -> io::Result<()> {
    let snapshot = &loaded.snapshot;
    let mut inbound = question.inbound.clone();
    if arrives(loaded, question, &mut inbound, out)? {
        let explanation = snapshot.explain(&inbound, question.others);
        match explanation.winner {
            Some((_, route)) => winner(loaded, route, &inbound, out)?,
            None => writeln!(out, "route  none: the connection would be closed (no_route)")?,
        }
        for other in &explanation.others {
            writeln!(out, "not    {}: {}", title(other.value), other.why)?;
        }
        for rest in &explanation.rest {
            writeln!(out, "not    {rest}")?;
        }
    }
    let told = |kind| kind == Kind::StreamRoute || kind == Kind::Ssl && question.tls;
    for refused in snapshot.rejected().into_iter().filter(|refused| told(refused.key.kind)) {
        writeln!(out, "rejected {}: {}", refused.key, refused.reason)?;
    }
    if loaded.from_etcd {
        writeln!(out, "config revision {}", snapshot.revision)?;
    }
    Ok(())
}

/// What its listen does with the connection before there is a route; false where that is its end.
fn arrives(
    loaded: &Loaded,
    question: &Question<'_>,
    inbound: &mut Inbound,
    out: &mut impl Write,
) -> io::Result<bool> {
    let server = inbound.server;
    let here = |listen: &&Listen| {
        let addr = listen.addr;
        let any = addr.ip().is_unspecified() && addr.is_ipv4() == server.is_ipv4();
        listen.transport == inbound.transport
            && addr.port() == server.port()
            && (any || addr.ip() == server.ip())
    };
    let Some(listen) = question.listens.iter().find(here) else {
        writeln!(out, "listen none of config.yaml is {} {server}", inbound.transport.label())?;
        return if question.ends { certificate(loaded, inbound.sni.as_deref(), out) } else { Ok(true) };
    };
    if inbound.transport == Transport::Udp {
        return Ok(true);
    }
    if !listen.tls && !listen.tls_passthrough {
        if question.tls {
            writeln!(out, "listen {} does not look at TLS: the server name does not count", listen.written)?;
            inbound.sni = None;
        }
        return Ok(true);
    }
    if !question.tls {
        if listen.tls_passthrough {
            return Ok(true);
        }
        writeln!(
            out,
            "listen {} ends TLS: a client without it is closed (tls_failed); ask with --tls",
            listen.written
        )?;
        return Ok(false);
    }
    let passed = |route: &Route| !listen.tls || route.tls_passthrough;
    let route = loaded.snapshot.find(inbound);
    if listen.tls_passthrough && (!listen.tls || route.is_some_and(|route| passed(route))) {
        writeln!(out, "listen {} passes its TLS through", listen.written)?;
        return Ok(true);
    }
    certificate(loaded, inbound.sni.as_deref(), out)
}

/// The certificate that a TLS client gets where TLS is ended; false where there is none.
fn certificate(loaded: &Loaded, name: Option<&str>, out: &mut impl Write) -> io::Result<bool> {
    let Some(name) = name else {
        writeln!(
            out,
            "ssl    none: the client names no server and apisix.ssl.fallback_sni is not set; closed: tls_no_sni"
        )?;
        return Ok(false);
    };
    match loaded.snapshot.certificates().find(name) {
        Some(served) if served.verifies_clients => {
            writeln!(out, "ssl    {} for {name}; the client has to show a certificate", served.id)?;
        }
        Some(served) => writeln!(out, "ssl    {} for {name}", served.id)?,
        None => {
            writeln!(out, "ssl    none has a certificate for {name}; closed: tls_no_certificate")?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn title(route: &Route) -> String {
    match &route.name {
        Some(name) => format!("{} {name:?}", route.id),
        None => route.id.to_string(),
    }
}

fn winner(loaded: &Loaded, route: &Route, inbound: &Inbound, out: &mut impl Write) -> io::Result<()> {
    let revision = loaded.store.entry(&Key::new(Kind::StreamRoute, route.id.clone()));
    let revision = revision.map(|entry| entry.revision).unwrap_or_default();
    write!(out, "route  {}", title(route))?;
    if loaded.from_etcd {
        write!(out, " (revision {revision})")?;
    }
    if let Some(service) = &route.service {
        write!(out, "   service {service}")?;
    }
    match loaded.snapshot.pool(&route.target) {
        Err((end, why)) => writeln!(out, "   closed: {}: {why}", end.label())?,
        Ok(pool) => {
            write!(out, "   upstream {}", pool.id)?;
            let usable = pool.nodes().len();
            match pool.pick(inbound, Instant::now().into_std(), &mut Tried::default()) {
                Some(picked) => {
                    writeln!(out, "   node {} ({}, 1 of {usable})", picked.node.label, pool.method())?;
                }
                None if pool.settings.pending => {
                    writeln!(out, "   node none yet: its names did not resolve in time")?;
                }
                None => writeln!(out, "   closed: no_node: the upstream has no node that can be dialled")?,
            }
        }
    }
    for why in route.degraded.iter() {
        writeln!(out, "       {why}")?;
    }
    Ok(())
}
