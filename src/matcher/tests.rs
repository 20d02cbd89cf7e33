//! The index against a scan over the rules, and the words of its explanations.

use proptest::prelude::*;

use super::*;

type Rules = Vec<(Order, Rule, u32)>;

fn order(id: &str) -> Order {
    Order(id.as_bytes().into())
}

fn rule(remote: &str, server: &str, port: u16, snis: &[&str]) -> Rule {
    let net = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
    Rule {
        remote_addr: net(remote),
        server_addr: net(server),
        server_port: (port > 0).then_some(port),
        snis: snis.iter().map(|sni| sni.parse().unwrap()).collect(),
    }
}

fn matcher(rules: &[(&str, Rule)]) -> Matcher<String> {
    let mut matcher = Matcher::default();
    for (id, rule) in rules {
        matcher.insert(order(id), rule.clone(), (*id).to_owned());
    }
    matcher
}

fn query<'a>(client: &str, server: &str, sni: Option<&'a str>) -> Query<'a> {
    Query { client: client.parse().unwrap(), server: server.parse().unwrap(), sni }
}

/// What the module's doc says, as plainly as it can be written.
fn scan(rules: &Rules, query: &Query<'_>) -> Option<u32> {
    let mut ordered: Vec<_> = rules.iter().collect();
    ordered.sort_by(|a, b| a.0.cmp(&b.0));
    let holds = |rule: &Rule| {
        rule.remote_addr.is_none_or(|net| net.contains(query.client))
            && rule.server_addr.is_none_or(|net| net.contains(query.server.ip()))
            && rule.server_port.is_none_or(|port| port == query.server.port())
    };
    let among = |tier: &dyn Fn(&Rule) -> bool| {
        ordered.iter().find(|(_, rule, _)| tier(rule) && holds(rule)).map(|(.., value)| *value)
    };
    let named = query.sni.and_then(|name| {
        let endings = (0..=name.len()).map(|cut| SniPattern::Suffix(name[cut..].into()));
        let tiers: Vec<_> = [SniPattern::Exact(name.into())].into_iter().chain(endings).collect();
        tiers.iter().find_map(|pattern| among(&|rule| rule.snis.contains(pattern)))
    });
    named.or_else(|| among(&|rule| rule.snis.is_empty()))
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        3 => (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([10, a, 0, b])),
        1 => (0..4u16).prop_map(|a| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, a])),
    ]
}

fn net() -> impl Strategy<Value = Option<IpMatcher>> {
    const LENGTHS: [u8; 6] = [0, 8, 14, 16, 31, 32];
    prop::option::of((address(), prop::sample::select(&LENGTHS[..])).prop_map(|(address, length)| {
        ipnet::IpNet::new(address, if address.is_ipv4() { length } else { length * 4 }).unwrap().into()
    }))
}

const NAMES: &[&str] = &["a.x.com", "b.x.com", "a.b.x.com", "x.com", "ax.com", "com", "y.org"];

fn any_rule() -> impl Strategy<Value = Rule> {
    const PATTERNS: &[&str] =
        &["a.x.com", "x.com", "*.x.com", "*x.com", "*.com", "*com", "*", "*.b.x.com", "y.org"];
    let snis = prop::collection::vec(prop::sample::select(PATTERNS), 0..4);
    (net(), net(), prop::option::of(1..4u16), snis).prop_map(
        |(remote_addr, server_addr, server_port, snis)| {
            let snis = snis.into_iter().map(|sni| sni.parse().unwrap()).collect();
            Rule { remote_addr, server_addr, server_port, snis }
        },
    )
}

fn any_query() -> impl Strategy<Value = Query<'static>> {
    (address(), address(), 1..5u16, prop::option::of(prop::sample::select(NAMES)))
        .prop_map(|(client, server, port, sni)| Query { client, server: (server, port).into(), sni })
}

/// Orders whose first eight bytes are often equal.
fn rules(rule: impl Strategy<Value = Rule>, most: usize) -> impl Strategy<Value = Rules> {
    prop::collection::btree_map("(00000000)?[0-9]{1,3}", rule, 0..most).prop_map(|rules| {
        let numbered = rules.into_iter().zip(0..);
        numbered.map(|((id, rule), value)| (order(&id), rule, value)).collect()
    })
}

/// Rules of all kinds, and rules that differ in one condition at most: all in one place of the index.
fn any_rules() -> impl Strategy<Value = Rules> {
    let rule = |remote_addr, server_addr| Rule { remote_addr, server_addr, ..rule("", "", 2, &[]) };
    let same = Just(rule(None, None));
    let clients = net().prop_map(move |net| rule(net, None));
    let locals = net().prop_map(move |net| rule(None, net));
    prop_oneof![
        4 => rules(any_rule(), 50),
        1 => rules(same, 150),
        1 => rules(clients, 100),
        1 => rules(locals, 100),
    ]
}

proptest! {
    #[test]
    fn finds_what_a_scan_finds(
        rules in any_rules(),
        gone in prop::collection::vec(any::<prop::sample::Index>(), 0..150),
        queries in prop::collection::vec(any_query(), 1..40),
    ) {
        let mut matcher = Matcher::default();
        for (order, rule, value) in rules.iter().rev() {
            matcher.insert(order.clone(), rule.clone(), *value);
        }
        let before = matcher.clone();
        let mut left = rules.clone();
        for index in gone {
            if !left.is_empty() {
                let (order, rule, _) = left.swap_remove(index.index(left.len()));
                matcher.remove(&order, &rule);
            }
        }
        for query in &queries {
            prop_assert_eq!(matcher.find(query).copied(), scan(&left, query), "{:?} in {:?}", query, left);
            prop_assert_eq!(before.find(query).copied(), scan(&rules, query), "the clone has changed");
            let explanation = matcher.explain(query, usize::MAX);
            prop_assert_eq!(explanation.winner.map(|(_, value)| *value), scan(&left, query));
            prop_assert_eq!(explanation.others.len() + usize::from(explanation.winner.is_some()), left.len());
        }
        prop_assert_eq!(matcher.len(), left.len());
        prop_assert_eq!(matcher.iter().count(), left.len());
        for (order, rule, _) in &left {
            matcher.remove(order, rule);
        }
        let empty = format!("{:?}", Matcher::<u32>::default());
        prop_assert_eq!(format!("{matcher:?}"), empty, "something is left over");
    }

    #[test]
    fn analysis_agrees_with_queries(
        rules in any_rules(),
        queries in prop::collection::vec(any_query(), 1..40),
    ) {
        let mut matcher = Matcher::default();
        for (order, rule, _) in &rules {
            matcher.insert(order.clone(), rule.clone(), order.clone());
        }
        let shadowed: Vec<_> = matcher.shadowed().into_iter().map(|shadowed| shadowed.order).collect();
        let overlaps = matcher.overlaps(usize::MAX, |_, _| true);
        prop_assert!(overlaps.complete);
        for query in &queries {
            let explanation = matcher.explain(query, usize::MAX);
            let Some((winner, _)) = explanation.winner else { continue };
            prop_assert!(!shadowed.contains(&winner), "{winner:?} won and counts as shadowed");
            for other in explanation.others.iter().filter(|other| other.why == Why::Later) {
                let pair = (winner, other.order);
                prop_assert!(overlaps.pairs.contains(&pair), "{pair:?} is no pair of {:?}", overlaps.pairs);
            }
        }
    }
}

#[track_caller]
fn check_explained(rules: &[(&str, Rule)], query: &Query<'_>, winner: Option<&str>, others: &[&str]) {
    let matcher = matcher(rules);
    let explanation = matcher.explain(query, 3);
    assert_eq!(explanation.winner.map(|(_, value)| value.as_str()), winner);
    let listed = explanation.others.iter().map(|other| format!("{}: {}", other.value, other.why));
    let rest = explanation.rest.iter().map(ToString::to_string);
    assert_eq!(listed.chain(rest).collect::<Vec<_>>(), others);
}

#[test]
fn explanation_gives_the_first_failing_condition() {
    let rules = [
        ("1", rule("10.9.0.0/16", "", 0, &[])),
        ("2", rule("", "", 9101, &[])),
        ("3", rule("", "127.0.0.1", 0, &[])),
        ("4", rule("10.8.0.0/16", "", 9100, &[])),
        ("5", rule("", "", 0, &[])),
    ];
    let plain = query("10.8.0.7", "10.0.0.1:9100", None);
    check_explained(
        &rules,
        &plain,
        Some("4"),
        &[
            "5: would match, but comes later in the order",
            "1: remote_addr 10.9.0.0/16 does not contain 10.8.0.7",
            "3: server_addr 127.0.0.1 does not contain 10.0.0.1",
            "1 rule for other ports",
        ],
    );
}

#[test]
fn explanation_tells_server_names_apart() {
    let rules = [
        ("1", rule("", "", 0, &["*.x.com"])),
        ("2", rule("", "", 0, &["a.x.com", "c.com"])),
        ("3", rule("", "", 0, &[])),
        ("4", rule("", "", 0, &["b.com"])),
    ];
    let named = query("10.8.0.7", "10.0.0.1:9100", Some("a.x.com"));
    check_explained(
        &rules,
        &named,
        Some("2"),
        &[
            "1: would match, but sni *.x.com is less exact than the winner's",
            "3: would match, but has no sni, and a route with one comes first",
            "4: sni b.com does not accept a.x.com",
        ],
    );
    let plain = query("10.8.0.7", "10.0.0.1:9100", None);
    let unnamed = "and the client sent none";
    check_explained(
        &rules,
        &plain,
        Some("3"),
        &[
            &format!("1: sni *.x.com needs a TLS server name, {unnamed}"),
            &format!("2: sni a.x.com, c.com needs a TLS server name, {unnamed}"),
            &format!("4: sni b.com needs a TLS server name, {unnamed}"),
        ],
    );
}

#[test]
fn a_rule_that_cannot_win_is_named_with_what_covers_it() {
    let rules = [
        ("1", rule("10.0.0.0/8", "", 0, &[])),
        ("2", rule("10.1.0.0/16", "127.0.0.1", 9100, &[])),
        ("3", rule("", "", 9100, &[])),
        ("4", rule("", "", 0, &["a.com", "b.com"])),
        ("5", rule("10.0.0.0/8", "", 0, &["b.com"])),
        ("6", rule("", "", 0, &["*.com"])),
    ];
    let matcher = matcher(&rules);
    let found: Vec<_> =
        matcher.shadowed().into_iter().map(|found| (found.order.clone(), found.by.len())).collect();
    assert_eq!(found, [(order("2"), 1), (order("5"), 1)]);
}

#[test]
fn overlapping_pairs_are_limited_and_filtered() {
    let rules: Vec<_> =
        ["1", "2", "3", "4"].into_iter().map(|id| (id, rule("", "", 0, &["a.com", "b.com"]))).collect();
    let matcher = matcher(&rules);
    let all = matcher.overlaps(100, |_, _| true);
    assert!(all.complete);
    assert_eq!(all.pairs.len(), 6);
    let limited = matcher.overlaps(4, |_, _| true);
    assert_eq!((limited.pairs.len(), limited.complete), (4, false));
    let of_two = matcher.overlaps(100, |first, second| (first.as_str(), second.as_str()) == ("2", "3"));
    assert_eq!(of_two.pairs, [(&order("2"), &order("3"))]);
}
