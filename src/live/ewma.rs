//! A moving average that forgets: of the time to connect to a node.
//!
//! The weight of what was measured before falls by a factor of e in 10 seconds (as in APISIX,
//! `apisix/balancer/ewma.lua:29`), and so does the value while nothing is measured: a node that was slow is
//! tried again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// In so much time the past loses its weight.
const DECAY: Duration = Duration::from_secs(10);

/// The average, in seconds; 0 before the first measurement.
#[derive(Debug, Default)]
pub struct Ewma(OnceLock<Box<Measured>>);

/// Made by the first measurement: most nodes are never measured.
#[derive(Debug)]
struct Measured {
    /// What times are counted from.
    base: Instant,
    /// The value as a float of 32 bits, and milliseconds since `base`.
    packed: AtomicU64,
}

impl Ewma {
    /// Takes a measurement in.
    pub fn record(&self, sample: Duration, now: Instant) {
        let measured = self.0.get_or_init(|| Box::new(Measured { base: now, packed: AtomicU64::new(0) }));
        let at = measured.millis(now);
        let step = |packed| {
            let (value, fade) = faded(packed, at);
            let fresh =
                if packed == 0 { sample.as_secs_f32() } else { value + sample.as_secs_f32() * (1.0 - fade) };
            Some(pack(fresh, at))
        };
        // It cannot fail: the step always gives a value.
        let _ = measured.packed.fetch_update(Relaxed, Relaxed, step);
    }

    /// The average now, in seconds.
    #[must_use]
    pub fn value(&self, now: Instant) -> f32 {
        self.0.get().map_or(0.0, |measured| faded(measured.packed.load(Relaxed), measured.millis(now)).0)
    }
}

impl Measured {
    #[expect(clippy::cast_possible_truncation, reason = "it wraps after 49 days, and only differences count")]
    fn millis(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.base).as_millis() as u32
    }
}

/// The value as it has faded until `at`, and the factor by which it has.
fn faded(packed: u64, at: u32) -> (f32, f32) {
    let [value, then] =
        [packed >> 32, packed & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(0));
    let passed = at.wrapping_sub(then);
    // Two threads may come in the other order than their clocks say.
    let passed = if passed > u32::MAX / 2 { 0 } else { passed };
    let fade = (-Duration::from_millis(passed.into()).div_duration_f32(DECAY)).exp();
    (f32::from_bits(value) * fade, fade)
}

fn pack(value: f32, at: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_is_measured_and_forgets() {
        let (ewma, start) = (Ewma::default(), tokio::time::Instant::now().into_std());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(ewma.value(start).abs() < f32::EPSILON);
        ewma.record(Duration::from_millis(100), start);
        assert!((ewma.value(start) - 0.1).abs() < 1e-6);
        assert!((ewma.value(at(10)) - 0.1 / std::f32::consts::E).abs() < 1e-6);
        for second in 1..100 {
            ewma.record(Duration::from_millis(20), at(second));
        }
        assert!((ewma.value(at(99)) - 0.02).abs() < 1e-3, "{}", ewma.value(at(99)));
        // Many at once weigh little more than one.
        for _ in 0..100 {
            ewma.record(Duration::from_secs(5), at(99));
        }
        assert!(ewma.value(at(99)) < 0.03, "{}", ewma.value(at(99)));
    }
}
