//! TLS: handshakes with clients, why they failed, and when certificates end.

use std::sync::Arc;

use crate::admin::text::{self, Kind};
use crate::live::TlsCounters;
use crate::resource::Ssl;
use crate::snapshot::Snapshot;

/// Appends the families of TLS; of certificates at most `max_lines`.
pub(crate) fn render(out: &mut String, counters: &TlsCounters, snapshot: &Snapshot, max_lines: usize) {
    let name = "streamgate_certificate_expiry_timestamp_seconds";
    text::family(out, name, Kind::Gauge, "End of a loaded certificate, in seconds since 1970");
    let served = snapshot.certificates().iter().map(|(ssl, _)| ssl);
    for (labels, not_after) in served.chain(snapshot.shown_certificates()).flat_map(rows).take(max_lines) {
        text::sample(out, name, &labels, not_after);
    }
    let name = "streamgate_tls_handshake_failures_total";
    text::family(out, name, Kind::Counter, "Handshakes with clients that failed, by reason");
    for (failure, count) in counters.failed_counts() {
        text::sample(out, name, &text::labels(&[("reason", failure.label())]), count);
    }
    let name = "streamgate_tls_handshakes_total";
    text::family(out, name, Kind::Counter, "Handshakes with clients, in full or going on with a session");
    for (kind, count) in counters.done_counts() {
        text::sample(out, name, &text::labels(&[("kind", kind)]), count);
    }
    let name = "streamgate_tls_passthrough_total";
    text::family(out, name, Kind::Counter, "Connections whose TLS was passed on undecrypted");
    text::sample(out, name, "", counters.passed_through.count());
}

/// Labels and end of each certificate of an object. The name is the first that it serves.
fn rows(ssl: &Arc<Ssl>) -> impl Iterator<Item = (String, u64)> {
    let kind = if ssl.client_type { "client" } else { "server" };
    ssl.identities.iter().enumerate().map(move |(pair, identity)| {
        let name = ssl.names.iter().next().unwrap_or_default();
        let pair = pair.to_string();
        let labels = text::labels(&[("ssl", &ssl.id), ("type", kind), ("sni", name), ("pair", &pair)]);
        (labels, identity.not_after)
    })
}
