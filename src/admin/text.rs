//! Prometheus's text format, written into one buffer.
//!
//! Families come one after the other, each with its HELP and TYPE first. Labels arrive here as text
//! that [`label`] made, so that escaping is paid once a row and not once a line.

use std::fmt::{Display, Write as _};

/// What a family is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Begins a family.
pub(crate) fn family(out: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    // Writing to a String cannot fail; so everywhere below.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes one sample. `labels` is empty or what goes between the braces.
pub(crate) fn sample(out: &mut String, name: &str, labels: &str, value: impl Display) {
    if labels.is_empty() {
        let _ = writeln!(out, "{name} {value}");
    } else {
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
}

/// Adds a label to those of `labels`, its value escaped.
pub(crate) fn label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    let _ = write!(labels, "{name}=\"");
    for c in value.chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            c => labels.push(c),
        }
    }
    labels.push('"');
}

/// The labels of these names and values.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        label(&mut text, name, value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, written: &str) {
        assert_eq!(labels(&[("route", value)]), written);
    }

    #[test]
    fn values_are_escaped() {
        check("plain", r#"route="plain""#);
        check("a\"b\\c\nd", r#"route="a\"b\\c\nd""#);
        check("ü}{", r#"route="ü}{""#);
    }

    #[test]
    fn samples_have_braces_only_with_labels() {
        let mut out = String::new();
        family(&mut out, "a_total", Kind::Counter, "Some help");
        sample(&mut out, "a_total", "", 1);
        sample(&mut out, "a_total", &labels(&[("x", "1"), ("y", "2")]), 2.5);
        assert_eq!(
            out,
            "# HELP a_total Some help\n# TYPE a_total counter\na_total 1\na_total{x=\"1\",y=\"2\"} 2.5\n"
        );
    }
}
