//! docs/compatibility.md lists each deliberate difference to APISIX once, and all that the code names.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The ids of the rows of the tables, in their order.
fn listed() -> Vec<String> {
    let text = fs::read_to_string("docs/compatibility.md").unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| SG-"));
    rows.map(|row| format!("SG-{}", row.split(' ').next().unwrap_or_default())).collect()
}

/// Every `SG-` with digits in a text.
fn ids(text: &str) -> BTreeSet<String> {
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    let found = text.split("SG-").skip(1).map(digits).filter(|digits| !digits.is_empty());
    found.map(|digits| format!("SG-{digits}")).collect()
}

fn visit(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            visit(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.extend(ids(&fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn ids_stand_once_and_in_order() {
    let listed = listed();
    assert!(listed.len() > 30, "{listed:?}");
    let sorted: Vec<String> = listed.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(listed, sorted, "sorted and each once");
    assert!(listed.iter().all(|id| id.len() == "SG-001".len()), "three digits each: {listed:?}");
}

#[test]
fn what_the_code_names_is_listed() {
    let listed: BTreeSet<String> = listed().into_iter().collect();
    let mut named = BTreeSet::new();
    for folder in ["src", "tests", "conformance/src"] {
        visit(Path::new(folder), &mut named);
    }
    // The pattern above, and the examples of the shape of an id.
    assert!(named.len() > 15, "{named:?}");
    let missing: Vec<_> = named.difference(&listed).collect();
    assert!(missing.is_empty(), "not in docs/compatibility.md: {missing:?}");
}

/// Other documents link to rules by id.
#[test]
fn what_documents_name_is_listed() {
    let listed: BTreeSet<String> = listed().into_iter().collect();
    let documents = fs::read_dir("docs").unwrap().flatten().map(|entry| entry.path());
    for path in documents.chain(["README.md".into(), "CHANGELOG.md".into()]) {
        let missing: Vec<_> =
            ids(&fs::read_to_string(&path).unwrap()).into_iter().filter(|id| !listed.contains(id)).collect();
        assert!(missing.is_empty(), "{} names {missing:?}", path.display());
    }
}
