//! How coherent a node's caches are with those of its peers, as it measures that itself.

use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::coverage::Coherent;
use tidings_proto::follower::Follower;
use tidings_proto::time::Tick;

use crate::bus::Bus;
use crate::coherence::Following;
use crate::members::SYNCED_WITHIN;
use crate::node::Node;

/// How often what had been missed was repaired, over all peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Lanes that were followed on where they had been left, on another link.
    pub resumed: u64,
    /// Records that came too early, after which the rest was asked for again.
    pub gaps: u64,
    /// Lanes whose missing records were no longer to be had, and whose slots were fenced.
    pub resets: u64,
}

/// What a node has measured since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// How soon every live member had applied what was written here.
    pub writes: Coherent,
    /// Time in which no other member was heard, although there were some, or seeds of which none was reached. To a tenth
    /// of a second.
    pub isolated: Duration,
    /// Time in which not every hit counted. To a tenth of a second.
    pub doubted: Duration,
    /// What was missed and made good.
    pub repairs: Repairs,
    /// About how many entries fences and floors have made unreadable, none of which an event had named: of every fenced
    /// cache as many as it held then, times the share of its slots that was fenced; and, after the unclean end of a member,
    /// as many as were there still when their memory was reclaimed. What no event named may have changed all the same.
    pub over_invalidated: u64,
}

/// Time that was spent cut off, or in doubt.
#[derive(Debug)]
pub(crate) struct Spent(Mutex<Times>);

#[derive(Clone, Copy, Debug)]
struct Times {
    until: Tick,
    isolated: Duration,
    doubted: Duration,
}

impl Spent {
    pub(crate) fn since(now: Tick) -> Self {
        Self(Mutex::new(Times { until: now, isolated: Duration::ZERO, doubted: Duration::ZERO }))
    }

    /// Lets the time since the last call count as what holds at its end.
    fn pass(&self, now: Tick, isolated: bool, doubted: bool) {
        let mut times = self.0.lock();
        let passed = now.since(times.until);
        times.until = times.until.max(now);
        times.isolated += if isolated { passed } else { Duration::ZERO };
        times.doubted += if doubted { passed } else { Duration::ZERO };
    }
}

impl Bus {
    /// Takes note of how this node is, ten times a second.
    pub(crate) fn look_around(&self) {
        let now = self.domain.clock().now();
        let members = self.coherence.relevant();
        let heard = |origin| {
            let (followed, _) = self.coherence.sessions(origin);
            let confirmed = followed.and_then(|followed| followed.with(Follower::confirmed));
            confirmed.is_some_and(|confirmed| now.since(confirmed) <= SYNCED_WITHIN)
        };
        let alone = members.is_empty() && !self.coherence.is_out_of_contact();
        let isolated = !alone && !members.iter().any(heard);
        self.spent.pass(now, isolated, !self.coherence.doubts().is_empty());
        self.coherence.judge_place();
    }
}

impl Node {
    /// How coherent this node's caches are with those of its peers.
    #[must_use]
    pub fn measured(&self) -> Measured {
        let bus = self.bus();
        let following = self.following();
        let sum = |counter: fn(&Following) -> u64| following.iter().map(counter).sum();
        let Times { isolated, doubted, .. } = *bus.spent.0.lock();
        let remote = bus.domain.remote_stats();
        Measured {
            writes: bus.coherence.coherent(),
            isolated,
            doubted,
            repairs: Repairs {
                resumed: sum(|following| following.resumed),
                gaps: sum(|following| following.gaps),
                resets: sum(|following| following.resets),
            },
            over_invalidated: remote.fenced_entries.get() + remote.floored_entries.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_as_what_held_at_its_end_and_never_twice() {
        let at = |seconds| Tick(1 << 50).after(Duration::from_secs(seconds));
        let spent = Spent::since(at(0));
        spent.pass(at(1), false, true);
        spent.pass(at(4), true, true);
        spent.pass(at(2), true, true);
        spent.pass(at(5), false, false);
        let Times { isolated, doubted, .. } = *spent.0.lock();
        assert_eq!((isolated, doubted), (Duration::from_secs(3), Duration::from_secs(4)));
    }
}
