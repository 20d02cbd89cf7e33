//! Documents and deploy files name what there is: metrics, files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap()
}

/// The names that begin with `streamgate_` and do not end in `_`.
fn metrics(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split("streamgate_").skip(1) {
        let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        // `streamgate_*`, and the crates of that name.
        if name.is_empty() || rest[name.len()..].starts_with("::") {
            continue;
        }
        let plain = ["_bucket", "_count", "_sum"].iter().find_map(|ending| name.strip_suffix(ending));
        found.insert(plain.unwrap_or(&name).to_owned());
    }
    found
}

/// Where metrics are declared.
const DECLARING: [&str; 7] = [
    "src/metrics.rs",
    "src/admin/route_metrics.rs",
    "src/admin/tls_metrics.rs",
    "src/admin/health_metrics.rs",
    "src/admin/limit_metrics.rs",
    "src/admin/refusal_metrics.rs",
    "src/admin/report_metrics.rs",
];

/// What the page can hold: names in quotes, where metrics are declared.
fn declared() -> BTreeSet<String> {
    let code = |file: &&str| read(file).split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    metrics(&DECLARING.iter().map(code).collect::<String>())
}

#[test]
fn every_metric_is_documented() {
    let documented = metrics(&read("docs/metrics.md"));
    let missing: Vec<_> = declared().into_iter().filter(|name| !documented.contains(name)).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
}

#[test]
fn metrics_in_documents_and_alerts_exist() {
    let known = metrics(&DECLARING.map(read).concat());
    assert!(known.len() > 20, "{known:?}");
    let mut files: Vec<PathBuf> = fs::read_dir("docs").unwrap().flatten().map(|entry| entry.path()).collect();
    files
        .extend(["deploy/prometheus-rules.yml", "deploy/grafana-board.json", "README.md"].map(PathBuf::from));
    for file in files {
        let unknown: Vec<_> =
            metrics(&read(&file)).into_iter().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{} names {unknown:?}", file.display());
    }
}

/// Alerts that documents explain, one by one.
#[test]
fn every_alert_is_explained() {
    let rules = read("deploy/prometheus-rules.yml");
    let explained = read("docs/operations.md");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    let missing: Vec<_> = alerts.iter().filter(|name| !explained.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
}

#[test]
fn links_lead_somewhere() {
    let files = fs::read_dir("docs").unwrap().flatten().map(|entry| entry.path());
    for file in files.chain(["README.md".into(), "CHANGELOG.md".into()]) {
        let text = read(&file);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.starts_with("http") {
                continue;
            }
            let there = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(there.exists(), "{} links to {target}", file.display());
            if !anchor.is_empty() {
                let found = read(&there).lines().any(|line| line.starts_with('#') && slug(line) == anchor);
                assert!(found, "{} links to {target}: no such heading", file.display());
            }
        }
    }
}

/// The anchor of a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}
