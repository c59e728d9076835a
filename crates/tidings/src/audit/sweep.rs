//! One sweep: every entry of every audited cache, page by page, against every peer that hosts the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_cache::{AnyCache, Slice};
use tidings_membership::State;
use tidings_proto::ask::Topic;
use tidings_proto::audit::{
    Again, Answer, Difference, Digested, Held, Incomparable, Judged, Outcome, Pace, Question, Round, Subject,
    Suspects,
};
use tidings_proto::hash::CacheId;
use tidings_proto::id::{NodeId, Origin};
use tidings_proto::time::Tick;

use super::found::{FINDINGS_MAX, Findings};
use super::patience::{NoAnswer, Patience, TRY_PAUSE};
use super::report::{AuditCounts, AuditProgress, AuditReport, AuditedPeer, Inconsistency};
use crate::bus::Bus;
use crate::hosted;

/// How long a peer has to answer: a release that knows no questions ends the stream after 5 s, which says more.
const WITHIN: Duration = Duration::from_secs(10);

/// Inconsistencies of one sweep that are logged one by one; of more only the number.
const LOGGED_MAX: u64 = 10;

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
    /// Who was asked about the rest of a cache only.
    late: BTreeSet<NodeId>,
    found: Findings,
    /// Inconsistencies that no sweep lately had found.
    news: u64,
    /// What the last sweep came to.
    last: Option<Arc<AuditReport>>,
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
            late: BTreeSet::new(),
            found: Findings::default(),
            news: 0,
            last: bus.audits.state.lock().last.clone(),
        }
    }

    pub(super) async fn run(mut self) -> AuditReport {
        let caches: Vec<_> =
            self.bus.domain.caches().into_iter().filter(|cache| cache.is_audited()).collect();
        if self.requested {
            // Else a cache that was just filled may count as empty, and its audit as complete though nobody was asked.
            let counted = caches.clone();
            let _ = tokio::task::spawn_blocking(move || counted.iter().for_each(|it| it.housekeep())).await;
        }
        self.of = caches.iter().map(|cache| cache.entries()).sum();
        let mut asked = Vec::new();
        for cache in &caches {
            asked.push(self.cache(cache).await);
        }
        for (cache, mut asked) in caches.iter().zip(asked) {
            // Also those who have come since, while other caches had their turn.
            self.there_are(cache.id(), &mut asked, self.hosts(&**cache));
            for absent in self.absent(&**cache) {
                self.peers.entry(absent.clone()).or_default();
                self.leave_out(&absent, cache.id(), "it was not there".to_owned());
            }
        }
        while let Some(due) = self.suspects.next_due() {
            tokio::time::sleep(due.since(self.now())).await;
            self.recheck().await;
        }
        self.report()
    }

    /// Compares a cache. Returns who was asked about it.
    async fn cache(&mut self, cache: &Arc<dyn AnyCache>) -> Option<BTreeSet<NodeId>> {
        let (mut next, mut asked) = (Some(0), None);
        while let Some(from) = next {
            if self.hosts(&**cache).is_empty() {
                asked.get_or_insert_default();
                break;
            }
            let walked = cache.clone();
            let slice = tokio::task::spawn_blocking(move || walked.slice(from)).await;
            // It does not panic, and the runtime has not ended: this runs on it.
            let Ok(slice) = slice else { break };
            next = slice.next();
            self.slice(cache, Arc::new(slice), &mut asked).await;
        }
        self.there_are(cache.id(), &mut asked, self.hosts(&**cache));
        asked
    }

    /// Takes note of who can be asked about a cache now: of those that were asked before, who is not there any more is
    /// left out, and who has come is asked about the rest.
    fn there_are(&mut self, cache: CacheId, asked: &mut Option<BTreeSet<NodeId>>, hosts: Vec<NodeId>) {
        if let Some(asked) = asked {
            for gone in asked.iter().filter(|peer| !hosts.contains(peer)) {
                if !self.gaps.contains_key(&(gone.clone(), cache)) {
                    self.leave_out(gone, cache, "it was not there for all of it".to_owned());
                }
            }
            for come in hosts.iter().filter(|peer| !asked.contains(*peer)) {
                self.peers.entry(come.clone()).or_default();
                self.late.insert(come.clone());
            }
        }
        asked.get_or_insert_default().extend(hosts);
    }

    async fn slice(
        &mut self,
        cache: &Arc<dyn AnyCache>,
        slice: Arc<Slice>,
        asked: &mut Option<BTreeSet<NodeId>>,
    ) {
        let mut from = 0;
        while from < slice.len() {
            let (walked, keys, most) = (cache.clone(), slice.clone(), self.pace.page());
            let page = tokio::task::spawn_blocking(move || Page::of(&*walked, keys, from, most)).await;
            let Ok(page) = page else { return };
            self.count(|counts| counts.entries += (page.next - from) as u64);
            from = page.next;
            let hosts = self.hosts(&**cache);
            self.there_are(cache.id(), asked, hosts.clone());
            for peer in hosts {
                self.compare(&page, &peer).await;
            }
            self.recheck().await;
            self.progressed();
        }
    }

    /// The live members that host a cache and can be asked about it.
    fn hosts(&self, cache: &dyn AnyCache) -> Vec<NodeId> {
        let hosts = self.live().into_iter().filter(|origin| {
            let caches = self.bus.coherence.peer(origin).unwrap_or_default().caches;
            is_among(&caches, cache)
        });
        let asked = hosts.filter(|origin| !self.gaps.contains_key(&(origin.node.clone(), cache.id())));
        asked.map(|origin| origin.node).collect()
    }

    /// The nodes that may hold entries of a cache, and of which no life can be asked: what those host that were never
    /// linked is not known.
    fn absent(&self, cache: &dyn AnyCache) -> BTreeSet<NodeId> {
        let live: BTreeSet<_> = self.live().into_iter().map(|origin| origin.node).collect();
        let relevant = self.bus.coherence.relevant().into_iter();
        let others = relevant.filter(|origin| origin.node != self.bus.node && !live.contains(&origin.node));
        let may_hold = others.filter(|origin| {
            let peer = self.bus.coherence.peer(origin).unwrap_or_default();
            peer.followed.is_none() || is_among(&peer.caches, cache)
        });
        let nodes = may_hold.map(|origin| origin.node);
        nodes.filter(|node| !self.gaps.contains_key(&(node.clone(), cache.id()))).collect()
    }

    fn live(&self) -> Vec<Origin> {
        let view = self.bus.membership().map(|membership| membership.view()).unwrap_or_default();
        let live = view.members.values().filter(|member| member.state == State::Live);
        live.map(|member| member.record.origin.clone()).collect()
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
            let open = self.bus.domain.cache_of(cache);
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
                    None if self.gaps.contains_key(&(peer.clone(), cache)) => Some(suspect.given_up()),
                    None => self.suspects.unanswered(suspect, now),
                };
                if let Some(judged) = judged {
                    self.conclude(judged);
                }
            }
        }
    }

    /// What a peer holds under these keys, and up to when it has applied everything. One that does not answer in time
    /// is asked no more: each further question would take as long.
    async fn theirs(
        &mut self,
        peer: &NodeId,
        cache: &dyn AnyCache,
        keys: &[Bytes],
    ) -> Option<(Tick, Vec<Option<Held>>)> {
        if self.gaps.contains_key(&(peer.clone(), cache.id())) {
            return None;
        }
        let subject = Subject::new(cache.id(), cache.settings().schema);
        let question = Question::Keys(subject, keys.iter().map(|key| key.to_vec()).collect());
        match self.ask(peer, &question, keys.len()).await {
            Ok((Answer::Keys { applied_ago_ms, held }, asked)) => {
                // It looked after it was asked.
                let applied = applied_ago_ms.map(|ago| asked.before(Duration::from_millis(ago)));
                Some((applied.unwrap_or(Tick::NEVER), held))
            }
            Err(error) if error.is_late() => {
                self.leave_out(peer, cache.id(), error.to_string());
                None
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
        let Some(open) = self.bus.domain.cache_of(cache) else { return };
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
        let is_new = self.bus.audits.state.lock().findings.add(found.clone());
        // Of more than are remembered nobody knows which are.
        let last = self.last.as_ref().map_or(0, |last| last.counts.inconsistent);
        if is_new && last <= FINDINGS_MAX as u64 {
            self.news += 1;
            if self.news <= LOGGED_MAX {
                // No log names keys: who may see them finds them where the node's coherence is shown.
                tracing::error!(cache = %found.cache, peer = %found.peer, own_age = ?found.own_age,
                    peer_age = ?found.peer_age, "a key has different values here and there, and no change explains it");
            }
        }
        let _ = self.found.add(found);
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
        let figures = |counts: &AuditCounts| (counts.inconsistent, counts.unexamined);
        let (inconsistent, unexamined) = figures(&self.counts);
        // Paced sweeps find the same again and again.
        let is_news = self.requested
            || self.last.as_ref().map(|last| figures(&last.counts)) != Some(figures(&self.counts));
        if is_news && (inconsistent > LOGGED_MAX || unexamined > 0) {
            tracing::error!(inconsistent, unexamined, "entries differ from those of other nodes");
        }
        let gap = |node: &NodeId| {
            let of = self.gaps.iter().find(|((peer, _), _)| peer == node);
            let late =
                || self.late.contains(node).then(|| "it came while the audit was under way".to_owned());
            of.map(|(_, why)| why.clone()).or_else(late)
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
            of: self.of.max(self.counts.entries),
            peers: self.peers.iter().map(peer).collect(),
            counts: self.counts,
            inconsistencies: self.found.newest(),
        }
    }
}

/// Whether caches that were announced so include one.
fn is_among(announced: &[String], cache: &dyn AnyCache) -> bool {
    announced.iter().any(|named| hosted::read(named).0 == **cache.name())
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
#[path = "sweep_tests.rs"]
mod tests;
