//! The answer for one connection, as text.

use std::io::{self, Write};

use streamgate::balance::Tried;
use streamgate::resource::{Key, Kind};
use streamgate::session::Inbound;
use streamgate::snapshot::Route;

use crate::cli::load::Loaded;

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) inbound: &'a Inbound,
    /// Its TLS is terminated here.
    pub(super) tls: bool,
    /// How many routes that fell out are listed.
    pub(super) others: usize,
}

/// Writes the certificate, the route, the node and why every other candidate fell out.
pub(super) fn explain(loaded: &Loaded, question: &Question<'_>, out: &mut impl Write) -> io::Result<()> {
    let Question { inbound, tls, others } = *question;
    let snapshot = &loaded.snapshot;
    if tls {
        certificate(loaded, inbound.sni.as_deref(), out)?;
    }
    let explanation = snapshot.explain(inbound, others);
    match explanation.winner {
        Some((_, route)) => winner(loaded, route, inbound, out)?,
        None => writeln!(out, "route  none: the connection would be closed (no_route)")?,
    }
    for other in &explanation.others {
        writeln!(out, "not    {}: {}", title(other.value), other.why)?;
    }
    for rest in &explanation.rest {
        writeln!(out, "not    {rest}")?;
    }
    let refused = snapshot.rejected().into_iter();
    for refused in refused.filter(|refused| refused.key.kind == Kind::StreamRoute) {
        writeln!(out, "rejected {}: {}", refused.key, refused.reason)?;
    }
    if loaded.from_etcd {
        writeln!(out, "config revision {}", snapshot.revision)?;
    }
    Ok(())
}

/// The certificate that a TLS client gets, where the listen terminates TLS.
fn certificate(loaded: &Loaded, name: Option<&str>, out: &mut impl Write) -> io::Result<()> {
    let Some(name) = name else {
        return writeln!(
            out,
            "ssl    none: the client names no server and apisix.ssl.fallback_sni is not set (tls_no_sni)"
        );
    };
    match loaded.snapshot.certificates().find(name) {
        Some(served) if served.verifies_clients => {
            writeln!(out, "ssl    {} for {name}; the client has to show a certificate", served.id)
        }
        Some(served) => writeln!(out, "ssl    {} for {name}", served.id),
        None => writeln!(out, "ssl    none has a certificate for {name} (tls_no_certificate)"),
    }
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
            match pool.pick(inbound, |_| true, &mut Tried::default()) {
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
