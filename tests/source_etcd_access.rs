//! The etcd source and who may read: users, tokens, TLS.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/follow.rs"]
mod follow;
#[path = "support/proxy.rs"]
mod proxy;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd::{Etcd, Tls};
use follow::{Follow, config};
use proxy::Proxy;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use streamgate::config::EtcdConfig;
use tempfile::TempDir;
use tokio::time::sleep;

const ROOT: [&str; 1] = ["--user=root:root"];

fn with_user(hosts: impl IntoIterator<Item = String>, password: &str) -> EtcdConfig {
    EtcdConfig { auth: Some(("gate".into(), password.into())), ..config(hosts) }
}

fn put_as_root(etcd: &Etcd, key: &str, value: &str) {
    etcd.ctl(&[ROOT[0], "put", key, value]);
}

#[tokio::test]
async fn a_role_that_reads_below_the_prefix_is_enough() {
    let etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    etcd.enable_auth("gate", "secret", "/apisix");
    let mut follow = Follow::start(with_user([etcd.endpoint()], "secret"));
    follow.until("upstreams/1", Some("x")).await;
    put_as_root(&etcd, "/apisix/upstreams/2", "y");
    follow.until("upstreams/2", Some("y")).await;
}

#[tokio::test]
async fn what_is_refused_is_said_and_tried_again() {
    let etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    etcd.enable_auth("gate", "secret", "/apisix");
    let error = async |config: EtcdConfig, words: &str| {
        let follow = Follow::start(config);
        let holds = |told: Option<String>| told.is_some_and(|told| told.contains(words));
        follow.poll(words, |status| holds(status.last_error().map(|error| error.sentence))).await;
        follow
    };
    let mut follow = error(with_user([etcd.endpoint()], "wrong"), "refuses user gate").await;
    error(config([etcd.endpoint()]), "set deployment.etcd.user").await;
    let elsewhere = EtcdConfig { prefix: "/other".into(), ..with_user([etcd.endpoint()], "secret") };
    error(elsewhere, "needs a role that may read below the prefix").await;
    etcd.ctl(&[ROOT[0], "user", "delete", "gate"]);
    etcd.ctl(&[ROOT[0], "user", "add", "gate:wrong"]);
    etcd.ctl(&[ROOT[0], "user", "grant-role", "gate", "reader"]);
    follow.until("upstreams/1", Some("x")).await;
}

#[tokio::test]
async fn a_user_does_no_harm_where_authentication_is_off() {
    let etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    let mut follow = Follow::start(with_user([etcd.endpoint()], "secret"));
    follow.until("upstreams/1", Some("x")).await;
}

/// Lets `spoil` make the token useless while the source is away; it must come back by itself.
async fn check_stale_token(flags: &[&str], spoil: impl AsyncFnOnce(&Etcd)) {
    let etcd = Etcd::start_with(flags, None).await;
    etcd.put("/apisix/upstreams/1", "x").await;
    etcd.enable_auth("gate", "secret", "/apisix");
    let proxy = Proxy::start(etcd.addr()).await;
    let mut follow = Follow::start(with_user([proxy.endpoint()], "secret"));
    follow.until("upstreams/1", Some("x")).await;
    proxy.block();
    put_as_root(&etcd, "/apisix/upstreams/2", "y");
    spoil(&etcd).await;
    let before = follow.status.reconnects();
    proxy.unblock();
    follow.until("upstreams/2", Some("y")).await;
    assert_eq!(follow.resyncs, 1, "a token is no reason to read everything");
    let tries = follow.status.reconnects() - before;
    assert!(tries <= 1, "the session itself authenticates again; {tries} were made");
}

#[tokio::test]
async fn an_expired_token_is_replaced() {
    // etcd looks for expired tokens every second.
    let expire = async |_: &Etcd| sleep(Duration::from_secs(3)).await;
    check_stale_token(&["--auth-token-ttl=1"], expire).await;
}

#[tokio::test]
async fn a_token_from_before_a_change_of_roles_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (public, private) = jwt_keys(&folder);
    let token = format!(
        "--auth-token=jwt,pub-key={},priv-key={},sign-method=ES256,ttl=10m",
        public.display(),
        private.display()
    );
    let change = async |etcd: &Etcd| {
        etcd.ctl(&[ROOT[0], "role", "add", "another"]);
    };
    check_stale_token(&[&token], change).await;
}

#[tokio::test]
async fn a_token_that_a_changed_password_ended_is_replaced() {
    let change = async |etcd: &Etcd| {
        // Setting the password anew ends the tokens of the user.
        etcd.ctl(&[ROOT[0], "user", "delete", "gate"]);
        etcd.ctl(&[ROOT[0], "user", "add", "gate:secret"]);
        etcd.ctl(&[ROOT[0], "user", "grant-role", "gate", "reader"]);
    };
    check_stale_token(&[], change).await;
}

/// Key files for ES256, as openssl writes them: etcd wants the private one as `EC PRIVATE KEY`.
fn jwt_keys(folder: &TempDir) -> (PathBuf, PathBuf) {
    let (public, private) = (folder.path().join("public.pem"), folder.path().join("private.pem"));
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private.to_str().unwrap()]);
    let (input, output) = (private.to_str().unwrap(), public.to_str().unwrap());
    openssl(&["ec", "-in", input, "-pubout", "-out", output]);
    (public, private)
}

fn openssl(arguments: &[&str]) {
    let output = std::process::Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A CA with certificates in files.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        let key = KeyPair::generate().unwrap();
        fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn bundle(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for `name` and its key.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        write_pair(self.folder.path(), name, &cert.pem(), &key)
    }
}

fn write_pair(folder: &Path, name: &str, cert: &str, key: &KeyPair) -> (PathBuf, PathBuf) {
    let paths = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    fs::write(&paths.0, cert).unwrap();
    fs::write(&paths.1, key.serialize_pem()).unwrap();
    paths
}

async fn with_tls((cert, key): (PathBuf, PathBuf), client_ca: Option<PathBuf>) -> Etcd {
    let etcd = Etcd::start_with(&[], Some(Tls { cert, key, client_ca })).await;
    etcd.put("/apisix/upstreams/1", "x").await;
    etcd
}

/// Follows `config`: it must work, or fail with these words.
async fn check_tls(config: EtcdConfig, expected: Result<(), &str>) {
    let mut follow = Follow::start(config);
    match expected {
        Ok(()) => follow.until("upstreams/1", Some("x")).await,
        Err(words) => {
            let told = |error: Option<String>| error.is_some_and(|error| error.contains(words));
            follow.poll(words, |status| told(status.last_error().map(|error| error.sentence))).await;
        }
    }
}

#[tokio::test]
async fn tls_is_verified_against_the_bundle_and_the_name() {
    let authority = Authority::new();
    let etcd = with_tls(authority.issue("etcd.test"), None).await;
    let base = config([etcd.tls_endpoint()]);
    let trusted = EtcdConfig { trusted: Some(authority.bundle()), ..base.clone() };
    check_tls(trusted.clone(), Err("deployment.etcd.tls.sni sets the name")).await;
    check_tls(EtcdConfig { tls_sni: Some("etcd.test".into()), ..trusted }, Ok(())).await;
    check_tls(base.clone(), Err("no CA bundle")).await;
    let other = Some("/nonexistent/ca.pem".into());
    check_tls(EtcdConfig { trusted: other, ..base.clone() }, Err("cannot be read")).await;
    let other = Authority::new();
    let untrusted =
        EtcdConfig { trusted: Some(other.bundle()), tls_sni: Some("etcd.test".into()), ..base.clone() };
    check_tls(untrusted, Err("ssl_trusted_certificate holds another CA of that name")).await;
    check_tls(EtcdConfig { tls_verify: false, ..base }, Ok(())).await;
}

#[tokio::test]
async fn an_address_may_be_the_name() {
    let authority = Authority::new();
    let etcd = with_tls(authority.issue("127.0.0.1"), None).await;
    check_tls(EtcdConfig { trusted: Some(authority.bundle()), ..config([etcd.tls_endpoint()]) }, Ok(()))
        .await;
}

#[tokio::test]
async fn a_self_signed_certificate_of_the_bundle_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["etcd.test".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pair = write_pair(folder.path(), "self", &params.self_signed(&key).unwrap().pem(), &key);
    let bundle = pair.0.clone();
    let etcd = with_tls(pair, None).await;
    let trusted = EtcdConfig { trusted: Some(bundle), ..config([etcd.tls_endpoint()]) };
    check_tls(EtcdConfig { tls_sni: Some("etcd.test".into()), ..trusted.clone() }, Ok(())).await;
    check_tls(trusted, Err("deployment.etcd.tls.sni sets the name")).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let authority = Authority::new();
    let client = authority.issue("gate");
    let etcd = with_tls(authority.issue("127.0.0.1"), Some(authority.bundle())).await;
    let base = EtcdConfig { trusted: Some(authority.bundle()), ..config([etcd.tls_endpoint()]) };
    check_tls(base.clone(), Err("etcd wants a client certificate")).await;
    check_tls(EtcdConfig { tls_cert: Some(client), ..base }, Ok(())).await;
}
