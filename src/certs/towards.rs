//! TLS to nodes: `scheme: tls`.
//!
//! As in APISIX the certificate of a node is not verified and the server name sent is the client's, else
//! `apisix_backend` (`apisix/upstream.lua:322`, `apisix/cli/ngx_tpl.lua:268`). `streamgate.upstream_tls` changes
//! that. Sessions are resumed, each node having its own; APISIX resumes none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, NamedGroup, SignatureScheme};

use super::verify;

use crate::config::{SniSource, TlsTowards, UpstreamTlsConfig};
use crate::resource::{Identity, pem, provider};

/// What a client without a server name is called towards nodes (`apisix/cli/ngx_tpl.lua:270`).
pub const NAMELESS: &str = "apisix_backend";
/// Sessions that are kept for each node: eight of each of 32 names, as the TLS library counts.
const SESSIONS: usize = 32 * 8;

/// How the nodes of each upstream are dialled.
#[derive(Clone, Debug)]
pub struct Towards {
    default: Template,
    upstreams: BTreeMap<Arc<str>, Template>,
}

/// How one upstream's are, before it is known whom they are shown as.
#[derive(Clone)]
struct Template {
    /// Reading config.yaml made sure that there is one.
    verifier: Result<Arc<dyn ServerCertVerifier>, String>,
    provider: Arc<CryptoProvider>,
    sni: SniSource,
}

/// The TLS side of a pool: makes that of each of its nodes.
#[derive(Clone)]
pub struct PoolTls {
    config: ClientConfig,
    sni: SniSource,
}

/// How one node is dialled.
#[derive(Debug)]
pub struct NodeTls {
    /// With the sessions of this node.
    pub config: Arc<ClientConfig>,
    /// The name to send, where it is the node's; else it is the client's.
    pub name: Option<ServerName<'static>>,
}

impl Default for Towards {
    fn default() -> Self {
        Self::new(&UpstreamTlsConfig::default())
    }
}

impl Towards {
    /// Prepares what a configuration says.
    #[must_use]
    pub fn new(config: &UpstreamTlsConfig) -> Self {
        let upstreams = config.upstreams.iter().map(|(id, side)| (id.clone(), Template::new(side)));
        Self { default: Template::new(&config.default), upstreams: upstreams.collect() }
    }

    /// For the pool of this id, shown to nodes as `identity`. The error is a sentence for the operator.
    pub fn pool(&self, id: &str, identity: Option<&Identity>) -> Result<PoolTls, String> {
        self.upstreams.get(id).unwrap_or(&self.default).pool(identity)
    }
}

impl Template {
    fn new(side: &TlsTowards) -> Self {
        let mut provider = CryptoProvider::clone(provider());
        if !side.post_quantum {
            // Its share makes the hello longer than a packet.
            provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
        }
        let verifier = if side.verify {
            let bundle = side.ca.as_ref().map_or("", |bundle| &*bundle.pem);
            pem::certificates(bundle).map_err(|error| error.to_string()).and_then(verify::bundle)
        } else {
            Ok(verify::anybody())
        };
        Self { verifier, provider: Arc::new(provider), sni: side.sni }
    }

    fn pool(&self, identity: Option<&Identity>) -> Result<PoolTls, String> {
        let verifier = self.verifier.clone().map_err(|why| format!("the CA bundle for nodes {why}"))?;
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(Shown(identity.certified().clone())))
            }
            None => builder.with_no_client_auth(),
        };
        Ok(PoolTls { config, sni: self.sni })
    }
}

impl PoolTls {
    /// For a node whose host is written so, without brackets.
    #[must_use]
    pub fn node(&self, host: &str) -> NodeTls {
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let name = match self.sni {
            SniSource::Node => ServerName::try_from(host.to_owned()).ok(),
            SniSource::Client => None,
        };
        NodeTls { config: Arc::new(config), name }
    }
}

impl NodeTls {
    /// The name to send for a client that sent `sni`. The error is for the log.
    pub fn server_name(&self, sni: Option<&str>) -> Result<ServerName<'static>, String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let name = sni.unwrap_or(NAMELESS);
        ServerName::try_from(name.to_owned())
            .map_err(|_| format!("{name:?} cannot be sent to the node as a server name"))
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("sni", &self.sni).finish_non_exhaustive()
    }
}

impl fmt::Debug for PoolTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolTls").field("sni", &self.sni).finish_non_exhaustive()
    }
}

/// Shows one certificate to whoever asks, as nginx does.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
