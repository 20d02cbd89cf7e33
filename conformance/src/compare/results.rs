//! The samples of all rounds: medians, ratios, and what is missing.

use std::collections::BTreeMap;

use super::limit::{LIMITS, Limit, Verdict};
use super::metric::Metric;
use super::plan::Plan;
use super::proxy::Proxy;
use super::round::Sample;
use crate::figures::Figure;

/// A median with the least and the most around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Of all rounds.
    pub median: f64,
    /// The lowest of a round.
    pub least: f64,
    /// The highest.
    pub most: f64,
}

/// All samples.
#[derive(Clone, Debug, Default)]
pub struct Results {
    samples: BTreeMap<(Metric, Proxy), Vec<f64>>,
}

impl Results {
    /// Adds one, of the round after those that are there.
    pub fn push(&mut self, sample: Sample) {
        self.samples.entry((sample.metric, sample.proxy)).or_default().push(sample.value);
    }

    /// The samples of one figure, a round each; empty where there are none.
    #[must_use]
    pub fn samples(&self, metric: Metric, proxy: Proxy) -> &[f64] {
        self.samples.get(&(metric, proxy)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The proxies that took part.
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        Proxy::all().filter(|proxy| self.samples.keys().any(|(_, of)| of == proxy)).collect()
    }

    /// One figure over the rounds.
    #[must_use]
    pub fn figure(&self, metric: Metric, proxy: Proxy) -> Option<Spread> {
        spread(self.samples(metric, proxy).to_vec())
    }

    /// Streamgate's figure through the peer's of the same round, over the rounds.
    #[must_use]
    pub fn ratio(&self, metric: Metric, peer: Proxy) -> Option<Spread> {
        self.ratio_of(metric, Proxy::Streamgate, peer)
    }

    /// The figure of one proxy through another's of the same turn, over all turns.
    #[must_use]
    pub fn ratio_of(&self, metric: Metric, one: Proxy, other: Proxy) -> Option<Spread> {
        ratio(self.samples(metric, one), self.samples(metric, other))
    }

    /// How much one figure of streamgate is above another of the same turn, over all turns.
    #[must_use]
    pub fn own_difference(&self, metric: Metric, other: Metric) -> Option<Spread> {
        let [own, other] = [metric, other].map(|metric| self.samples(metric, Proxy::Streamgate));
        spread(own.iter().zip(other).map(|(own, other)| own - other).collect())
    }

    /// One figure of streamgate through another of the same turn, over all turns.
    #[must_use]
    pub fn own_ratio(&self, metric: Metric, other: Metric) -> Option<Spread> {
        ratio(self.samples(metric, Proxy::Streamgate), self.samples(other, Proxy::Streamgate))
    }

    /// The limits that were measured, each with what was measured and how it stands.
    #[must_use]
    pub fn judged(&self) -> Vec<(&'static Limit, Spread, Verdict)> {
        let judge = |limit: &'static Limit| {
            let spread = limit.measured(self)?;
            Some((limit, spread, limit.verdict(spread.median)))
        };
        LIMITS.iter().filter_map(judge).collect()
    }

    /// What should have been measured and was not, in a sentence each.
    #[must_use]
    pub fn gaps(&self, plan: &Plan) -> Vec<String> {
        let mut gaps = Vec::new();
        for proxy in &plan.proxies {
            let wanted = |metric: &Metric| plan.works.contains(&metric.work()) && proxy.does(metric.work());
            for metric in Metric::all().filter(wanted) {
                let samples = self.samples(metric, *proxy);
                // An idle process may use no CPU time at all.
                let fine = |value: &f64| value.is_finite() && (*value > 0.0 || metric == Metric::IdleCpu);
                let count = plan.rounds * metric.work().turns(plan.turns);
                if samples.len() != count || !samples.iter().all(fine) {
                    let (name, id) = (proxy.name(), metric.id());
                    gaps.push(format!("{id} of {name}, {count} samples: {samples:?}"));
                }
            }
        }
        gaps
    }
}

fn ratio(own: &[f64], other: &[f64]) -> Option<Spread> {
    spread(own.iter().zip(other).map(|(own, other)| own / other).collect())
}

fn spread(samples: Vec<f64>) -> Option<Spread> {
    if samples.is_empty() {
        return None;
    }
    let figure = Figure::new("", "", samples);
    let [least, median, most] = [0, 50, 100].map(|share| figure.percentile(share));
    Some(Spread { median, least, most })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::metric::Work;

    fn results(samples: &[(Metric, Proxy, f64)]) -> Results {
        let mut results = Results::default();
        for &(metric, proxy, value) in samples {
            results.push(Sample { metric, proxy, value });
        }
        results
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let own = [2.0, 30.0, 4.0].map(|value| (Metric::Request, Proxy::Streamgate, value));
        let peer = [4.0, 40.0, 4.0].map(|value| (Metric::Request, Proxy::Nginx, value));
        let results = results(&[own, peer].concat());
        let ratio = results.ratio(Metric::Request, Proxy::Nginx).unwrap();
        assert_eq!(ratio, Spread { median: 0.75, least: 0.5, most: 1.0 });
        assert_eq!(results.ratio(Metric::Request, Proxy::Envoy), None);
        let verdicts: Vec<Verdict> = results.judged().into_iter().map(|(.., verdict)| verdict).collect();
        assert_eq!(verdicts, [Verdict::Stretch]);
    }

    #[test]
    fn figures_of_streamgate_have_ratios_too() {
        let full = [4.0, 5.0].map(|value| (Metric::TlsHandshake, Proxy::Streamgate, value));
        let resumed = [3.0, 2.5].map(|value| (Metric::TlsResumed, Proxy::Streamgate, value));
        let peer = [(Metric::TlsHandshake, Proxy::Nginx, 1.0)];
        let results = results(&[&full[..], &resumed, &peer].concat());
        let ratio = results.own_ratio(Metric::TlsResumed, Metric::TlsHandshake).unwrap();
        assert_eq!(ratio, Spread { median: 0.5, least: 0.5, most: 0.75 });
        let verdicts: Vec<Verdict> = results.judged().into_iter().map(|(.., verdict)| verdict).collect();
        assert_eq!(verdicts, [Verdict::Missed, Verdict::Met]);
    }

    #[test]
    fn what_is_missing_or_nothing_is_a_gap() {
        let all: Vec<_> = Metric::all().map(|metric| (metric, Proxy::Nginx, 1.0)).collect();
        let works: Vec<Work> = Work::all().collect();
        let count = |results: &Results, proxies: &[Proxy], works: &[Work], turns: usize| {
            let (proxies, works) = (proxies.to_vec(), works.to_vec());
            results.gaps(&Plan { proxies, works, rounds: 1, turns, ..Plan::default() }).len()
        };
        // Figures that are measured once a round, and those that HAProxy does not take part in.
        let (whole, idle, idle_tls, datagrams, tls, balancing) = (results(&all), 4, 1, 4, 11, 2);
        // Only streamgate has plugins.
        let all_peers = all.len() - 2;
        assert_eq!(count(&whole, &[Proxy::Nginx], &works, 1), 0);
        assert_eq!(count(&whole, &[Proxy::Nginx], &works, 2), all_peers - idle - idle_tls);
        let both = [Proxy::Nginx, Proxy::Haproxy];
        assert_eq!(count(&whole, &both, &works, 1), all_peers - datagrams - tls - balancing);
        assert_eq!(count(&whole, &[Proxy::Haproxy], &[Work::Idle], 1), idle);
        let zero = |metric: Metric| {
            let others = all.iter().copied().filter(|(of, ..)| *of != metric);
            results(&others.chain([(metric, Proxy::Nginx, 0.0)]).collect::<Vec<_>>())
        };
        assert_eq!(count(&zero(Metric::Request), &[Proxy::Nginx], &works, 1), 1);
        assert_eq!(count(&zero(Metric::IdleCpu), &[Proxy::Nginx], &works, 1), 0);
    }
}
