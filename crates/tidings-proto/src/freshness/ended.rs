//! Lives that have ended: what is remembered of them, and which of them are named to others.

use std::collections::BTreeMap;

use super::{Freshness, Standing};
use crate::id::Origin;
use crate::time::Tick;

/// Lives that are remembered as ended, and nodes whose newest life is. Beyond it one of which only others have said
/// that it has ended is forgotten, the one that was told first, or the life that began first: named once more by
/// hearsay, it costs the doubt of one more unclean end, never a stale hit.
pub const ENDED_MAX: usize = 4_096;

/// Ended lives that are named to others at a time: more than end within a grace where things are as they should be.
/// While there are so many, those whose end is in doubt stay so, and with them this node, until some need not be
/// named any more.
pub const ENDED_NAMED_MAX: usize = 512;

/// How a life has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// With a goodbye.
    Clean,
    /// Without one, as this node judged itself. It is named to others until then.
    Unclean { named_until: Tick },
    /// Without one, as others say: whoever names the life as one that is there is believed all the same.
    Told { named_until: Tick },
}

impl End {
    fn named_until(self) -> Tick {
        match self {
            Self::Clean => Tick::NEVER,
            Self::Unclean { named_until } | Self::Told { named_until } => named_until,
        }
    }
}

/// The memory of lives that have ended.
#[derive(Clone, Debug, Hash)]
pub(super) struct Ended {
    lives: BTreeMap<Origin, End>,
    /// The first moment at which one of them need not be named any more; [`Tick::FOREVER`] if none is.
    next: Tick,
}

impl Default for Ended {
    fn default() -> Self {
        Self { lives: BTreeMap::new(), next: Tick::FOREVER }
    }
}

impl Ended {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lives.len()
    }

    pub(super) fn contains(&self, origin: &Origin) -> bool {
        self.lives.contains_key(origin)
    }

    /// Whether that is all that others say.
    pub(super) fn is_told(&self, origin: &Origin) -> bool {
        matches!(self.lives.get(origin), Some(End::Told { .. }))
    }

    /// Whether it has said goodbye.
    pub(super) fn is_clean(&self, origin: &Origin) -> bool {
        self.lives.get(origin) == Some(&End::Clean)
    }

    /// Returns whether that is new.
    pub(super) fn note(&mut self, origin: Origin, end: End) -> bool {
        if end.named_until() > Tick::NEVER {
            self.next = self.next.min(end.named_until());
        }
        let new = self.lives.insert(origin, end) != Some(end);
        let least = |(origin, end): &(&Origin, &End)| match end {
            // What is told needs not be true, its number neither; how long ago it was told this node knows itself.
            End::Told { named_until } => (false, named_until.0),
            End::Clean | End::Unclean { .. } => (true, origin.incarnation.0),
        };
        if self.lives.len() > ENDED_MAX
            && let Some((first, _)) = self.lives.iter().min_by_key(least)
        {
            let first = first.clone();
            self.lives.remove(&first);
        }
        new
    }

    pub(super) fn remove(&mut self, origin: &Origin) -> Option<End> {
        self.lives.remove(origin)
    }

    /// Lives that are to be named to others: as this node has judged itself, or as others say.
    pub(super) fn named(&self, now: Tick, told: bool) -> impl Iterator<Item = &Origin> {
        let is = move |end: End| end.named_until() > now && matches!(end, End::Told { .. }) == told;
        self.lives.iter().filter(move |(_, end)| is(**end)).map(|(origin, _)| origin)
    }

    /// Lets time pass. Returns whether some need not be named any more.
    pub(super) fn expire(&mut self, now: Tick) -> bool {
        if now < self.next {
            return false;
        }
        let later = self.lives.values().map(|end| end.named_until()).filter(|until| *until > now);
        self.next = later.min().unwrap_or(Tick::FOREVER);
        true
    }
}

impl Standing {
    /// Ends at that time, and owes what it did.
    pub(super) fn ends(&mut self, at: Tick) {
        let owes = matches!(self, Self::Closing { owes: true, .. });
        *self = Self::Closing { since: at, back: false, told: false, owes };
    }
}

impl Freshness {
    /// Whether this node has given a life up that no later one has followed: it may be there all the same, and be met.
    #[must_use]
    pub fn has_given_up(&self, origin: &Origin) -> bool {
        matches!(self.ended.lives.get(origin), Some(End::Unclean { .. })) && !self.is_superseded(origin)
    }

    /// The origin said goodbye and everything it did is applied, as [`Freshness::left`]. If it was over before that,
    /// not all have followed it so: then it is named as one that ended without a goodbye. One that was back, and owes a
    /// floor for that, leaves it as any other end does: what it has missed with this node is in no log.
    pub fn ended_at(&mut self, origin: &Origin, now: Tick) {
        let standing = self.origins.get(origin).map(|relevant| relevant.standing);
        if let Some(Standing::Closing { owes: true, .. }) = standing {
            return self.end(origin, now);
        }
        let was_over =
            self.is_superseded(origin) || matches!(standing, Some(Standing::Closing { back: false, .. }));
        let named_until = now.after(self.bounds.lost_grace);
        match was_over {
            true if standing.is_some() => self.let_go(origin, End::Unclean { named_until }),
            // It is named already, or need not be any more.
            true => {}
            false => self.let_go(origin, End::Clean),
        }
    }

    /// A life says that it is over, and what it did last is followed from now on. Until that has come to its end the
    /// life's end is in doubt anew: it has made changes after it was given up.
    pub fn conceded(&mut self, origin: &Origin, now: Tick) {
        if !self.bounds.doubt_unclean_ends {
            return;
        }
        match self.origins.get_mut(origin) {
            Some(relevant) => {
                relevant.standing.ends(now);
                self.changes += 1;
            }
            None => self.enter(origin, Standing::ended(now), None),
        }
    }
}
