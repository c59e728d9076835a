//! A loud start: before a node is ready, a record of its own has made the round of all live peers, and one of each of
//! them was applied here.
//!
//! Every node begins its log with a canary, which changes nothing, in every lane. It is served, followed, applied and
//! acknowledged as every change is, so that whatever would lose a change holds up readiness, and names the member. Once
//! the round is made nothing is asked any more, until the node takes another incarnation.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidings_membership::State;
use tidings_proto::id::{FIRST, LaneId, Origin, Sequence, Slot};
use tidings_proto::log::{AppendError, ChangeLog};
use tidings_proto::record::Draft;
use tidings_proto::time::Tick;
use tidings_transport::Refused;

use crate::members::MemberInfo;
use crate::node::Node;

/// How long after the first contact readiness waits for those who were named and whom nobody has been seen to hear: two
/// attempts to reach them, or rounds of gossip, of 1.5 s. Later they hold up nothing: they are probably gone.
const NAMED_TIME: Duration = Duration::from_secs(3);

/// How long a refusal is told of by a node that is not ready: those that go on come more often.
const REFUSED_TIME: Duration = Duration::from_secs(10);

/// A node's own canaries.
#[derive(Debug)]
pub(crate) struct Canary {
    /// The life in which the round was made; 0 before.
    passed: AtomicU64,
    /// When the first peer was met; [`Tick::NEVER`] before.
    contact: AtomicU64,
    /// How many stand in each lane.
    sung: Mutex<Vec<Sequence>>,
    /// Lanes that peers wait for a record of, and from which position on. At most one a lane.
    wanted: Mutex<BTreeMap<LaneId, Sequence>>,
}

impl Canary {
    /// Begins a log with one in every lane.
    pub(crate) fn begin(log: &ChangeLog, wall_ms: u64) -> Self {
        // Nobody has sealed it, and nobody listens yet. What is stuck is made up for.
        let wanted = match log.append_to_all(wall_ms, &Draft::canary(), || {}) {
            Ok(_) => BTreeMap::new(),
            Err(_) => log.lanes().ids().map(|lane| (lane, FIRST)).collect(),
        };
        Self {
            passed: AtomicU64::new(0),
            contact: AtomicU64::new(Tick::NEVER.0),
            // Each of them at most has one.
            sung: Mutex::new(log.heads()),
            wanted: Mutex::new(wanted),
        }
    }

    /// A peer waits for a record of a lane from this position on.
    pub(crate) fn want(&self, lane: LaneId, next: Sequence) {
        let mut wanted = self.wanted.lock();
        let from = wanted.entry(lane).or_insert(next);
        *from = next.max(*from);
    }

    /// Appends what is waited for, unless something was appended meanwhile: one a lane at most, however many wait. Called
    /// once a second, so that no peer can make a node log more than that.
    pub(crate) fn sing(&self, log: &ChangeLog, wall_ms: u64) {
        let wanted = std::mem::take(&mut *self.wanted.lock());
        for (lane, next) in wanted {
            let slot = Slot::new(lane.number()).filter(|_| log.head(lane) < next);
            match slot.map(|slot| log.append(slot, wall_ms, &Draft::canary())) {
                Some(Ok(appended)) => {
                    self.sung.lock()[lane.index()] += 1;
                    appended.waiters.wake();
                }
                Some(Err(AppendError::Stuck(_))) => self.want(lane, next),
                // A sealed log says goodbye: nobody waits for it.
                Some(Err(AppendError::Sealed(_))) | None => {}
            }
        }
    }

    /// Whether a log with these heads holds nothing else: peers have nothing to lose by its end.
    pub(crate) fn is_all_of(&self, heads: &[Sequence]) -> bool {
        *self.sung.lock() == heads
    }

    /// A peer was met.
    pub(crate) fn contacted(&self, now: Tick) {
        let _ = self.contact.compare_exchange(Tick::NEVER.0, now.0, Ordering::AcqRel, Ordering::Acquire);
    }

    fn waits_for_the_named(&self, now: Tick) -> bool {
        let contact = Tick(self.contact.load(Ordering::Acquire));
        contact > Tick::NEVER && now.since(contact) < NAMED_TIME
    }
}

impl Node {
    /// Whether nobody has let this node in. Before it was ready for the first time, one who was only named has not.
    pub(crate) fn has_met_nobody(&self, members: &[MemberInfo]) -> bool {
        let was_ready = self.bus().canary.passed.load(Ordering::Acquire) != 0;
        let mut others = members.iter().filter(|member| !member.this_node);
        !others.any(|member| was_ready || matches!(member.state, State::Live | State::Left))
    }

    /// What a start lacks, for people: of the canary's round, and of this node's clock; nothing once the round was made.
    /// `others`: nothing else stands against this node's readiness.
    pub(crate) fn start_misses(&self, members: &[MemberInfo], others: bool) -> Vec<String> {
        let bus = self.bus();
        let life = self.origin().incarnation.0;
        if bus.canary.passed.load(Ordering::Acquire) == life {
            return Vec::new();
        }
        let now = bus.domain.clock().now();
        let live = || members.iter().filter(|member| !member.this_node && member.state == State::Live);
        // One that was ready once stays so, whatever its clock does: also in its next life.
        let mut misses = match bus.canary.passed.load(Ordering::Acquire) {
            0 => bus.clocks.misses(live().map(|member| &member.node), now),
            _ => Vec::new(),
        };
        for member in live() {
            let origin = Origin { node: member.node.clone(), incarnation: member.incarnation };
            let (followed, served) = bus.coherence.sessions(&origin);
            if !served.is_some_and(|served| served.is_proven()) {
                misses.push(format!("{} has not applied our canary", member.node));
            }
            if !followed.is_some_and(|followed| followed.is_proven()) {
                misses.push(format!("no canary of {} was applied here", member.node));
            }
        }
        if bus.canary.waits_for_the_named(now) {
            let seen = |origin: &Origin| members.iter().any(|member| member.node == origin.node);
            let unseen = bus.coherence.relevant().into_iter().filter(|origin| !seen(origin));
            misses.extend(
                unseen.map(|origin| format!("{} is named by a peer and was not heard yet", origin.node)),
            );
        }
        if !misses.is_empty() || !others {
            misses.extend(self.refused_lately(members, now));
        } else {
            bus.canary.passed.store(life, Ordering::Release);
        }
        misses
    }

    /// Who was refused, or has refused this node, a moment ago, and what can be done. A node that has reached nobody says
    /// so already.
    fn refused_lately(&self, members: &[MemberInfo], now: Tick) -> Vec<String> {
        let lately = |refused: &Refused| members.len() > 1 && now.since(refused.last) < REFUSED_TIME;
        let say = |refused: Refused| {
            let Refused { node, address, detail, reason, .. } = refused;
            let who = node.map_or_else(|| address.to_string(), |node| format!("{node} at {address}"));
            format!("{who}: {detail}: {}", reason.remedy())
        };
        self.refusals().into_iter().filter(lately).map(say).collect()
    }

    /// The newest handshakes that this node or a peer has refused, the newest last; at most 32.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refused> {
        self.bus().transport().map(|transport| transport.refusals()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::id::{Incarnation, Lanes};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_later_life_makes_the_round_again_and_is_not_held_up_by_a_clock_that_is_off() {
        let (started, hour) = (tokio::time::Instant::now(), Duration::from_secs(3_600));
        let ahead = Duration::from_millis(crate::Clock::system().wall_ms()) + hour;
        let clock = crate::Clock::from_fn(move || Tick(0).after(ahead + started.elapsed()));
        let first = Node::builder("shop").node_id("n1").clock(clock).start().await.unwrap();
        // There is nobody whose clock differs.
        first.ready(PATIENCE).await.unwrap();
        let second = Node::builder(first.cluster()).node_id("n2").unready_when_clock_off(false);
        let second = second.seeds([first.address().to_string()]).start().await.unwrap();
        second.ready(PATIENCE).await.unwrap();
        first.ready(PATIENCE).await.unwrap();
        let next = Incarnation(first.origin().incarnation.0 + 1);
        first.bus().wanted_incarnation.send_replace(next);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while first.bus().canary.passed.load(Ordering::Acquire) < next.0 {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", first.readiness());
            let _ = first.readiness();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        first.ready(PATIENCE).await.unwrap();
        let off = first.members().iter().any(|member| member.clock.is_some_and(|clock| clock.exceeded));
        assert!(off, "its clock is off all the time");
        second.shutdown(PATIENCE).await;
        first.shutdown(PATIENCE).await;
    }

    #[test]
    fn a_canary_is_sung_once_for_all_who_wait_and_not_if_something_else_was_logged() {
        let log = ChangeLog::new(Lanes::default(), Default::default());
        let canary = Canary::begin(&log, 1);
        let lanes: Vec<_> = log.lanes().ids().collect();
        assert!(log.heads().iter().all(|head| *head == 1) && canary.is_all_of(&log.heads()));
        canary.want(lanes[1], 2);
        canary.want(lanes[1], 2);
        canary.want(lanes[3], 2);
        let _ = log.append(Slot::new(3).unwrap(), 1, &Draft::canary()).unwrap();
        canary.sing(&log, 1);
        assert_eq!(log.heads(), [1, 2, 1, 2], "lane 3 had something new by itself");
        assert!(!canary.is_all_of(&log.heads()), "what was appended there may be a change");
        canary.sing(&log, 1);
        assert_eq!(log.heads(), [1, 2, 1, 2], "nobody waits any more");
        log.seal();
        canary.want(lanes[0], 2);
        canary.sing(&log, 1);
        assert_eq!(log.heads(), [1, 2, 1, 2]);
    }
}
