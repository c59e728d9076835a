//! Who knows of this node, so that what it changes counts for their bound.

use super::{Freshness, Relevant, Standing};
use crate::id::Origin;
use crate::time::Tick;

impl Freshness {
    /// This node has taken another incarnation, and all links have ended: nobody knows of it.
    pub fn renumbered(&mut self, now: Tick) {
        self.alive_since = now;
        self.let_in = false;
    }

    /// Another process has this node's place. It hears nobody from now on, so that all others end here one by one, and
    /// have not ended: nothing is fresh any more.
    pub fn displaced(&mut self) {
        self.displaced = true;
    }

    /// Who is there, as far as is known, and may not know of this node's present life: it has not answered a probe. Who
    /// answers one has admitted this node before.
    pub fn unaware(&self) -> impl Iterator<Item = &Origin> {
        let unaware = |relevant: &Relevant| {
            let there = matches!(relevant.standing, Standing::Live | Standing::Closing { back: true, .. });
            there && relevant.confirmed.is_none_or(|tick| tick <= self.alive_since)
        };
        self.origins.iter().filter(move |(_, relevant)| unaware(relevant)).map(|(origin, _)| origin)
    }

    /// Whether what this node changes counts for everybody's bound: everybody who was named to it knows of it, or is
    /// lost. Who was let in by nobody cannot tell that all others are lost from being cut off, and who was displaced is
    /// known to nobody any more.
    #[must_use]
    pub fn is_known(&self) -> bool {
        let let_in = self.let_in || self.origins.is_empty();
        let_in && !self.displaced && !self.is_out_of_contact() && self.unaware().next().is_none()
    }
}
