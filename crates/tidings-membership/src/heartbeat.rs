//! What is believed of a node's heartbeat.
//!
//! A heartbeat is a number that only its owner raises. Others pass on the largest that they have heard, so a
//! liar could raise it for everybody, and the owner's true, smaller numbers would be no news any more. Hence
//! two rules: the owner's own word stands, even when it is lower than what was claimed of it; and what others
//! claim is believed only as far as the owner can have come since.

use std::time::Duration;

use tidings_proto::time::Tick;

/// Most that a heartbeat rises in a second. It rises once per round and per message that the node handles:
/// some ten a second in a small cluster, some thousand at the only seed of a thousand nodes.
const RATE_MAX: u64 = 10_000;

/// What a heartbeat may rise by at once, for messages wait in queues.
const BURST: u64 = 10_000;

/// Highest heartbeat that is believed of a node of which nothing was known: ten years at 3,000 a second.
const FIRST_MAX: u64 = 1 << 40;

/// What a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The node was alive more recently than was known.
    News,
    /// Nothing that was not known.
    Old,
    /// More than the node can have reached: a lie, or the echo of one.
    Implausible,
}

/// What is known of one node's heartbeat.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heartbeat {
    /// The last that the node itself has sent.
    direct: u64,
    /// The highest that is believed, and when it was learnt.
    best: u64,
    best_at: Tick,
}

impl Heartbeat {
    /// The highest that is believed: what is passed on to others.
    pub(crate) fn best(&self) -> u64 {
        self.best
    }

    /// Hears the node itself.
    pub(crate) fn hear(&mut self, value: u64, now: Tick) -> Claim {
        if value <= self.direct {
            return Claim::Old;
        }
        *self = Self { direct: value, best: value, best_at: now };
        Claim::News
    }

    /// Hears of the node from another.
    pub(crate) fn hear_of(&mut self, value: u64, now: Tick) -> Claim {
        if value > self.ceiling(now) {
            return Claim::Implausible;
        }
        if value <= self.best {
            return Claim::Old;
        }
        self.best = value;
        self.best_at = now;
        Claim::News
    }

    fn ceiling(&self, now: Tick) -> u64 {
        if self.best == 0 {
            return FIRST_MAX;
        }
        let elapsed: Duration = now.since(self.best_at);
        let risen = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_mul(RATE_MAX / 1000);
        self.best.saturating_add(BURST).saturating_add(risen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(count: u64) -> Tick {
        Tick(1).after(Duration::from_secs(count))
    }

    #[test]
    fn a_third_party_cannot_raise_it_beyond_what_the_node_can_have_reached() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.hear(5, seconds(0));
        for lie in [u64::MAX, 1 << 40, 5 + BURST + RATE_MAX + 1] {
            assert_eq!(heartbeat.hear_of(lie, seconds(1)), Claim::Implausible);
        }
        assert_eq!(heartbeat.best(), 5);
        assert_eq!(heartbeat.hear_of(6, seconds(1)), Claim::News);
    }

    #[test]
    fn the_nodes_own_word_stands_above_a_higher_claim() {
        let mut heartbeat = Heartbeat::default();
        assert_eq!(heartbeat.hear_of(FIRST_MAX + 1, seconds(0)), Claim::Implausible);
        assert_eq!(heartbeat.hear_of(FIRST_MAX, seconds(0)), Claim::News);
        assert_eq!(heartbeat.hear(1, seconds(1)), Claim::News);
        assert_eq!(heartbeat.best(), 1);
        assert_eq!(heartbeat.hear_of(2, seconds(1)), Claim::News);
        assert_eq!(heartbeat.hear(3, seconds(2)), Claim::News);
    }

    #[test]
    fn a_node_that_was_out_of_sight_for_long_is_believed_again() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.hear(5, seconds(0));
        assert_eq!(heartbeat.hear_of(3_000_000, seconds(10)), Claim::Implausible);
        assert_eq!(heartbeat.hear_of(3_000_000, seconds(3_600)), Claim::News);
    }

    proptest! {
        /// Whatever others claim in between, each later word of the node itself is news.
        #[test]
        fn no_claim_silences_a_node(claims in proptest::collection::vec((any::<u64>(), 0..5_u64), 0..50)) {
            let mut heartbeat = Heartbeat::default();
            let mut now = 0;
            for (own, (claim, passed)) in claims.into_iter().enumerate() {
                now += passed;
                heartbeat.hear_of(claim, seconds(now));
                prop_assert_eq!(heartbeat.hear(own as u64 + 1, seconds(now)), Claim::News);
            }
        }

        /// A repeated claim, by whomever, is no news: echoes die out.
        #[test]
        fn an_echo_is_no_news(values in proptest::collection::vec(1..FIRST_MAX, 1..50)) {
            let mut heartbeat = Heartbeat::default();
            for value in values {
                heartbeat.hear_of(value, seconds(1));
                prop_assert_ne!(heartbeat.hear_of(value, seconds(1)), Claim::News);
                prop_assert_ne!(heartbeat.hear_of(heartbeat.best(), seconds(1)), Claim::News);
            }
        }
    }
}
