//! What is asked of other nodes for leases. Nobody who loads waits for that himself: whoever gives up leaves no question
//! half asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tidings_cache::Lent;
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::frame::MEMBERS_MAX;
use tidings_proto::id::NodeId;
use tidings_proto::lease::{LeaseAnswer, LeaseKey, LeaseQuestion, LeaseRef, Told};
use tidings_proto::time::Tick;
use tidings_transport::AskError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use super::{Outcome, Unshared};
use crate::bus::Bus;

/// Errands that wait to be begun, and as many again that are under way: with the longest keys 16 MB. One more is not
/// carried out, and who asked loads.
const ERRANDS_MAX: usize = 2_048;

/// Of those, the ones to one node, so that one that does not answer takes no places from others.
const ERRANDS_PER_NODE_MAX: usize = 1_024;

/// For how long nothing is said of leases to a node that did not answer, or that answers no such questions. What it
/// gave or holds meanwhile ends with its time.
const LEFT_OUT_TIME: Duration = Duration::from_secs(10);

/// Questions about leases that are open to one node at once: half of all that may be.
const OPEN_PER_NODE_MAX: usize = 32;

/// How long a node has to answer one. It answers at once, so that one that does not is not there.
const EXCHANGE_TIME: Duration = Duration::from_secs(1);

/// How often leases, askers and results are looked at whose time may be over.
const TICK: Duration = Duration::from_millis(100);

/// Something to be said to a node.
#[derive(Debug)]
pub(super) enum Errand {
    Ask { ticket: u64, key: LeaseKey, schema: u32, patience: Duration },
    Tell { ticket: u64, key: LeaseKey, told: Told },
    Ended { key: LeaseKey, lease: LeaseRef, brought: bool },
    Take { ticket: u64, lease: LeaseRef, key: u64, began: Tick },
}

impl Errand {
    fn question(&self) -> LeaseQuestion {
        match self {
            Self::Ask { ticket, key, schema, patience } => LeaseQuestion::Ask {
                ticket: *ticket,
                key: key.into(),
                schema: *schema,
                patience_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
            },
            Self::Tell { ticket, key, told } => {
                LeaseQuestion::Tell { ticket: *ticket, key: key.key_hash(), told: told.clone() }
            }
            Self::Ended { key, lease, brought } => {
                LeaseQuestion::Ended { key: key.into(), lease: *lease, brought: *brought }
            }
            Self::Take { lease, key, .. } => LeaseQuestion::Take { lease: *lease, key: *key },
        }
    }
}

/// An errand on its way, and the room that it takes up among those to its node.
struct Sent {
    to: NodeId,
    errand: Errand,
    _room: OwnedSemaphorePermit,
}

/// What errands to one node may take up.
#[derive(Clone)]
struct Places {
    room: Arc<Semaphore>,
    /// For questions that are open at once.
    open: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self { room: semaphore(ERRANDS_PER_NODE_MAX), open: semaphore(OPEN_PER_NODE_MAX) }
    }
}

/// The errands of a node.
pub(super) struct Errands {
    sender: mpsc::Sender<Sent>,
    receiver: Mutex<Option<mpsc::Receiver<Sent>>>,
    places: Mutex<BTreeMap<NodeId, Places>>,
    /// Who is told and asked nothing, and until when: at most as many as there are members.
    left_out: Mutex<BTreeMap<NodeId, Tick>>,
    /// Errands that were not carried out.
    dropped: AtomicU64,
}

impl Default for Errands {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(ERRANDS_MAX);
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
            places: Mutex::default(),
            left_out: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }
}

impl Errands {
    /// Has an errand carried out; `false` if there is no room, which is counted.
    pub(super) fn send(&self, to: &NodeId, errand: Errand) -> bool {
        let room = self.places(to).room.try_acquire_owned();
        let sent =
            room.is_ok_and(|room| self.sender.try_send(Sent { to: to.clone(), errand, _room: room }).is_ok());
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// How many errands were not carried out, for want of room or because their node was left out.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn places(&self, node: &NodeId) -> Places {
        let mut places = self.places.lock();
        if places.len() > MEMBERS_MAX {
            places.retain(|_, places| Arc::strong_count(&places.room) > 1);
        }
        places.entry(node.clone()).or_default().clone()
    }

    fn leave_out(&self, node: &NodeId, now: Tick) {
        let mut left_out = self.left_out.lock();
        left_out.retain(|_, until| now < *until);
        left_out.insert(node.clone(), now.after(LEFT_OUT_TIME));
    }

    /// Whether nothing is to be said to a node.
    pub(super) fn is_left_out(&self, node: &NodeId, now: Tick) -> bool {
        self.left_out.lock().get(node).is_some_and(|until| now < *until)
    }
}

/// Carries out errands, and lets time pass, until it is dropped.
pub(crate) async fn run(bus: Arc<Bus>) {
    let Some(mut receiver) = bus.leases.errands.receiver.lock().take() else { return };
    let _ends = Ends(&bus);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(sent) = receiver.recv(), if open.len() < ERRANDS_MAX => {
                open.push(carry_out(&bus, sent));
            }
            Some(()) = open.next() => {}
            _ = tick.tick() => super::tick(&bus),
        }
    }
}

/// Lets go of everybody who waits once it is dropped.
struct Ends<'a>(&'a Bus);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.leases.end();
    }
}

async fn carry_out(bus: &Arc<Bus>, Sent { to, errand, _room }: Sent) {
    if to == bus.node {
        if let Errand::Ended { key, lease, brought } = &errand {
            super::ended(bus, key, *lease, brought.then_some(&to));
        }
        return;
    }
    let places = bus.leases.errands.places(&to);
    let place = places.open.acquire().await;
    if let Errand::Ask { ticket, .. } | Errand::Take { ticket, .. } = &errand
        && !bus.leases.tickets.waits(*ticket)
    {
        return;
    }
    let errands = &bus.leases.errands;
    let answer = if errands.is_left_out(&to, bus.domain.clock().now()) {
        // Each would take up a place for as long as a node has to answer.
        errands.dropped.fetch_add(1, Ordering::Relaxed);
        None
    } else if place.is_ok() && super::reachable(bus)(&to) {
        exchange(bus, &to, &errand).await
    } else {
        None
    };
    answered(bus, &to, errand, answer);
}

async fn exchange(bus: &Arc<Bus>, to: &NodeId, errand: &Errand) -> Option<LeaseAnswer> {
    let question = errand.question().encode();
    match bus.ask(to, Topic::Lease, &question, EXCHANGE_TIME).await {
        Ok(answer) => LeaseAnswer::decode(&answer).ok(),
        Err(error) => {
            if matches!(error, AskError::Late(_) | AskError::Declined(Declined::Unknown)) {
                bus.leases.errands.leave_out(to, bus.domain.clock().now());
            }
            None
        }
    }
}

fn answered(bus: &Arc<Bus>, to: &NodeId, errand: Errand, answer: Option<LeaseAnswer>) {
    match (errand, answer) {
        (Errand::Ask { ticket, key, .. }, Some(LeaseAnswer::Told(told))) => {
            let lease = if let Told::Load(lease) = told { Some(lease) } else { None };
            if !super::tell(bus, to, (ticket, key.key_hash()), told)
                && let Some(lease) = lease
            {
                // Whoever asked has gone. Untold, the home takes the lease back when its time is over.
                bus.leases.errands.send(to, Errand::Ended { key, lease, brought: false });
            }
        }
        (Errand::Ask { ticket, patience, .. }, Some(LeaseAnswer::Waiting)) => {
            bus.leases.waits(ticket, patience);
        }
        (Errand::Ask { ticket, .. }, answer) => {
            let why = if answer.is_some() { Unshared::Refused } else { Unshared::Unreachable };
            bus.leases.resolve(ticket, Outcome::Alone(why));
        }
        (Errand::Tell { key, told: Told::Load(lease), .. }, answer)
            if answer != Some(LeaseAnswer::Noted(true)) =>
        {
            super::ended(bus, &key, lease, None);
        }
        (Errand::Ended { lease, brought: true, .. }, answer) if answer != Some(LeaseAnswer::Noted(true)) => {
            bus.leases.kept.lock().remove(&lease);
        }
        (Errand::Take { ticket, began, .. }, answer) => {
            let outcome = match answer {
                Some(LeaseAnswer::Result(seen, result)) => {
                    Outcome::Brought(Box::new((seen, Lent { result: result.into(), began })))
                }
                _ => Outcome::Alone(Unshared::Gone),
            };
            bus.leases.resolve(ticket, outcome);
        }
        (Errand::Tell { .. } | Errand::Ended { .. }, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use bytes::Bytes;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tidings_proto::id::Origin;
    use tokio::time::Instant;

    use super::*;
    use crate::asked::Answering;
    use crate::testing::Cluster;

    fn errand() -> Errand {
        let key = LeaseKey { cache: tidings_proto::hash::CacheId(1), bytes: Bytes::new() };
        Errand::Ended { key, lease: LeaseRef { home: 1, id: 1 }, brought: false }
    }

    #[test]
    fn a_node_that_does_not_answer_leaves_room_for_others() {
        let errands = Errands::default();
        let (mute, other): (NodeId, NodeId) = ("mute".parse().unwrap(), "other".parse().unwrap());
        let taken = (0..ERRANDS_MAX).filter(|_| errands.send(&mute, errand())).count();
        assert_eq!(taken, ERRANDS_PER_NODE_MAX);
        assert_eq!(errands.dropped(), (ERRANDS_MAX - ERRANDS_PER_NODE_MAX) as u64, "the rest is counted");
        assert!(errands.send(&other, errand()));
        let mut receiver = errands.receiver.lock().take().unwrap();
        drop(receiver.try_recv().unwrap());
        assert!(errands.send(&mute, errand()) && !errands.send(&mute, errand()));
    }

    #[test]
    fn a_node_is_left_out_for_its_time_and_no_longer() {
        let errands = Errands::default();
        let (mute, other): (NodeId, NodeId) = ("mute".parse().unwrap(), "other".parse().unwrap());
        errands.leave_out(&mute, Tick(5));
        let end = Tick(5).after(LEFT_OUT_TIME);
        assert!(errands.is_left_out(&mute, Tick(end.0 - 1)) && !errands.is_left_out(&mute, end));
        assert!(!errands.is_left_out(&other, Tick(5)));
        errands.leave_out(&other, end);
        assert_eq!(errands.left_out.lock().len(), 1);
    }

    /// Counts what it is asked, and answers nothing.
    struct Mute(Arc<AtomicUsize>);

    impl Answering for Mute {
        fn answer(&self, _peer: Origin, _question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::future::pending().boxed()
        }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_told_nothing_for_a_while_and_that_is_counted() {
        let cluster = Cluster::start(2).await.unwrap();
        let asked = Arc::<AtomicUsize>::default();
        cluster[1].bus().asked.serve(Topic::Lease, Arc::new(Mute(asked.clone())));
        let (bus, mute) = (cluster[0].bus(), cluster[1].origin().node);
        let errands = &bus.leases.errands;
        assert!(errands.send(&mute, errand()));
        until("it is left out", || errands.is_left_out(&mute, bus.domain.clock().now())).await;
        assert!((0..100).all(|_| errands.send(&mute, errand())), "there is room");
        until("all are dropped", || cluster[0].leases().unsent == 100).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        cluster.shutdown().await;
    }
}
