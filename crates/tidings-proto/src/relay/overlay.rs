//! From whom to follow which origin: a tree per origin, of which every node computes its own place from its view.

use std::collections::HashMap;
use std::ops::Range;

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::id::NodeId;

/// Into how many branches at most what one node is responsible for is divided. With [`FANOUT_MAX`], two divisions reach
/// 16 × 16 × 50 nodes, three times as many as a member set may name; more branches would cost more links.
pub const BRANCHES: usize = 16;

/// Most others to whom a node hands on an origin's changes, where there are relays: as many as the largest default mesh
/// costs a writer.
pub const FANOUT_MAX: usize = 50;

/// Relays that are tried beside the origin itself: after two that fail there is more wrong than a relay.
pub const RELAYS_TRIED: usize = 2;

/// Bits of a hash that choose among [`BRANCHES`].
const DIGIT_BITS: u32 = BRANCHES.ilog2();

/// A node's place in an overlay. Places of different overlays do not compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(u32);

/// The nodes that an origin's changes pass on their way to a follower, the origin first.
pub type Way = SmallVec<[Place; 6]>;

#[derive(Debug)]
struct Member {
    node: NodeId,
    /// Hash of the zone's name: two that collide are one zone.
    zone: u64,
    hash: u64,
}

type Branches = SmallVec<[Range<u32>; 4]>;

/// Who relays what, by one view of the cluster. Equal views make equal overlays, in every release.
#[derive(Debug)]
pub struct Overlay {
    /// By zone, then by hash: every branch is a range of them.
    members: Vec<Member>,
    /// Of each member, the branches that it is in, widest first; the last one is not divided.
    branches: Vec<Branches>,
    places: HashMap<NodeId, Place>,
}

impl Overlay {
    /// The overlay of these nodes and their zones. Up to `relay_above` nodes it is a full mesh.
    #[must_use]
    pub fn of<'a>(view: impl IntoIterator<Item = (&'a NodeId, &'a str)>, relay_above: usize) -> Self {
        let member = |(node, zone): (&NodeId, &str)| {
            let hash = xxh3_64(node.as_str().as_bytes());
            Member { node: node.clone(), zone: xxh3_64(zone.as_bytes()), hash }
        };
        let mut members: Vec<Member> = view.into_iter().map(member).collect();
        // Of several zones of one node the first by hash counts, in whatever order they come.
        members.sort_by(|a, b| (&a.node, a.zone).cmp(&(&b.node, b.zone)));
        members.dedup_by(|a, b| a.node == b.node);
        members.sort_by(|a, b| (a.zone, a.hash, &a.node).cmp(&(b.zone, b.hash, &b.node)));
        let place = |(place, member): (usize, &Member)| (member.node.clone(), Place(place as u32));
        let places = members.iter().enumerate().map(place).collect();
        let mut overlay = Self { branches: vec![Branches::new(); members.len()], members, places };
        if overlay.members.len() > relay_above {
            overlay.divide(0..overlay.members.len(), relay_above.clamp(1, FANOUT_MAX));
        }
        overlay
    }

    /// Divides a range until nothing of it is larger than `undivided`, or of two zones.
    fn divide(&mut self, range: Range<usize>, undivided: usize) {
        let mut start = range.start;
        let Some(key) = self.key(&range, undivided) else { return };
        while start < range.end {
            let rest = &self.members[start..range.end];
            let end = start + rest.partition_point(|member| key.of(member) == key.of(&rest[0]));
            for branches in &mut self.branches[start..end] {
                branches.push(start as u32..end as u32);
            }
            self.divide(start..end, undivided);
            start = end;
        }
    }

    /// What divides a range; `None` for one that stays whole.
    fn key(&self, range: &Range<usize>, undivided: usize) -> Option<Key> {
        let members = &self.members[range.clone()];
        let [first, .., last] = members else { return None };
        if first.zone != last.zone {
            let zones = members.chunk_by(|a, b| a.zone == b.zone).count();
            let shift = if zones <= BRANCHES { 0 } else { shift(first.zone, last.zone) };
            Some(Key::Zone(shift))
        } else if members.len() > undivided && first.hash != last.hash {
            Some(Key::Hash(shift(first.hash, last.hash)))
        } else {
            None
        }
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Where a node is, if it is in the view.
    #[must_use]
    pub fn place(&self, node: &NodeId) -> Option<Place> {
        self.places.get(node).copied()
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.members.len() as u32).map(Place)
    }

    /// Who is at a place.
    ///
    /// # Panics
    /// If the place is of a larger overlay.
    #[must_use]
    pub fn node(&self, place: Place) -> &NodeId {
        &self.members[place.0 as usize].node
    }

    /// The way of an origin's changes to another node, as if nobody of `without` relayed anything: the last on it is
    /// whom the follower asks, and there are as many hops as nodes.
    ///
    /// Who is responsible for a range hands each of its branches to a contact there, who is responsible for that; the
    /// origin is for everybody. A contact is who has the highest random weight with its chooser of those who have not
    /// got the change before, so that nobody is responsible twice.
    #[must_use]
    pub fn way(&self, origin: Place, follower: Place, without: &[Place]) -> Way {
        let mut way = Way::from_slice(&[origin]);
        let mut responsible = origin;
        for branch in &self.branches[follower.0 as usize] {
            let contact = self.contact(responsible, branch, |place| {
                place == follower || !way.contains(&place) && !without.contains(&place)
            });
            if contact == follower {
                break;
            }
            way.push(contact);
            responsible = contact;
        }
        way
    }

    fn contact(&self, chooser: Place, branch: &Range<u32>, may: impl Fn(Place) -> bool) -> Place {
        let contact = self.heaviest(chooser, branch.clone().map(Place).filter(|place| may(*place)));
        contact.expect("the follower is in each of its branches, and may be its contact")
    }

    /// Who has the highest random weight with a chooser.
    fn heaviest(&self, chooser: Place, among: impl Iterator<Item = Place>) -> Option<Place> {
        let chooser = self.members[chooser.0 as usize].hash;
        among.max_by_key(|place| weight(chooser, self.members[place.0 as usize].hash))
    }

    /// Whom to ask for an origin's changes, in order: each the upstream by the view without those before, which is what
    /// everybody will compute once they have gone, up to the origin itself; and where that comes early, somebody who has
    /// its changes by another way, for the link to the origin may be broken.
    #[must_use]
    pub fn sources(&self, origin: Place, follower: Place) -> Way {
        let mut sources = Way::new();
        while sources.len() < RELAYS_TRIED {
            match self.way(origin, follower, &sources).last() {
                Some(upstream) if *upstream != origin => sources.push(*upstream),
                _ => break,
            }
        }
        sources.push(origin);
        while sources.len() <= RELAYS_TRIED
            && let Some(detour) = self.detour(follower, &sources)
        {
            sources.push(detour);
        }
        sources
    }

    /// Who has the highest weight with a follower of those outside its widest branch, none of whom can have anything by
    /// way of it.
    fn detour(&self, follower: Place, without: &[Place]) -> Option<Place> {
        let own = self.branches[follower.0 as usize].first().cloned().unwrap_or(follower.0..follower.0 + 1);
        let others = self.places().filter(|place| !own.contains(&place.0) && !without.contains(place));
        self.heaviest(follower, others)
    }
}

/// What members of a range are told apart by.
#[derive(Clone, Copy)]
enum Key {
    /// The zone's hash, without its lowest bits.
    Zone(u32),
    /// The node's hash, without its lowest bits.
    Hash(u32),
}

impl Key {
    fn of(self, member: &Member) -> u64 {
        match self {
            Self::Zone(shift) => member.zone >> shift,
            Self::Hash(shift) => member.hash >> shift,
        }
    }
}

/// The bits below the first digit in which two hashes differ.
fn shift(first: u64, last: u64) -> u32 {
    (first ^ last).checked_ilog2().unwrap_or(0) / DIGIT_BITS * DIGIT_BITS
}

/// The weight of a candidate for one who chooses: a mix of both hashes (the finalizer of SplitMix64).
fn weight(chooser: u64, candidate: u64) -> u64 {
    let mut z = chooser.rotate_left(32) ^ candidate;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
