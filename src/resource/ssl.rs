//! ssls (`apisix/ssl.lua:174`).

use std::sync::Arc;

use serde_json::Value;

use super::document::{Document, is_reference};
use super::rules::{Notes, Rejection, Rules};
use super::{Ssl, pem};

pub(super) fn parse(
    rules: &Rules,
    id: &Arc<str>,
    mut value: Value,
    notes: &mut Notes,
) -> Result<Ssl, Rejection> {
    rules.schemas.ssl.check(&mut value, "")?;
    let mut fields = Document::from(value);
    let kind = fields.text("type").unwrap_or("server");
    let (server_type, client_type) = (kind == "server", kind == "client");
    if !server_type && !client_type {
        notes.warn(format!("/type is {kind:?}, which nothing resolves; the certificate is never used"));
    }
    let mut pairs = Pairs { rules, kept: Vec::new(), dropped: Vec::new() };
    pairs.read(["cert", "key"].map(|name| (format!("/{name}"), fields.text(name))))?;
    if !client_type {
        further_pairs(&fields, &mut pairs)?;
    }
    let client = if client_type { None } else { client(&fields.nested("client"))? };
    let (kept, dropped) = (pairs.kept, pairs.dropped);
    if kept.is_empty() {
        notes.unusable(Some("SG-006"), dropped.join("; "));
    } else {
        for why in dropped {
            notes.differs("SG-006", format!("{why}; the pair is left out"));
        }
    }
    let protocols = protocols(&fields, notes);
    Ok(Ssl {
        id: Arc::clone(id),
        client_type,
        enabled: (server_type || client_type) && fields.number("status").is_none_or(|status| status > 0.0),
        snis: snis(&fields),
        pairs: kept,
        client,
        protocols,
    })
}

/// Certificates and keys, as they are found.
struct Pairs<'a> {
    rules: &'a Rules,
    kept: Vec<(Box<str>, Box<str>)>,
    dropped: Vec<String>,
}

impl Pairs<'_> {
    /// Checks one pair, each half with its path. A reference in either half defers the check of both.
    fn read(
        &mut self,
        [(cert_at, cert), (key_at, key)]: [(String, Option<&str>); 2],
    ) -> Result<(), Rejection> {
        let (cert, key) = (cert.unwrap_or_default(), key.unwrap_or_default());
        if is_reference(cert) || is_reference(key) {
            self.kept.push((cert.into(), key.into()));
            return Ok(());
        }
        let chain = pem::certificates(cert).map_err(|error| format!("{cert_at} {error}"))?;
        let key = pem::stored_key(&self.rules.keyring, key).map_err(|error| format!("{key_at} {error}"))?;
        match pem::servable(&chain, &key) {
            Ok(()) => {
                let pem = (pem::write_certificates(&chain).into(), pem::write_private_key(&key).into());
                self.kept.push(pem);
            }
            Err(why) => self.dropped.push(format!("{cert_at}: {why}")),
        }
        Ok(())
    }
}

fn further_pairs(fields: &Document, pairs: &mut Pairs<'_>) -> Result<(), Rejection> {
    let (certs, keys) = (fields.texts("certs"), fields.texts("keys"));
    if certs.len() != keys.len() {
        let (certs, keys) = (certs.len(), keys.len());
        return Err(
            format!("/certs has {certs} entries and /keys has {keys}; as many of each are allowed").into()
        );
    }
    for (i, (cert, key)) in certs.into_iter().zip(keys).enumerate() {
        pairs.read([(format!("/certs/{i}"), Some(cert)), (format!("/keys/{i}"), Some(key))])?;
    }
    Ok(())
}

/// What clients are verified with.
fn client(fields: &Document) -> Result<Option<(Box<str>, u32)>, Rejection> {
    let Some(ca) = fields.text("ca") else { return Ok(None) };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, as wanted here"
    )]
    let depth = fields.number("depth").unwrap_or(1.0) as u32;
    if is_reference(ca) {
        return Ok(Some((ca.into(), depth)));
    }
    let chain = pem::certificates(ca).map_err(|error| format!("/client/ca {error}"))?;
    Ok(Some((pem::write_certificates(&chain).into(), depth)))
}

fn protocols(fields: &Document, notes: &mut Notes) -> Option<Vec<Box<str>>> {
    let listed = fields.texts("ssl_protocols");
    if listed.is_empty() {
        return None;
    }
    if !listed.iter().any(|name| matches!(*name, "TLSv1.2" | "TLSv1.3")) {
        notes.unusable(
            Some("SG-007"),
            "/ssl_protocols allows TLS 1.1 alone, which this program does not speak; add TLSv1.2 or TLSv1.3"
                .into(),
        );
    }
    Some(listed.into_iter().map(Box::from).collect())
}

/// Lower case and without the final dot (`apisix/ssl/router/radixtree_sni.lua:288`).
fn snis(fields: &Document) -> Vec<Box<str>> {
    let names = fields.text("sni").map_or_else(|| fields.texts("snis"), |sni| vec![sni]);
    names.into_iter().map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into()).collect()
}
