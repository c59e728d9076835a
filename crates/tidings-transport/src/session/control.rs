//! Probes, heartbeats, member sets and goodbyes; and what is said about others' logs.

use std::sync::Arc;
use std::time::Duration;

use tidings_proto::follower::Rejected;
use tidings_proto::frame::{ClockReading, Control, Heartbeat, MemberSet};
use tidings_proto::id::Sequence;
use tidings_proto::relay::{ACKED_MAX, Confirmed, PassedUp};
use tidings_proto::time::Tick;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use super::exchange::Exchange;
use super::{Followed, Peering, Served, SessionError, ages};
use crate::control::{ControlReceiver, ControlSender};
use crate::link::Link;

/// Frames that are handled at most before others have a turn: a peer may send a window full of small ones.
const TURN_FRAMES: u32 = 64;

/// How often a peer is told what this node's wall clock shows: a clock that is set is noticed so soon.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

/// For how long what followers have applied is gathered before it is passed up: as long as they gather acknowledgements
/// themselves. A receipt is later by as much for each hop.
const PASS_UP_DELAY: Duration = Duration::from_millis(5);

/// What sends on a control stream.
struct Sender<'a> {
    link: &'a Link,
    node: &'a dyn Peering,
    followed: &'a Followed,
    exchange: &'a Exchange,
    control: ControlSender,
    members: watch::Receiver<Arc<MemberSet>>,
    /// Version of the member set that was sent last.
    told: u64,
    /// What the peer was told of whether this node relays.
    relays: bool,
    clock_told: Tick,
}

/// Sends what this node has to say. `probes` holds the newest of the peer's.
pub(super) async fn send(
    (link, node): (&Link, &dyn Peering),
    (followed, exchange): (&Followed, &Exchange),
    control: ControlSender,
    mut probes: watch::Receiver<u64>,
) -> Result<(), SessionError> {
    let mut interval = tokio::time::interval(node.probe_interval());
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut members, mut caches, mut goodbye) = (node.members(), node.caches(), node.goodbye());
    // A value that was set before this link came up has to be sent as well.
    members.mark_changed();
    caches.mark_changed();
    goodbye.mark_changed();
    let (told, relays, clock_told) = (0, false, Tick::NEVER);
    let mut sender = Sender { link, node, followed, exchange, control, members, told, relays, clock_told };
    let mut pass_up: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            changed = probes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let echo = *probes.borrow_and_update();
                sender.answer(echo).await?;
            }
            _ = interval.tick() => sender.probe().await?,
            () = link.probe_wanted() => sender.probe().await?,
            Ok(()) = sender.members.changed() => sender.tell_members().await?,
            Ok(()) = goodbye.changed() => {
                let heads: Option<Vec<Sequence>> = goodbye.borrow_and_update().clone();
                if let Some(heads) = heads {
                    sender.control.send(&Control::Goodbye(heads)).await?;
                }
            }
            Ok(()) = caches.changed() => {
                let names = caches.borrow_and_update().as_ref().clone();
                sender.control.send(&Control::Caches(names)).await?;
            }
            () = exchange.up.marked(), if pass_up.is_none() => pass_up = Some(Instant::now() + PASS_UP_DELAY),
            () = sleep_until(pass_up.unwrap_or_else(Instant::now)), if pass_up.is_some() => {
                pass_up = None;
                sender.pass_up().await?;
            }
        }
    }
}

impl Sender<'_> {
    async fn answer(&mut self, echo: u64) -> Result<(), SessionError> {
        let node = self.node;
        let now = node.now();
        if self.clock_told == Tick::NEVER || now.since(self.clock_told) >= CLOCK_INTERVAL {
            self.clock_told = now;
            self.control.send(&Control::Clock(ClockReading { echo, wall_ms: node.wall_ms() })).await?;
        }
        // The order is part of the protocol: the probe, then the member set's version, then the heads.
        let version = self.members.borrow().version;
        let heartbeat = Heartbeat { echo, members: version, heads: node.log().heads() };
        self.control.send(&Control::Heartbeat(heartbeat)).await?;
        // And so is this: the probe, then the followers, then the member set, which goes before.
        let origins = self.exchange.say(node, node.now());
        if origins.is_empty() {
            return Ok(());
        }
        let members = self.tell_new_members().await?;
        self.control.send(&Control::Confirmed(Confirmed { echo, members, origins })).await?;
        Ok(())
    }

    async fn probe(&mut self) -> Result<(), SessionError> {
        // The clock is read before the probe is sent: what it confirms can only be older than it says.
        let now = self.node.now();
        // And whether this node relays after the clock, for what is confirmed since it does is said to others.
        let relays = self.exchange.relays && self.node.relaying().is_on();
        if relays != self.relays {
            self.relays = relays;
            self.control.send(&Control::Relays(relays)).await?;
        }
        let number = self.followed.state.lock().probe(now);
        self.exchange.sent(number, now);
        self.control.send(&Control::Probe(number)).await?;
        Ok(())
    }

    async fn tell_members(&mut self) -> Result<(), SessionError> {
        let members = self.members.borrow_and_update().as_ref().clone();
        self.told = members.version;
        self.control.send(&Control::Members(members)).await?;
        Ok(())
    }

    /// Sends this node's member set if it is newer than the one that was sent last. Returns its version.
    async fn tell_new_members(&mut self) -> Result<u64, SessionError> {
        if self.members.borrow().version > self.told {
            self.tell_members().await?;
        }
        Ok(self.told)
    }

    /// Passes up what followers have applied of what is asked of the peer.
    async fn pass_up(&mut self) -> Result<(), SessionError> {
        let peer = self.link.peer();
        for followed in self.exchange.up.take() {
            // Somebody else is told when that one is asked.
            if !followed.is_asked_of(&peer.node) {
                continue;
            }
            // To the origin itself this node acknowledges on the lanes.
            let direct = followed.origin().node == peer.node;
            loop {
                let own = if direct { None } else { Some(self.node.me()) };
                let acked = self.node.relaying().take(&followed, own, ACKED_MAX);
                let more = acked.len() == ACKED_MAX;
                if !acked.is_empty() {
                    let members = self.tell_new_members().await?;
                    let origin = (**followed.origin()).clone();
                    self.control.send(&Control::PassedUp(PassedUp { members, origin, acked })).await?;
                }
                if !more {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Takes what the peer has to say.
pub(super) async fn receive(
    (link, node): (&Link, &dyn Peering),
    (followed, served, exchange): (&Arc<Followed>, &Served, &Exchange),
    mut control: ControlReceiver,
    probed: watch::Sender<u64>,
) -> Result<(), SessionError> {
    let mut turn = 0;
    let mut known = link.peer().members.version;
    let mut relays = false;
    loop {
        turn += 1;
        if turn % TURN_FRAMES == 0 {
            tokio::task::yield_now().await;
        }
        match control.recv().await? {
            Control::Probe(number) => {
                let now = node.now();
                served.probed(now);
                if relays {
                    node.relaying().probed(now);
                }
                let _ = probed.send(number);
            }
            Control::Heartbeat(heartbeat) => {
                let answered = followed.state.lock().on_heartbeat(&heartbeat);
                match answered {
                    // Two links to one node share the follower: the other one's answer may have come first.
                    Ok(_) | Err(Rejected::Stale) => {}
                    Err(error) => return Err(error.into()),
                }
                if let Some(sent) = exchange.probes.answered(heartbeat.echo) {
                    link.echoed(sent);
                }
                followed.progressed(node);
            }
            Control::Members(members) => {
                // Everybody counts before it is said that they are known.
                node.members_of(followed.origin(), &members);
                followed.state.lock().on_members(members.version);
                exchange.on_members(members.version);
                known = known.max(members.version);
                followed.progressed(node);
            }
            Control::Clock(ClockReading { echo, wall_ms }) => {
                if let Some(sent) = exchange.probes.timed(echo) {
                    node.clock_of(followed.origin(), wall_ms, sent);
                }
            }
            Control::Caches(names) => node.caches_of(followed.origin(), names),
            Control::Goodbye(heads) => {
                followed.state.lock().on_goodbye(heads)?;
                node.said_goodbye(followed.origin());
                followed.progressed(node);
            }
            Control::Relays(said) => relays = said,
            Control::Confirmed(said) => exchange.confirmed(said, node)?,
            Control::PassedUp(passed) if passed.members > known => {
                return Err(SessionError::Unexpected("acknowledgement before the member set that it names"));
            }
            Control::PassedUp(passed) => take_passed_up(node, passed),
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

/// What followers have applied of this node's log counts; of another's it is passed on.
pub(super) fn take_passed_up(node: &dyn Peering, passed: PassedUp) {
    let PassedUp { origin, acked, .. } = passed;
    let me = node.me();
    if origin != me {
        // What a former life of this node was told shows nothing to its present one.
        if origin.node != me.node
            && let Some(followed) = node.followed_of(&origin).filter(|_| node.relaying().is_on())
        {
            node.relaying().note(&followed, acked);
        }
        return;
    }
    let lanes = node.log().lanes();
    for acked in acked.into_iter().filter(|acked| lanes.lane(acked.lane.number()).is_some()) {
        // Who is no member here is nobody's concern.
        if let Some(served) = node.served_of(&acked.follower) {
            let mut steps = ages::since(&[], acked.applied, node.now());
            node.applied_by(&acked.follower, acked.lane, &mut steps);
            served.follows(acked.lane, acked.applied);
            served.ack(acked.lane, acked.applied, node);
        }
    }
}
