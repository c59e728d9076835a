//! Whether a node still belongs to its cluster: it knows itself expelled once no member has asked it for confirmation
//! for as long as members wait for a lost one. They have given its life up by then, and what it changes does not
//! count for their bound until one of them hears it again.
//!
//! From the inside that looks the same as the end of everybody else. So being expelled is said, and changes nothing:
//! the node serves and changes what it can, and what keeps caches coherent once members meet again are floors and
//! followed logs.

use std::time::Duration;

use crate::time::Tick;

/// What a node knows of its own place. All times are of its own clock.
#[derive(Debug)]
pub struct Belonging {
    lost_grace: Duration,
    /// When a member last asked for confirmation; [`Tick::NEVER`] if none ever did.
    heard: Tick,
    expelled: bool,
}

impl Belonging {
    /// For a node that nobody has heard yet: who was never a member cannot be expelled.
    #[must_use]
    pub fn new(lost_grace: Duration) -> Self {
        Self { lost_grace, heard: Tick::NEVER, expelled: false }
    }

    /// Judges anew. `heard`: when any member last asked for confirmation, as far as is known now; `others`: whether
    /// there are members, or were some that did not say goodbye. Returns whether the judgement has changed.
    pub fn judge(&mut self, heard: Tick, others: bool, now: Tick) -> bool {
        self.heard = self.heard.max(heard);
        let given_up = self.heard > Tick::NEVER && now.since(self.heard) >= self.lost_grace;
        let expelled = others && given_up;
        std::mem::replace(&mut self.expelled, expelled) != expelled
    }

    /// Since when no member has heard the node, if it is expelled.
    #[must_use]
    pub fn expelled(&self) -> Option<Tick> {
        self.expelled.then_some(self.heard)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: u64 = 100;

    fn belonging() -> Belonging {
        Belonging::new(Duration::from_nanos(GRACE))
    }

    #[test]
    fn a_node_that_nobody_hears_for_a_grace_is_expelled_until_somebody_does() {
        let mut belonging = belonging();
        assert!(!belonging.judge(Tick(1_000), true, Tick(1_000 + GRACE - 1)));
        assert!(belonging.judge(Tick(1_000), true, Tick(1_000 + GRACE)));
        assert_eq!(belonging.expelled(), Some(Tick(1_000)));
        assert!(!belonging.judge(Tick(1_000), true, Tick(5_000)), "it is said once");
        // What was remembered of a member may be forgotten meanwhile.
        assert!(!belonging.judge(Tick::NEVER, true, Tick(5_000)));
        assert!(belonging.judge(Tick(6_000), true, Tick(6_000)));
        assert_eq!(belonging.expelled(), None);
    }

    #[test]
    fn who_was_never_a_member_or_has_seen_all_others_leave_is_not_expelled() {
        let mut belonging = belonging();
        assert!(!belonging.judge(Tick::NEVER, true, Tick(5_000)), "nobody has ever heard it");
        assert!(!belonging.judge(Tick(5_000), false, Tick(9_000)), "everybody has said goodbye");
        assert_eq!(belonging.expelled(), None);
    }

    proptest! {
        #[test]
        fn who_is_expelled_was_not_heard_for_a_grace(
            steps in prop::collection::vec((0_u64..60, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let (mut belonging, mut now, mut last) = (belonging(), 1, None);
            let mut expelled = false;
            for (pause, heard, others) in steps {
                now += pause;
                last = if heard { Some(now) } else { last };
                let changed = belonging.judge(last.map_or(Tick::NEVER, Tick), others, Tick(now));
                let naive = others && last.is_some_and(|last| now - last >= GRACE);
                prop_assert_eq!(belonging.expelled().is_some(), naive);
                prop_assert_eq!(changed, naive != expelled);
                expelled = naive;
            }
        }
    }
}
