//! Lines to syslog servers: how many, what became of them, and whether a server takes none.

use crate::admin::text::{self, Kind};
use crate::live::NodeCounters;

/// Appends the families of lines.
pub(crate) fn render(out: &mut String, node: &NodeCounters) {
    let lines = &node.lines;
    let name = "streamgate_syslog_lines_total";
    text::family(out, name, Kind::Counter, "Lines for syslog servers, by what became of them");
    let results = [
        ("dropped", &lines.dropped),
        ("failed", &lines.failed),
        ("overrun", &node.reports_dropped),
        ("sent", &lines.sent),
        ("unformatted", &lines.unformatted),
    ];
    for (result, counter) in results {
        text::sample(out, name, &text::labels(&[("result", result)]), counter.count());
    }
    let name = "streamgate_syslog_lines_waiting";
    text::family(out, name, Kind::Gauge, "Lines for syslog servers that are not sent yet");
    text::sample(out, name, "", lines.waiting.now());
    let name = "streamgate_syslog_servers_failing";
    text::family(out, name, Kind::Gauge, "Syslog servers that take no lines");
    text::sample(out, name, "", lines.failing.now());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_lines_is_there_from_the_start() {
        let node = NodeCounters::default();
        node.lines.sent.add(3);
        node.reports_dropped.add_one();
        node.lines.waiting.rise(2);
        let mut page = String::new();
        render(&mut page, &node);
        let samples: Vec<_> = page.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            r#"streamgate_syslog_lines_total{result="dropped"} 0"#,
            r#"streamgate_syslog_lines_total{result="failed"} 0"#,
            r#"streamgate_syslog_lines_total{result="overrun"} 1"#,
            r#"streamgate_syslog_lines_total{result="sent"} 3"#,
            r#"streamgate_syslog_lines_total{result="unformatted"} 0"#,
            "streamgate_syslog_lines_waiting 2",
            "streamgate_syslog_servers_failing 0",
        ];
        assert_eq!(samples, expected);
    }
}
