//! How nodes of scheme `tls` are dialled: of all upstreams, and of one.

use super::*;

/// A configuration with these entries of `streamgate`.
fn ours(entries: &str) -> String {
    with(&format!("streamgate: {{{entries}}}\n"))
}

/// `[verify] [name sent] [bundle] [post-quantum]` of one upstream.
fn shown(towards: &TlsTowards) -> String {
    let TlsTowards { verify, ca, sni, post_quantum } = towards;
    let ca = ca.as_ref().map_or_else(|| "-".into(), |ca| ca.path.display().to_string());
    format!("{verify} {sni:?} {ca} {post_quantum}")
}

#[track_caller]
fn check_towards(entries: &str, upstream: &str, expected: &str) {
    let config = read(&ours(entries));
    assert_eq!(shown(config.upstream_tls.of(upstream)), expected, "{entries}");
    let all = config.upstream_tls.upstreams.values().chain([&config.upstream_tls.default]);
    for towards in all {
        let certificate = towards.ca.as_ref().map(|ca| ca.pem.contains("BEGIN CERTIFICATE"));
        assert_eq!(certificate, towards.verify.then_some(true), "{entries}");
    }
}

#[test]
fn nothing_written_is_apisix() {
    for nothing in ["", "upstream_tls: {}", "upstreams: {7: {}}", "upstreams: {7: {tls: {}}}"] {
        check_towards(nothing, "7", "false Client - false");
    }
}

#[test]
fn each_key_has_its_meaning() {
    const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";
    check_towards("upstream_tls: {verify: true}", "7", &format!("true Client {SYSTEM} false"));
    check_towards("upstream_tls: {verify: true, ca: a.pem}", "7", "true Client /gate/a.pem false");
    check_towards("upstream_tls: {verify: true, ca: /x/a.pem}", "7", "true Client /x/a.pem false");
    check_towards("upstream_tls: {sni: node}", "7", "false Node - false");
    check_towards("upstream_tls: {sni: client, post_quantum: true}", "7", "false Client - true");
    let named = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [1]}, ssl: {ssl_trusted_certificate: ca.pem}}\n\
        streamgate: {upstream_tls: {verify: true}}\n";
    assert_eq!(shown(&read(named).upstream_tls.default), "true Client /work-dir/ca.pem false");
}

#[test]
fn an_upstream_takes_what_it_does_not_say_from_all() {
    let all = "upstream_tls: {verify: true, ca: a.pem, sni: node, post_quantum: true}";
    let one = |tls: &str| format!("{all}, upstreams: {{7: {{tls: {tls}}}}}");
    check_towards(&one("{}"), "7", "true Node /gate/a.pem true");
    check_towards(&one("{ca: b.pem}"), "7", "true Node /gate/b.pem true");
    check_towards(&one("{verify: false}"), "7", "false Node - true");
    check_towards(&one("{sni: client}"), "7", "true Client /gate/a.pem true");
    check_towards(&one("{post_quantum: false}"), "7", "true Node /gate/a.pem false");
    check_towards(&one("{verify: false}"), "8", "true Node /gate/a.pem true");
    check_towards(
        "upstream_tls: {ca: a.pem}, upstreams: {7: {tls: {verify: true}}}",
        "7",
        "true Client /gate/a.pem false",
    );
    check_towards(
        "upstreams: {stream_routes/7: {tls: {sni: node}}}",
        "stream_routes/7",
        "false Node - false",
    );
    check_towards("upstreams: {services/a-b.c: {tls: {sni: node}}}", "services/a-b.c", "false Node - false");
    check_towards("upstreams: {services/7: {tls: {sni: node}}}", "7", "false Client - false");
}

#[test]
fn a_file_is_read_once_and_shared() {
    let config = read(&ours("upstream_tls: {verify: true, ca: a.pem}, upstreams: {7: {tls: {sni: node}}}"));
    let [one, all] = ["7", "8"].map(|id| config.upstream_tls.of(id).ca.clone().unwrap().pem);
    assert!(Arc::ptr_eq(&one, &all));
    let debug = format!("{:?}", config.upstream_tls);
    assert!(debug.contains("/gate/a.pem") && !debug.contains("BEGIN"), "{debug}");
}

#[track_caller]
fn refused(entries: &str, mistakes: &[&str]) {
    check(&ours(entries), mistakes);
}

#[test]
fn a_bundle_must_hold_a_certificate() {
    let ca = |file: &str, why: &str| {
        let start = format!("streamgate.upstream_tls.ca: {why}");
        refused(
            &format!("upstream_tls: {{verify: true, ca: {file}}}, upstreams: {{7: {{}}}}"),
            &[start.as_str()],
        );
    };
    ca("absent.pem", "there is no file /gate/absent.pem");
    ca("empty.pem", "/gate/empty.pem holds no CA certificate that can be used");
    ca("nonsense.pem", "/gate/nonsense.pem holds no CA certificate that can be used");
    ca("cut.pem", "/gate/cut.pem cannot be read as PEM: ");
    ca("bytes.pem", "/gate/bytes.pem is no text; a CA bundle is PEM, in UTF-8");
    ca("secret.pem", "/gate/secret.pem cannot be read: permission denied");
    refused(
        "upstreams: {7: {tls: {verify: true, ca: empty.pem}}}",
        &["streamgate.upstreams.7.tls.ca: /gate/empty.pem holds no CA certificate"],
    );
}

#[test]
fn verifying_needs_a_bundle() {
    let bare = Environment { exists: |_| false, ..world(&[]) };
    let told = |entries: &str| read_in(&bare, &ours(entries)).unwrap_err().to_string();
    let needs =
        "needs a CA bundle, and there is none; write ca beside it, or apisix.ssl.ssl_trusted_certificate";
    assert_eq!(told("upstream_tls: {verify: true}"), format!("streamgate.upstream_tls.verify: {needs}"));
    assert_eq!(
        told("upstreams: {\"services/1\": {tls: {verify: true}}}"),
        format!("streamgate.upstreams.\"services/1\".tls.verify: {needs}")
    );
    let text =
        "apisix: {proxy_mode: stream, stream_proxy: {tcp: [1]}, ssl: {ssl_trusted_certificate: empty.pem}}\n";
    check(
        &format!("{text}streamgate: {{upstream_tls: {{verify: true}}}}"),
        &[
            "streamgate.upstream_tls.verify: needs a CA bundle, and /work-dir/empty.pem holds no CA certificate",
        ],
    );
    assert_eq!(read(text).upstream_tls, UpstreamTlsConfig::default());
}

#[test]
fn a_bundle_that_nothing_trusts_is_a_mistake() {
    let idle = "has no effect, for no certificate is verified; set verify: true";
    let all = format!("streamgate.upstream_tls.ca: {idle}");
    let one = format!("streamgate.upstreams.7.tls.ca: {idle}");
    refused("upstream_tls: {ca: a.pem}", &[&all]);
    refused("upstream_tls: {verify: false, ca: a.pem}, upstreams: {7: {tls: {sni: node}}}", &[&all]);
    refused("upstream_tls: {ca: a.pem}, upstreams: {7: {tls: {verify: true, ca: b.pem}}}", &[&all]);
    refused("upstreams: {7: {tls: {ca: a.pem}}}", &[&one]);
    refused("upstream_tls: {verify: true}, upstreams: {7: {tls: {verify: false, ca: a.pem}}}", &[&one]);
}

#[test]
fn keys_and_values_that_mean_nothing_are_mistakes() {
    refused(
        "upstream_tls: {verify: 1, ca: 2, sni: host, post_quantum: on, cert: c.pem}",
        &[
            "streamgate.upstream_tls.verify: is 1; true or false",
            "streamgate.upstream_tls.ca: is 2; a text is allowed",
            "streamgate.upstream_tls.sni: is \"host\"; allowed are client, node",
            "streamgate.upstream_tls.cert: cert is no setting here; known are ca, post_quantum, sni, verify",
        ],
    );
    refused("upstream_tls: true", &["streamgate.upstream_tls: is true; a map is allowed"]);
    refused(
        "upstreams: {7: {verify: true}}",
        &["streamgate.upstreams.7.verify: verify is no setting here; known are tls"],
    );
    refused("upstreams: {7: true}", &["streamgate.upstreams.7: is true; a map is allowed"]);
    refused(
        "upstreams: {upstreams/7: {}, stream_routes/: {}, \"\": {}}",
        &[
            "streamgate.upstreams.\"upstreams/7\": an object among upstreams is named by its id alone; write \"7\"",
            "streamgate.upstreams.\"stream_routes/\": has no id; write that of an upstream",
            "streamgate.upstreams.\"\": has no id",
        ],
    );
}

#[track_caller]
fn check_hup(old: &Environment, new: &Environment, [before, after]: [&str; 2], told: Option<&str>) {
    let [old, new] = [(old, before), (new, after)].map(|(env, text)| read_in(env, &ours(text)).unwrap());
    let expected: Vec<_> = told.map(|it| format!("{it}: takes effect after a restart")).into_iter().collect();
    assert_eq!(old.changes_needing_restart(&new), expected);
}

#[test]
fn a_hup_follows_none_of_it() {
    const WHERE: &str = "streamgate.upstream_tls or streamgate.upstreams";
    const VERIFY: &str = "upstream_tls: {verify: true, ca: a.pem}, upstreams: {7: {tls: {ca: b.pem}}}";
    let env = world(&[]);
    check_hup(&env, &env, [VERIFY, VERIFY], None);
    check_hup(&env, &env, ["", "upstreams: {7: {tls: {}}}"], Some(WHERE));
    check_hup(&env, &env, ["", "upstream_tls: {sni: node}"], Some(WHERE));
    check_hup(&env, &env, [VERIFY, ""], Some(WHERE));
    let renewed = Environment { read: |path| Ok(text_of(path)? + "\n"), ..world(&[]) };
    let one = Environment {
        read: |path| Ok(text_of(path)? + if path.ends_with("b.pem") { "\n" } else { "" }),
        ..world(&[])
    };
    check_hup(
        &env,
        &one,
        [VERIFY, VERIFY],
        Some(&format!("{WHERE}: the content of the CA bundle /gate/b.pem")),
    );
    check_hup(
        &env,
        &renewed,
        [VERIFY, VERIFY],
        Some(&format!("{WHERE}: the content of the CA bundle /gate/a.pem, /gate/b.pem")),
    );
    let sni = VERIFY.replace("a.pem}", "a.pem, sni: node}");
    check_hup(&env, &renewed, [VERIFY, &sni], Some(WHERE));
}
