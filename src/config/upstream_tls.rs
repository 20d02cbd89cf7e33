//! `streamgate.upstream_tls` and `streamgate.upstreams`: how nodes of scheme `tls` are dialled.
//!
//! APISIX verifies no certificate of a node and sends it the client's server name
//! (`apisix/upstream.lua:322-338`, `apisix/cli/ngx_tpl.lua:268-270`). That is what is done where
//! nothing is written.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::Environment;
use super::extensions;
use super::files::Files;
use super::read::Node;

/// The settings, of all upstreams and of one.
const KEYS: &[&str] = &["ca", "post_quantum", "sni", "verify"];

/// How nodes of scheme tls are dialled beyond APISIX: `streamgate.upstream_tls`, and for one upstream
/// `streamgate.upstreams.<id>.tls`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UpstreamTlsConfig {
    /// What counts for an upstream that is not named below.
    pub default: TlsTowards,
    /// By the id of an object among `upstreams`, or `stream_routes/<id>` and `services/<id>` for one
    /// written inside; each whole, what its section leaves out taken from the default.
    pub upstreams: BTreeMap<Arc<str>, TlsTowards>,
}

impl UpstreamTlsConfig {
    /// What counts for one upstream; `key` as in [`Self::upstreams`].
    #[must_use]
    pub fn of(&self, key: &str) -> &TlsTowards {
        self.upstreams.get(key).unwrap_or(&self.default)
    }

    /// The files whose content alone makes `new` differ; empty where settings do too.
    pub(super) fn renewed_bundles(&self, new: &Self) -> Vec<String> {
        if self.without_content() != new.without_content() {
            return Vec::new();
        }
        let pairs = self.all().zip(new.all()).filter_map(|(old, new)| old.ca.as_ref().zip(new.ca.as_ref()));
        let renewed = pairs.filter(|(old, new)| old.pem != new.pem).map(|(old, _)| old.path.as_path());
        renewed.collect::<BTreeSet<_>>().into_iter().map(|path| path.display().to_string()).collect()
    }

    fn without_content(&self) -> Self {
        let mut bare = self.clone();
        for towards in bare.upstreams.values_mut().chain([&mut bare.default]) {
            if let Some(ca) = &mut towards.ca {
                ca.pem = Arc::default();
            }
        }
        bare
    }

    fn all(&self) -> impl Iterator<Item = &TlsTowards> {
        self.upstreams.values().chain([&self.default])
    }
}

/// How the nodes of an upstream are dialled by TLS.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsTowards {
    /// `verify`: the node's certificate must be good for the name sent. Off: any will do, as in APISIX.
    pub verify: bool,
    /// `ca`: what verification trusts; where it is not written, the bundle of
    /// `apisix.ssl.ssl_trusted_certificate`. There exactly where `verify` is on, and with a
    /// certificate in it.
    pub ca: Option<CaBundle>,
    /// `sni`: which name is sent.
    pub sni: SniSource,
    /// `post_quantum`: X25519MLKEM768 is offered too. Off by default: the `ClientHello` would not fit
    /// into one packet.
    pub post_quantum: bool,
}

/// Which server name a node is told.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SniSource {
    /// `client`: the one that the client sent, as in APISIX.
    #[default]
    Client,
    /// `node`: the host of the node as written.
    Node,
}

/// A bundle of CA certificates as read.
#[derive(Clone, Eq, PartialEq)]
pub struct CaBundle {
    /// Where from.
    pub path: PathBuf,
    /// Its PEM text.
    pub pem: Arc<str>,
}

/// Without the text, which may be hundreds of kilobytes.
impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaBundle").field("path", &self.path).field("bytes", &self.pem.len()).finish()
    }
}

/// Reads both sections below `streamgate`. `trusted` is the bundle where no `ca` is written.
pub(super) fn read(streamgate: &Node<'_>, trusted: Option<&Path>, files: &Files<'_>) -> UpstreamTlsConfig {
    let mut bundles = Bundles { trusted, files, known: BTreeMap::new() };
    let default = Section::read(&streamgate.at("upstream_tls"));
    let mut default_ca_counts = default.verifies();
    let mut upstreams = BTreeMap::new();
    for (key, node) in streamgate.at("upstreams").entries() {
        refuse_key(key, &node);
        node.only(&[&["tls"], extensions::KEYS.as_slice()].concat());
        if node.at("tls").is_absent() {
            continue;
        }
        let own = Section::read(&node.at("tls"));
        let whole = own.clone().or(&default);
        if whole.verifies() {
            default_ca_counts |= own.ca.is_none();
        } else {
            refuse_idle(own.ca.as_ref());
        }
        upstreams.insert(key.into(), whole.meant(&mut bundles));
    }
    if !default_ca_counts {
        refuse_idle(default.ca.as_ref());
    }
    UpstreamTlsConfig { default: default.meant(&mut bundles), upstreams }
}

/// Keys that no upstream can have.
fn refuse_key(key: &str, node: &Node<'_>) {
    if let Some(id) = key.strip_prefix("upstreams/") {
        node.mistake(format!("an object among upstreams is named by its id alone; write {id:?}"));
    } else if matches!(key, "" | "stream_routes/" | "services/") {
        node.mistake(
            "has no id; write that of an upstream, or stream_routes/<id> or services/<id> for one written inside",
        );
    }
}

/// Who writes `ca` counts on verification.
fn refuse_idle(ca: Option<&Node<'_>>) {
    if let Some(ca) = ca {
        ca.mistake("has no effect, for no certificate is verified; set verify: true, or take it out");
    }
}

/// One section as written.
#[derive(Clone, Debug)]
struct Section<'a> {
    verify: Option<(bool, Node<'a>)>,
    ca: Option<Node<'a>>,
    sni: Option<SniSource>,
    post_quantum: Option<bool>,
}

impl<'a> Section<'a> {
    fn read(node: &Node<'a>) -> Self {
        node.only(KEYS);
        let (verify, ca) = (node.at("verify"), node.at("ca"));
        Self {
            // What cannot be read is told already; taken as true, it has no other key blamed for it.
            verify: (!verify.is_absent()).then(|| (verify.boolean().unwrap_or(true), verify)),
            ca: (!ca.is_absent()).then_some(ca),
            sni: node.at("sni").choice(&["client", "node"]).map(|word| match word {
                "node" => SniSource::Node,
                _ => SniSource::Client,
            }),
            post_quantum: node.at("post_quantum").boolean(),
        }
    }

    /// What is not written here, from `default`.
    fn or(self, default: &Self) -> Self {
        Self {
            verify: self.verify.or_else(|| default.verify.clone()),
            ca: self.ca.or_else(|| default.ca.clone()),
            sni: self.sni.or(default.sni),
            post_quantum: self.post_quantum.or(default.post_quantum),
        }
    }

    fn verifies(&self) -> bool {
        self.verify.as_ref().is_some_and(|(on, _)| *on)
    }

    fn meant(&self, bundles: &mut Bundles<'_, '_>) -> TlsTowards {
        let verify = self.verify.as_ref().filter(|(on, _)| *on).map(|(_, node)| node);
        TlsTowards {
            verify: verify.is_some(),
            ca: verify.and_then(|verify| match &self.ca {
                Some(ca) => bundles.written(ca),
                None => bundles.trusted(verify),
            }),
            sni: self.sni.unwrap_or_default(),
            post_quantum: self.post_quantum.unwrap_or(false),
        }
    }
}

/// Reads bundles, each file once however many upstreams name it.
struct Bundles<'f, 'e> {
    trusted: Option<&'f Path>,
    files: &'f Files<'e>,
    known: BTreeMap<PathBuf, Result<CaBundle, String>>,
}

impl Bundles<'_, '_> {
    /// The one written at `ca`.
    fn written(&mut self, ca: &Node<'_>) -> Option<CaBundle> {
        let path = self.files.existing(ca, &self.files.prefix)?;
        self.at(&path).map_err(|why| ca.mistake(why)).ok()
    }

    /// The one for all outgoing connections, which the setting at `verify` needs.
    fn trusted(&mut self, verify: &Node<'_>) -> Option<CaBundle> {
        let Some(path) = self.trusted else {
            verify.mistake(
                "needs a CA bundle, and there is none; write ca beside it, or apisix.ssl.ssl_trusted_certificate",
            );
            return None;
        };
        let advice = "write ca beside it, or another apisix.ssl.ssl_trusted_certificate";
        self.at(path).map_err(|why| verify.mistake(format!("needs a CA bundle, and {why}; {advice}"))).ok()
    }

    fn at(&mut self, path: &Path) -> Result<CaBundle, String> {
        let env = self.files.env;
        self.known.entry(path.to_path_buf()).or_insert_with(|| bundle(path, env)).clone()
    }
}

/// Reads the file at `path`, which must hold a certificate that can be trusted.
fn bundle(path: &Path, env: &Environment) -> Result<CaBundle, String> {
    let shown = path.display();
    let pem = (env.read)(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => format!("{shown} is no text; a CA bundle is PEM, in UTF-8"),
        _ => format!("{shown} cannot be read: {error}"),
    })?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{shown} cannot be read as PEM: {error}"))?;
    // As in OpenSSL, a certificate of a bundle that makes no sense is passed over.
    let (added, _) = RootCertStore::empty().add_parsable_certificates(certificates);
    if added == 0 {
        return Err(format!(
            "{shown} holds no CA certificate that can be used; they begin with -----BEGIN CERTIFICATE-----"
        ));
    }
    Ok(CaBundle { path: path.to_path_buf(), pem: pem.into() })
}
