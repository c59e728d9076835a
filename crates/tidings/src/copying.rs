//! Caches whose values travel: compared with the members, and copied from them.
//!
//! A cache of which writes may have been missed is compared with every member, once all of them can be asked, and until then
//! what it doubts is a miss. With a member that has come, and with one now and then, it is compared so that what else went
//! wrong is found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tidings_cache::{AnyCache, CompareError, Comparison, Refusal, Replicating, compare_with};
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::hash::CacheId;
use tidings_proto::id::{NodeId, Origin, SlotSet};
use tidings_proto::replicate::author;
use tidings_proto::replicate::copy::{Answer, Question};
use tidings_proto::time::Tick;
use tidings_transport::{AskError, Quiet};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

use crate::asked::Answering;
use crate::bus::Bus;

/// How often it is looked whether something has to be compared.
const LOOK: Duration = Duration::from_millis(250);

/// How often a cache is compared with one of the members though nothing is known to be missed: about 1.5 KB of digests.
const COMPARE_INTERVAL: Duration = Duration::from_secs(60);

/// How long a member may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long a comparison with one member may take: what it had brought by then is kept, and the other caches get their turn.
const COMPARE_TIME: Duration = Duration::from_secs(300);

/// How long a cache is left alone that could not be compared with somebody.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long at most a cache is left alone of which a member holds what is of the future. It begins with
/// [`RETRY_PAUSE`] and doubles: that lasts until the time comes, or a clock is set and what it gave is undone.
const FUTURE_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Most refusals that are told at once.
const REFUSALS_AT_ONCE: usize = 32;

/// How long an author may take to note that its write was refused.
const TELL_TIME: Duration = Duration::from_secs(2);

/// How often an author is told of one refusal, if that fails: ten seconds or more, four times a second. Beyond that
/// its copy differs until the time comes of what it wrote.
const TELLS_MAX: u32 = 40;

/// Most refusals that wait to be told again; of more the oldest are dropped.
const UNTOLD_MAX: usize = 1_024;

/// How often it is said that what this node writes is refused.
const UNDONE_SAID: Duration = Duration::from_secs(60);

/// Most questions that are answered at once, each on a thread of its own; more wait for their turn.
const ANSWERS_MAX: usize = 2;

/// How long a question waits for its turn; then it is declined as one too many. Well below [`ANSWER_TIME`].
const TURN_TIME: Duration = Duration::from_secs(5);

/// Answers the questions of other members.
struct Copies {
    bus: Weak<Bus>,
    turns: Arc<Semaphore>,
}

/// Has questions about entries answered.
pub(crate) fn serve(bus: &Arc<Bus>) {
    let copies = Copies { bus: Arc::downgrade(bus), turns: Arc::new(Semaphore::new(ANSWERS_MAX)) };
    bus.asked.serve(Topic::Copy, Arc::new(copies));
}

impl Answering for Copies {
    fn answer(&self, peer: Origin, question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
        let (bus, turns) = (self.bus.upgrade(), self.turns.clone());
        async move {
            let bus = bus.ok_or(Declined::Failed)?;
            let turn = tokio::time::timeout(TURN_TIME, turns.acquire_owned()).await;
            let turn = turn.map_err(|_| Declined::Busy)?.map_err(|_| Declined::Failed)?;
            let answer = move || {
                // Until it is done, even if nobody waits for it any more.
                let _turn = turn;
                answer(&bus, &peer, &question)
            };
            // To add up a million entries takes milliseconds, and so may a value's encoding.
            tokio::task::spawn_blocking(answer).await.unwrap_or(Err(Declined::Failed))
        }
        .boxed()
    }
}

fn answer(bus: &Bus, peer: &Origin, question: &[u8]) -> Result<Bytes, Declined> {
    let (id, question) = Question::decode(question).map_err(|error| {
        // Not that such questions are unknown: who asks would take it that nothing is held here.
        tracing::debug!(%peer, %error, "a question about entries cannot be read");
        Declined::Failed
    })?;
    let Some(cache) = replicating(bus, id) else { return Ok(Answer::Absent.encode()) };
    let answer = cache.answer(&question);
    if let Question::Refused { stamp, .. } = question
        && stamp.author == author(&bus.origin())
        && is_to_be_said(&mut bus.undone_said.lock(), Instant::now())
    {
        tracing::warn!(
            by = %peer,
            "writes of this node are refused, and undone here: its clock is too far ahead of that member's. Set the one that is \
             off (NTP); if both are right again and writes are refused still, restart this node"
        );
    }
    Ok(answer)
}

fn is_to_be_said(said: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = said.is_none_or(|said| now.duration_since(said) >= UNDONE_SAID);
    if is_due {
        *said = Some(now);
    }
    is_due
}

fn replicating(bus: &Bus, id: CacheId) -> Option<Arc<dyn Replicating>> {
    bus.domain.cache_of(id)?.replicating()
}

/// What is known of a cache's comparisons.
struct Known {
    /// Members with which it was compared since they came.
    with: BTreeSet<Origin>,
    /// When it was compared last because the time had come, and with whom.
    last: (Tick, Option<NodeId>),
    /// Until when it is left alone.
    paused: Tick,
    /// For how long it is next time that something of the future is met.
    future_pause: Duration,
}

/// What came of a comparison with every member.
enum Repaired {
    /// It was compared with all of them.
    All,
    /// So it was, and one of them holds what is of the future.
    Future,
    /// One of them could not be asked.
    Not,
}

/// Compares caches and tells of refusals, until it is dropped.
pub(crate) async fn run(bus: &Arc<Bus>) {
    // Neither waits for the other.
    tokio::join!(compare_all(bus), tell_all(bus));
}

async fn tell_all(bus: &Arc<Bus>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (quiet, mut untold) = (Quiet::default(), Vec::new());
    loop {
        look.tick().await;
        untold = tell_refusals(bus, &quiet, untold).await;
    }
}

async fn compare_all(bus: &Arc<Bus>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: BTreeMap<CacheId, Known> = BTreeMap::new();
    loop {
        look.tick().await;
        let caches = bus.domain.caches();
        known.retain(|id, _| caches.iter().any(|cache| cache.id() == *id));
        for cache in caches {
            let id = cache.id();
            let now = bus.domain.clock().now();
            let Some(replicating) = cache.clone().replicating() else { continue };
            let known = known.entry(id).or_insert_with(|| Known {
                with: BTreeSet::new(),
                last: (now, None),
                paused: now,
                future_pause: RETRY_PAUSE,
            });
            if now < known.paused {
                continue;
            }
            let members = members(bus);
            known.with.retain(|origin| members.contains(origin));
            match replicating.begin() {
                Some(comparison) if !is_apart(bus, &members) => {
                    let repaired = repair(bus, &*cache, (&*replicating, &comparison), &members).await;
                    known.repaired(repaired, members, bus.domain.clock().now());
                }
                Some(_) => {}
                None => {
                    // Who is not heard may be the one that has it.
                    let apart = is_apart(bus, &members);
                    let listed = if apart { SlotSet::default() } else { replicating.to_be_listed() };
                    if !listed.is_empty() {
                        known.with.clear();
                    }
                    look_at(bus, id, &*replicating, known, &members).await;
                    if known.with == members {
                        replicating.listed(listed);
                    }
                }
            }
        }
    }
}

impl Known {
    fn repaired(&mut self, repaired: Repaired, members: BTreeSet<Origin>, now: Tick) {
        match repaired {
            Repaired::All => (self.with, self.future_pause) = (members, RETRY_PAUSE),
            Repaired::Future => {
                (self.with, self.paused) = (members, now.after(self.future_pause));
                self.future_pause = (2 * self.future_pause).min(FUTURE_PAUSE_MAX);
            }
            Repaired::Not => self.paused = now.after(RETRY_PAUSE),
        }
    }
}

/// The members that can be asked.
fn members(bus: &Bus) -> BTreeSet<Origin> {
    let links = bus.transport().map(|transport| transport.links()).unwrap_or_default();
    links.iter().map(|link| crate::bus::origin_of(link.peer())).collect()
}

/// Whether somebody cannot be asked whose writes may have been missed: what is doubted then is doubted on.
fn is_apart(bus: &Bus, members: &BTreeSet<Origin>) -> bool {
    bus.coherence.is_out_of_contact()
        || bus.coherence.relevant().iter().any(|origin| !members.contains(origin))
}

/// Compares with every member, and ends the doubt unless one of them could not be asked: then it is tried again. One
/// after the other, for the floors of each have to be taken over before the next one is asked.
async fn repair(
    bus: &Arc<Bus>,
    cache: &dyn AnyCache,
    (replicating, comparison): (&dyn Replicating, &Comparison),
    members: &BTreeSet<Origin>,
) -> Repaired {
    let mut taken = 0;
    for member in members {
        match compare(bus, cache.id(), replicating, Some(comparison), &member.node).await {
            Ok(some) => taken += some,
            Err(error) => {
                tracing::debug!(cache = %cache.name(), %member, %error, "not compared: it is tried again");
                return Repaired::Not;
            }
        }
    }
    let all = replicating.end(comparison);
    let slots = comparison.slots().iter().count();
    tracing::info!(cache = %cache.name(), slots, members = members.len(), taken, all, "compared with all members");
    if all { Repaired::All } else { Repaired::Future }
}

/// Compares with members that have come, and with one if the time has come.
async fn look_at(
    bus: &Arc<Bus>,
    id: CacheId,
    replicating: &dyn Replicating,
    known: &mut Known,
    members: &BTreeSet<Origin>,
) {
    let now = bus.domain.clock().now();
    let (last, with) = &known.last;
    let mut chosen: Vec<Origin> = members.difference(&known.with).cloned().collect();
    if chosen.is_empty() && now.since(*last) >= COMPARE_INTERVAL {
        let next =
            members.iter().find(|origin| Some(&origin.node) > with.as_ref()).or_else(|| members.first());
        known.last = (now, next.map(|origin| origin.node.clone()));
        chosen.extend(next.cloned());
    }
    for member in chosen {
        match compare(bus, id, replicating, None, &member.node).await {
            Ok(taken) => {
                tracing::debug!(%member, taken, "compared");
                known.with.insert(member);
            }
            Err(error) => {
                tracing::debug!(%member, %error, "not compared: it is tried again");
                known.paused = bus.domain.clock().now().after(RETRY_PAUSE);
            }
        }
    }
}

/// A member was not compared with.
#[derive(Debug, thiserror::Error)]
enum NotCompared {
    #[error(transparent)]
    Failed(#[from] CompareError<AskError>),
    #[error("that took longer than {COMPARE_TIME:?}")]
    Late,
}

/// Compares with one member. One that answers no such questions at all has nothing to be compared with; whatever else it
/// does not answer leaves in doubt what it holds.
async fn compare(
    bus: &Arc<Bus>,
    id: CacheId,
    replicating: &dyn Replicating,
    comparison: Option<&Comparison>,
    node: &NodeId,
) -> Result<usize, NotCompared> {
    let ask = |question: Bytes| async move {
        let clock = bus.domain.clock();
        let asked = clock.now();
        let answer = bus.ask(node, Topic::Copy, &question, ANSWER_TIME).await?;
        let pause = bus.copied.lock().spend(answer.len(), (asked, clock.now()));
        tokio::time::sleep(pause).await;
        Ok(answer)
    };
    let compared = compare_with(replicating, id, comparison, ask);
    let Ok(result) = tokio::time::timeout(COMPARE_TIME, compared).await else {
        return Err(NotCompared::Late);
    };
    // Whoever is told of an error says so.
    if matches!(result, Err(CompareError::First(AskError::Declined(Declined::Unknown)))) {
        return Ok(0);
    }
    Ok(result?)
}

/// A refusal, and how often telling it has failed.
struct Untold {
    refusal: Refusal,
    failed: u32,
}

/// Tells authors of refused writes. Returns what is to be told again.
async fn tell_refusals(bus: &Arc<Bus>, quiet: &Quiet<NodeId>, untold: Vec<Untold>) -> Vec<Untold> {
    let refusals = bus.domain.take_refusals();
    say_refusals(&refusals, quiet, Instant::now());
    let all = to_be_told(untold, refusals);
    let mut again = Vec::new();
    // Whoever does not answer is not waited for again and again.
    let mut silent: BTreeSet<NodeId> = BTreeSet::new();
    let mut all = all.into_iter().peekable();
    while all.peek().is_some() {
        let (now, later): (Vec<_>, Vec<_>) =
            all.by_ref().take(REFUSALS_AT_ONCE).partition(|one| !silent.contains(&one.refusal.origin.node));
        again.extend(later);
        let told = now.into_iter().map(|one| async move {
            let Refusal { origin, cache, .. } = &one.refusal;
            let question = one.refusal.question().encode(*cache);
            let answer = bus.ask(&origin.node, Topic::Copy, &question, TELL_TIME).await;
            (one, answer.err())
        });
        for (mut one, error) in join_all(told).await {
            let Some(error) = error else { continue };
            tracing::debug!(origin = %one.refusal.origin, %error, "an author was not told that its write was refused");
            silent.insert(one.refusal.origin.node.clone());
            one.failed += 1;
            again.push(one);
        }
    }
    again
}

/// What is told: each change once, though there is a refusal of each lane that it names.
fn to_be_told(untold: Vec<Untold>, refusals: Vec<Refusal>) -> Vec<Untold> {
    let new = refusals.into_iter().map(|refusal| Untold { refusal, failed: 0 });
    let mut all: Vec<_> = untold.into_iter().filter(|one| one.failed < TELLS_MAX).chain(new).collect();
    let mut known = BTreeSet::new();
    all.retain(|Untold { refusal, .. }| {
        known.insert((refusal.origin.clone(), refusal.cache, refusal.of.clone(), refusal.stamp))
    });
    let more = all.len().saturating_sub(UNTOLD_MAX);
    all.drain(..more);
    all
}

/// Logs whose writes were refused, and how many: an author whose clock is ahead goes on writing.
fn say_refusals(refusals: &[Refusal], quiet: &Quiet<NodeId>, now: Instant) {
    let mut authors: BTreeMap<&Origin, usize> = BTreeMap::new();
    refusals.iter().for_each(|refusal| *authors.entry(&refusal.origin).or_default() += 1);
    for (origin, writes) in authors {
        let Some(passed) = quiet.speaks(origin.node.clone(), "writes refused", now) else { continue };
        let suppressed = passed.field();
        tracing::warn!(
            %origin,
            writes,
            suppressed,
            "writes were refused: their time is too far ahead of this node's clock"
        );
    }
}

#[cfg(test)]
#[path = "copying_tests.rs"]
mod tests;
