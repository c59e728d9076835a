//! Probes, heartbeats, member sets and goodbyes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::follower::Rejected;
use tidings_proto::frame::{ClockReading, Control, Heartbeat};
use tidings_proto::time::Tick;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::{Followed, Peering, Served, SessionError};
use crate::control::{ControlReceiver, ControlSender};
use crate::link::Link;

/// Probes of a link that are remembered while unanswered; as many as a follower remembers.
const PROBES_MAX: usize = 64;

/// Frames that are handled at most before others have a turn: a peer may send a window full of small ones.
const TURN_FRAMES: u32 = 64;

/// How often a peer is told what this node's wall clock shows: a clock that is set is noticed so soon.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

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
    fn sent(&self, number: u64, now: Tick) {
        let mut sent = self.0.lock();
        if sent.len() == PROBES_MAX {
            sent.pop_front();
        }
        sent.push_back(Probe { number, sent: now, timed: false });
    }

    /// When the probe was sent, not answered yet, that a reading of the peer's clock is for. One reading counts, so that
    /// no peer's clock is judged more often than it is asked.
    fn timed(&self, number: u64) -> Option<Tick> {
        let mut sent = self.0.lock();
        let probe = sent.iter_mut().find(|probe| probe.number == number && !probe.timed)?;
        probe.timed = true;
        Some(probe.sent)
    }

    /// When the probe was sent that is answered now. Older ones will not be.
    fn answered(&self, number: u64) -> Option<Tick> {
        let mut sent = self.0.lock();
        let at = sent.iter().position(|probe| probe.number == number)?;
        sent.drain(..=at).next_back().map(|probe| probe.sent)
    }
}

/// Sends what this node has to say. `own` remembers its probes, `probes` holds the newest of the peer's.
pub(super) async fn send(
    link: &Link,
    node: &dyn Peering,
    followed: &Followed,
    mut control: ControlSender,
    (own, mut probes): (&Probes, watch::Receiver<u64>),
) -> Result<(), SessionError> {
    let mut interval = tokio::time::interval(node.probe_interval());
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut members, mut caches, mut goodbye) = (node.members(), node.caches(), node.goodbye());
    // A value that was set before this link came up has to be sent as well.
    members.mark_changed();
    caches.mark_changed();
    goodbye.mark_changed();
    let mut clock_told = Tick::NEVER;
    loop {
        let frame = tokio::select! {
            biased;
            changed = probes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let echo = *probes.borrow_and_update();
                let now = node.now();
                if clock_told == Tick::NEVER || now.since(clock_told) >= CLOCK_INTERVAL {
                    clock_told = now;
                    control.send(&Control::Clock(ClockReading { echo, wall_ms: node.wall_ms() })).await?;
                }
                // The order is part of the protocol: the probe, then the member set's version, then the heads.
                let version = members.borrow().version;
                Control::Heartbeat(Heartbeat { echo, members: version, heads: node.log().heads() })
            }
            _ = interval.tick() => probe(node, followed, own),
            () = link.probe_wanted() => probe(node, followed, own),
            Ok(()) = members.changed() => Control::Members(members.borrow_and_update().as_ref().clone()),
            Ok(()) = goodbye.changed() => match goodbye.borrow_and_update().clone() {
                Some(heads) => Control::Goodbye(heads),
                None => continue,
            },
            Ok(()) = caches.changed() => Control::Caches(caches.borrow_and_update().as_ref().clone()),
        };
        control.send(&frame).await?;
    }
}

fn probe(node: &dyn Peering, followed: &Followed, own: &Probes) -> Control {
    // The clock is read before the probe is sent: what it confirms can only be older than it says.
    let now = node.now();
    let number = followed.state.lock().probe(now);
    own.sent(number, now);
    Control::Probe(number)
}

/// Takes what the peer has to say.
pub(super) async fn receive(
    link: &Link,
    node: &dyn Peering,
    (followed, served): (&Arc<Followed>, &Served),
    mut control: ControlReceiver,
    (own, probed): (&Probes, watch::Sender<u64>),
) -> Result<(), SessionError> {
    let mut turn = 0;
    loop {
        turn += 1;
        if turn % TURN_FRAMES == 0 {
            tokio::task::yield_now().await;
        }
        match control.recv().await? {
            Control::Probe(number) => {
                served.probed(node.now());
                let _ = probed.send(number);
            }
            Control::Heartbeat(heartbeat) => {
                let answered = followed.state.lock().on_heartbeat(&heartbeat);
                match answered {
                    // Two links to one node share the follower: the other one's answer may have come first.
                    Ok(_) | Err(Rejected::Stale) => {}
                    Err(error) => return Err(error.into()),
                }
                if let Some(sent) = own.answered(heartbeat.echo) {
                    link.echoed(sent);
                }
                followed.progressed(node);
            }
            Control::Members(members) => {
                // Everybody counts before it is said that they are known.
                node.members_of(followed.origin(), &members);
                followed.state.lock().on_members(members.version);
                followed.progressed(node);
            }
            Control::Clock(ClockReading { echo, wall_ms }) => {
                if let Some(sent) = own.timed(echo) {
                    node.clock_of(followed.origin(), wall_ms, sent);
                }
            }
            // Nobody relays yet.
            Control::Confirmed(_) | Control::PassedUp(_) | Control::Relays(_) => {}
            Control::Caches(names) => node.caches_of(followed.origin(), names),
            Control::Goodbye(heads) => {
                followed.state.lock().on_goodbye(heads)?;
                node.said_goodbye(followed.origin());
                followed.progressed(node);
            }
            Control::Hello(_) | Control::Refused(_) => {
                return Err(SessionError::Unexpected("handshake frame"));
            }
            Control::Follow(_)
            | Control::Resume(_)
            | Control::Reset(_)
            | Control::Ack(_)
            | Control::Ages(_)
            | Control::FollowOf(_)
            | Control::Lacking(_) => {
                return Err(SessionError::Unexpected("lane frame on the control stream"));
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
