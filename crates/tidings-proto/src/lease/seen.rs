//! Whether a load that ran on another node began late enough, and where the home of a key is.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::id::{NodeId, Origin, Sequence};
use crate::time::Tick;

/// Most origins that a node names with the result of a load, so that they fit into an answer beside it. In a cluster that
/// has more, results are not shared.
pub const SEEN_MAX: usize = 1_024;

/// What a node had applied, or fenced instead, of every origin that it knew, its own changes included: the last
/// sequence of the lane that a key belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(Origin, Sequence)>")]
pub struct Seen(Vec<(Origin, Sequence)>);

impl From<Vec<(Origin, Sequence)>> for Seen {
    /// What a peer says, in whatever order: it is looked up, once for each origin that is known here.
    fn from(mut positions: Vec<(Origin, Sequence)>) -> Self {
        positions.sort_unstable();
        Self(positions)
    }
}

impl Seen {
    /// What is known of these origins, in any order. Of 0, nothing was applied.
    #[must_use]
    pub fn of(positions: impl IntoIterator<Item = (Origin, Sequence)>) -> Self {
        positions.into_iter().filter(|(_, sequence)| *sequence > 0).collect::<Vec<_>>().into()
    }

    /// Whether everything that `other` had seen was seen here.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(origin, sequence)| self.position(origin) >= *sequence)
    }

    fn position(&self, origin: &Origin) -> Sequence {
        // A peer may send several of one origin: the lowest stands first, and counts.
        let at = self.0.partition_point(|(known, _)| known < origin);
        self.0.get(at).filter(|(known, _)| known == origin).map_or(0, |(_, sequence)| *sequence)
    }

    /// How many origins it names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was applied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a load has to have seen for a flight to take what it brings. Whatever is applied here once the flight is
/// registered ends it; so take this afterwards, and of positions that are being applied those that will be: a change ends
/// flights before its position is noted as applied, and one that began in between would lack it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What this node may have seen.
    pub seen: Seen,
    /// When an origin was last left out of that, by this node's clock: a load that began before may lack a change of it.
    pub left_out: Tick,
}

impl Wanted {
    /// Whether a load may be returned to those who wait for the flight, and stored if the flight has not ended: it
    /// began after all changes that had been applied here when the flight began.
    ///
    /// `seen` was taken at the load's node before the load began; `began` is no later than that, by this node's clock.
    #[must_use]
    pub fn allows(&self, seen: &Seen, began: Tick) -> bool {
        began > self.left_out && seen.covers(&self.seen)
    }
}

/// The home of a key among the nodes that host its cache: the one that weighs most for it, so that all who know the same
/// nodes agree, and a node that comes or goes moves only its own keys.
pub fn home<'a>(key: u64, nodes: impl IntoIterator<Item = &'a NodeId>) -> Option<&'a NodeId> {
    nodes.into_iter().max_by_key(|node| (weight(key, node), *node))
}

/// The weight of a node for a key.
fn weight(key: u64, node: &NodeId) -> u64 {
    xxh3_64_with_seed(node.as_str().as_bytes(), key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec;
    use crate::hash::{CacheId, key_hash};
    use crate::id::Incarnation;

    fn node(n: usize) -> NodeId {
        NodeId::new(&format!("replica-{n}")).unwrap()
    }

    fn origin(n: usize) -> Origin {
        Origin { node: node(n), incarnation: Incarnation(1) }
    }

    #[test]
    fn keys_spread_evenly_over_their_homes_and_stay_when_another_goes() {
        let nodes: Vec<_> = (0..5).map(node).collect();
        let mut counts = [0_u32; 5];
        for n in 0..50_000_u64 {
            let key = key_hash(CacheId(1), format!("key-{n}").as_bytes());
            let at = home(key, &nodes).unwrap();
            counts[nodes.iter().position(|node| node == at).unwrap()] += 1;
            let without = nodes[..4].iter().rev();
            assert!(*at == nodes[4] || home(key, without) == Some(at), "{n}");
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(home(1, []), None);
    }

    #[test]
    fn homes_are_the_same_in_every_release() {
        let nodes: Vec<_> = (0..5).map(node).collect();
        let homes = [1, 2, 3, 4, 5, 6, 7, u64::MAX].map(|key| home(key, &nodes).unwrap().to_string());
        assert_eq!(homes.concat().replace("replica-", ""), GOLDEN_HOMES);
    }

    const GOLDEN_HOMES: &str = "00433303";

    proptest! {
        #[test]
        fn covering_is_by_origin(a in prop::collection::vec(0_u64..4, 3), b in prop::collection::vec(0_u64..4, 3)) {
            let seen = |of: &[u64]| Seen::of(of.iter().enumerate().map(|(n, at)| (origin(n), *at)));
            let covers = a.iter().zip(&b).all(|(a, b)| a >= b);
            prop_assert_eq!(seen(&a).covers(&seen(&b)), covers);
        }
    }

    #[test]
    fn of_several_positions_of_one_origin_in_any_order_the_lowest_counts() {
        let said: Vec<(Origin, Sequence)> =
            vec![(origin(2), 5), (origin(1), 7), (origin(2), 3), (origin(0), 1)];
        let seen: Seen = codec::decode(&codec::encode(&said).unwrap()).unwrap();
        let covers = |n, at| seen.covers(&Seen::of([(origin(n), at)]));
        assert!(covers(0, 1) && covers(1, 7) && covers(2, 3));
        assert!(!covers(0, 2) && !covers(1, 8) && !covers(2, 4) && !covers(3, 1));
        assert!(Seen::of([(origin(2), 5), (origin(1), 1)]).covers(&Seen::default()));
    }

    #[test]
    fn a_load_from_before_an_origin_was_left_out_is_refused() {
        let wanted = Wanted { seen: Seen::default(), left_out: Tick(5) };
        let seen = Seen::of([(origin(1), 1)]);
        assert!(wanted.allows(&seen, Tick(6)));
        assert!(!wanted.allows(&seen, Tick(5)));
    }
}
