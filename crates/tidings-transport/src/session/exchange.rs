//! What the parts of one session share: the probes that are not answered yet, and others' logs that the two nodes follow by
//! way of each other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tidings_proto::follower::Rejected;
use tidings_proto::frame::{Hello, MEMBERS_MAX, PROTOCOL_RELAYS};
use tidings_proto::id::NodeId;
use tidings_proto::relay::{Asked, Confirmed, Relayed};
use tidings_proto::time::Tick;

use super::relaying::Upward;
use super::{Followed, Peering, SessionError};

/// Probes of a link that are remembered while unanswered; as many as a follower remembers.
const PROBES_MAX: usize = 64;

/// Heads in one answer about others' logs, so that it fits a control frame: as many lanes as a peer may follow here at a
/// time. What does not fit is left out, and not confirmed by this answer.
const HEADS_MAX: usize = crate::limits::RELAYED_LANES_MAX as usize;

/// The probes sent on one link that are not answered yet. The follower knows probes too, but those of all links
/// together, of which the first answer counts.
#[derive(Debug, Default)]
pub(super) struct Probes(Mutex<VecDeque<Probe>>);

#[derive(Debug)]
struct Probe {
    number: u64,
    sent: Tick,
    /// The peer has said what its clock showed when it came.
    timed: bool,
}

impl Probes {
    pub(super) fn sent(&self, number: u64, now: Tick) {
        let mut sent = self.0.lock();
        if sent.len() == PROBES_MAX {
            sent.pop_front();
        }
        sent.push_back(Probe { number, sent: now, timed: false });
    }

    /// When the probe was sent, not answered yet, that a reading of the peer's clock is for. One reading counts, so that
    /// no peer's clock is judged more often than it is asked.
    pub(super) fn timed(&self, number: u64) -> Option<Tick> {
        let mut sent = self.0.lock();
        let probe = sent.iter_mut().find(|probe| probe.number == number && !probe.timed)?;
        probe.timed = true;
        Some(probe.sent)
    }

    /// When the probe was sent that is answered now. Older ones will not be.
    pub(super) fn answered(&self, number: u64) -> Option<Tick> {
        let mut sent = self.0.lock();
        let at = sent.iter().position(|probe| probe.number == number)?;
        sent.drain(..=at).next_back().map(|probe| probe.sent)
    }
}

/// What the parts of a session share.
#[derive(Debug)]
pub(super) struct Exchange {
    peer: NodeId,
    pub(super) probes: Probes,
    /// Whether the peer knows the frames about others' logs.
    pub(super) relays: bool,
    /// What is to be passed up on this link.
    pub(super) up: Arc<Upward>,
    asked: Mutex<Asked>,
    numbers: Mutex<Numbers>,
    /// By the peer's numbers, others' logs that it follows by way of this node, and in how many lanes.
    handed: Mutex<BTreeMap<u32, (Arc<Followed>, usize)>>,
}

/// Others' logs that are followed by way of the peer.
#[derive(Debug, Default)]
struct Numbers {
    last: u32,
    of: BTreeMap<u32, Arc<Followed>>,
}

impl Exchange {
    pub(super) fn with(peer: &Hello) -> Self {
        Self {
            peer: peer.node.clone(),
            probes: Probes::default(),
            relays: peer.protocols.1 >= PROTOCOL_RELAYS,
            up: Arc::default(),
            // Whom its hello names was taken note of when it was admitted.
            asked: Mutex::new(Asked::new(peer.members.version)),
            numbers: Mutex::default(),
            handed: Mutex::default(),
        }
    }

    /// A probe of this number is sent now.
    pub(super) fn sent(&self, number: u64, now: Tick) {
        self.probes.sent(number, now);
        if self.relays {
            self.asked.lock().sent(number, now);
        }
    }

    /// The peer's member set of this version was taken note of.
    pub(super) fn on_members(&self, version: u64) {
        self.asked.lock().on_members(version);
    }

    /// Gives an origin a number, for as long as it is followed by way of the peer.
    pub(super) fn number(&self, followed: &Arc<Followed>) -> Numbered<'_> {
        let mut numbers = self.numbers.lock();
        numbers.last += 1;
        let number = numbers.last;
        numbers.of.insert(number, followed.clone());
        Numbered { exchange: self, number }
    }

    /// Takes what the peer knows of others, and tells the node of whom there is news.
    pub(super) fn confirmed(&self, said: Confirmed, node: &dyn Peering) -> Result<(), SessionError> {
        let answered = self.asked.lock().answered(said.echo, said.members);
        let asked = match answered {
            Ok(asked) => asked,
            Err(Rejected::Stale) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for (number, relayed) in said.origins {
            // One that is asked of somebody else by now has none.
            let followed = self.numbers.lock().of.get(&number).cloned();
            if let Some(followed) = followed {
                relayed.tell(&mut followed.state.lock(), asked)?;
                followed.progressed(node);
            }
        }
        Ok(())
    }

    /// The peer follows a lane of somebody else's log by way of this node. `None` if it gives a number twice.
    pub(super) fn hand(&self, number: u32, followed: &Arc<Followed>) -> Option<Handed<'_>> {
        let mut handed = self.handed.lock();
        let (known, lanes) = handed.entry(number).or_insert_with(|| (followed.clone(), 0));
        if !Arc::ptr_eq(known, followed) {
            return None;
        }
        *lanes += 1;
        followed.is_handed_to(&self.peer);
        Some(Handed { exchange: self, number })
    }

    /// What to say of others to the peer, which has asked. `now` is read after the question was.
    pub(super) fn say(&self, node: &dyn Peering, now: Tick) -> Vec<(u32, Relayed)> {
        let handed = self.handed.lock();
        let mut heads = 0;
        let said = handed.iter().filter_map(|(number, (followed, _))| {
            heads += usize::from(followed.lanes.count());
            let said = if heads <= HEADS_MAX { node.relaying().say(followed, now) } else { None };
            Some((*number, said?))
        });
        said.take(MEMBERS_MAX).collect()
    }
}

/// A number that stands for an origin on a link, until it is dropped.
pub(super) struct Numbered<'a> {
    exchange: &'a Exchange,
    pub(super) number: u32,
}

impl Drop for Numbered<'_> {
    fn drop(&mut self) {
        self.exchange.numbers.lock().of.remove(&self.number);
    }
}

/// A lane that is handed on, until it is dropped.
pub(super) struct Handed<'a> {
    exchange: &'a Exchange,
    number: u32,
}

impl Drop for Handed<'_> {
    fn drop(&mut self) {
        let mut handed = self.exchange.handed.lock();
        if let Some((followed, lanes)) = handed.get_mut(&self.number) {
            followed.is_taken_from(&self.exchange.peer);
            *lanes -= 1;
            if *lanes == 0 {
                handed.remove(&self.number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_says_its_clock_once_for_a_probe_and_not_after_the_answer() {
        let probes = Probes::default();
        (1..=3).for_each(|number| probes.sent(number, Tick(number)));
        assert_eq!(probes.timed(2), Some(Tick(2)));
        assert_eq!(probes.timed(2), None, "it has said so");
        assert_eq!(probes.timed(3), Some(Tick(3)));
        assert_eq!(probes.answered(2), Some(Tick(2)), "a reading is no answer");
        assert_eq!((probes.timed(1), probes.timed(4)), (None, None));
        assert_eq!(probes.answered(3), Some(Tick(3)));
    }
}
