//! When a cached entry may be served: the one rule for freshness, computed over all relevant origins.
//!
//! C is the oldest confirmation of all relevant origins, and `fresh_until = C + max_staleness`. A hit counts if the
//! clock has not passed `fresh_until`, or if the entry's load began within the last `max_staleness`; entries whose
//! load began at or before the floor never count.
//!
//! An origin is relevant from its first mention by anyone; only its own word ends its node's older lives. It stops
//! being so by a goodbye whose heads are applied, or by an unclean end with a floor: its entries' last possible
//! successors cannot have been heard, so whatever was loaded until `write_horizon` after its end becomes unreadable
//! before it leaves. If it is heard again until then, it stays.
//!
//! An unclean end is named to others for a grace: who has been cut off meanwhile may never have known the life, and
//! gets a floor for it. A life that is back after its end has cost it its place leaves a floor, too: for it has been
//! apart for longer than ends are named, maybe with others that have come and ended there.

mod doubt;
mod ended;
mod hearsay;
mod known;

use std::collections::BTreeMap;
use std::time::Duration;

use self::ended::{End, Ended};
use crate::id::{Incarnation, NodeId, Origin};
use crate::time::Tick;

pub use self::doubt::Doubt;
pub use self::ended::{ENDED_MAX, ENDED_NAMED_MAX};
pub use self::hearsay::Named;

/// Origins that one peer may make relevant by naming them, as long as nothing else speaks for them: far more than a
/// cluster has members, and one peer alone cannot fill the set.
pub const NAMED_BY_ONE_MAX: usize = 1_024;

/// Lives of one node that are relevant at a time by more than hearsay: far more than a process that starts anew over
/// and over leaves in doubt at once. While there are so many, all but the newest are ending, and no further one is
/// admitted: who is not admitted is no member.
pub const LIVES_MAX: usize = 8;

/// The time limits that freshness is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Published {
    /// Until then every entry above the floor counts.
    pub fresh_until: Tick,
    /// Entries whose load began at or before it never count.
    pub floor: Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    /// Somebody hears it.
    Live,
    /// No live member hears it, since then.
    Lost(Tick),
    /// Ended without a goodbye, at that time. `back`: it was there after all, and stays once the floor is behind.
    /// `told`: others say so, and it was not known here before. `owes`: a floor is due, however its log ends.
    Closing { since: Tick, back: bool, told: bool, owes: bool },
}

impl Standing {
    fn ended(since: Tick) -> Self {
        Self::Closing { since, back: false, told: false, owes: false }
    }
}

#[derive(Clone, Debug, Hash)]
struct Relevant {
    confirmed: Option<Tick>,
    /// The newest confirmation that the origin has answered itself.
    answered: Option<Tick>,
    standing: Standing,
    /// Who named it, while nothing but that speaks for it.
    hearsay: Option<NodeId>,
}

/// Computes freshness. All times are of the node's own clock.
#[derive(Clone, Debug, Hash)]
pub struct Freshness {
    bounds: Bounds,
    origins: BTreeMap<Origin, Relevant>,
    ended: Ended,
    /// The newest life of each node that was proven to exist: older ones are over.
    proven: BTreeMap<NodeId, Incarnation>,
    /// The node's former life, until its floor is behind.
    own: Option<Own>,
    floor: Tick,
    /// Some life was lost for so long that it has ended, and nobody has been met since.
    outlived: bool,
    /// When this node's present life began: who has answered nothing since may not know of it.
    alive_since: Tick,
    /// Somebody has answered it since, or nobody was needed: this life was let in.
    let_in: bool,
    /// Another process has this node's place.
    displaced: bool,
    /// Counts changes of the set of relevant origins.
    changes: u64,
}

#[derive(Clone, Copy, Debug, Hash)]
enum Own {
    NoContact,
    /// Somebody was reached; not everybody who was named has confirmed anything yet.
    Contacted,
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
            ended: Ended::default(),
            proven: BTreeMap::new(),
            own: Some(own),
            floor: Tick::NEVER,
            outlived: false,
            alive_since: Tick::NEVER,
            let_in: !has_seeds,
            displaced: false,
            changes: 0,
        }
    }

    /// The limits it works with.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// A member exchanged hellos with this node: it is not alone. Its own floor counts from the moment at which
    /// everybody relevant has confirmed something, for until then somebody may still be hearing its former life.
    pub fn contacted(&mut self) {
        if let Some(Own::NoContact) = self.own {
            self.own = Some(Own::Contacted);
        }
    }

    /// Whether it has seeds and has reached nobody since its start: who else there is is not known.
    #[must_use]
    pub fn is_out_of_contact(&self) -> bool {
        matches!(self.own, Some(Own::NoContact))
    }

    /// This origin itself has said hello: whatever was thought of it, it is there, and its node's older lives are
    /// over. Returns whether it is new.
    ///
    /// One that had ended without a goodbye was apart for long: this node may never hear of others that have come and
    /// ended on its side, and takes a floor from now.
    pub fn met(&mut self, origin: &Origin, now: Tick) -> bool {
        self.outlived = false;
        self.is_back(origin, now)
    }

    /// A live member hears an origin that this node has given up: it is there, and this node may be the only one that
    /// misses what it changes. From now on it is relevant as if it had been met. Nothing comes of an origin that has
    /// not been given up.
    pub fn heard_again(&mut self, origin: &Origin, now: Tick) {
        if self.has_given_up(origin) {
            self.is_back(origin, now);
        }
    }

    fn is_back(&mut self, origin: &Origin, now: Tick) -> bool {
        let end = if self.is_superseded(origin) { None } else { self.ended.remove(origin) };
        let new = self.found(origin, now);
        if let Some(End::Unclean { .. }) = end
            && let Some(relevant) = self.origins.get_mut(origin)
        {
            relevant.standing = Standing::Closing { since: now, back: true, told: false, owes: true };
        }
        new
    }

    /// Some live member hears this origin, and its own signature says that it exists: its node's older lives are
    /// over. One that has ended stays so. Returns whether it is new.
    pub fn found(&mut self, origin: &Origin, now: Tick) -> bool {
        if self.is_over(origin) {
            return false;
        }
        self.prove(origin, now);
        match self.origins.get_mut(origin) {
            Some(relevant) => {
                relevant.hearsay = None;
                self.changes += u64::from(relevant.is_there());
                false
            }
            None => {
                self.enter(origin, Standing::Live, None);
                true
            }
        }
    }

    fn enter(&mut self, origin: &Origin, standing: Standing, hearsay: Option<NodeId>) {
        self.ended.remove(origin);
        self.origins.insert(origin.clone(), Relevant { confirmed: None, answered: None, standing, hearsay });
        self.changes += 1;
    }

    /// Whether an origin has ended, by more than what others say.
    fn is_over(&self, origin: &Origin) -> bool {
        self.is_superseded(origin) || (self.ended.contains(origin) && !self.ended.is_told(origin))
    }

    fn is_superseded(&self, origin: &Origin) -> bool {
        self.proven.get(&origin.node).is_some_and(|newest| *newest > origin.incarnation)
    }

    /// The newest life of a node of which so many are relevant that this one is not to be admitted; `None` if it may be.
    #[must_use]
    pub fn crowded(&self, origin: &Origin) -> Option<Incarnation> {
        let proven = self.lives_of(&origin.node).filter(|life| self.is_proven(life));
        let full = !self.is_proven(origin) && proven.clone().count() >= LIVES_MAX;
        proven.last().filter(|_| full).map(|life| life.incarnation)
    }

    /// Takes note that this life exists, and ends its node's older ones.
    fn prove(&mut self, origin: &Origin, now: Tick) {
        if self.proven.get(&origin.node) == Some(&origin.incarnation) {
            return;
        }
        self.proven.insert(origin.node.clone(), origin.incarnation);
        if self.proven.len() > ENDED_MAX
            && let Some((first, _)) = self.proven.iter().min_by_key(|(_, incarnation)| **incarnation)
        {
            let first = first.clone();
            self.proven.remove(&first);
        }
        let older: Vec<_> = self
            .lives_of(&origin.node)
            .filter(|life| life.incarnation < origin.incarnation)
            .cloned()
            .collect();
        for life in older {
            self.end(&life, now);
        }
    }

    fn lives_of(&self, node: &NodeId) -> impl Iterator<Item = &Origin> + Clone {
        let first = Origin { node: node.clone(), incarnation: Incarnation(0) };
        let last = Origin { node: node.clone(), incarnation: Incarnation(u64::MAX) };
        self.origins.range(first..=last).map(|(origin, _)| origin)
    }

    /// Everything that the origin did up to `tick` is applied here, whoever says so.
    pub fn relayed(&mut self, origin: &Origin, tick: Tick) {
        self.take_note(origin, tick, false);
    }

    /// Everything that the origin did up to `tick` is applied here, by its own answer: it knew of this node then.
    pub fn confirmed(&mut self, origin: &Origin, tick: Tick) {
        self.take_note(origin, tick, true);
    }

    fn take_note(&mut self, origin: &Origin, tick: Tick, answered: bool) {
        let superseded = self.is_superseded(origin);
        if let Some(relevant) = self.origins.get_mut(origin) {
            relevant.confirmed = relevant.confirmed.max(Some(tick));
            if answered {
                relevant.answered = relevant.answered.max(Some(tick));
                self.let_in |= tick > self.alive_since;
            }
            let after_its_end = match relevant.standing {
                Standing::Closing { since, .. } => tick > since && !superseded,
                Standing::Live | Standing::Lost(_) => true,
            };
            if after_its_end {
                self.changes += u64::from(relevant.is_there());
            }
        }
    }

    /// The origin said goodbye and everything it did is applied.
    pub fn left(&mut self, origin: &Origin) {
        self.let_go(origin, End::Clean);
    }

    fn let_go(&mut self, origin: &Origin, end: End) {
        self.origins.remove(origin);
        self.changes += u64::from(self.ended.note(origin.clone(), end));
    }

    /// No live member hears the origin any more.
    pub fn lost(&mut self, origin: &Origin, now: Tick) {
        if let Some(relevant) = self.origins.get_mut(origin)
            && relevant.standing == Standing::Live
        {
            relevant.standing = Standing::Lost(now);
        }
    }

    /// An operator says that every known life of the node has ended. Returns whether any was known. A life that is
    /// heard nevertheless stays relevant.
    pub fn forget(&mut self, node: &NodeId, now: Tick) -> bool {
        let lives: Vec<_> = self.lives_of(node).cloned().collect();
        for origin in &lives {
            self.end(origin, now);
        }
        !lives.is_empty()
    }

    fn end(&mut self, origin: &Origin, now: Tick) {
        if !self.bounds.doubt_unclean_ends {
            self.left(origin);
        } else if let Some(relevant) = self.origins.get_mut(origin)
            && !matches!(relevant.standing, Standing::Closing { back: false, .. })
        {
            relevant.standing.ends(now);
            // It is named as ended from now on.
            self.changes += 1;
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
            // One that only others speak of need not have been there.
            self.outlived |= self.is_proven(&origin);
            self.end(&origin, now);
        }
        let over = |floor: Tick| now >= floor.after(self.bounds.max_staleness);
        // Called late, this must not revive what was above the floor and became unreadable since.
        let unreadable = now.before(self.bounds.max_staleness);
        if let Some(Own::Contacted) = self.own
            && self.origins.values().all(|relevant| relevant.confirmed.is_some() || relevant.is_closing())
        {
            self.own = Some(Own::Floor(now.after(self.bounds.write_horizon)));
        }
        if let Some(Own::Floor(floor)) = self.own
            && over(floor)
        {
            self.floor = self.floor.max(floor).max(unreadable);
            self.own = None;
        }
        self.close(now, unreadable);
        if self.ended.expire(now) {
            self.changes += 1;
        }
        let fresh_until = match self.oldest_confirmation() {
            Some(tick) => tick.after(self.bounds.max_staleness),
            None => Tick::NEVER,
        };
        Published { fresh_until, floor: self.floor }
    }

    /// Raises floors for ends that have been in doubt for long enough, and lets go of who is not back.
    fn close(&mut self, now: Tick, unreadable: Tick) {
        let Bounds { write_horizon, max_staleness, lost_grace, .. } = self.bounds;
        let closed = |(origin, relevant): (&Origin, &Relevant)| match relevant.standing {
            Standing::Closing { since, back, told, .. } => {
                let floor = since.after(write_horizon);
                (now >= floor.after(max_staleness)).then(|| (origin.clone(), floor, back, told))
            }
            _ => None,
        };
        let closed: Vec<_> = self.origins.iter().filter_map(closed).collect();
        if closed.is_empty() {
            return;
        }
        let mut room = ENDED_NAMED_MAX.saturating_sub(self.ended.named(now, false).count());
        for (origin, floor, back, told) in closed {
            self.floor = self.floor.max(floor).max(unreadable);
            let named_until = now.after(lost_grace);
            match self.origins.get_mut(&origin) {
                Some(relevant) if back => relevant.standing = Standing::Live,
                _ if told => self.let_go(&origin, End::Told { named_until }),
                _ if room > 0 => {
                    room -= 1;
                    self.let_go(&origin, End::Unclean { named_until });
                }
                _ => {}
            }
        }
    }

    /// C: `None` for never, [`Tick::FOREVER`] if there is nobody to hear from.
    #[must_use]
    pub fn oldest_confirmation(&self) -> Option<Tick> {
        if self.own.is_some() || self.displaced {
            return None;
        }
        self.origins.values().try_fold(Tick::FOREVER, |oldest, relevant| {
            if relevant.is_closing() {
                None
            } else {
                relevant.confirmed.map(|confirmed| oldest.min(confirmed))
            }
        })
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

    /// The newest life of a node that was proven to exist, if it is remembered.
    #[must_use]
    pub fn newest_life(&self, node: &NodeId) -> Option<Incarnation> {
        self.proven.get(node).copied()
    }

    /// Whether anything but hearsay speaks for this origin.
    #[must_use]
    pub fn is_proven(&self, origin: &Origin) -> bool {
        self.origins.get(origin).is_some_and(|relevant| relevant.hearsay.is_none())
    }

    /// Whether the end of an origin is in doubt, and it is not back.
    #[must_use]
    pub fn is_ending(&self, origin: &Origin) -> bool {
        let standing = self.origins.get(origin).map(|relevant| relevant.standing);
        matches!(standing, Some(Standing::Closing { back: false, .. }))
    }

    /// The relevant origins and when each was last confirmed.
    pub fn relevant(&self) -> impl Iterator<Item = (&Origin, Option<Tick>)> {
        self.origins.iter().map(|(origin, relevant)| (origin, relevant.confirmed))
    }
}

impl Relevant {
    /// Takes note that it is there. Returns whether it had ended, as far as was known, and is named so to others.
    fn is_there(&mut self) -> bool {
        match &mut self.standing {
            Standing::Closing { back, .. } => !std::mem::replace(back, true),
            standing => {
                *standing = Standing::Live;
                false
            }
        }
    }

    fn is_closing(&self) -> bool {
        matches!(self.standing, Standing::Closing { .. })
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

#[cfg(test)]
#[path = "freshness_members_tests.rs"]
mod members_tests;
