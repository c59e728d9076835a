//! What is asked of other nodes for leases. Nobody who loads waits for that himself: whoever gives up leaves no question
//! half asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tidings_cache::Lent;
use tidings_proto::ask::Topic;
use tidings_proto::frame::MEMBERS_MAX;
use tidings_proto::id::NodeId;
use tidings_proto::lease::{LeaseAnswer, LeaseKey, LeaseQuestion, LeaseRef, Told};
use tidings_proto::time::Tick;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use super::{Outcome, Unshared};
use crate::bus::Bus;

/// Errands that wait to be begun, and as many again that are under way: with the longest keys 16 MB. One more is not
/// carried out, and who asked loads.
const ERRANDS_MAX: usize = 2_048;

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

/// The errands of a node.
pub(super) struct Errands {
    sender: mpsc::Sender<(NodeId, Errand)>,
    receiver: Mutex<Option<mpsc::Receiver<(NodeId, Errand)>>>,
    /// Places for questions to each node.
    places: Mutex<BTreeMap<NodeId, Arc<Semaphore>>>,
}

impl Default for Errands {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(ERRANDS_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), places: Mutex::default() }
    }
}

impl Errands {
    /// Has an errand carried out; `false` if there is no room.
    pub(super) fn send(&self, to: &NodeId, errand: Errand) -> bool {
        self.sender.try_send((to.clone(), errand)).is_ok()
    }

    fn places(&self, node: &NodeId) -> Arc<Semaphore> {
        let mut places = self.places.lock();
        if places.len() > MEMBERS_MAX {
            places.retain(|_, places| Arc::strong_count(places) > 1);
        }
        places.entry(node.clone()).or_insert_with(|| Arc::new(Semaphore::new(OPEN_PER_NODE_MAX))).clone()
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
            Some((to, errand)) = receiver.recv(), if open.len() < ERRANDS_MAX => {
                open.push(carry_out(&bus, to, errand));
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

async fn carry_out(bus: &Arc<Bus>, to: NodeId, errand: Errand) {
    if to == bus.node {
        if let Errand::Ended { key, lease, brought } = &errand {
            super::ended(bus, key, *lease, brought.then_some(&to));
        }
        return;
    }
    let places = bus.leases.errands.places(&to);
    let answer = match places.acquire().await {
        Ok(_place) if super::reachable(bus)(&to) => {
            let question = errand.question().encode();
            let answer = bus.ask(&to, Topic::Lease, &question, EXCHANGE_TIME).await;
            answer.ok().and_then(|answer| LeaseAnswer::decode(&answer).ok())
        }
        _ => None,
    };
    answered(bus, &to, errand, answer);
}

fn answered(bus: &Arc<Bus>, to: &NodeId, errand: Errand, answer: Option<LeaseAnswer>) {
    match (errand, answer) {
        (Errand::Ask { ticket, key, .. }, Some(LeaseAnswer::Told(told))) => {
            let lease = if let Told::Load(lease) = told { Some(lease) } else { None };
            if !super::tell(bus, to, (ticket, key.key_hash()), told)
                && let Some(lease) = lease
            {
                // Whoever asked has gone.
                bus.leases.errands.send(to, Errand::Ended { key, lease, brought: false });
            }
        }
        (Errand::Ask { .. }, Some(LeaseAnswer::Waiting)) => {}
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
