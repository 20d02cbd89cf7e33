//! `apisix.ssl`: what of it concerns streams.

use super::*;

/// A listen by TLS, with these settings of `apisix.ssl`.
fn with_ssl(ssl: &str) -> String {
    format!("apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [{{addr: 1, tls: true}}]}}, ssl: {ssl}}}\n")
}

#[track_caller]
fn check_fallback(written: &str, read_as: &str) {
    let config = read(&with_ssl(&format!("{{fallback_sni: {written}}}")));
    assert_eq!(config.ssl.fallback_sni.as_deref(), Some(read_as), "{written}");
}

#[test]
fn the_fallback_sni_is_read_as_client_names_are() {
    check_fallback("A.x", "a.x");
    check_fallback("a.X.", "a.x");
    check_fallback("a.x..", "a.x.");
    for empty in ["", "."] {
        let told = format!("apisix.ssl.fallback_sni: is {empty:?}, which is no name; leave the key out");
        check(&with_ssl(&format!("{{fallback_sni: {empty:?}}}")), &[told.as_str()]);
    }
    check(&with_ssl("{fallback_sni: 5}"), &["apisix.ssl.fallback_sni: is 5; a text is allowed"]);
    assert_eq!(read(&with_ssl("{fallback_sni: null}")).ssl.fallback_sni, None);
}

#[track_caller]
fn check_ssl_warning(text: &str, warned: bool) {
    let warnings = read(text).warnings;
    assert_eq!(warnings.len(), usize::from(warned), "{text}: {warnings:?}");
    let told = |it: &String| it.starts_with("apisix.ssl.ssl_protocols: has no effect on stream listens");
    assert!(warnings.iter().all(told), "{warnings:?}");
}

#[test]
fn settings_of_https_stand_without_effect() {
    let defaults = "{ssl_protocols: TLSv1.2 TLSv1.3, ssl_ciphers: \"ECDHE-RSA-AES128-GCM-SHA256:HIGH\", ssl_session_tickets: false, \
        enable: true, listen: [{port: 9443}]}";
    check_ssl_warning(&with_ssl(defaults), false);
    check_ssl_warning(
        &with_ssl("{ssl_protocols: TLSv1.1 TLSv1.2 TLSv1.3, ssl_session_tickets: true}"),
        false,
    );
    check_ssl_warning(&with_ssl("{ssl_protocols: TLSv1.3}"), true);
    check_ssl_warning(&with_ssl("{ssl_protocols: TLSv1.2}"), true);
    check_ssl_warning(
        &with_ssl("{ssl_protocols: TLSv1.2}").replace("tls: true", "tls_passthrough: true"),
        false,
    );
}
