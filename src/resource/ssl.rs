//! ssls (`apisix/ssl.lua:174`).

use std::sync::Arc;

use serde_json::Value;

use super::document::{Document, is_reference};
use super::reference::resolve;
use super::rules::{Notes, Rejection, Rules};
use super::{ClientAuth, Identity, Names, Ssl, Versions, pem};
use crate::sni::hello::normalized;

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
    let client = if client_type { None } else { client(rules, &fields.nested("client"), notes)? };
    let (kept, dropped) = (pairs.kept, pairs.dropped);
    if kept.is_empty() {
        let rule = dropped.first().map(|(rule, _)| *rule);
        let reasons: Vec<_> = dropped.into_iter().map(|(_, why)| why).collect();
        notes.unusable(rule, reasons.join("; "));
    } else {
        for (rule, why) in dropped {
            notes.differs(rule, format!("{why}; the pair is left out"));
        }
    }
    let versions = versions(&fields, notes);
    Ok(Ssl {
        id: Arc::clone(id),
        client_type,
        enabled: (server_type || client_type) && fields.number("status").is_none_or(|status| status > 0.0),
        names: names(&fields),
        identities: kept,
        client,
        versions,
    })
}

impl Ssl {
    /// As much of an object as decides which names it serves, unchecked and without its certificates.
    #[must_use]
    pub fn of_names(id: Arc<str>, value: &Value) -> Self {
        let fields = Document::from(value.clone());
        let kind = fields.text("type").unwrap_or("server");
        Self {
            id,
            client_type: kind == "client",
            enabled: kind == "server" && fields.number("status").is_none_or(|status| status > 0.0),
            names: names(&fields),
            ..Self::default()
        }
    }
}

/// Certificates and keys, as they are found.
struct Pairs<'a> {
    rules: &'a Rules,
    kept: Vec<Identity>,
    /// With the rule of docs/compatibility.md behind it.
    dropped: Vec<(&'static str, String)>,
}

impl Pairs<'_> {
    /// Reads one pair, each half with its path. With a reference in either half APISIX looks at neither
    /// before a handshake: what is wrong then costs the pair and not the object.
    fn read(&mut self, halves: [(String, Option<&str>); 2]) -> Result<(), Rejection> {
        let [(cert_at, cert), (key_at, key)] = halves;
        let (cert, key) = (cert.unwrap_or_default(), key.unwrap_or_default());
        let deferred = is_reference(cert) || is_reference(key);
        let variables = &self.rules.environment;
        let chain = resolve(variables, cert)
            .and_then(|cert| pem::certificates(&cert).map_err(|error| error.to_string()))
            .map_err(|error| format!("{cert_at} {error}"));
        let key = resolve(variables, key)
            .and_then(|key| pem::stored_key(&self.rules.keyring, &key))
            .map_err(|error| format!("{key_at} {error}"));
        match chain.and_then(|chain| Ok((chain, key?))) {
            Ok((chain, key)) => match Identity::new(chain, &key) {
                Ok(identity) => self.kept.push(identity),
                Err(why) => self.dropped.push(("SG-006", format!("{cert_at}: {why}"))),
            },
            Err(why) if deferred => self.dropped.push(("SG-009", why)),
            Err(why) => return Err(why.into()),
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

/// What clients are verified with. Without CAs that can be used nobody could be let in, and everybody
/// must not be.
fn client(rules: &Rules, fields: &Document, notes: &mut Notes) -> Result<Option<ClientAuth>, Rejection> {
    let Some(written) = fields.text("ca") else { return Ok(None) };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, as wanted here"
    )]
    let depth = fields.number("depth").unwrap_or(1.0) as u32;
    let certificates = resolve(&rules.environment, written)
        .and_then(|ca| pem::certificates(&ca).map_err(|error| error.to_string()));
    match certificates {
        Ok(certificates) => match ClientAuth::new(certificates, depth) {
            Ok(auth) => return Ok(Some(auth)),
            Err(why) => notes.unusable(Some("SG-006"), format!("/client/ca {why}")),
        },
        Err(why) if is_reference(written) => notes.unusable(Some("SG-009"), format!("/client/ca {why}")),
        Err(why) => return Err(format!("/client/ca {why}").into()),
    }
    Ok(None)
}

fn versions(fields: &Document, notes: &mut Notes) -> Versions {
    let listed = fields.texts("ssl_protocols");
    if listed.is_empty() {
        return Versions::default();
    }
    let versions = Versions { tls12: listed.contains(&"TLSv1.2"), tls13: listed.contains(&"TLSv1.3") };
    if !versions.tls12 && !versions.tls13 {
        notes.unusable(
            Some("SG-007"),
            "/ssl_protocols allows TLS 1.1 alone, which this program does not speak; add TLSv1.2 or TLSv1.3"
                .into(),
        );
    } else if listed.contains(&"TLSv1.1") {
        let why = "/ssl_protocols allows TLS 1.1, which this program does not speak; clients without TLS 1.2 or 1.3 \
                   are refused";
        notes.differs("SG-007", why.into());
    }
    versions
}

/// Lower case and without the final dot (`apisix/ssl/router/radixtree_sni.lua:288`).
fn names(fields: &Document) -> Names {
    let boxed = |name: &str| normalized(name).into();
    match fields.text("sni") {
        Some(sni) => Names::One(boxed(sni)),
        None => Names::Listed(fields.texts("snis").into_iter().map(boxed).collect()),
    }
}
