//! What a new config.yaml changes that a running process cannot follow.

use super::Config;
use super::Source;
use super::UpstreamTlsConfig;

impl Config {
    /// The changes from `self` to `new` that only a restart brings, a sentence each; empty: a HUP
    /// can apply `new` whole.
    ///
    /// Followed while running are `listens` (compare them by value), `shutdown_timeout`,
    /// `real_ip_from`, `log_level`, `access_log` and `session_log`, so they are never named here.
    #[must_use]
    pub fn changes_needing_restart(&self, new: &Self) -> Vec<String> {
        let mut told = Vec::new();
        if self.workers != new.workers {
            told.push(restart(&format!(
                "nginx_config.worker_processes: {} to {} workers",
                self.workers, new.workers
            )));
        }
        if self.cpu_affinity != new.cpu_affinity {
            told.push(restart("nginx_config.enable_cpu_affinity"));
        }
        if self.source != new.source {
            told.push(restart(&format!(
                "deployment: objects from {} instead of {}",
                new.source, self.source
            )));
        }
        let address =
            |it: Option<std::net::SocketAddr>| it.map_or_else(|| "off".to_owned(), |it| it.to_string());
        let [old_metrics, new_metrics] = [self, new].map(|it| it.prometheus.as_ref().map(|it| it.addr));
        if old_metrics != new_metrics {
            let (old, new) = (address(old_metrics), address(new_metrics));
            told.push(restart(&format!("plugin_attr.prometheus.export_addr: {old} to {new}")));
        } else if self.prometheus != new.prometheus {
            told.push(restart("plugin_attr.prometheus"));
        }
        if self.status != new.status {
            told.push(restart(&format!(
                "apisix.status: {} to {}",
                address(self.status),
                address(new.status)
            )));
        }
        let [old_control, new_control] = [self, new].map(|it| it.control.map(|it| it.addr));
        if old_control != new_control {
            let (old, new) = (address(old_control), address(new_control));
            told.push(restart(&format!("apisix.control: {old} to {new}")));
        }
        let rest = [
            ("stream_plugins, xrpc.protocols or apisix.data_encryption", self.rules == new.rules),
            ("apisix.dns_resolver and its neighbours", self.dns == new.dns),
            ("discovery", self.registries == new.registries),
            ("streamgate.upstreams", self.extensions == new.extensions),
            ("apisix.ssl", self.ssl == new.ssl),
            ("apisix.disable_upstream_healthcheck", self.disable_healthcheck == new.disable_healthcheck),
            ("streamgate.max_sessions or streamgate.udp.max_associations", self.limits == new.limits),
        ];
        told.extend(rest.iter().filter(|(_, same)| !same).map(|(what, _)| restart(what)));
        told.extend(upstream_tls(&self.upstream_tls, &new.upstream_tls).as_deref().map(restart));
        told
    }
}

/// What changed of the way to nodes. That a bundle was renewed is no change of config.yaml, so the
/// file is named.
fn upstream_tls(old: &UpstreamTlsConfig, new: &UpstreamTlsConfig) -> Option<String> {
    const WHERE: &str = "streamgate.upstream_tls or streamgate.upstreams";
    if old == new {
        return None;
    }
    let renewed = old.renewed_bundles(new);
    Some(match renewed.as_slice() {
        [] => WHERE.to_owned(),
        paths => format!("{WHERE}: the content of the CA bundle {}", paths.join(", ")),
    })
}

fn restart(what: &str) -> String {
    format!("{what}: takes effect after a restart")
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Etcd(etcd) => write!(f, "etcd {} under {}", etcd.hosts.join(", "), etcd.prefix),
            Self::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}
