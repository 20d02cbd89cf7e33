//! One name, kept resolved.
//!
//! An answer is asked for again when its TTL is over, a little later by chance: names of one zone that were
//! asked for in one moment are spread so. While there is no answer, or one without addresses, the pauses grow.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::answers::{Answers, GRACE, MOST};
use crate::net::dns::{Answer, Failure, Nothing};
use crate::store::{Batch, Event};

/// An answer is never asked for again sooner, whatever its TTL says.
const SHORTEST: Duration = Duration::from_secs(1);
/// Nor trusted longer: a zone may be edited under a long TTL.
const LONGEST: Duration = Duration::from_hours(1);
/// How soon to ask again where there are no addresses: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// The part of a pause that chance adds at most.
const SPREAD: f64 = 0.1;

/// Who knows addresses.
pub(super) trait Lookup: Send {
    /// Asks for those of a name.
    fn lookup(&self, name: &str) -> impl Future<Output = Result<Answer<IpAddr>, Failure>> + Send;
}

/// Follows `name` until nobody listens to `out` any more. `valid` replaces every TTL.
pub(super) async fn follow(
    from: impl Lookup,
    valid: Option<Duration>,
    name: Arc<str>,
    out: mpsc::Sender<Batch>,
) {
    let mut following = Following::new(name.clone(), valid);
    let mut told: Option<Vec<IpAddr>> = None;
    let mut ask_at = Instant::now();
    loop {
        sleep_until(following.answers.next_leave().map_or(ask_at, |leave| leave.min(ask_at))).await;
        if Instant::now() >= ask_at {
            // Boxed: thousands of names wait most of the time, and need no room for a question then.
            let answer = Box::pin(from.lookup(&name)).await;
            let pause = following.take(answer, Instant::now());
            ask_at = Instant::now() + pause.mul_f64(1.0 + SPREAD * rand::random::<f64>());
        }
        following.answers.expire(Instant::now());
        let addresses = following.answers.serving();
        // Each publication makes a snapshot.
        if told.as_ref() != Some(&addresses) {
            let ttl = following.ttl;
            let event = Event::Addresses { name: name.clone(), addresses: addresses.as_slice().into(), ttl };
            if out.send(Batch { events: vec![event], revision: 0 }).await.is_err() {
                return;
            }
            told = Some(addresses);
        }
    }
}

/// What the log has been told last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    /// That all is well, or nothing yet.
    Well,
    /// That nobody answers.
    Failing,
    /// That an answer had no addresses, and the last ones serve for now.
    Denied,
    /// That there are none any more.
    Gone,
}

#[derive(Debug)]
struct Following {
    name: Arc<str>,
    valid: Option<Duration>,
    answers: Answers,
    ttl: Duration,
    pause: Duration,
    told: Told,
    /// More addresses than are used have been complained of.
    too_many: bool,
}

impl Following {
    fn new(name: Arc<str>, valid: Option<Duration>) -> Self {
        let [pause, _] = PAUSES;
        Self {
            name,
            valid,
            answers: Answers::default(),
            ttl: SHORTEST,
            pause,
            told: Told::Well,
            too_many: false,
        }
    }

    /// Takes what came back, and says how long to wait before asking again.
    fn take(&mut self, answer: Result<Answer<IpAddr>, Failure>, now: Instant) -> Duration {
        match answer {
            Ok(Answer::Records { data, ttl }) => {
                self.ttl = self.valid.unwrap_or(ttl).clamp(SHORTEST, LONGEST);
                [self.pause, _] = PAUSES;
                self.count(data.len());
                self.answers.take(data, self.ttl, now);
                self.well();
                self.ttl
            }
            Ok(Answer::Nothing(why)) => {
                self.answers.take(Vec::new(), SHORTEST, now);
                self.denied(why);
                self.longer()
            }
            Err(failure) => {
                self.failed(&failure);
                self.longer()
            }
        }
    }

    fn longer(&mut self) -> Duration {
        let [_, longest] = PAUSES;
        let now = self.pause;
        self.pause = (now * 2).min(longest);
        now
    }

    fn well(&mut self) {
        let name = &*self.name;
        if self.told != Told::Well {
            tracing::info!(name, "{name} resolves again");
        }
        self.told = Told::Well;
    }

    fn denied(&mut self, why: Nothing) {
        let name = &*self.name;
        let serving = !self.answers.serving().is_empty();
        let tell = if serving { Told::Denied } else { Told::Gone };
        match (self.told, tell) {
            (Told::Gone, Told::Gone) | (Told::Denied, Told::Denied) => {}
            (_, Told::Denied) => tracing::warn!(
                name,
                "{name} does not resolve any more: {why}; its last addresses serve on, and go when that has been so \
                 for {GRACE:?} and two TTLs"
            ),
            (Told::Denied, _) => {
                tracing::warn!(
                    name,
                    "{name} has no address any more: {why}; nodes of this name are left out"
                );
            }
            _ => tracing::warn!(name, "{name} does not resolve: {why}; nodes of this name are left out"),
        }
        self.told = tell;
    }

    fn failed(&mut self, failure: &Failure) {
        let name = &*self.name;
        if self.told == Told::Failing {
            return;
        }
        let serving = if self.answers.serving().is_empty() {
            "nodes of this name are left out"
        } else {
            "its last addresses keep serving"
        };
        tracing::warn!(name, "{name} does not resolve: {failure}; {serving}");
        self.told = Told::Failing;
    }

    fn count(&mut self, count: usize) {
        let name = &*self.name;
        if count > MOST && !self.too_many {
            tracing::warn!(name, "{name} has {count} addresses; the first {MOST} in their order are used");
        }
        self.too_many = count > MOST;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Says what is written, the last for ever, and when it was asked.
    #[derive(Debug)]
    struct Script {
        left: Mutex<VecDeque<Said>>,
        began: Instant,
        asked: mpsc::UnboundedSender<Duration>,
    }

    type Said = Result<Answer<IpAddr>, Failure>;

    impl Lookup for &'static Script {
        async fn lookup(&self, _: &str) -> Said {
            self.asked.send(self.began.elapsed()).unwrap();
            let mut left = self.left.lock().unwrap();
            let next = left.front().cloned().unwrap();
            if left.len() > 1 {
                left.pop_front();
            }
            next
        }
    }

    fn found(last: &[u8], ttl: u64) -> Answer<IpAddr> {
        let data = last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
        Answer::Records { data, ttl: Duration::from_secs(ttl) }
    }

    fn fails() -> Said {
        Err(Failure::silent("nobody answers".into()))
    }

    /// What is told, each with the second of it, and when the name was asked for.
    async fn run(script: Vec<Said>, valid: Option<u64>, seconds: u64) -> (Vec<(u64, Vec<u8>)>, Vec<u64>) {
        let (asked, mut times) = mpsc::unbounded_channel();
        let script = Script { left: Mutex::new(script.into()), began: Instant::now(), asked };
        let (out, mut batches) = mpsc::channel(64);
        let valid = valid.map(Duration::from_secs);
        let began = script.began;
        let task = tokio::spawn(follow(&*Box::leak(Box::new(script)), valid, "a".into(), out));
        let mut told = Vec::new();
        let deadline = began + Duration::from_secs(seconds);
        while let Ok(Some(batch)) = tokio::time::timeout_at(deadline, batches.recv()).await {
            let [Event::Addresses { addresses, .. }] = &*batch.events else { panic!("{batch:?}") };
            let last = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => 0,
            };
            told.push((began.elapsed().as_secs(), addresses.iter().map(last).collect()));
        }
        task.abort();
        let mut seconds = Vec::new();
        while let Ok(time) = times.try_recv() {
            seconds.push(time.as_secs());
        }
        (told, seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_once_and_the_old_address_two_ttls_later() {
        let (told, asked) =
            run(vec![Ok(found(&[1], 100)), Ok(found(&[1], 100)), Ok(found(&[2], 1000))], None, 500).await;
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!((&told[0], &told[1].1, &told[2].1), (&(0, vec![1]), &vec![1, 2], &vec![2]));
        assert!((200..=220).contains(&told[1].0), "{told:?}");
        assert_eq!(told[2].0 - told[1].0, 200);
        assert_eq!(asked.len(), 3, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_fails_takes_no_address_away_and_is_asked_less_and_less() {
        let (told, asked) = run(vec![Ok(found(&[1], 5)), fails()], None, 100_000).await;
        assert_eq!(told, [(0, vec![1])]);
        assert!(asked.len() > 2_900, "{}", asked.len());
        let gaps: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps[1..].iter().all(|gap| (1..=33).contains(gap)), "{gaps:?}");
        assert!(gaps[6..].iter().all(|gap| *gap >= 29), "{gaps:?}");
        // One that never answered: whoever waits is told at once.
        let (told, _) = run(vec![fails()], None, 100).await;
        assert_eq!(told, [(0, vec![])]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_denied_goes_after_half_a_minute_by_an_answer() {
        let denied = || Ok(Answer::Nothing(Nothing::NoName));
        let (told, asked) = run(vec![Ok(found(&[1], 5)), denied()], None, 200).await;
        assert_eq!((told.len(), &told[1].1), (2, &vec![]));
        assert!((35..=75).contains(&told[1].0), "{told:?}");
        assert!(asked.len() >= 8, "a zone that is back is seen soon: {asked:?}");
        let (told, _) = run(vec![denied(), Ok(found(&[1], 5))], None, 100).await;
        assert_eq!((&told[0], &told[1].1), (&(0, vec![]), &vec![1]));
        // An outage after the denial decides nothing.
        let (told, _) = run(vec![Ok(found(&[1], 5)), denied(), fails()], None, 1000).await;
        assert_eq!(told, [(0, vec![1])]);
    }

    #[track_caller]
    fn check_pace(asked: &[u64], lowest: usize, highest: usize) {
        assert!((lowest..=highest).contains(&asked.len()), "{} times", asked.len());
    }

    #[tokio::test(start_paused = true)]
    async fn the_ttl_paces_and_dns_resolver_valid_replaces_it() {
        check_pace(&run(vec![Ok(found(&[1], 0))], None, 110).await.1, 100, 111);
        check_pace(&run(vec![Ok(found(&[1], 10))], Some(0), 110).await.1, 100, 111);
        check_pace(&run(vec![Ok(found(&[1], 1))], Some(10), 110).await.1, 10, 12);
        check_pace(&run(vec![Ok(found(&[1], 1_000_000))], None, 36_000).await.1, 9, 11);
    }

    #[tokio::test(start_paused = true)]
    async fn names_of_one_ttl_are_not_asked_in_one_moment() {
        let mut seconds = std::collections::BTreeSet::new();
        for _ in 0..30 {
            seconds.insert(run(vec![Ok(found(&[1], 1000))], None, 1500).await.1[1]);
        }
        assert!(seconds.len() > 10 && seconds.iter().all(|at| (1000..=1100).contains(at)), "{seconds:?}");
    }
}
