//! Keeping links: to addresses that are wanted for as long as they are, to others while gossip is to be sent there.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tidings_proto::frame::Refusal;
use tidings_proto::id::Incarnation;
use tokio::time::{Instant, sleep_until};

use crate::close::CloseCode;
use crate::handshake;
use crate::limits::{
    DIAL_ADDRESSES_MAX, DIAL_PAUSE_MAX, DIAL_PAUSE_UNWANTED_MAX, DIALS_PER_ADDRESS_MAX, GOSSIP_QUEUE_FRAMES,
    LINK_SETTLED_TIME,
};
use crate::link::Link;
use crate::refuse::HandshakeError;
use crate::shared::Shared;
use crate::stats::RefusedReason;

/// First pause between two attempts at a wanted address.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// The same at an address that is not wanted: about the interval of gossip, so that not every frame dials.
const PAUSE_UNWANTED_FIRST: Duration = Duration::from_secs(1);

/// Pause after an address turned out to be this node's own. A name for several nodes may lead to another one later.
const OWN_PAUSE: Duration = Duration::from_secs(30);

/// Pause after the node at an address said that it leaves. Its successor there is dialled soon all the same.
const LEAVING_PAUSE: Duration = Duration::from_secs(1);

/// The addresses that this node cares for.
#[derive(Default)]
pub(crate) struct Targets(HashMap<SocketAddr, Target>);

/// Why an address is dialled. Exactly one task keeps each.
#[derive(Default)]
struct Target {
    wanted: bool,
    frames: VecDeque<Bytes>,
    /// Why the last attempt failed.
    failure: Option<String>,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Requested {
    /// A task has to be started that keeps the address.
    Start,
    /// A task keeps it already.
    Running,
    /// Too many addresses.
    Full,
}

/// Why a task keeps an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// A link is wanted.
    Wanted,
    /// Frames wait for a link.
    Frames,
    /// So that frames to come do not dial too soon after an attempt that failed.
    Pause,
    /// No more; the task has to end.
    Nothing,
}

impl Targets {
    pub(crate) fn want(&mut self, address: SocketAddr) -> Requested {
        self.request(address, |target| target.wanted = true)
    }

    pub(crate) fn unwant(&mut self, address: SocketAddr) {
        if let Some(target) = self.0.get_mut(&address) {
            target.wanted = false;
        }
    }

    /// Keeps a frame for an address, and says how many older ones had to go.
    pub(crate) fn queue(&mut self, address: SocketAddr, frame: Bytes) -> (Requested, usize) {
        let mut dropped = 0;
        let requested = self.request(address, |target| {
            if target.frames.len() == GOSSIP_QUEUE_FRAMES {
                target.frames.pop_front();
                dropped = 1;
            }
            target.frames.push_back(frame);
        });
        if requested == Requested::Full { (requested, 1) } else { (requested, dropped) }
    }

    pub(crate) fn wants(&self, address: SocketAddr) -> bool {
        self.0.get(&address).is_some_and(|target| target.wanted)
    }

    /// The frames that wait for an address.
    pub(crate) fn take_frames(&mut self, address: SocketAddr) -> VecDeque<Bytes> {
        self.0.get_mut(&address).map(|target| std::mem::take(&mut target.frames)).unwrap_or_default()
    }

    /// The addresses that are wanted, and why the last attempt at each failed.
    pub(crate) fn wanted_addresses(&self) -> Vec<(SocketAddr, Option<String>)> {
        let wanted = self.0.iter().filter(|(_, target)| target.wanted);
        wanted.map(|(address, target)| (*address, target.failure.clone())).collect()
    }

    /// Notes why an attempt failed, and says whether the one before failed for the same reason.
    fn failed(&mut self, address: SocketAddr, failure: String) -> bool {
        let Some(target) = self.0.get_mut(&address) else { return false };
        let before = target.failure.replace(failure);
        before == target.failure
    }

    /// Why an address is kept. One that nobody cares for any more is forgotten, unless a pause is under way.
    fn demand(&mut self, address: SocketAddr, pausing: bool) -> Demand {
        match self.0.get(&address) {
            Some(target) if target.wanted => Demand::Wanted,
            Some(target) if !target.frames.is_empty() => Demand::Frames,
            Some(_) if pausing => Demand::Pause,
            _ => {
                self.0.remove(&address);
                Demand::Nothing
            }
        }
    }

    fn request(&mut self, address: SocketAddr, change: impl FnOnce(&mut Target)) -> Requested {
        if let Some(target) = self.0.get_mut(&address) {
            change(target);
            return Requested::Running;
        }
        if self.0.len() >= DIAL_ADDRESSES_MAX {
            return Requested::Full;
        }
        change(self.0.entry(address).or_default());
        Requested::Start
    }
}

/// Keeps an address: dials while there is no link, waits while there is one, ends when nobody cares.
pub(crate) async fn keep(shared: Arc<Shared>, address: SocketAddr) {
    let mut changed = shared.changed.subscribe();
    let mut attempts = FuturesUnordered::new();
    let mut pace = Pace::new(Instant::now());
    let mut former: Option<Arc<Link>> = None;
    loop {
        changed.borrow_and_update();
        let pausing = Instant::now() < pace.next();
        let demand = shared.targets().demand(address, pausing || !attempts.is_empty());
        let most = match demand {
            Demand::Wanted => DIALS_PER_ADDRESS_MAX,
            Demand::Frames | Demand::Pause => 1,
            Demand::Nothing => return,
        };
        let linked = shared.current_at(address);
        if let Some(link) = &linked {
            shared.flush_gossip(address, link);
            pace.linked(Instant::now());
            former.clone_from(&linked);
        } else if let Some(link) = former.take() {
            pace.unlinked(Instant::now(), demand == Demand::Wanted);
            if link.was_closed_with(CloseCode::Shutdown) {
                pace.rest(Instant::now() + LEAVING_PAUSE);
            }
            continue;
        } else if pace.rests(Instant::now()) {
            drop_frames(&shared, address);
        } else if attempts.len() < most && !pausing && demand != Demand::Pause {
            pace.dialled(Instant::now(), demand == Demand::Wanted);
            attempts.push(handshake::dial(&shared, address, false));
        }
        let may_dial = linked.is_none() && attempts.len() < most;
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = changed.changed() => {}
            () = sleep_until(pace.next()), if may_dial => {}
            () = ended(linked.as_ref()), if linked.is_some() => {}
            Some(outcome) = attempts.next(), if !attempts.is_empty() => if let Err(error) = outcome {
                failed(&shared, address, &error);
                if demand != Demand::Wanted {
                    drop_frames(&shared, address);
                }
                pace.failed(Instant::now(), &error, || shared.host.hello().incarnation);
            },
        }
    }
}

/// Waits for the end of a link.
async fn ended(link: Option<&Arc<Link>>) {
    if let Some(link) = link {
        link.closed().await;
    }
}

fn drop_frames(shared: &Shared, address: SocketAddr) {
    let frames = shared.targets().take_frames(address);
    shared.stats.gossip_dropped.add(frames.len());
}

/// Records a failed attempt. Refusals are counted each time; that nobody answers is said once.
fn failed(shared: &Shared, address: SocketAddr, error: &HandshakeError) {
    let repeated = shared.targets().failed(address, error.describe());
    if !repeated || error.is_refusal() {
        shared.handshake_failed(address, error);
    }
}

/// When an address may be dialled next.
struct Pace {
    pauses: Pauses,
    next: Instant,
    /// Nothing is dialled before this, whatever else happens.
    rest: Instant,
    linked: Option<Instant>,
    /// The incarnation that was last refused as one that is known already.
    refused_as: Option<Incarnation>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { pauses: Pauses::default(), next: now, rest: now, linked: None, refused_as: None }
    }

    fn next(&self) -> Instant {
        self.next.max(self.rest)
    }

    fn rests(&self, now: Instant) -> bool {
        now < self.rest
    }

    fn dialled(&mut self, now: Instant, wanted: bool) {
        self.next = now + self.pauses.next(wanted);
    }

    fn linked(&mut self, now: Instant) {
        self.linked.get_or_insert(now);
    }

    /// A link that lasted is dialled again at once; what breaks soon after every handshake is not, or both ends
    /// would do nothing but shake hands.
    fn unlinked(&mut self, now: Instant, wanted: bool) {
        if self.linked.take().is_some_and(|since| now - since >= LINK_SETTLED_TIME) {
            self.pauses = Pauses::default();
            self.next = now;
        } else {
            self.dialled(now, wanted);
        }
    }

    fn rest(&mut self, until: Instant) {
        self.rest = self.rest.max(until);
    }

    fn failed(&mut self, now: Instant, error: &HandshakeError, own: impl FnOnce() -> Incarnation) {
        match error {
            HandshakeError::Own | HandshakeError::Displaced => self.rest(now + OWN_PAUSE),
            HandshakeError::RefusedByPeer(Refusal::Leaving)
            | HandshakeError::Refused(RefusedReason::Leaving, _) => self.rest(now + LEAVING_PAUSE),
            // The host takes another incarnation, which may do better; once for each that it has.
            HandshakeError::RefusedByPeer(Refusal::Incarnation(_)) => {
                let own = Some(own());
                if self.refused_as != own {
                    self.refused_as = own;
                    self.pauses = Pauses::default();
                    self.dialled(now, true);
                }
            }
            _ => {}
        }
    }
}

/// Growing pauses between attempts, each with jitter so that nodes do not dial in step.
#[derive(Default)]
struct Pauses(u32);

impl Pauses {
    fn next(&mut self, wanted: bool) -> Duration {
        let (first, most) = match wanted {
            true => (PAUSE_FIRST, DIAL_PAUSE_MAX),
            false => (PAUSE_UNWANTED_FIRST, DIAL_PAUSE_UNWANTED_MAX),
        };
        let grown = first.saturating_mul(1 << self.0.min(10)).min(most);
        self.0 += 1;
        grown.mul_f64(rand::random_range(0.75..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn pauses_grow_with_jitter_to_their_bound() {
        for (wanted, most) in [(true, DIAL_PAUSE_MAX), (false, DIAL_PAUSE_UNWANTED_MAX)] {
            let mut pauses = Pauses::default();
            assert!(pauses.next(wanted) <= if wanted { PAUSE_FIRST } else { PAUSE_UNWANTED_FIRST });
            for _ in 0..40 {
                assert!(pauses.next(wanted) <= most);
            }
            assert!(pauses.next(wanted) >= most.mul_f64(0.75));
        }
    }

    #[test]
    fn a_link_that_lasted_is_dialled_again_at_once_and_a_short_one_with_growing_pauses() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10 {
            pace.linked(now);
            pace.unlinked(now + LINK_SETTLED_TIME / 2, true);
        }
        assert!(pace.next() >= now + LINK_SETTLED_TIME / 2 + DIAL_PAUSE_MAX.mul_f64(0.75));
        pace.linked(now);
        pace.linked(now + LINK_SETTLED_TIME);
        pace.unlinked(now + LINK_SETTLED_TIME, true);
        assert_eq!(pace.next(), now + LINK_SETTLED_TIME);
        pace.dialled(now, true);
        assert!(pace.next() <= now + PAUSE_FIRST);
    }

    #[test]
    fn an_address_of_this_node_or_of_a_leaving_one_rests_and_is_dialled_again_later() {
        let now = Instant::now();
        let unused = || unreachable!("the incarnation does not matter");
        let mut pace = Pace::new(now);
        pace.failed(now, &HandshakeError::RefusedByPeer(Refusal::Leaving), unused);
        assert!(pace.rests(now) && !pace.rests(now + LEAVING_PAUSE));
        pace.failed(now, &HandshakeError::Own, unused);
        assert_eq!(pace.next(), now + OWN_PAUSE);
        assert!(!pace.rests(now + OWN_PAUSE));
    }

    #[test]
    fn a_refused_incarnation_is_dialled_soon_again_once() {
        let now = Instant::now();
        let refused = HandshakeError::RefusedByPeer(Refusal::Incarnation(Incarnation(u64::MAX)));
        let mut pace = Pace::new(now);
        (0..10).for_each(|_| pace.dialled(now, true));
        pace.failed(now, &refused, || Incarnation(1));
        assert!(pace.next() <= now + PAUSE_FIRST);
        (0..10).for_each(|_| pace.dialled(now, true));
        pace.failed(now, &refused, || Incarnation(1));
        assert!(pace.next() > now + PAUSE_FIRST, "the same one");
        pace.failed(now, &refused, || Incarnation(2));
        assert!(pace.next() <= now + PAUSE_FIRST);
    }

    #[test]
    fn frames_for_an_address_are_bounded_and_the_oldest_go_first() {
        let mut targets = Targets::default();
        for number in 0..GOSSIP_QUEUE_FRAMES as u8 {
            let (requested, dropped) = targets.queue(at(1), Bytes::from(vec![number]));
            assert_eq!(requested, if number == 0 { Requested::Start } else { Requested::Running });
            assert_eq!(dropped, 0);
        }
        assert_eq!(targets.queue(at(1), Bytes::from_static(b"x")), (Requested::Running, 1));
        let frames = targets.take_frames(at(1));
        assert_eq!((frames.len(), &frames[0][..]), (GOSSIP_QUEUE_FRAMES, &[1][..]));
    }

    #[test]
    fn addresses_are_bounded() {
        let mut targets = Targets::default();
        for port in 1..=DIAL_ADDRESSES_MAX as u16 {
            assert_eq!(targets.want(at(port)), Requested::Start);
        }
        assert_eq!(targets.want(at(60_000)), Requested::Full);
        assert_eq!(targets.queue(at(60_000), Bytes::new()), (Requested::Full, 1));
        assert_eq!(targets.want(at(1)), Requested::Running);
    }

    #[test]
    fn an_address_that_nobody_cares_for_is_forgotten() {
        let mut targets = Targets::default();
        targets.want(at(1));
        assert_eq!(targets.demand(at(1), false), Demand::Wanted);
        targets.unwant(at(1));
        assert_eq!(targets.demand(at(1), true), Demand::Pause);
        targets.queue(at(1), Bytes::new());
        assert_eq!(targets.demand(at(1), false), Demand::Frames);
        targets.take_frames(at(1));
        assert_eq!(targets.demand(at(1), false), Demand::Nothing);
        assert_eq!(targets.want(at(1)), Requested::Start);
    }
}
