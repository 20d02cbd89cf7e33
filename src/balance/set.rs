//! Nodes that stand for one another: those of one priority, with or without weight.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::ring::Ring;
use super::turns::Turns;
use super::{Picked, PoolNode, Wanted};

/// How a set chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Method {
    Turns,
    Hash,
    Fewest,
    Fastest,
}

/// Some nodes of a pool with the state of their balancer.
#[derive(Debug)]
pub(super) struct Set {
    /// Index in the pool and weight, never 0.
    members: Box<[(u32, u32)]>,
    state: State,
}

/// Connect times below this, in seconds, count as this: what is as near as the next host differs by noise
/// alone, and a node that nobody has tried yet shall not get everybody.
const NEAREST: f32 = 0.0001;

/// What a session on this node would cost: the time to connect, times the sessions it would be one of, by
/// weight.
fn cost(node: &PoolNode, now: Instant) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let (sessions, weight) = ((node.stats.in_flight() + 1) as f32, node.weight.max(1) as f32);
    node.stats.ewma.value(now).max(NEAREST) * sessions / weight
}

#[derive(Debug)]
enum State {
    Turns(Mutex<Turns>),
    Ring {
        ring: Ring,
        coarse: bool,
    },
    /// Where the next search begins, so that equally loaded nodes take turns.
    Fewest(Mutex<usize>),
    /// What draws two nodes to compare.
    Fastest(Mutex<u64>),
}

impl Set {
    pub(super) fn new(nodes: &[PoolNode], members: &[(u32, u32)], method: Method, seed: u64) -> Self {
        let state = match method {
            Method::Turns => State::Turns(Mutex::new(Turns::new(members, seed))),
            Method::Fewest => {
                let count = members.len().max(1) as u64;
                State::Fewest(Mutex::new(usize::try_from(seed % count).unwrap_or(0)))
            }
            // A generator of this kind never leaves 0.
            Method::Fastest => State::Fastest(Mutex::new(seed | 1)),
            Method::Hash => {
                let (ring, coarse) = Ring::new(nodes, members);
                State::Ring { ring, coarse }
            }
        };
        Self { members: members.into(), state }
    }

    /// The members among the nodes of the pool.
    pub(super) fn members<'a>(&self, nodes: &'a [PoolNode]) -> impl Iterator<Item = &'a PoolNode> {
        self.members.iter().filter_map(|(index, _)| nodes.get(*index as usize))
    }

    pub(super) fn is_ring(&self) -> bool {
        matches!(self.state, State::Ring { .. })
    }

    /// Reports whether weights had to be made coarser than configured.
    pub(super) fn is_coarse(&self) -> bool {
        matches!(self.state, State::Ring { coarse: true, .. })
    }

    /// One of the candidates. By `least_conn` it is counted before the lock is given back: no two
    /// workers choose by the same counts.
    pub(super) fn pick(
        &self,
        nodes: &[PoolNode],
        candidate: impl Fn(&PoolNode) -> bool,
        Wanted { hash, now }: Wanted,
    ) -> Option<Picked> {
        let at = |index: usize| nodes.get(index).filter(|node| candidate(node));
        match &self.state {
            State::Turns(turns) => {
                let index =
                    turns.lock().unwrap_or_else(PoisonError::into_inner).next(|index| at(index).is_some())?;
                nodes.get(index).map(Picked::new)
            }
            // Without this, a ring of a million points would be walked to find nothing.
            State::Ring { .. } if !self.members(nodes).any(&candidate) => None,
            State::Ring { ring, .. } => ring.from(hash).find_map(at).map(Picked::new),
            State::Fewest(start) => {
                let mut start = start.lock().unwrap_or_else(PoisonError::into_inner);
                let (place, node) = self.fewest(nodes, &candidate, *start)?;
                *start = (place + 1) % self.members.len();
                Some(Picked::new(node))
            }
            State::Fastest(drawn) => {
                let mut drawn = drawn.lock().unwrap_or_else(PoisonError::into_inner);
                self.faster(at, &mut drawn, now).map(Picked::new)
            }
        }
    }

    /// The candidate that a session would get that comes now. Nothing is counted and no turn taken.
    pub(super) fn preview<'a>(
        &self,
        nodes: &'a [PoolNode],
        candidate: impl Fn(&PoolNode) -> bool,
        Wanted { hash, now }: Wanted,
    ) -> Option<&'a PoolNode> {
        let at = |index: usize| nodes.get(index).filter(|node| candidate(node));
        match &self.state {
            State::Turns(turns) => {
                let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner).clone();
                nodes.get(turns.next(|index| at(index).is_some())?)
            }
            State::Ring { .. } if !self.members(nodes).any(&candidate) => None,
            State::Ring { ring, .. } => ring.from(hash).find_map(at),
            State::Fewest(start) => {
                let start = *start.lock().unwrap_or_else(PoisonError::into_inner);
                self.fewest(nodes, &candidate, start).map(|(_, node)| node)
            }
            State::Fastest(drawn) => {
                let mut drawn = *drawn.lock().unwrap_or_else(PoisonError::into_inner);
                self.faster(at, &mut drawn, now)
            }
        }
    }

    /// The one of two candidates drawn by lot that a session costs less on.
    fn faster<'a>(
        &self,
        at: impl Fn(usize) -> Option<&'a PoolNode>,
        drawn: &mut u64,
        now: Instant,
    ) -> Option<&'a PoolNode> {
        let first = self.drawn(&at, drawn)?;
        let other = |index: usize| at(index).filter(|node| !std::ptr::eq(*node, first));
        let second = self.drawn(other, drawn).unwrap_or(first);
        Some(if cost(second, now) < cost(first, now) { second } else { first })
    }

    /// A candidate drawn by lot.
    fn drawn<'a>(&self, at: impl Fn(usize) -> Option<&'a PoolNode>, state: &mut u64) -> Option<&'a PoolNode> {
        // Marsaglia's xorshift64.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let count = self.members.len().max(1) as u64;
        let start = usize::try_from((*state >> 16) % count).unwrap_or(0);
        let (before, after) = self.members.split_at_checked(start)?;
        after.iter().chain(before).find_map(|(index, _)| at(*index as usize))
    }

    /// The candidate of least (in flight + 1) / weight, the first from `start` among equals, with its
    /// place among the members.
    fn fewest<'a>(
        &self,
        nodes: &'a [PoolNode],
        candidate: impl Fn(&PoolNode) -> bool,
        start: usize,
    ) -> Option<(usize, &'a PoolNode)> {
        let (before, after) = self.members.split_at_checked(start)?;
        let mut best: Option<(u64, u64, usize, &PoolNode)> = None;
        // `for_each`: a loop over a chain would ask at every step which half it is in.
        (start..).zip(after).chain((0..).zip(before)).for_each(|(place, (index, weight))| {
            let Some(node) = nodes.get(*index as usize) else { return };
            // Both below 2^32, so that their products are exact.
            let load = u32::try_from(node.stats.in_flight() + 1).unwrap_or(u32::MAX);
            let (load, weight) = (u64::from(load), u64::from(*weight));
            // The health of a node lies elsewhere in memory: only that of the few that count is looked at.
            let fewer = best.is_none_or(|(other, other_weight, ..)| load * other_weight < other * weight);
            if fewer && candidate(node) {
                best = Some((load, weight, place, node));
            }
        });
        best.map(|(.., place, node)| (place, node))
    }
}
