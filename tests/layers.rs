//! Holds the source to the layer table of docs/architecture.md.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rows of the table, bottom up: a module may name modules of earlier rows only.
const ROWS: &[&[&str]] = &[
    &["number", "persistent", "template"],
    &["addr", "sni", "drain", "metrics"],
    &["session", "health"],
    &["proxy_protocol", "live"],
    &["expr", "config", "flow"],
    &["resource"],
    &["matcher"],
    &["certs"],
    &["balance"],
    &["plugin"],
    &["store"],
    &["snapshot"],
    &["net"],
    &["source", "resolve", "discovery", "control", "probe", "proxy", "log", "report", "admin"],
    &["app"],
    &["cli"],
];

/// Rows below this one do no I/O and read no clock.
const FIRST_ROW_WITH_IO: usize = 12;

fn row_of(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Every source file below `src`, with the module it belongs to.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inner = path.strip_prefix(&root).unwrap().with_extension("");
                let module = inner.iter().next().unwrap().to_string_lossy().into_owned();
                let text = fs::read_to_string(&path).unwrap();
                found.push((module, path, text));
            }
        }
    }
    found
}

/// The part that ships: what stands before the tests, without comments.
fn shipped(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

#[test]
fn modules_name_only_rows_below() {
    for (module, path, text) in sources() {
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let row = row_of(&module).unwrap_or_else(|| panic!("{module} has no row in the table"));
        for named in shipped(&text).split("crate::").skip(1).map(first_word) {
            let other = row_of(named)
                .unwrap_or_else(|| panic!("{}: `crate::{named}`: write one use a path", path.display()));
            assert!(named == module || other < row, "{} names crate::{named}", path.display());
        }
    }
}

#[test]
fn rows_without_io_do_none() {
    const FORBIDDEN: &[&str] =
        &["tokio::", "std::fs", "Instant::now", "SystemTime::now", "rand::rng(", "std::thread", "std::env"];
    for (module, path, text) in sources() {
        // `config` reads config.yaml and the environment through arguments of its own reader.
        let pure = row_of(&module).is_some_and(|row| row < FIRST_ROW_WITH_IO);
        if !pure || path.ends_with("config/load.rs") || path.ends_with("tests.rs") || module == "drain" {
            continue;
        }
        let code = shipped(&text);
        for word in FORBIDDEN {
            assert!(!code.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_readable() {
    for (_, path, text) in sources() {
        assert!(text.starts_with("//!"), "{} has no module doc", path.display());
        let lines = text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines; 500 is the limit", path.display());
    }
}
