//! Nodes that stand for one another: those of one priority, with or without weight.

use std::sync::{Mutex, PoisonError};

use super::ring::Ring;
use super::turns::Turns;
use super::{Picked, PoolNode};

/// How a set chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Method {
    Turns,
    Hash,
    Fewest,
}

/// Some nodes of a pool with the state of their balancer.
#[derive(Debug)]
pub(super) struct Set {
    /// Index in the pool and weight, never 0.
    members: Box<[(u32, u32)]>,
    state: State,
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
}

impl Set {
    pub(super) fn new(nodes: &[PoolNode], members: &[(u32, u32)], method: Method, seed: u64) -> Self {
        let state = match method {
            Method::Turns => State::Turns(Mutex::new(Turns::new(members, seed))),
            Method::Fewest => {
                let count = members.len().max(1) as u64;
                State::Fewest(Mutex::new(usize::try_from(seed % count).unwrap_or(0)))
            }
            Method::Hash => {
                let (ring, coarse) = Ring::new(nodes, members);
                State::Ring { ring, coarse }
            }
        };
        Self { members: members.into(), state }
    }

    /// The indexes of the members in the pool.
    pub(super) fn members(&self) -> impl Iterator<Item = usize> {
        self.members.iter().map(|(index, _)| *index as usize)
    }

    /// Reports whether weights had to be made coarser than configured.
    pub(super) fn is_coarse(&self) -> bool {
        matches!(self.state, State::Ring { coarse: true, .. })
    }

    /// One of the candidates, with its index in the pool. It is counted before the lock is given
    /// back: no two workers choose by the same counts.
    pub(super) fn pick(
        &self,
        nodes: &[PoolNode],
        candidate: impl Fn(usize) -> bool,
        hash: u32,
    ) -> Option<(usize, Picked)> {
        let taken = |index: usize| nodes.get(index).map(|node| (index, Picked::new(node)));
        match &self.state {
            State::Turns(turns) => {
                let index = turns.lock().unwrap_or_else(PoisonError::into_inner).next(candidate);
                taken(index?)
            }
            // Without this, a ring of a million points would be walked to find nothing.
            State::Ring { .. } if !self.members().any(&candidate) => None,
            State::Ring { ring, .. } => taken(ring.from(hash).find(|index| candidate(*index))?),
            State::Fewest(start) => {
                let mut start = start.lock().unwrap_or_else(PoisonError::into_inner);
                let (place, index) = self.fewest(nodes, candidate, *start)?;
                *start = (place + 1) % self.members.len();
                taken(index)
            }
        }
    }

    /// The candidate of least (in flight + 1) / weight, the first from `start` among equals: its
    /// place among the members and its index in the pool.
    fn fewest(
        &self,
        nodes: &[PoolNode],
        candidate: impl Fn(usize) -> bool,
        start: usize,
    ) -> Option<(usize, usize)> {
        let (before, after) = self.members.split_at_checked(start)?;
        let places = (start..).zip(after).chain((0..).zip(before));
        let mut best: Option<(u128, u128, usize, usize)> = None;
        for (place, (index, weight)) in places {
            let index = *index as usize;
            let Some(node) = nodes.get(index).filter(|_| candidate(index)) else { continue };
            let (load, weight) = (u128::from(node.stats.in_flight()) + 1, u128::from(*weight));
            if best.is_none_or(|(other, other_weight, ..)| load * other_weight < other * weight) {
                best = Some((load, weight, place, index));
            }
        }
        best.map(|(.., place, index)| (place, index))
    }
}
