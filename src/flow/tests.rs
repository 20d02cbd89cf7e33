//! The table against cases and against a plain list.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn key(client: u16) -> Key {
    Key {
        socket: u64::from(client % 2),
        client: ([127, 0, 0, 1], client).into(),
        local: ([127, 0, 0, 1], 53).into(),
    }
}

fn limits(idle: Duration, responses: u32) -> Limits {
    Limits { idle, responses: NonZeroU32::new(responses) }
}

#[expect(clippy::disallowed_methods, reason = "a first instant, from which the cases count")]
fn start() -> Instant {
    Instant::now()
}

/// Associations that moved in this order, each with its answers; which one makes room?
#[track_caller]
fn check_eviction(answers: &[u32], evicted: u16) {
    let mut table = Table::new(answers.len());
    let mut now = start();
    for (client, count) in (0_u16..).zip(answers) {
        now += SECOND;
        let id = table.insert(key(client), limits(60 * SECOND, 0), client, now);
        for _ in 0..*count {
            assert_eq!(table.answered(id, 1, now), Some(Answered { taken: 1, last: false }));
        }
    }
    assert!(table.is_full());
    assert_eq!(table.evict(), Some(evicted), "{answers:?}");
    assert!(!table.is_full());
}

#[test]
fn longest_idle_answered_association_makes_room() {
    check_eviction(&[1, 1, 1], 0);
    check_eviction(&[0, 0, 2, 1], 2);
    check_eviction(&[0, 0, 0], 0);
}

#[test]
fn any_datagram_puts_the_end_off() {
    let (mut table, begin) = (Table::new(4), start());
    let id = table.insert(key(1), limits(10 * SECOND, 0), "value", begin);
    assert_eq!(table.next_deadline(), Some(begin + 10 * SECOND));
    assert_eq!(table.find(&key(1)), Some(id));
    assert_eq!(table.touch(id, begin + 4 * SECOND), Some(&mut "value"));
    assert_eq!(table.answered(id, 5, begin + 6 * SECOND), Some(Answered { taken: 5, last: false }));
    assert_eq!(table.next_deadline(), Some(begin + 16 * SECOND));
    assert_eq!(table.expire(begin + 15 * SECOND), None);
    assert_eq!(table.expire(begin + 16 * SECOND), Some("value"));
    assert_eq!(table.next_deadline(), None);
    assert_eq!((table.find(&key(1)), table.touch(id, begin + 16 * SECOND)), (None, None));
}

#[test]
fn last_answer_is_told_and_none_beyond_it_is_taken() {
    let begin = start();
    for (batches, last) in [(&[1_u32, 1][..], 1), (&[2], 2), (&[1, 7], 1), (&[9], 2)] {
        let mut table = Table::new(4);
        let id = table.insert(key(1), limits(SECOND, 2), (), begin);
        let mut answers: Vec<_> =
            batches.iter().map(|count| table.answered(id, *count, begin).unwrap()).collect();
        assert_eq!(answers.pop(), Some(Answered { taken: last, last: true }), "{batches:?}");
        assert!(answers.iter().all(|answered| !answered.last), "{batches:?}");
    }
}

#[test]
fn an_old_id_does_not_reach_the_successor() {
    let (mut table, begin) = (Table::new(4), start());
    let old = table.insert(key(1), limits(SECOND, 0), "old", begin);
    assert_eq!(table.remove(old), Some("old"));
    let new = table.insert(key(1), limits(SECOND, 0), "new", begin);
    assert_eq!((table.answered(old, 1, begin), table.remove(old), table.key(old)), (None, None, None));
    assert_eq!(table.value_mut(old), None);
    assert_eq!(table.touch(old, begin), None);
    assert_eq!(table.find(&key(1)), Some(new));
    assert_eq!(table.value_mut(Id::from_bits(new.to_bits())), Some(&mut "new"));
    assert_eq!(table.key(new), Some(&key(1)));
}

#[test]
fn a_closed_socket_takes_its_own_only() {
    let (mut table, begin) = (Table::new(4), start());
    for client in 1..=3 {
        table.insert(key(client), limits(SECOND, 0), client, begin);
    }
    let mut gone = table.remove_socket(1);
    gone.sort_unstable();
    assert_eq!(gone, [1, 3]);
    assert_eq!(table.find(&key(2)).and_then(|id| table.touch(id, begin).copied()), Some(2));
}

#[derive(Clone, Debug)]
enum Step {
    Datagram { client: u16, idle: u64, responses: u32 },
    Answers { nth: usize, count: u32 },
    Remove { nth: usize },
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u16..8, 1_u64..4, 0_u32..3)
            .prop_map(|(client, idle, responses)| Step::Datagram { client, idle: idle * 5, responses }),
        3 => (0_usize..8, 1_u32..4).prop_map(|(nth, count)| Step::Answers { nth, count }),
        1 => (0_usize..8).prop_map(|nth| Step::Remove { nth }),
        1 => (1_u64..9).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// The same rules over a plain list.
struct Model {
    rows: Vec<(Id, Key, Limits, u32, Instant)>,
}

impl Model {
    fn evict(&mut self) -> Key {
        let answered = self.rows.iter().any(|row| row.3 > 0);
        let among = self.rows.iter().filter(|row| (row.3 > 0) == answered);
        let id = among.min_by_key(|row| row.4).unwrap().0;
        self.remove(id)
    }

    fn remove(&mut self, id: Id) -> Key {
        let place = self.rows.iter().position(|row| row.0 == id).unwrap();
        self.rows.remove(place).1
    }
}

fn play(table: &mut Table<Key>, model: &mut Model, step: &Step, now: Instant) {
    match *step {
        Step::Datagram { client, idle, responses } => {
            let key = key(client);
            if let Some(row) = model.rows.iter_mut().find(|row| row.1 == key) {
                row.4 = now;
                assert_eq!(table.find(&key), Some(row.0));
                assert_eq!(table.touch(row.0, now), Some(&mut key.clone()));
                return;
            }
            assert_eq!(table.find(&key), None);
            if table.is_full() {
                assert_eq!(table.evict(), Some(model.evict()));
            }
            let limits = limits(Duration::from_secs(idle), responses);
            model.rows.push((table.insert(key, limits, key, now), key, limits, 0, now));
        }
        Step::Answers { nth, count } => {
            let Some(row) = model.rows.get_mut(nth) else { return };
            let taken = row.2.responses.map_or(count, |limit| count.min(limit.get() - row.3));
            (row.3, row.4) = (row.3 + taken, now);
            let last = row.2.responses.is_some_and(|limit| row.3 >= limit.get());
            let id = row.0;
            assert_eq!(table.answered(id, count, now), Some(Answered { taken, last }));
            if last {
                assert_eq!(table.remove(id), Some(model.remove(id)));
            }
        }
        Step::Remove { nth } => {
            let Some(&(id, ..)) = model.rows.get(nth) else { return };
            assert_eq!(table.remove(id), Some(model.remove(id)));
        }
        Step::Wait { .. } => {}
    }
}

proptest! {
    #[test]
    fn table_does_what_a_plain_list_does(steps in prop::collection::vec(step(), 1..200)) {
        let (mut table, mut model, mut now) = (Table::new(5), Model { rows: Vec::new() }, start());
        for step in &steps {
            let seconds = if let Step::Wait { seconds } = step { *seconds } else { 0 };
            now += Duration::from_secs(seconds) + Duration::from_millis(1);
            let mut gone: Vec<Key> = std::iter::from_fn(|| table.expire(now)).collect();
            let (over, left) = model.rows.drain(..).partition(|row| row.4 + row.2.idle <= now);
            model.rows = left;
            let mut expected: Vec<Key> = Vec::from_iter(over).iter().map(|row: &(Id, Key, _, _, _)| row.1).collect();
            gone.sort_unstable_by_key(|key| key.client);
            expected.sort_unstable_by_key(|key| key.client);
            prop_assert_eq!(gone, expected);
            play(&mut table, &mut model, step, now);
            prop_assert_eq!(table.len(), model.rows.len());
            prop_assert_eq!(table.next_deadline(), model.rows.iter().map(|row| row.4 + row.2.idle).min());
        }
    }
}
