//! Certificates of ssls objects as clients see them: which one, with which key, and what becomes of bad
//! ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/openssl.rs"]
mod openssl;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use binary::{Gateway, run, stdout};
use openssl::{encrypted, s_client};
use peers::talk;
use serde_json::json;
use tls::{Algorithm, Authority, Client, Pair, failures, refusal, shake_hands, ssl, terminating, unrouted};

/// The certificate that a client of this name gets is that of `pair`, and the session works.
#[track_caller]
fn serves(gateway: &Gateway, name: Option<&str>, pair: &Pair) {
    let mut session = shake_hands(gateway.tcp(0), name, &Client::default().config()).unwrap();
    assert!(pair.is_shown_by(&session), "another certificate for {name:?}");
    assert_eq!(talk(&mut session).unwrap(), "A");
}

#[track_caller]
fn refuses(gateway: &Gateway, name: Option<&str>, alert: &str) {
    let why = refusal(gateway.tcp(0), name, &Client::default().config());
    assert!(why.contains(alert), "{name:?}: {why}");
}

#[test]
fn the_name_chooses_exact_then_the_longest_wildcard_then_star() {
    let authority = Authority::new("root");
    let pair = || authority.issue(&["any.test"]);
    let [star, com, shop, exact, listed, off, of_clients] = [(); 7].map(|()| pair());
    let mut disabled = ssl("6", &["off.shop.com"], &off);
    disabled["status"] = json!(0);
    let mut shown = ssl("7", &["client.shop.com"], &of_clients);
    shown["type"] = json!("client");
    let star_object = json!({"id": "1", "sni": "*", "cert": star.cert, "key": star.key});
    let gateway = terminating(&[
        star_object,
        ssl("2", &["*.com"], &com),
        ssl("3", &["*.shop.com"], &shop),
        ssl("4", &["www.Shop.com"], &exact),
        ssl("5", &["one.test", "two.test"], &listed),
        disabled,
        shown,
    ])
    .start();
    serves(&gateway, Some("www.shop.com"), &exact);
    serves(&gateway, Some("WWW.SHOP.COM"), &exact);
    serves(&gateway, Some("pay.shop.com"), &shop);
    serves(&gateway, Some("shop.com"), &com);
    serves(&gateway, Some("two.test"), &listed);
    serves(&gateway, Some("elsewhere.org"), &star);
    // Neither status 0 nor type client serves.
    serves(&gateway, Some("off.shop.com"), &shop);
    serves(&gateway, Some("client.shop.com"), &shop);
    // A wildcard covers one label, and what was chosen is final.
    refuses(&gateway, Some("a.pay.shop.com"), "UnrecognisedName");
}

#[test]
fn a_client_without_a_certificate_for_it_hears_why_and_is_logged() {
    let pair = Authority::new("root").issue(&["a.test"]);
    let mut gateway = terminating(&[ssl("1", &["a.test"], &pair)]).start();
    refuses(&gateway, Some("b.test"), "UnrecognisedName");
    let line = gateway.says_end("tls_no_certificate");
    assert_eq!((&line["sni"], &line["listen"]), (&json!("b.test"), &json!(gateway.tcp(0).to_string())));
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    assert!(line["detail"].as_str().unwrap().contains("b.test"), "{line}");
    assert_eq!(failures(&gateway, "no_certificate"), Some(1.0));

    refuses(&gateway, None, "MissingExtension");
    let line = gateway.says_end("tls_no_sni");
    assert!(line["detail"].as_str().unwrap().contains("fallback_sni"), "{line}");
    assert_eq!(failures(&gateway, "no_sni"), Some(1.0));
    gateway.eventually("counts", |gateway| {
        unrouted(gateway, "tls_no_sni") == Some(1.0) && gateway.ended_so("", "tls_no_certificate") >= 1.0
    });
}

#[test]
fn a_client_without_a_name_gets_that_of_fallback_sni() {
    let authority = Authority::new("root");
    let [usual, other] = ["usual.test", "other.test"].map(|name| authority.issue(&[name]));
    let mut setup = terminating(&[ssl("1", &["usual.test"], &usual), ssl("2", &["other.test"], &other)]);
    setup.apisix = "  ssl: {fallback_sni: Usual.test}\n".into();
    let gateway = setup.start();
    serves(&gateway, None, &usual);
    serves(&gateway, Some("other.test"), &other);
    refuses(&gateway, Some("unknown.test"), "UnrecognisedName");
}

#[test]
fn of_several_pairs_the_client_gets_one_it_can_verify() {
    let authority = Authority::new("root");
    let [rsa, ecdsa, ed25519] = [Algorithm::Rsa, Algorithm::Ecdsa, Algorithm::Ed25519]
        .map(|algorithm| authority.issue_with(&["a.test"], algorithm, |_| ()));
    let mut object = ssl("1", &["a.test"], &rsa);
    object["certs"] = json!([ecdsa.cert, ed25519.cert]);
    object["keys"] = json!([ecdsa.key, ed25519.key]);
    let gateway = terminating(&[object]).start();
    let check = |arguments: &[&str], signature: &str| {
        let all = [&["-servername", "a.test"], arguments].concat();
        let said = s_client(gateway.tcp(0), &all, "A?");
        assert!(said.contains(&format!("Peer signature type: {signature}\n")), "{arguments:?}: {said}");
        assert!(said.contains("A?"), "{said}");
    };
    check(&["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"], "RSA-PSS");
    check(&["-tls1_3", "-sigalgs", "ecdsa_secp256r1_sha256"], "ECDSA");
    check(&["-tls1_3", "-sigalgs", "ed25519"], "ed25519");
    check(&["-tls1_2", "-sigalgs", "RSA+SHA256", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "RSA");
    check(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256", "-sigalgs", "ECDSA+SHA256"], "ECDSA");
    // By the suite alone: an ECDSA certificate would be of no use.
    check(&["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"], "RSA-PSS");
}

#[test]
fn encrypted_keys_are_read_with_any_key_of_the_ring() {
    let authority = Authority::new("root");
    let [old, new, plain] = ["old.test", "new.test", "plain.test"].map(|name| authority.issue(&[name]));
    let stored = |pair: &Pair, secret| Pair { key: encrypted(&pair.key, secret), ..pair.clone() };
    let mut setup = terminating(&[
        ssl("1", &["old.test"], &stored(&old, "0123456789abcdef")),
        ssl("2", &["new.test"], &stored(&new, "fedcba9876543210")),
        ssl("3", &["plain.test"], &plain),
        ssl("4", &["lost.test"], &stored(&plain, "a key not there!")),
    ]);
    setup.apisix = "  data_encryption: {keyring: [fedcba9876543210, 0123456789abcdef]}\n".into();
    let gateway = setup.start();
    for (name, pair) in [("old.test", &old), ("new.test", &new), ("plain.test", &plain)] {
        serves(&gateway, Some(name), pair);
    }
    refuses(&gateway, Some("lost.test"), "UnrecognisedName");
    let rejected = gateway.status()["rejected"].to_string();
    assert!(rejected.contains("ssls/4") && rejected.contains("keyring"), "{rejected}");
}

#[test]
fn references_to_the_environment_are_resolved() {
    let pair = Authority::new("root").issue(&["a.test"]);
    let object = |id: &str, name: &str, variable: &str| json!({"id": id, "sni": name, "cert": "$env://TEST_CERT", "key": format!("$ENV://{variable}")});
    let mut setup =
        terminating(&[object("1", "a.test", "TEST_KEY"), object("2", "unset.test", "TEST_NOT_SET")]);
    setup.environment = vec![("TEST_CERT".into(), pair.cert.clone()), ("TEST_KEY".into(), pair.key.clone())];
    let gateway = setup.start();
    serves(&gateway, Some("a.test"), &pair);
    refuses(&gateway, Some("unset.test"), "UnrecognisedName");
    let rejected = gateway.status()["rejected"].to_string();
    assert!(rejected.contains("ssls/2") && rejected.contains("TEST_NOT_SET"), "{rejected}");
}

/// What `streamgate check` says of the objects of a gateway.
fn check_report(gateway: &Gateway) -> String {
    stdout(&run(&["check", "-c", gateway.config_file().to_str().unwrap()], b""))
}

#[test]
fn a_key_of_another_certificate_costs_its_pair_alone() {
    let authority = Authority::new("root");
    let [first, second, stranger] = [(); 3].map(|()| authority.issue(&["a.test"]));
    let mut half = ssl("half", &["a.test"], &Pair { key: stranger.key.clone(), ..first.clone() });
    half["certs"] = json!([second.cert]);
    half["keys"] = json!([second.key]);
    let none = ssl("none", &["b.test"], &Pair { key: stranger.key, ..first });
    let mut gateway = terminating(&[half, none]).start();
    serves(&gateway, Some("a.test"), &second);
    refuses(&gateway, Some("b.test"), "UnrecognisedName");
    let rejected = gateway.status()["rejected"].to_string();
    assert!(rejected.contains("ssls/none") && rejected.contains("does not belong"), "{rejected}");
    assert!(!rejected.contains("ssls/half"), "{rejected}");
    let line = gateway.says("the pair is left out");
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(line.to_string().contains("ssls/half"), "{line}");
    assert_eq!(gateway.metric("streamgate_rejected_objects{kind=\"ssls\"}"), Some(1.0));

    let report = check_report(&gateway);
    let line = |words: [&str; 2]| report.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(line(["CHANGES  SG-006 ssls/half", "does not belong"]), "{report}");
    assert!(line(["REJECTED SG-006 ssls/none", "does not belong"]), "{report}");
}

#[test]
fn the_end_of_each_certificate_is_a_metric_and_a_warning() {
    let authority = Authority::new("root");
    let until = |year| {
        authority.issue_with(&["a.test"], Algorithm::Ecdsa, move |params| {
            params.not_after = rcgen::date_time_ymd(year, 3, 1);
        })
    };
    let [over, good, shown] = [2020, 2090, 2091].map(until);
    let mut object = ssl("1", &["a.test"], &good);
    object["certs"] = json!([over.cert]);
    object["keys"] = json!([over.key]);
    let mut of_clients = json!({"id": "c1", "type": "client", "cert": shown.cert, "key": shown.key});
    of_clients["labels"] = json!({"for": "nodes"});
    let upstream = json!({"scheme": "tls", "nodes": {"127.0.0.1:9": 1}, "tls": {"client_cert_id": "c1"}});
    let mut setup = terminating(&[]);
    setup.objects = Some(
        json!({"stream_routes": [{"id": "r1", "upstream": upstream}], "ssls": [object, of_clients]})
            .to_string(),
    );
    let gateway = setup.start();
    let page = gateway.metrics();
    let end = |labels: &str| {
        let start = format!("streamgate_certificate_expiry_timestamp_seconds{{{labels}");
        let line = page.lines().find(|line| line.starts_with(&start));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    // date -ud 2090-03-01 +%s, and so on.
    assert_eq!(end("ssl=\"1\",type=\"server\",sni=\"a.test\",pair=\"0\"}"), Some(3_792_009_600.0), "{page}");
    assert_eq!(end("ssl=\"1\",type=\"server\",sni=\"a.test\",pair=\"1\"}"), Some(1_583_020_800.0), "{page}");
    assert_eq!(end("ssl=\"c1\",type=\"client\""), Some(3_823_545_600.0), "{page}");

    let report = check_report(&gateway);
    let line = report.lines().find(|line| line.starts_with("WARN") && line.contains("ssls/1"));
    assert!(line.is_some_and(|line| line.contains("expired") && line.contains("2020-03-01")), "{report}");
}
