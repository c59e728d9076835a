//! What members say of third ones: it makes lives relevant and raises floors, and ends nobody.

use super::ended::End;
use super::{Freshness, NAMED_BY_ONE_MAX, Own, Standing};
use crate::frame::MEMBERS_MAX;
use crate::id::{NodeId, Origin};
use crate::time::Tick;

/// What came of a peer's naming others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Who is relevant from now on.
    pub new: Vec<Origin>,
    /// How many were not taken note of, because a limit is reached.
    pub refused: usize,
}

impl Freshness {
    /// A peer names these origins. Each is relevant from now on, unless it is known to have ended. It ends nobody:
    /// what a node says of a third one is not proof of anything. A peer may name [`NAMED_BY_ONE_MAX`] that nothing
    /// else speaks for, all of them together [`MEMBERS_MAX`].
    pub fn named<'a>(&mut self, by: &NodeId, origins: impl IntoIterator<Item = &'a Origin>) -> Named {
        let room = self.room_for(by);
        let mut named = Named::default();
        for origin in origins {
            if self.is_over(origin) || self.is_there_after_all(origin) {
                continue;
            }
            if named.new.len() < room {
                self.enter(origin, Standing::Live, Some(by.clone()));
                named.new.push(origin.clone());
            } else {
                named.refused += 1;
            }
        }
        named
    }

    /// A peer says that these origins have ended without a goodbye. Of those that this node never knew it may have
    /// missed changes that nobody tells any more: each gets a floor from now, unless the node's own floor is still to
    /// come. Those that are relevant end as this node finds out itself, for a lie must not end a life that goes on;
    /// and a life that has got such a floor is relevant again as soon as anybody names it as one that is there. The
    /// limits are those of [`Freshness::named`].
    pub fn told_ended<'a>(
        &mut self,
        by: &NodeId,
        origins: impl IntoIterator<Item = &'a Origin>,
        now: Tick,
    ) -> Named {
        let mut named = Named::default();
        if !self.bounds.doubt_unclean_ends {
            return named;
        }
        let room = self.room_for(by);
        let covered = matches!(self.own, Some(Own::NoContact | Own::Contacted));
        let mut noted = 0;
        for origin in origins {
            if self.origins.contains_key(origin) || self.ended.contains(origin) {
                continue;
            }
            if noted == room {
                named.refused += 1;
                continue;
            }
            noted += 1;
            if covered {
                self.ended.note(origin.clone(), End::Told { named_until: Tick::NEVER });
            } else {
                let told = Standing::Closing { since: now, back: false, told: true, owes: false };
                self.enter(origin, told, Some(by.clone()));
                named.new.push(origin.clone());
            }
        }
        named
    }

    /// Lives that are to be named to others as ended: those whose end is in doubt here, and those that have left
    /// without a goodbye less than a grace ago. Those of which only others have said so come last.
    pub fn ended(&self, now: Tick) -> impl Iterator<Item = &Origin> {
        let closing = |by_others| {
            let is = move |standing| match standing {
                Standing::Closing { back: false, told, .. } => told == by_others,
                _ => false,
            };
            let closing = self.origins.iter().filter(move |(_, relevant)| is(relevant.standing));
            closing.map(|(origin, _)| origin)
        };
        let own = closing(false).chain(self.ended.named(now, false));
        own.chain(closing(true)).chain(self.ended.named(now, true))
    }

    /// Whether all that is known of a life is that it has ended, as others say.
    #[must_use]
    pub fn has_ended_elsewhere(&self, origin: &Origin) -> bool {
        let standing = self.origins.get(origin).map(|relevant| relevant.standing);
        matches!(standing, Some(Standing::Closing { back: false, told: true, .. }))
            || self.ended.is_told(origin)
    }

    /// Whether there are others, or have been some that were lost for too long: whom this node may be lost to itself.
    #[must_use]
    pub fn misses_somebody(&self) -> bool {
        self.outlived || !self.origins.is_empty()
    }

    /// Whether a life has said goodbye, and that is remembered.
    #[must_use]
    pub fn has_left(&self, origin: &Origin) -> bool {
        self.ended.is_clean(origin)
    }

    fn room_for(&self, by: &NodeId) -> usize {
        let by_one = self.origins.values().filter(|relevant| relevant.hearsay.as_ref() == Some(by)).count();
        NAMED_BY_ONE_MAX.saturating_sub(by_one).min(MEMBERS_MAX.saturating_sub(self.origins.len()))
    }

    /// Whether an origin that is named is relevant already. If only others have said that it has ended, it stays so.
    fn is_there_after_all(&mut self, origin: &Origin) -> bool {
        let Some(relevant) = self.origins.get_mut(origin) else { return false };
        if matches!(relevant.standing, Standing::Closing { told: true, .. }) {
            self.changes += u64::from(relevant.is_there());
        }
        true
    }
}
