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
            there && relevant.answered.is_none_or(|tick| tick <= self.alive_since)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freshness::Bounds;
    use crate::id::Incarnation;

    #[test]
    fn who_is_confirmed_by_relays_alone_may_not_know_of_this_node() {
        let mut freshness = Freshness::new(Bounds::default(), false, Tick(1));
        let origin = Origin { node: "o".parse().unwrap(), incarnation: Incarnation(1) };
        freshness.met(&origin, Tick(1));
        freshness.relayed(&origin, Tick(10));
        assert_eq!(freshness.relevant().next(), Some((&origin, Some(Tick(10)))));
        assert_eq!(freshness.unaware().collect::<Vec<_>>(), [&origin]);
        freshness.confirmed(&origin, Tick(5));
        assert!(freshness.is_known());
        assert_eq!(freshness.oldest_confirmation(), None, "its own floor is still to come");
        freshness.renumbered(Tick(20));
        freshness.relayed(&origin, Tick(30));
        assert!(!freshness.is_known(), "it has answered the former life");
        freshness.confirmed(&origin, Tick(21));
        assert!(freshness.is_known());
    }

    #[test]
    fn a_life_of_which_relays_alone_have_heard_is_not_known_because_it_hears_nobody() {
        let mut freshness = Freshness::new(Bounds::default(), true, Tick(1));
        let origin = Origin { node: "o".parse().unwrap(), incarnation: Incarnation(1) };
        freshness.contacted();
        freshness.met(&origin, Tick(1));
        freshness.relayed(&origin, Tick(2));
        freshness.lost(&origin, Tick(3));
        assert!(!freshness.is_known(), "it has never let this life in");
        freshness.confirmed(&origin, Tick(4));
        freshness.lost(&origin, Tick(5));
        assert!(freshness.is_known());
        freshness.renumbered(Tick(6));
        freshness.relayed(&origin, Tick(7));
        freshness.confirmed(&origin, Tick(6));
        freshness.lost(&origin, Tick(8));
        assert!(!freshness.is_known(), "it was the former life that it has answered");
        freshness.confirmed(&origin, Tick(9));
        freshness.lost(&origin, Tick(10));
        assert!(freshness.is_known());
    }
}
