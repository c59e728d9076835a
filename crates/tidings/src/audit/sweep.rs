//! One sweep: every entry of every audited cache, page by page, against every peer that hosts the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_cache::{AnyCache, Slice};
use tidings_membership::State;
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::audit::{
    Again, Answer, Difference, Digested, Held, Incomparable, Judged, Outcome, Pace, Question, Round, Subject,
    Suspects, Unusable,
};
use tidings_proto::hash::CacheId;
use tidings_proto::id::NodeId;
use tidings_proto::time::Tick;
use tidings_transport::AskError;

use super::found::Findings;
use super::report::{AuditCounts, AuditProgress, AuditReport, AuditedPeer, Inconsistency};
use crate::bus::Bus;
use crate::hosted;

/// How long a peer has to answer: a release that knows no questions ends the stream after 5 s, which says more.
const WITHIN: Duration = Duration::from_secs(10);

/// How often a peer is asked the same before it is left out of the rest of the cache's sweep.
const TRIES: u32 = 5;

/// How long a peer that is busy with other nodes' questions is asked again and again: some ten of them that audit at once
/// take a few seconds each.
const BUSY_TIME: Duration = Duration::from_secs(30);

/// Between two of them: a page is answered in milliseconds, a link is made anew in some hundred.
const TRY_PAUSE: Duration = Duration::from_millis(200);

/// Inconsistencies of one sweep that are logged one by one; of more only the number.
const LOGGED_MAX: u64 = 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the answer makes no sense")]
    Unusable(#[from] Unusable),
}

impl NoAnswer {
    /// Whether the peer may answer the same question a moment later.
    fn passes(&self) -> bool {
        use AskError::{Connection, Read, Unlinked, Write};
        matches!(self, Self::Ask(Unlinked | Connection(_) | Read(_) | Write(_)))
    }

    /// Whether the peer answers others meanwhile.
    fn is_busy(&self) -> bool {
        matches!(self, Self::Ask(AskError::Busy | AskError::Declined(Declined::Busy)))
    }
}

/// How long the same question goes on being asked.
struct Patience {
    tries: u32,
    busy_until: Tick,
}

impl Patience {
    fn from(now: Tick) -> Self {
        Self { tries: TRIES, busy_until: now.after(BUSY_TIME) }
    }

    /// Whether to ask again after this.
    fn asks_again(&mut self, error: &NoAnswer, now: Tick) -> bool {
        if error.is_busy() {
            return now < self.busy_until;
        }
        self.tries -= 1;
        error.passes() && self.tries > 0
    }
}

/// Entries that peers are asked about together.
struct Page {
    subject: Subject,
    slice: Arc<Slice>,
    /// Where each stands in the slice.
    places: Vec<usize>,
    own: Vec<Held>,
    digested: Vec<Digested>,
    /// Where the next page begins.
    next: usize,
}

impl Page {
    fn of(cache: &dyn AnyCache, slice: Arc<Slice>, from: usize, most: usize) -> Self {
        let subject = Subject::new(cache.id(), cache.settings().schema);
        let (mut places, mut own, mut digested) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (hash, key)) in slice.keys(from).enumerate().take(most) {
            // What a read would not be answered with need not be what others hold.
            if let Some(held) = cache.held(key) {
                places.push(from + at);
                own.push(held);
                digested.push(Digested { key: hash, value: held.value });
            }
        }
        let next = slice.len().min(from + most);
        Self { subject, slice, places, own, digested, next }
    }

    fn key(&self, at: usize) -> Bytes {
        let key = self.slice.keys(self.places[at]).next();
        Bytes::copy_from_slice(key.expect("it was taken from there").1)
    }
}

pub(super) struct Sweep<'a> {
    bus: &'a Bus,
    pace: Pace,
    suspects: Suspects,
    requested: bool,
    began: Tick,
    began_ms: u64,
    /// About how many entries there are to look at.
    of: u64,
    counts: AuditCounts,
    /// Entries that each peer was asked about and answered.
    peers: BTreeMap<NodeId, u64>,
    /// Who is asked no more about a cache, and why. As many as there are members, at most, for each cache.
    gaps: BTreeMap<(NodeId, CacheId), String>,
    found: Findings,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(bus: &'a Bus, pace: Pace, requested: bool) -> Self {
        let clock = bus.domain.clock();
        Self {
            bus,
            pace,
            suspects: Suspects::new(bus.coherence.bounds().write_horizon),
            requested,
            began: clock.now(),
            began_ms: clock.wall_ms(),
            of: 0,
            counts: AuditCounts::default(),
            peers: BTreeMap::new(),
            gaps: BTreeMap::new(),
            found: Findings::default(),
        }
    }

    pub(super) async fn run(mut self) -> AuditReport {
        let caches: Vec<_> =
            self.bus.domain.caches().into_iter().filter(|cache| cache.is_audited()).collect();
        self.of = caches.iter().map(|cache| cache.entries()).sum();
        for cache in &caches {
            self.cache(cache).await;
        }
        while let Some(due) = self.suspects.next_due() {
            tokio::time::sleep(due.since(self.now())).await;
            self.recheck().await;
        }
        self.report()
    }

    async fn cache(&mut self, cache: &Arc<dyn AnyCache>) {
        let (mut next, mut asked) = (Some(0), BTreeSet::new());
        while let Some(from) = next {
            if self.hosts(&**cache).is_empty() {
                break;
            }
            let walked = cache.clone();
            let slice = tokio::task::spawn_blocking(move || walked.slice(from)).await;
            // It does not panic, and the runtime has not ended: this runs on it.
            let Ok(slice) = slice else { return };
            next = slice.next();
            self.slice(cache, Arc::new(slice), &mut asked).await;
        }
        self.still_there(cache.id(), &asked, &self.hosts(&**cache));
    }

    /// Leaves out those of the peers that were asked about a cache which are not there any more.
    fn still_there(&mut self, cache: CacheId, asked: &BTreeSet<NodeId>, hosts: &[NodeId]) {
        for gone in asked.iter().filter(|peer| !hosts.contains(peer)) {
            if !self.gaps.contains_key(&(gone.clone(), cache)) {
                self.leave_out(gone, cache, "it was not there for all of it".to_owned());
            }
        }
    }

    async fn slice(&mut self, cache: &Arc<dyn AnyCache>, slice: Arc<Slice>, asked: &mut BTreeSet<NodeId>) {
        let mut from = 0;
        while from < slice.len() {
            let (walked, keys, most) = (cache.clone(), slice.clone(), self.pace.page());
            let page = tokio::task::spawn_blocking(move || Page::of(&*walked, keys, from, most)).await;
            let Ok(page) = page else { return };
            self.count(|counts| counts.entries += (page.next - from) as u64);
            from = page.next;
            let hosts = self.hosts(&**cache);
            self.still_there(cache.id(), asked, &hosts);
            asked.extend(hosts.iter().cloned());
            for peer in hosts {
                self.compare(&page, &peer).await;
            }
            self.recheck().await;
            self.progressed();
        }
    }

    /// The live members that host a cache and can be asked about it.
    fn hosts(&self, cache: &dyn AnyCache) -> Vec<NodeId> {
        let view = self.bus.membership().map(|membership| membership.view()).unwrap_or_default();
        let live = view.members.values().filter(|member| member.state == State::Live);
        let origins = live.map(|member| &member.record.origin);
        let hosts = origins.filter(|origin| {
            let caches = self.bus.coherence.peer(origin).unwrap_or_default().caches;
            caches.iter().any(|named| hosted::read(named).0 == **cache.name())
        });
        let asked = hosts.filter(|origin| !self.gaps.contains_key(&(origin.node.clone(), cache.id())));
        asked.map(|origin| origin.node.clone()).collect()
    }

    async fn compare(&mut self, page: &Page, peer: &NodeId) {
        self.peers.entry(peer.clone()).or_default();
        if page.digested.is_empty() {
            return;
        }
        let (cache, keys) = (page.subject.cache(), page.digested.len());
        let question = Question::Page(page.subject, page.digested.clone());
        let mut patience = Patience::from(self.now());
        let answer = loop {
            match self.ask(peer, &question, keys).await {
                Err(error) if patience.asks_again(&error, self.now()) => {
                    tokio::time::sleep(TRY_PAUSE).await;
                }
                answer => break answer,
            }
        };
        match answer {
            Ok((Answer::Page { held, differing }, _)) => {
                *self.peers.entry(peer.clone()).or_default() += keys as u64;
                self.count(|counts| {
                    counts.compared += keys as u64;
                    counts.held += u64::from(held);
                });
                let now = self.now();
                for it in differing {
                    let at = it.at as usize;
                    let (own, theirs) = (page.own[at], it.held);
                    let difference = Difference { peer: peer.clone(), cache, key: page.key(at), own, theirs };
                    self.suspects.note(difference, now);
                }
            }
            Ok((answer, _)) => self.leave_out(peer, cache, incomparable(&answer).to_owned()),
            Err(error) => self.leave_out(peer, cache, error.to_string()),
        }
    }

    fn leave_out(&mut self, peer: &NodeId, cache: CacheId, why: String) {
        tracing::debug!(%peer, %why, "a peer's entries are not compared");
        self.gaps.insert((peer.clone(), cache), why);
    }

    /// Asks a peer, at the pace. Returns the answer, and when it was asked for.
    async fn ask(
        &mut self,
        peer: &NodeId,
        question: &Question,
        keys: usize,
    ) -> Result<(Answer, Tick), NoAnswer> {
        tokio::time::sleep(self.pace.wait(self.now())).await;
        let body = question.encode();
        let asked = self.now();
        let answer = self.bus.ask(peer, Topic::Audit, &body, WITHIN).await;
        let received = answer.as_ref().map_or(0, Bytes::len);
        self.pace.spend(keys, body.len() + received, self.now());
        self.count(|counts| {
            counts.sent += body.len() as u64;
            counts.received += received as u64;
        });
        Ok((Answer::decode(&answer?, question)?, asked))
    }

    /// Looks again at the differences whose time has come.
    async fn recheck(&mut self) {
        while let Some(Round { peer, cache, suspects }) = self.suspects.due(self.now()) {
            let keys: Vec<Bytes> = suspects.iter().map(|suspect| suspect.difference.key.clone()).collect();
            let open = self.bus.domain.caches().into_iter().find(|open| open.id() == cache);
            let theirs = match &open {
                Some(open) => self.theirs(&peer, &**open, &keys).await,
                None => None,
            };
            // Before the entries, as the peer does.
            let own_applied = self.own_applied();
            let own = own(open, keys).await;
            let now = self.now();
            for (at, suspect) in suspects.into_iter().enumerate() {
                let own = own.get(at).copied().flatten();
                let judged = match &theirs {
                    Some((theirs_applied, theirs)) => {
                        let (theirs, theirs_applied) = (theirs[at], *theirs_applied);
                        let again = Again { own, own_applied, theirs, theirs_applied };
                        self.suspects.judge(suspect, &again, now)
                    }
                    None => self.suspects.unanswered(suspect, now),
                };
                if let Some(judged) = judged {
                    self.conclude(judged);
                }
            }
        }
    }

    /// What a peer holds under these keys, and up to when it has applied everything.
    async fn theirs(
        &mut self,
        peer: &NodeId,
        cache: &dyn AnyCache,
        keys: &[Bytes],
    ) -> Option<(Tick, Vec<Option<Held>>)> {
        let subject = Subject::new(cache.id(), cache.settings().schema);
        let question = Question::Keys(subject, keys.iter().map(|key| key.to_vec()).collect());
        match self.ask(peer, &question, keys.len()).await {
            Ok((Answer::Keys { applied_ago_ms, held }, asked)) => {
                // It looked after it was asked.
                let applied = applied_ago_ms.map(|ago| asked.before(Duration::from_millis(ago)));
                Some((applied.unwrap_or(Tick::NEVER), held))
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Everything that all members did up to then is applied here.
    fn own_applied(&self) -> Tick {
        let now = self.now();
        self.bus.coherence.age().map_or(Tick::NEVER, |age| now.before(age))
    }

    fn conclude(&mut self, Judged { difference, seen, outcome }: Judged) {
        match outcome {
            Outcome::Lag => self.count(|counts| counts.lag += 1),
            Outcome::Unsettled => self.count(|counts| counts.unsettled += 1),
            Outcome::Inconsistent => {
                self.count(|counts| counts.inconsistent += 1);
                self.found(difference, seen);
            }
        }
    }

    fn found(&mut self, Difference { peer, cache, key, own, theirs }: Difference, seen: Tick) {
        let Some(open) = self.bus.domain.caches().into_iter().find(|open| open.id() == cache) else { return };
        let clock = self.bus.domain.clock();
        let (now_ms, ago) = (clock.wall_ms(), clock.now().since(seen));
        let found = Inconsistency {
            cache: open.name().clone(),
            key_text: open.key_text(&key),
            key,
            own_age: own.age() + ago,
            peer_age: theirs.age() + ago,
            peer,
            first_seen_ms: now_ms.saturating_sub(ago.as_millis() as u64),
            last_seen_ms: now_ms,
        };
        if self.counts.inconsistent <= LOGGED_MAX {
            // No log names keys: who may see them finds them where the node's coherence is shown.
            tracing::error!(cache = %found.cache, peer = %found.peer, own_age = ?found.own_age,
                peer_age = ?found.peer_age, "a key has different values here and there, and no change explains it");
        }
        self.bus.audits.state.lock().findings.add(found.clone());
        self.found.add(found);
    }

    fn count(&mut self, count: impl Fn(&mut AuditCounts)) {
        count(&mut self.counts);
        self.bus.audits.count(count);
    }

    fn progressed(&self) {
        self.bus.audits.progressed(Some(AuditProgress {
            began_ms: self.began_ms,
            requested: self.requested,
            entries: self.counts.entries,
            of: self.of.max(self.counts.entries),
            suspects: self.suspects.len(),
        }));
    }

    fn now(&self) -> Tick {
        self.bus.domain.clock().now()
    }

    fn report(mut self) -> AuditReport {
        let unexamined = self.suspects.unexamined();
        self.count(|counts| counts.unexamined += unexamined);
        let AuditCounts { inconsistent, .. } = self.counts;
        if inconsistent > LOGGED_MAX || unexamined > 0 {
            tracing::error!(inconsistent, unexamined, "entries differ from those of other nodes");
        }
        let gap = |node: &NodeId| {
            let of = self.gaps.iter().find(|((peer, _), _)| peer == node);
            of.map(|(_, why)| why.clone())
        };
        let peer = |(node, compared): (&NodeId, &u64)| AuditedPeer {
            gap: gap(node),
            node: node.clone(),
            compared: *compared,
        };
        AuditReport {
            began_ms: self.began_ms,
            took: self.now().since(self.began),
            requested: self.requested,
            peers: self.peers.iter().map(peer).collect(),
            counts: self.counts,
            inconsistencies: self.found.newest(),
        }
    }
}

/// What this node holds under these keys.
async fn own(cache: Option<Arc<dyn AnyCache>>, keys: Vec<Bytes>) -> Vec<Option<Held>> {
    let Some(cache) = cache else { return Vec::new() };
    let look = move || keys.iter().map(|key| cache.held(key)).collect();
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

fn incomparable(answer: &Answer) -> &'static str {
    match answer {
        Answer::Incomparable(Incomparable::NotAudited) => "a cache is not audited there",
        Answer::Incomparable(Incomparable::OtherSchema) => "a cache has another schema there",
        // It was hosted there a moment ago.
        _ => "a cache is not open there any more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_busy_is_asked_for_a_time_and_who_does_not_answer_so_many_times() {
        let (now, end) = (Tick(5), Tick(5).after(BUSY_TIME));
        let mut patience = Patience::from(now);
        let busy = NoAnswer::Ask(AskError::Declined(Declined::Busy));
        assert!((0..100).all(|_| patience.asks_again(&busy, now)));
        assert!(!patience.asks_again(&busy, end));
        let unlinked = NoAnswer::Ask(AskError::Unlinked);
        let again = (0..).take_while(|_| patience.asks_again(&unlinked, end)).count();
        assert_eq!(again, TRIES as usize - 1);
        let failed = NoAnswer::Ask(AskError::Declined(Declined::Failed));
        assert!(!Patience::from(now).asks_again(&failed, now));
    }
}
