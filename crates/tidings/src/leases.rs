//! One loader of a key for the cluster: this node as the home of some keys, as one that asks for the leases of others,
//! and as one that has loaded what others wait for.
//!
//! Who decides is [`tidings_proto::lease`]; here it is asked, told and timed. The caches come by [`serve`], other nodes by
//! questions of [`Topic::Lease`].

mod errands;
mod home;
mod kept;
mod tickets;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tidings_cache::{LeaseFuture, LeaseRequest, LeaseTurn, Lent};
use tidings_membership::State;
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::hash::slot_of;
use tidings_proto::id::{LogId, NodeId, Origin};
use tidings_proto::lease::{self, Ages, LeaseAnswer, LeaseKey, LeaseQuestion, LeaseRef, Said, Seen, Told};
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

use self::errands::{Errand, Errands};
use self::home::{Answer, Asker, Home};
use self::kept::{Brought, Kept};
use self::tickets::{Outcome, Ticket, Tickets};
use crate::asked::Answering;
use crate::bus::Bus;
use crate::hosted;

pub(crate) use self::errands::run;

/// How long one who waits does so beyond its patience: what ends with a lease's time is noticed a tick later, and is on its
/// way.
const GRACE: Duration = Duration::from_millis(300);

/// Why a load that might have been shared was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unshared {
    /// The key's home could not be asked, or not any more.
    Unreachable,
    /// The home gives no leases of this cache, or has no room.
    Refused,
    /// Nobody brought anything for the time of a lease.
    Overdue,
    /// The load that was waited for may lack a change that was applied here.
    Behind,
    /// What it brought could not be had any more.
    Gone,
}

impl Unshared {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Unreachable, Self::Refused, Self::Overdue, Self::Behind, Self::Gone];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Overdue => "overdue",
            Self::Behind => "behind",
            Self::Gone => "gone",
        }
    }
}

/// What became of leases on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseReport {
    /// Of those that it gave.
    pub home: lease::LeaseCounts,
    /// Keys that are under a lease of its.
    pub open: usize,
    /// Those who wait at it.
    pub waiting: usize,
    /// How often it asked for one, itself included.
    pub asked: u64,
    /// How often it loaded for itself alone all the same, by [`Unshared::ALL`].
    pub unshared: [u64; Unshared::ALL.len()],
    /// What it had to say to others about leases, and did not: there was no room, or they do not answer.
    pub unsent: u64,
}

/// The leases of a node.
pub(crate) struct Leases {
    home: Mutex<Home>,
    tickets: Tickets,
    kept: Mutex<Kept>,
    errands: Errands,
    /// Nobody carries out errands any more.
    ended: AtomicBool,
    asked: AtomicU64,
    unshared: [AtomicU64; Unshared::ALL.len()],
}

impl Leases {
    /// Of one life of a node, which this number tells from its others.
    pub(crate) fn new(life: LogId) -> Self {
        Self {
            home: Mutex::default(),
            tickets: Tickets::new(life.0),
            kept: Mutex::default(),
            errands: Errands::default(),
            ended: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            unshared: Default::default(),
        }
    }

    pub(crate) fn report(&self) -> LeaseReport {
        let (home, (open, waiting)) = self.home.lock().counts();
        let unshared = std::array::from_fn(|reason| self.unshared[reason].load(Ordering::Relaxed));
        let (asked, unsent) = (self.asked.load(Ordering::Relaxed), self.errands.dropped());
        LeaseReport { home, open, waiting, asked, unshared, unsent }
    }

    /// From now on nobody waits for anything.
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.tickets.end();
    }

    /// Takes note that somebody else loads what one asks for that has this patience.
    fn waits(&self, ticket: u64, patience: Duration) {
        if patience.is_zero() {
            self.resolve(ticket, Outcome::Alone(Unshared::Overdue));
        }
    }

    fn count(&self, why: Unshared) {
        self.unshared[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Tells one who waits how it ended. Returns whether it was there.
    fn resolve(&self, ticket: u64, outcome: Outcome) -> bool {
        let ticket = self.tickets.take(ticket);
        // Who has just gone drops what it is told, and gives a lease back by that.
        ticket.is_some_and(|ticket| ticket.sender.send(outcome).is_ok())
    }
}

/// A lease of this node's. Dropped, its load has failed.
pub(crate) struct Held {
    bus: Weak<Bus>,
    home: NodeId,
    key: LeaseKey,
    lease: LeaseRef,
    open: bool,
}

impl Held {
    /// Hands in what the load has brought.
    fn bring(mut self, seen: Seen, result: Bytes) {
        let Some(bus) = self.bus.upgrade() else { return };
        let brought = Brought::new((self.key.key_hash(), seen, result), bus.domain.clock().now());
        bus.leases.kept.lock().put(self.lease, brought);
        self.open = false;
        let (key, lease) = (self.key.clone(), self.lease);
        let wanted = if self.home == bus.node {
            ended(&bus, &key, lease, Some(&bus.node))
        } else {
            bus.leases.errands.send(&self.home, Errand::Ended { key, lease, brought: true })
        };
        if !wanted {
            // Nobody waits for it, or nobody hears of it.
            bus.leases.kept.lock().remove(&lease);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(bus) = self.bus.upgrade().filter(|_| self.open) {
            let errand = Errand::Ended { key: self.key.clone(), lease: self.lease, brought: false };
            // Untold, the home takes the lease back when its time is over.
            bus.leases.errands.send(&self.home, errand);
        }
    }
}

/// Lets the caches of a node, and other nodes, ask for leases.
pub(crate) fn serve(bus: &Arc<Bus>) {
    // The bus must not be kept by what it keeps.
    let bus_of_domain = Arc::downgrade(bus);
    let source = move |request: LeaseRequest| -> LeaseFuture {
        match bus_of_domain.upgrade() {
            Some(bus) => ask(&bus, request),
            None => std::future::ready(LeaseTurn::Alone).boxed(),
        }
    };
    bus.domain.set_leases(Arc::new(source));
    bus.asked.serve(Topic::Lease, Arc::new(Questions(Arc::downgrade(bus))));
}

/// Asks for a lease of this node's own. What its future is told is sent to it: it needs no runtime.
fn ask(bus: &Arc<Bus>, request: LeaseRequest) -> LeaseFuture {
    let leases = &bus.leases;
    leases.asked.fetch_add(1, Ordering::Relaxed);
    let LeaseRequest { schema, key, patience } = request;
    let patience = if patience.is_zero() { patience } else { patience.saturating_add(GRACE) };
    let slot = slot_of(key.cache, &key.bytes);
    // The flight is registered: what is applied from now on ends it.
    let wanted = bus.coherence.wanted_of_load(slot);
    let home = home_of(bus, &key);
    let asked = bus.domain.clock().now();
    let (sender, outcome) = oneshot::channel();
    let until = asked.after(patience);
    let opened = leases.tickets.open(Ticket { home: home.clone(), key: key.clone(), asked, until, sender });
    let Some(number) = opened else {
        leases.count(Unshared::Refused);
        return std::future::ready(LeaseTurn::Alone).boxed();
    };
    let waiting = Waiting { bus: Arc::downgrade(bus), ticket: number };
    if leases.ended.load(Ordering::SeqCst) {
        leases.count(Unshared::Unreachable);
        return std::future::ready(LeaseTurn::Alone).boxed();
    }
    if home == bus.node {
        let hash = key.key_hash();
        match ask_here(bus, Asker { node: home, ticket: number, key }, schema, patience) {
            Asked::Told(told) => drop(tell(bus, &bus.node, (number, hash), told)),
            Asked::Waiting => leases.waits(number, patience),
            Asked::NotHere => drop(leases.resolve(number, Outcome::Alone(Unshared::Refused))),
        }
    } else if !leases.errands.send(&home, Errand::Ask { ticket: number, key, schema, patience }) {
        leases.resolve(number, Outcome::Alone(Unshared::Refused));
    }
    let bus = Arc::downgrade(bus);
    async move {
        let _waiting = waiting;
        let outcome = outcome.await.unwrap_or(Outcome::Alone(Unshared::Unreachable));
        let Some(bus) = bus.upgrade() else { return LeaseTurn::Alone };
        let why = match outcome {
            Outcome::Load(held) => match bus.coherence.seen_by_load(slot) {
                Some(seen) => return LeaseTurn::Load(Box::new(move |result| held.bring(seen, result))),
                None => Unshared::Refused,
            },
            Outcome::Brought(brought) => {
                let (seen, lent) = *brought;
                if wanted.allows(&seen, lent.began) {
                    return LeaseTurn::Brought(lent);
                }
                Unshared::Behind
            }
            Outcome::Alone(why) => why,
        };
        bus.leases.count(why);
        LeaseTurn::Alone
    }
    .boxed()
}

/// One that waits, for as long as it does.
struct Waiting {
    bus: Weak<Bus>,
    ticket: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bus) = self.bus.upgrade() {
            drop(bus.leases.tickets.take(self.ticket));
        }
    }
}

/// The home of a key: of those that host its cache, can be reached and answer, this node among them.
fn home_of(bus: &Bus, key: &LeaseKey) -> NodeId {
    let announced = bus.domain.cache_of(key.cache).map(|cache| hosted::announced(&*cache));
    let mut hosts = announced.map(|announced| bus.coherence.hosts(&announced)).unwrap_or_default();
    let reachable = reachable(bus);
    let now = bus.domain.clock().now();
    hosts.retain(|node| reachable(node) && !bus.leases.errands.is_left_out(node, now));
    hosts.push(bus.node.clone());
    lease::home(key.key_hash(), &hosts).cloned().unwrap_or_else(|| bus.node.clone())
}

/// Says which nodes can be asked, or are this one: who is linked, and was heard lately.
fn reachable(bus: &Bus) -> impl Fn(&NodeId) -> bool {
    let view = bus.membership().map(|membership| membership.view()).unwrap_or_default();
    let transport = bus.transport();
    move |node| {
        let live = view.members.get(node).is_some_and(|member| member.state == State::Live);
        let linked = || transport.as_ref().is_some_and(|transport| transport.link(node).is_some());
        *node == bus.node || live && linked()
    }
}

/// Acts as a home. What that lets go of is dropped when nobody waits for it.
fn at_home<T>(bus: &Bus, act: impl FnOnce(&mut Home, Tick) -> T) -> T {
    let now = bus.domain.clock().now();
    let mut home = bus.leases.home.lock();
    let done = act(&mut home, now);
    let let_go = home.let_go();
    drop(home);
    drop(let_go);
    done
}

/// What an asker is told at once.
enum Asked {
    Told(Told),
    Waiting,
    NotHere,
}

/// Takes an asker at this node, and tells everybody else what follows from that.
fn ask_here(bus: &Arc<Bus>, asker: Asker, schema: u32, patience: Duration) -> Asked {
    let asks = (asker.clone(), schema);
    let answers = at_home(bus, |home, now| home.ask(&bus.domain, asks, now.after(patience), now));
    let Some(answers) = answers else { return Asked::NotHere };
    let (own, others): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.to == asker);
    deliver(bus, others);
    own.into_iter().next().map_or(Asked::Waiting, |answer| Asked::Told(told(bus, answer.said)))
}

fn told(bus: &Bus, said: Said<(NodeId, LeaseRef)>) -> Told {
    match said {
        Said::Load(id) => Told::Load(LeaseRef { home: bus.log_id.0, id: id.0 }),
        Said::Brought((holder, lease), ages) => Told::Brought { holder, lease, ages: ages.into() },
        Said::Refused => Told::Refused,
    }
}

/// Tells those who wait, here or elsewhere. Who is not there any more, or cannot be told, passes a lease on; whatever
/// else it is not told it waits for until its patience is over.
fn deliver(bus: &Arc<Bus>, answers: Vec<Answer>) {
    let mut answers = VecDeque::from(answers);
    while let Some(Answer { to: Asker { node, ticket, key }, said }) = answers.pop_front() {
        let told = told(bus, said);
        let lease = if let Told::Load(lease) = told { Some(lease) } else { None };
        let reached = if node == bus.node {
            tell(bus, &node, (ticket, key.key_hash()), told)
        } else {
            bus.leases.errands.send(&node, Errand::Tell { ticket, key: key.clone(), told })
        };
        if let Some(lease) = lease.filter(|_| !reached) {
            answers.extend(at_home(bus, |home, now| home.ended(&bus.domain, (&key, lease), None, now)));
        }
    }
}

/// Takes the end of a load under a lease of this node's: `holder` has what it brought. Returns whether anybody waited.
fn ended(bus: &Arc<Bus>, key: &LeaseKey, lease: LeaseRef, holder: Option<&NodeId>) -> bool {
    if lease.home != bus.log_id.0 {
        return false;
    }
    let answers = at_home(bus, |home, now| home.ended(&bus.domain, (key, lease), holder, now));
    let waited = answers.iter().any(|answer| matches!(answer.said, Said::Brought(..)));
    deliver(bus, answers);
    waited
}

/// Tells one of this node's askers what its home says of the key of this hash. Returns whether it is there.
fn tell(bus: &Arc<Bus>, home: &NodeId, (number, hash): (u64, u64), told: Told) -> bool {
    let leases = &bus.leases;
    let Some((asked, key)) = leases.tickets.asked(number, (home, hash)) else { return false };
    match told {
        Told::Load(lease) => {
            let Some(ticket) = leases.tickets.take(number) else { return false };
            let held = Held { bus: Arc::downgrade(bus), home: home.clone(), key, lease, open: true };
            // Who has just gone drops it.
            let _ = ticket.sender.send(Outcome::Load(held));
            true
        }
        Told::Brought { holder, lease, ages } => {
            let now = bus.domain.clock().now();
            let began = Ages::from(ages).began(asked, now);
            if holder == bus.node {
                let kept = leases.kept.lock().get((&lease, hash), now);
                let brought = |(seen, result)| Outcome::Brought(Box::new((seen, Lent { result, began })));
                return leases.resolve(number, kept.map_or(Outcome::Alone(Unshared::Gone), brought));
            }
            leases.errands.send(&holder, Errand::Take { ticket: number, lease, key: hash, began })
                || leases.resolve(number, Outcome::Alone(Unshared::Gone))
        }
        Told::Refused => leases.resolve(number, Outcome::Alone(Unshared::Refused)),
    }
}

/// Lets time pass.
fn tick(bus: &Arc<Bus>) {
    let answers = at_home(bus, |home, now| home.tick(&bus.domain, now));
    deliver(bus, answers);
    let now = bus.domain.clock().now();
    for ticket in bus.leases.tickets.overdue(now, reachable(bus)) {
        let why = if ticket.until <= now { Unshared::Overdue } else { Unshared::Unreachable };
        let _ = ticket.sender.send(Outcome::Alone(why));
    }
    bus.leases.kept.lock().expire(now);
}

/// Answers what other nodes ask.
struct Questions(Weak<Bus>);

impl Answering for Questions {
    fn answer(&self, peer: Origin, question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
        let bus = self.0.upgrade().ok_or(Declined::Unknown);
        let answer = bus.and_then(|bus| answer(&bus, peer.node, &question));
        std::future::ready(answer).boxed()
    }
}

fn answer(bus: &Arc<Bus>, peer: NodeId, question: &[u8]) -> Result<Bytes, Declined> {
    let question = LeaseQuestion::decode(question).map_err(|error| {
        tracing::debug!(%peer, %error, "a question about a lease cannot be read");
        Declined::Failed
    })?;
    let answer = match question {
        LeaseQuestion::Ask { ticket, key, schema, patience_ms } => {
            let patience = Duration::from_millis(patience_ms.into());
            match ask_here(bus, Asker { node: peer, ticket, key: key.into() }, schema, patience) {
                Asked::Told(told) => LeaseAnswer::Told(told),
                Asked::Waiting => LeaseAnswer::Waiting,
                Asked::NotHere => LeaseAnswer::NotHere,
            }
        }
        LeaseQuestion::Tell { ticket, key, told } => {
            LeaseAnswer::Noted(tell(bus, &peer, (ticket, key), told))
        }
        LeaseQuestion::Ended { key, lease, brought } => {
            LeaseAnswer::Noted(ended(bus, &key.into(), lease, brought.then_some(&peer)))
        }
        LeaseQuestion::Take { lease, key } => {
            let kept = bus.leases.kept.lock().answer((&lease, key), bus.domain.clock().now());
            return Ok(kept.unwrap_or_else(|| LeaseAnswer::Gone.encode()));
        }
    };
    Ok(answer.encode())
}
