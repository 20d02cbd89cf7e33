//! Health checks: how many nodes are down, and sessions that were sent to one all the same.

use crate::admin::healthcheck::{Entry, entries};
use crate::admin::text::{self, Kind};
use crate::snapshot::Snapshot;

/// The label of what did not fit below the cap.
const OVERFLOW: &str = "_overflow";

/// Appends the families of upstreams with checks, in at most `max_lines` samples.
pub(crate) fn render(out: &mut String, snapshot: &Snapshot, max_lines: usize) {
    let entries = entries(snapshot);
    let fitting = max_lines / 2;
    let shown = if entries.len() <= fitting { entries.len() } else { fitting.saturating_sub(1) };
    let (shown, rest) = entries.split_at(shown);
    let name = "streamgate_upstream_all_down_sessions_total";
    text::family(
        out,
        name,
        Kind::Counter,
        "Sessions sent to a node that is down, because all of its upstream are",
    );
    family(out, name, (shown, rest), |entry| entry.checked.stats.all_down.count());
    let name = "streamgate_upstream_nodes_down";
    text::family(out, name, Kind::Gauge, "Nodes that health checks took out, by upstream");
    family(out, name, (shown, rest), |entry| entry.down() as u64);
}

fn family(
    out: &mut String,
    name: &str,
    (shown, rest): (&[Entry<'_>], &[Entry<'_>]),
    value: impl Fn(&Entry<'_>) -> u64,
) {
    for entry in shown {
        text::sample(out, name, &text::labels(&[("upstream", &entry.pool.id)]), value(entry));
    }
    if !rest.is_empty() {
        let sum: u64 = rest.iter().map(value).sum();
        text::sample(out, name, &text::labels(&[("upstream", OVERFLOW)]), sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::control_api::tests::checked;

    #[track_caller]
    fn check(down: usize, max_lines: usize, lines: &[&str]) {
        let mut page = String::new();
        render(&mut page, &checked(down), max_lines);
        let samples: Vec<_> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(samples, lines);
    }

    #[test]
    fn nodes_that_are_down_are_counted_by_upstream() {
        check(
            1,
            100,
            &[
                r#"streamgate_upstream_all_down_sessions_total{upstream="stream_routes/2"} 0"#,
                r#"streamgate_upstream_all_down_sessions_total{upstream="h1"} 0"#,
                r#"streamgate_upstream_nodes_down{upstream="stream_routes/2"} 0"#,
                r#"streamgate_upstream_nodes_down{upstream="h1"} 1"#,
            ],
        );
    }

    #[test]
    fn beyond_the_cap_upstreams_are_summed() {
        check(
            2,
            2,
            &[
                r#"streamgate_upstream_all_down_sessions_total{upstream="_overflow"} 0"#,
                r#"streamgate_upstream_nodes_down{upstream="_overflow"} 2"#,
            ],
        );
    }
}
