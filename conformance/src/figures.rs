//! Measured figures beside their limits, as one table.

use std::fmt;

use serde_json::{Value, json};

/// One figure, measured several times.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Of the samples and of the limit.
    pub unit: &'static str,
    /// The most that the median may be; none where the figure is told for orientation alone.
    pub limit: Option<f64>,
    /// One value a run, ascending.
    samples: Vec<f64>,
}

impl Figure {
    /// A figure of these samples, in any order.
    #[must_use]
    pub fn new(what: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        let mut samples = samples;
        samples.sort_by(f64::total_cmp);
        Self { what: what.into(), unit, limit: None, samples }
    }

    /// The most that the median may be.
    #[must_use]
    pub fn at_most(mut self, limit: f64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The sample below which `share` of a hundred lie; `NaN` where nothing was measured.
    #[must_use]
    pub fn percentile(&self, share: usize) -> f64 {
        let last = self.samples.len().saturating_sub(1);
        self.samples.get(last * share / 100).copied().unwrap_or(f64::NAN)
    }

    /// The figure for a program.
    #[must_use]
    pub fn json(&self) -> Value {
        let Self { what, unit, limit, samples } = self;
        json!({"figure": what, "unit": unit, "limit": limit, "samples": samples})
    }

    /// Reports whether the median keeps the limit. What was not measured does not.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.limit.is_none_or(|limit| self.percentile(50) <= limit)
    }
}

impl fmt::Display for Figure {
    /// A row of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, unit, .. } = self;
        let (limit, verdict) = match self.limit {
            Some(limit) if self.holds() => (format!("{limit} {unit}"), "ok"),
            Some(limit) => (format!("{limit} {unit}"), "MISSED"),
            None => ("-".into(), ""),
        };
        let [least, median, most] = [0, 50, 100].map(|share| short(self.percentile(share)));
        let spread = format!("{least} to {most}");
        let runs = self.samples.len();
        write!(
            f,
            "| {what:<72} | {limit:>8} | {median:>7} {unit:<3} | {spread:>18} | {runs:>4} | {verdict:<6} |"
        )
    }
}

/// Three digits that count.
#[must_use]
pub fn short(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// The head of the table that figures are rows of.
#[must_use]
pub fn head() -> String {
    format!(
        "| {:<72} | {:>8} | {:>11} | {:>18} | {:>4} | {:<6} |\n|-{:-<72}-|-{:->8}:|-{:->11}:|-{:->18}:|-{:->4}:|-{:-<6}-|",
        "figure", "limit", "median", "least to most", "runs", "", "", "", "", "", "", ""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides() {
        let figure = |limit| Figure::new("x", "ms", vec![9.0, 1.0, 2.0]).at_most(limit);
        assert!(figure(2.0).holds());
        assert!(!figure(1.9).holds());
        assert!(figure(1.9).to_string().contains("MISSED"), "{}", figure(1.9));
        assert!(Figure::new("x", "ms", vec![9.0]).holds(), "no limit is always kept");
        assert!(!Figure::new("x", "ms", Vec::new()).at_most(1.0).holds(), "nothing measured");
    }

    #[test]
    fn a_row_has_the_columns_of_the_head() {
        let row = Figure::new("x", "ms", vec![0.123_4, 12.34]).to_string();
        assert_eq!(row.matches('|').count(), head().lines().next().unwrap().matches('|').count());
        assert!(row.contains("0.123 ms") && row.contains("0.123 to 12.3"), "{row}");
    }
}
