//! Keeping links: to addresses that are wanted for as long as they are, to others while gossip is to be sent there.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tidings_proto::frame::Refusal;
use tokio::time::{Instant, sleep_until};

use crate::handshake;
use crate::limits::{
    DIAL_ADDRESSES_MAX, DIAL_PAUSE_MAX, DIAL_PAUSE_UNWANTED_MAX, DIALS_PER_ADDRESS_MAX, GOSSIP_QUEUE_FRAMES,
};
use crate::link::Link;
use crate::refuse::HandshakeError;
use crate::shared::Shared;

/// First pause between two attempts at a wanted address.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// The same at an address that is not wanted: about the interval of gossip, so that not every frame dials.
const PAUSE_UNWANTED_FIRST: Duration = Duration::from_secs(1);

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
    let mut pauses = Pauses::default();
    let mut next = Instant::now();
    let mut own = false;
    loop {
        changed.borrow_and_update();
        let pausing = Instant::now() < next;
        let demand = shared.targets().demand(address, pausing || !attempts.is_empty());
        let most = match demand {
            Demand::Wanted => DIALS_PER_ADDRESS_MAX,
            Demand::Frames | Demand::Pause => 1,
            Demand::Nothing => return,
        };
        let linked = shared.current_at(address);
        if let Some(link) = &linked {
            shared.flush_gossip(address, link);
            pauses = Pauses::default();
            next = Instant::now();
        } else if own {
            drop_frames(&shared, address);
        } else if attempts.len() < most && !pausing && demand != Demand::Pause {
            next = Instant::now() + pauses.next(demand == Demand::Wanted);
            attempts.push(handshake::dial(&shared, address, false));
        }
        let may_dial = linked.is_none() && !own && attempts.len() < most;
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = changed.changed() => {}
            () = sleep_until(next), if may_dial => {}
            _ = ended(linked.as_ref()), if linked.is_some() => {}
            Some(outcome) = attempts.next(), if !attempts.is_empty() => if let Err(error) = outcome {
                failed(&shared, address, &error);
                own |= matches!(error, HandshakeError::Own);
                if demand != Demand::Wanted {
                    drop_frames(&shared, address);
                }
                if matches!(error, HandshakeError::RefusedByPeer(Refusal::Incarnation(_))) {
                    // The host has taken another incarnation by now.
                    (pauses, next) = (Pauses::default(), Instant::now());
                }
            },
        }
    }
}

/// Waits for the end of a link, and until it is no more in the table.
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
