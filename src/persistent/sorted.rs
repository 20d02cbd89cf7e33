//! Values in ascending order: a B+ tree that copies the path to what it changes.
//!
//! Nearly all have one value at most, which then needs no heap.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Values of a leaf, or children of a branch, at most.
const MOST: usize = 32;

/// Ascending values; equal ones may come several times.
#[derive(Clone)]
pub struct Sorted<T>(Root<T>);

#[derive(Clone)]
enum Root<T> {
    Empty,
    One(T),
    Many(Tree<T>),
}

/// Neither a leaf nor a branch is ever empty.
#[derive(Clone)]
enum Tree<T> {
    Leaf(Arc<Vec<T>>),
    Branch(Arc<Vec<Tree<T>>>),
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self(Root::Empty)
    }
}

impl<T: fmt::Debug> fmt::Debug for Sorted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut found = Vec::new();
        self.collect(&mut found);
        f.debug_list().entries(found).finish()
    }
}

impl<T> Sorted<T> {
    /// The least value.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        match &self.0 {
            Root::Empty => None,
            Root::One(value) => Some(value),
            Root::Many(tree) => tree.first(),
        }
    }

    /// Adds all values to `found`, in their order.
    pub fn collect<'a>(&'a self, found: &mut Vec<&'a T>) {
        match &self.0 {
            Root::Empty => {}
            Root::One(value) => found.push(value),
            Root::Many(tree) => tree.collect(found),
        }
    }
}

impl<T: Clone + Ord> Sorted<T> {
    /// Adds a value.
    pub fn insert(&mut self, value: T) {
        self.0 = match std::mem::replace(&mut self.0, Root::Empty) {
            Root::Empty => Root::One(value),
            Root::One(other) => {
                let pair = if other <= value { vec![other, value] } else { vec![value, other] };
                Root::Many(Tree::Leaf(Arc::new(pair)))
            }
            Root::Many(mut tree) => Root::Many(match tree.insert(value) {
                Some(right) => Tree::Branch(Arc::new(vec![tree, right])),
                None => tree,
            }),
        };
    }

    /// Takes out a value that `probe` finds equal. `probe` says how a value compares to the sought
    /// one, as in [`slice::binary_search_by`].
    pub fn remove(&mut self, probe: &impl Fn(&T) -> Ordering) -> Option<T> {
        let taken = match &mut self.0 {
            Root::One(value) if probe(value).is_eq() => match std::mem::replace(&mut self.0, Root::Empty) {
                Root::One(value) => Some(value),
                Root::Empty | Root::Many(_) => None,
            },
            Root::Empty | Root::One(_) => None,
            Root::Many(tree) => tree.remove(probe),
        };
        while let Root::Many(tree) = &self.0
            && tree.len() < 2
        {
            self.0 = tree.only();
        }
        taken
    }
}

impl<T> Tree<T> {
    fn first(&self) -> Option<&T> {
        let mut tree = self;
        loop {
            match tree {
                Self::Leaf(values) => return values.first(),
                Self::Branch(children) => tree = children.first()?,
            }
        }
    }

    fn collect<'a>(&'a self, found: &mut Vec<&'a T>) {
        match self {
            Self::Leaf(values) => found.extend(values.iter()),
            Self::Branch(children) => children.iter().for_each(|child| child.collect(found)),
        }
    }

    /// Values of a leaf, or children of a branch.
    fn len(&self) -> usize {
        match self {
            Self::Leaf(values) => values.len(),
            Self::Branch(children) => children.len(),
        }
    }
}

impl<T: Clone> Tree<T> {
    /// What is left of a root with one child or value, or none.
    fn only(&self) -> Root<T> {
        match self {
            Self::Leaf(values) => values.first().map_or(Root::Empty, |value| Root::One(value.clone())),
            Self::Branch(children) => children.first().map_or(Root::Empty, |child| Root::Many(child.clone())),
        }
    }

    /// Takes in what `next`, which is as high, has.
    fn append(&mut self, next: Self) {
        match (self, next) {
            (Self::Leaf(values), Self::Leaf(next)) => {
                Arc::make_mut(values).extend(Arc::unwrap_or_clone(next));
            }
            (Self::Branch(children), Self::Branch(next)) => {
                Arc::make_mut(children).extend(Arc::unwrap_or_clone(next));
            }
            // Children of one branch are equally high.
            (Self::Leaf(_), Self::Branch(_)) | (Self::Branch(_), Self::Leaf(_)) => {}
        }
    }
}

impl<T: Clone + Ord> Tree<T> {
    /// Gives the right half where there was no room.
    fn insert(&mut self, value: T) -> Option<Self> {
        match self {
            Self::Leaf(values) => {
                let values = Arc::make_mut(values);
                values.insert(values.partition_point(|other| *other <= value), value);
                split(values).map(Self::Leaf)
            }
            Self::Branch(children) => {
                let later = |child: &Self| child.first().is_some_and(|first| *first <= value);
                let at = children.partition_point(later).saturating_sub(1);
                let children = Arc::make_mut(children);
                if let Some(right) = children[at].insert(value) {
                    children.insert(at + 1, right);
                }
                split(children).map(Self::Branch)
            }
        }
    }

    fn remove(&mut self, probe: &impl Fn(&T) -> Ordering) -> Option<T> {
        match self {
            Self::Leaf(values) => {
                let at = values.binary_search_by(probe).ok()?;
                Some(Arc::make_mut(values).remove(at))
            }
            Self::Branch(children) => {
                let earlier = |child: &Self| child.first().is_some_and(|first| probe(first).is_le());
                let at = children.partition_point(earlier).checked_sub(1)?;
                let children = Arc::make_mut(children);
                let taken = children[at].remove(probe);
                settle(children, at);
                taken
            }
        }
    }
}

/// The right half of what has grown too long.
fn split<T>(items: &mut Vec<T>) -> Option<Arc<Vec<T>>> {
    (items.len() > MOST).then(|| Arc::new(items.split_off(MOST / 2)))
}

/// Removes the child at `at` where it has become empty, and makes it one with a neighbour where both
/// have become small.
fn settle<T: Clone>(children: &mut Vec<Tree<T>>, at: usize) {
    if children[at].len() == 0 {
        children.remove(at);
        return;
    }
    let right = if at + 1 < children.len() { at + 1 } else { at };
    // Half of what would be split again, so that a pair at the limit does not flap.
    if right > 0 && children[right - 1].len() + children[right].len() <= MOST / 2 {
        let next = children.remove(right);
        children[right - 1].append(next);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all<T: Copy>(sorted: &Sorted<T>) -> Vec<T> {
        let mut found = Vec::new();
        sorted.collect(&mut found);
        found.into_iter().copied().collect()
    }

    /// How high a tree is, and how many leaves and branches it has; each is checked.
    fn nodes<T>(tree: &Tree<T>) -> (usize, usize) {
        assert!((1..=MOST).contains(&tree.len()), "{}", tree.len());
        let Tree::Branch(children) = tree else { return (1, 1) };
        let below: Vec<_> = children.iter().map(nodes).collect();
        assert!(below.iter().all(|(height, _)| *height == below[0].0), "leaves at several heights");
        (below[0].0 + 1, below.iter().map(|(_, count)| count).sum::<usize>() + 1)
    }

    proptest! {
        #[test]
        fn behaves_as_a_sorted_list(
            steps in prop::collection::vec((any::<bool>(), 0..600u16), 0..1500),
            range in prop::sample::select(&[4, 60, 600][..]),
        ) {
            let (mut sorted, mut model) = (Sorted::default(), Vec::new());
            let mut clones = Vec::new();
            for (index, (insert, value)) in steps.into_iter().enumerate() {
                // Runs of both, so that trees grow and shrink.
                let (insert, value) = (insert ^ (index % 700 > 450), value % range);
                if index % 64 == 0 {
                    clones.push((sorted.clone(), model.clone()));
                }
                let at = model.partition_point(|other| *other < value);
                if insert || index % 700 < 300 {
                    sorted.insert(value);
                    model.insert(at, value);
                } else {
                    let expected = (model.get(at) == Some(&value)).then(|| model.remove(at));
                    prop_assert_eq!(sorted.remove(&|other| other.cmp(&value)), expected);
                }
                prop_assert_eq!(sorted.first(), model.first());
                if let Root::Many(tree) = &sorted.0 {
                    nodes(tree);
                }
            }
            clones.push((sorted, model));
            for (sorted, model) in clones {
                prop_assert_eq!(all(&sorted), model);
            }
        }
    }

    #[test]
    fn shrinking_gives_nodes_back() {
        let mut sorted = Sorted::default();
        (0..10_000).for_each(|value| sorted.insert(value));
        let removed = |value: &i32| value % 1000 != 0;
        for gone in (0..10_000).filter(removed) {
            assert_eq!(sorted.remove(&|value: &i32| value.cmp(&gone)), Some(gone));
        }
        let Root::Many(tree) = &sorted.0 else { panic!("ten are left") };
        assert_eq!(nodes(tree), (1, 1));
        for gone in (0..10).map(|index| index * 1000) {
            sorted.remove(&|value: &i32| value.cmp(&gone));
        }
        assert!(matches!(sorted.0, Root::Empty));
    }
}
