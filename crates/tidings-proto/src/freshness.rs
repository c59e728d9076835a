//! When a cached entry may be served: the one rule for freshness, computed over all relevant origins.
//!
//! C is the oldest confirmation of all relevant origins, and `fresh_until = C + max_staleness`. A hit counts if the
//! clock has not passed `fresh_until`, or if the entry's load began within the last `max_staleness`; entries whose
//! load began at or before the floor never count.
//!
//! An origin is relevant from its first mention by anyone. It stops being so by a goodbye whose heads are applied,
//! or by an unclean end with a floor: its entries' last possible successors cannot have been heard, so whatever was
//! loaded until `write_horizon` after its end becomes unreadable before it leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{Incarnation, NodeId, Origin};
use crate::time::Tick;

/// Nodes whose ended lives are remembered. Beyond it the life that began first is forgotten: named once more by
/// hearsay, it costs the doubt of one more unclean end, never a stale hit.
pub const ENDED_MAX: usize = 4_096;

/// The time limits that freshness is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How old an unmarked hit may be. Default 3 s.
    pub max_staleness: Duration,
    /// How long a lost origin may still come back as if nothing had happened. Default 60 s.
    pub lost_grace: Duration,
    /// The longest that a user's write may still be under way when its writer dies. Default 5 s.
    pub write_horizon: Duration,
    /// `false` (trust): a dead origin leaves at once and without a floor. What died with it stays unknown.
    pub doubt_unclean_ends: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            max_staleness: Duration::from_secs(3),
            lost_grace: Duration::from_secs(60),
            write_horizon: Duration::from_secs(5),
            doubt_unclean_ends: true,
        }
    }
}

/// What is published for every hit to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Until then every entry above the floor counts.
    pub fresh_until: Tick,
    /// Entries whose load began at or before it never count.
    pub floor: Tick,
}

/// Why a node is in doubt, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No seed has been reached since the start.
    NoContact,
    /// The node's own former life may have left a write under way.
    OwnFormerLife,
    /// Nothing was ever confirmed by this origin.
    NeverHeard(Origin),
    /// This origin has not confirmed anything for longer than the bound.
    Unheard(Origin),
    /// This origin ended without a goodbye.
    UncleanEnd(Origin),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Somebody hears it.
    Live,
    /// No live member hears it, since then.
    Lost(Tick),
    /// Ended without a goodbye; its floor.
    Closing(Tick),
}

#[derive(Debug)]
struct Relevant {
    confirmed: Option<Tick>,
    standing: Standing,
}

/// Computes freshness. All times are of the node's own clock.
#[derive(Debug)]
pub struct Freshness {
    bounds: Bounds,
    origins: BTreeMap<Origin, Relevant>,
    /// The newest life of each node that has ended: others may go on naming it for a while.
    ended: BTreeMap<NodeId, Incarnation>,
    /// The node's former life, until its floor is behind.
    own: Option<Own>,
    floor: Tick,
    /// Counts changes of the set of relevant origins.
    changes: u64,
}

#[derive(Clone, Copy, Debug)]
enum Own {
    NoContact,
    Floor(Tick),
}

impl Freshness {
    /// For a node that starts now. With seeds it is fresh only after its first exchange with anyone.
    #[must_use]
    pub fn new(bounds: Bounds, has_seeds: bool, now: Tick) -> Self {
        let own = if has_seeds { Own::NoContact } else { Own::Floor(now.after(bounds.write_horizon)) };
        Self {
            bounds,
            origins: BTreeMap::new(),
            ended: BTreeMap::new(),
            own: Some(own),
            floor: Tick::NEVER,
            changes: 0,
        }
    }

    /// The limits it works with.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// A member exchanged hellos with this node: it is not alone.
    pub fn contacted(&mut self, now: Tick) {
        if let Some(Own::NoContact) = self.own {
            self.own = Some(Own::Floor(now.after(self.bounds.write_horizon)));
        }
    }

    /// This origin itself has said hello: whatever was thought of it, it is there.
    pub fn met(&mut self, origin: &Origin, now: Tick) -> bool {
        if self.ended.get(&origin.node).is_some_and(|ended| *ended >= origin.incarnation) {
            self.ended.remove(&origin.node);
        }
        self.named(origin, now)
    }

    /// Somebody named this origin. It is relevant from now on, unless it is known to have ended; older lives of the
    /// node have ended. Returns whether it is new.
    pub fn named(&mut self, origin: &Origin, now: Tick) -> bool {
        if self.ended.get(&origin.node).is_some_and(|ended| *ended >= origin.incarnation) {
            return false;
        }
        let newest = self.lives_of(&origin.node).last().map(|(origin, _)| origin.incarnation);
        if newest.is_some_and(|newest| newest > origin.incarnation) {
            return false;
        }
        let older: Vec<_> = self
            .lives_of(&origin.node)
            .filter(|(known, _)| known.incarnation < origin.incarnation)
            .map(|(known, _)| known.clone())
            .collect();
        for origin in older {
            self.end(&origin, now);
        }
        let new = !self.origins.contains_key(origin);
        if new {
            let relevant = Relevant { confirmed: None, standing: Standing::Live };
            self.origins.insert(origin.clone(), relevant);
            self.changes += 1;
        }
        new
    }

    fn lives_of(&self, node: &NodeId) -> impl Iterator<Item = (&Origin, &Relevant)> {
        let first = Origin { node: node.clone(), incarnation: Incarnation(0) };
        let last = Origin { node: node.clone(), incarnation: Incarnation(u64::MAX) };
        self.origins.range(first..=last)
    }

    /// Everything that the origin did up to `tick` is applied here.
    pub fn confirmed(&mut self, origin: &Origin, tick: Tick) {
        if let Some(relevant) = self.origins.get_mut(origin) {
            relevant.confirmed = relevant.confirmed.max(Some(tick));
            if let Standing::Lost(_) = relevant.standing {
                relevant.standing = Standing::Live;
            }
        }
    }

    /// The origin said goodbye and everything it did is applied.
    pub fn left(&mut self, origin: &Origin) {
        if self.origins.remove(origin).is_some() {
            self.changes += 1;
        }
        self.remember_end(origin);
    }

    fn remember_end(&mut self, origin: &Origin) {
        let ended = self.ended.entry(origin.node.clone()).or_insert(origin.incarnation);
        *ended = origin.incarnation.max(*ended);
        if self.ended.len() > ENDED_MAX
            && let Some((first, _)) = self.ended.iter().min_by_key(|(_, incarnation)| **incarnation)
        {
            let first = first.clone();
            self.ended.remove(&first);
        }
    }

    /// No live member hears the origin any more.
    pub fn lost(&mut self, origin: &Origin, now: Tick) {
        if let Some(relevant) = self.origins.get_mut(origin)
            && relevant.standing == Standing::Live
        {
            relevant.standing = Standing::Lost(now);
        }
    }

    /// Some live member hears it again.
    pub fn found(&mut self, origin: &Origin) {
        if let Some(relevant) = self.origins.get_mut(origin)
            && let Standing::Lost(_) = relevant.standing
        {
            relevant.standing = Standing::Live;
        }
    }

    /// An operator says that every known life of the node has ended. Returns whether any was known.
    pub fn forget(&mut self, node: &NodeId, now: Tick) -> bool {
        let lives: Vec<_> = self.lives_of(node).map(|(origin, _)| origin.clone()).collect();
        for origin in &lives {
            self.end(origin, now);
        }
        !lives.is_empty()
    }

    fn end(&mut self, origin: &Origin, now: Tick) {
        if !self.bounds.doubt_unclean_ends {
            self.left(origin);
        } else if let Some(relevant) = self.origins.get_mut(origin)
            && !matches!(relevant.standing, Standing::Closing(_))
        {
            relevant.standing = Standing::Closing(now.after(self.bounds.write_horizon));
        }
    }

    /// Lets time pass: ends what has been lost for too long, raises floors, and says what to publish.
    ///
    /// Publish after the evictions that the confirmations stand for, with release ordering, floor before
    /// `fresh_until`.
    pub fn publish(&mut self, now: Tick) -> Published {
        let overdue: Vec<_> = self
            .origins
            .iter()
            .filter(|(_, relevant)| {
                matches!(relevant.standing, Standing::Lost(since) if now >= since.after(self.bounds.lost_grace))
            })
            .map(|(origin, _)| origin.clone())
            .collect();
        for origin in overdue {
            self.end(&origin, now);
        }
        let over = |floor: Tick| now >= floor.after(self.bounds.max_staleness);
        // Called late, this must not revive what was above the floor and became unreadable since.
        let unreadable = now.before(self.bounds.max_staleness);
        if let Some(Own::Floor(floor)) = self.own
            && over(floor)
        {
            self.floor = self.floor.max(floor).max(unreadable);
            self.own = None;
        }
        let closed = |(origin, relevant): (&Origin, &Relevant)| match relevant.standing {
            Standing::Closing(floor) if over(floor) => Some((origin.clone(), floor)),
            _ => None,
        };
        let closed: Vec<_> = self.origins.iter().filter_map(closed).collect();
        for (origin, floor) in closed {
            self.floor = self.floor.max(floor).max(unreadable);
            self.left(&origin);
        }
        let fresh_until = match self.oldest_confirmation() {
            Some(tick) => tick.after(self.bounds.max_staleness),
            None => Tick::NEVER,
        };
        Published { fresh_until, floor: self.floor }
    }

    /// C: `None` for never, [`Tick::FOREVER`] if there is nobody to hear from.
    #[must_use]
    pub fn oldest_confirmation(&self) -> Option<Tick> {
        if self.own.is_some() {
            return None;
        }
        self.origins.values().try_fold(Tick::FOREVER, |oldest, relevant| match relevant.standing {
            Standing::Closing(_) => None,
            _ => relevant.confirmed.map(|confirmed| oldest.min(confirmed)),
        })
    }

    /// Why hits do not count without further ado, if so: the reasons, for people.
    #[must_use]
    pub fn doubts(&self, now: Tick) -> Vec<Doubt> {
        let own = self.own.map(|own| match own {
            Own::NoContact => Doubt::NoContact,
            Own::Floor(_) => Doubt::OwnFormerLife,
        });
        let others = self.origins.iter().filter_map(|(origin, relevant)| match relevant {
            Relevant { standing: Standing::Closing(_), .. } => Some(Doubt::UncleanEnd(origin.clone())),
            Relevant { confirmed: None, .. } => Some(Doubt::NeverHeard(origin.clone())),
            Relevant { confirmed: Some(tick), .. } if now.since(*tick) > self.bounds.max_staleness => {
                Some(Doubt::Unheard(origin.clone()))
            }
            Relevant { .. } => None,
        });
        own.into_iter().chain(others).collect()
    }

    /// Whether there is any reason for doubt: whether [`Freshness::doubts`] would name one.
    #[must_use]
    pub fn in_doubt(&self, now: Tick) -> bool {
        let heard = |relevant: &Relevant| match *relevant {
            Relevant { standing: Standing::Closing(_), .. } | Relevant { confirmed: None, .. } => false,
            Relevant { confirmed: Some(tick), .. } => now.since(tick) <= self.bounds.max_staleness,
        };
        self.own.is_some() || !self.origins.values().all(heard)
    }

    /// Whether freshness depends on this origin.
    #[must_use]
    pub fn is_relevant(&self, origin: &Origin) -> bool {
        self.origins.contains_key(origin)
    }

    /// How often the set of relevant origins has changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The relevant origins and when each was last confirmed.
    pub fn relevant(&self) -> impl Iterator<Item = (&Origin, Option<Tick>)> {
        self.origins.iter().map(|(origin, relevant)| (origin, relevant.confirmed))
    }
}

/// Whether an entry may be served as fresh. The caller reads `fresh_until`, then the entry, then its slot's epoch
/// and the floor, then the clock, in this order.
#[must_use]
pub fn counts(published: Published, max_staleness: Duration, began: Tick, now: Tick) -> bool {
    began > published.floor && (now <= published.fresh_until || now.since(began) <= max_staleness)
}

#[cfg(test)]
#[path = "freshness_tests.rs"]
mod tests;
