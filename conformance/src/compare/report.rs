//! Results as JSON for programs and as Markdown for readers.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::limit::{Against, Limit};
use super::metric::Metric;
use super::plan::Plan;
use super::proxy::Proxy;
use super::results::Results;
use crate::figures::short;
use crate::machine::Machine;

/// Where the tables of a document begin and end.
const MARKS: [&str; 2] = ["<!-- bench: begin -->\n", "<!-- bench: end -->\n"];

/// Results with what explains them.
#[derive(Clone, Debug)]
pub struct Report {
    /// All samples.
    pub results: Results,
    /// Where they were taken.
    pub machine: Machine,
    /// The version of each proxy.
    pub versions: Vec<(Proxy, String)>,
    /// What was done.
    pub plan: Plan,
}

impl Report {
    /// Everything: samples round by round, and the limits with their verdicts.
    #[must_use]
    pub fn json(&self) -> Value {
        let Machine { cpu, cores, kernel, rmem_max, pipe_pages } = &self.machine;
        let Plan { rounds, turns, seconds, idle, unprivileged, .. } = self.plan;
        let mut figures = Map::new();
        for metric in Metric::all() {
            let of = |proxy: Proxy| (proxy.name().to_owned(), json!(self.results.samples(metric, proxy)));
            let samples: Map<_, _> = self.results.proxies().into_iter().map(of).collect();
            figures.insert(metric.id().into(), json!({"unit": metric.unit(), "samples": samples}));
        }
        let versions: Map<_, _> =
            self.versions.iter().map(|(proxy, version)| (proxy.name().to_owned(), json!(version))).collect();
        json!({
            "machine": {"cpu": cpu, "cores": cores, "kernel": kernel, "rmem_max": rmem_max, "pipe_user_pages_soft": pipe_pages},
            "settings": {"rounds": rounds, "turns": turns, "seconds": seconds, "idle": idle, "unprivileged": unprivileged},
            "versions": versions,
            "figures": figures,
            "limits": self.limits_json(),
        })
    }

    fn limits_json(&self) -> Vec<Value> {
        let judged = self.results.judged().into_iter();
        judged
            .map(|(limit, spread, verdict)| {
                json!({
                    "figure": limit.metric.id(),
                    "against": limit.against.name(),
                    "median": spread.median, "least": spread.least, "most": spread.most,
                    "required": limit.required, "stretch": limit.stretch,
                    "verdict": verdict.word(),
                })
            })
            .collect()
    }

    /// The tables: medians of every proxy, then the limits.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "{}; {} rounds, {} times {} s of each load in a round{}. {}.\n\n",
            self.machine,
            self.plan.rounds,
            self.plan.turns,
            self.plan.seconds,
            if self.plan.unprivileged { ", proxies unprivileged" } else { "" },
            self.versions.iter().map(|(_, version)| version.as_str()).collect::<Vec<_>>().join("; "),
        );
        self.figures(&mut text);
        text.push('\n');
        self.limits(&mut text);
        text
    }

    // Writing to a String cannot fail: what `write` returns says nothing.
    fn figures(&self, text: &mut String) {
        let proxies = self.results.proxies();
        let _ = write!(text, "| median |");
        for proxy in &proxies {
            let _ = write!(text, " {} |", proxy.name());
        }
        let _ = writeln!(text, "\n|---|{}", "---:|".repeat(proxies.len()));
        let measured =
            |metric: &Metric| proxies.iter().any(|proxy| !self.results.samples(*metric, *proxy).is_empty());
        for metric in Metric::all().filter(measured) {
            let _ = write!(text, "| {}, {} |", metric.what(), metric.unit());
            for proxy in &proxies {
                let median = self.results.figure(metric, *proxy).map(|spread| short(spread.median));
                let _ = write!(text, " {} |", median.unwrap_or_else(|| "-".into()));
            }
            text.push('\n');
        }
    }

    fn limits(&self, text: &mut String) {
        text.push_str("| streamgate | against | median | least to most | required | stretch | |\n");
        text.push_str("|---|---|---:|---:|---:|---:|---|\n");
        for (limit, spread, verdict) in self.results.judged() {
            let Limit { metric, against, required, stretch } = *limit;
            let bound = |bound: Option<f64>| bound.map_or("-".into(), |bound| bound.to_string());
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} to {} | {} | {} | {} |",
                metric.what(),
                reference(against),
                short(spread.median),
                short(spread.least),
                short(spread.most),
                bound(required),
                bound(stretch),
                verdict.word(),
            );
        }
    }
}

/// What a limit is held against, for a reader.
fn reference(against: Against) -> &'static str {
    match against {
        Against::Peer(proxy) => proxy.name(),
        Against::Own(metric) | Against::Above(metric) => metric.what(),
        Against::Ways(..) => "access log and prometheus on, beside neither",
        Against::Nothing => "itself",
    }
}

/// The document with the tables between its marks replaced; none where it lacks the marks.
#[must_use]
pub fn put_into(document: &str, tables: &str) -> Option<String> {
    let (before, rest) = document.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some([before, MARKS[0], tables, MARKS[1], after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::round::Sample;

    fn report() -> Report {
        let mut results = Results::default();
        for (proxy, value) in [(Proxy::Streamgate, 0.5), (Proxy::Nginx, 1.0)] {
            Metric::all().for_each(|metric| results.push(Sample { metric, proxy, value }));
        }
        Report {
            results,
            machine: Machine::this(),
            versions: vec![(Proxy::Nginx, "nginx/1".into())],
            plan: Plan::default(),
        }
    }

    #[test]
    fn json_has_samples_and_verdicts() {
        let json = report().json();
        assert_eq!(json["figures"]["request_cpu"]["samples"]["nginx"], json!([1.0]));
        let of = |figure: &str, against: Option<&str>| {
            let limits = json["limits"].as_array().unwrap();
            let found =
                limits.iter().find(|limit| limit["figure"] == figure && limit["against"] == json!(against));
            found.unwrap()["verdict"].clone()
        };
        assert_eq!(of("bulk_1_cpu", Some("nginx")), "MISSED");
        assert_eq!(of("request_cpu", Some("nginx")), "stretch");
        assert_eq!(of("paced_cpu", Some("nginx")), "-");
        assert_eq!(of("idle_memory", None), "stretch");
    }

    #[test]
    fn every_row_has_the_columns_of_its_head() {
        let text = report().markdown();
        let tables: Vec<Vec<usize>> = text
            .split("\n\n")
            .skip(1)
            .map(|table| table.lines().map(|line| line.matches('|').count()).collect())
            .collect();
        assert_eq!(tables.len(), 2);
        for columns in tables {
            assert!(columns.len() > 2 && columns.iter().all(|count| *count == columns[0]), "{text}");
        }
    }

    #[test]
    fn tables_go_between_the_marks() {
        let document = format!("a\n{}old\n{}b\n", MARKS[0], MARKS[1]);
        let new = put_into(&document, "new\n").unwrap();
        assert_eq!(new, format!("a\n{}new\n{}b\n", MARKS[0], MARKS[1]));
        assert_eq!(put_into(&new, "old\n").unwrap(), document);
        assert_eq!(put_into("no marks", "new\n"), None);
    }
}
