//! Why not every hit counts, for people.

use super::{Freshness, Own, Relevant, Standing};
use crate::id::Origin;
use crate::time::Tick;

/// Why a node is in doubt, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No seed has been reached since the start.
    NoContact,
    /// The node's own former life may have left a write under way.
    OwnFormerLife,
    /// Another process has this node's place, and nobody is heard any more.
    Displaced,
    /// Nothing was ever confirmed by this origin.
    NeverHeard(Origin),
    /// This origin has not confirmed anything for longer than the bound.
    Unheard(Origin),
    /// This origin ended without a goodbye.
    UncleanEnd(Origin),
}

impl Freshness {
    /// Why hits do not count without further ado, if so: the reasons, for people.
    #[must_use]
    pub fn doubts(&self, now: Tick) -> Vec<Doubt> {
        let own = self.own.map(|own| match own {
            Own::NoContact => Doubt::NoContact,
            Own::Contacted | Own::Floor(_) => Doubt::OwnFormerLife,
        });
        let others = self.origins.iter().filter_map(|(origin, relevant)| match relevant {
            Relevant { standing: Standing::Closing { .. }, .. } => Some(Doubt::UncleanEnd(origin.clone())),
            Relevant { confirmed: None, .. } => Some(Doubt::NeverHeard(origin.clone())),
            Relevant { confirmed: Some(tick), .. } if now.since(*tick) > self.bounds.max_staleness => {
                Some(Doubt::Unheard(origin.clone()))
            }
            Relevant { .. } => None,
        });
        let displaced = self.displaced.then_some(Doubt::Displaced);
        displaced.into_iter().chain(own).chain(others).collect()
    }

    /// Whether there is any reason for doubt: whether [`Freshness::doubts`] would name one.
    #[must_use]
    pub fn in_doubt(&self, now: Tick) -> bool {
        let heard = |relevant: &Relevant| match *relevant {
            Relevant { standing: Standing::Closing { .. }, .. } | Relevant { confirmed: None, .. } => false,
            Relevant { confirmed: Some(tick), .. } => now.since(tick) <= self.bounds.max_staleness,
        };
        self.displaced || self.own.is_some() || !self.origins.values().all(heard)
    }
}
