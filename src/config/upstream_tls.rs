//! `streamgate.upstream_tls` and `streamgate.upstreams`: how nodes of scheme `tls` are dialled.
//!
//! APISIX verifies no certificate of a node and sends it the client's server name
//! (`apisix/upstream.lua:322-338`, `apisix/cli/ngx_tpl.lua:268-270`). That is what is done where
//! nothing is written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

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
