//! Whom this node names to others, and what it makes of those whom others name.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_proto::frame::{MEMBERS_MAX, MemberSet, NamedMember};
use tidings_proto::freshness::{ENDED_NAMED_MAX, Named};
use tidings_proto::id::{Incarnation, NodeId, Origin};
use tidings_proto::time::Tick;

use super::{Coherence, ENDED_KEPT_MAX, Following, Inner};

/// Replaced lives that are named to others as such. Their successors heed it, which hear it when they are admitted; so
/// the newest few will do, and of more the life that began first goes.
pub(super) const REPLACED_NAMED_MAX: usize = 64;

/// Entries of a member set for lives that have ended: two for each that can be named so by this node's own judgement,
/// and as many for those that it was told of.
const ENDS_NAMED_MAX: usize = 4 * ENDED_NAMED_MAX;

/// Lives that were given up and may be there again, which are dialled at a time. More are found by gossip, which takes
/// longer.
const AGAIN_MAX: usize = 64;

/// How far ahead of every known clock the start of a life may be said to lie. A day is more than clocks differ.
const LIFE_AHEAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Coherence {
    /// Another process, at this address, has taken the place of a life. It is told so, unless that life has said
    /// goodbye: then there is no process to meet.
    pub(crate) fn replaced(&self, origin: Origin, address: SocketAddr) {
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        if inner.freshness.has_left(&origin) {
            return;
        }
        inner.replaced.retain(|life| life.origin.node != origin.node);
        inner.replaced.push_back(NamedMember { origin, address, ended: true });
        if inner.replaced.len() > REPLACED_NAMED_MAX {
            inner.replaced.pop_front();
        }
        inner.published = None;
        self.publish_locked(&mut inner, now);
    }

    /// A peer's member set: whoever it names is relevant, or has ended.
    pub(crate) fn named(&self, by: &NodeId, members: &MemberSet) {
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        self.name_all(&mut inner, by, members, now);
        self.publish_locked(&mut inner, now);
    }

    /// A life that is named both as one that is there and as ended has ended without a goodbye; see [`named_ends`].
    pub(super) fn name_all(&self, inner: &mut Inner, by: &NodeId, members: &MemberSet, now: Tick) {
        let own = self.domain.origin().incarnation;
        for life in members.members.iter().filter(|life| life.origin.node == self.me && life.ended) {
            let newest = inner.predecessor.as_ref().map(|known| known.origin.incarnation);
            if life.origin.incarnation < own && Some(life.origin.incarnation) > newest {
                inner.predecessor = Some(life.clone());
                inner.published = None;
            }
        }
        let latest = self.latest_life(inner);
        let (credible, absurd): (Vec<_>, Vec<_>) = members
            .members
            .iter()
            .filter(|member| member.origin.node != self.me && !member.ended)
            .partition(|member| member.origin.incarnation <= latest);
        let ended: BTreeSet<&Origin> =
            members.members.iter().filter(|member| member.ended).map(|member| &member.origin).collect();
        let (over, there): (Vec<_>, Vec<_>) =
            credible.iter().map(|member| &member.origin).partition(|origin| ended.contains(origin));
        inner.note_again(credible.iter().filter(|member| !ended.contains(&member.origin)).copied(), now);
        let Named { new, refused } = inner.freshness.named(by, there);
        let told = inner.freshness.told_ended(by, over, now);
        let new: BTreeSet<Origin> = new.into_iter().chain(told.new).collect();
        for NamedMember { origin, address, .. } in credible {
            if new.contains(origin) {
                inner.peer(origin, *address);
            }
        }
        let refused = refused + told.refused + absurd.len();
        if refused > 0 {
            self.hearsay_refused.fetch_add(refused as u64, Ordering::Relaxed);
            tracing::warn!(%by, refused, "a member names more others than can be, or lives of the far future");
        }
    }

    /// The newest life that a node can have by any clock that is known: a life is numbered by the time of its start.
    /// Once several peers were met, no single one's clock decides: the one that is ahead of all is left out.
    fn latest_life(&self, inner: &Inner) -> Incarnation {
        let mut ahead_ms: Vec<u64> = inner.ahead_ms.values().copied().collect();
        ahead_ms.sort_unstable_by(|a, b| b.cmp(a));
        let ahead_ms = ahead_ms.get(1).or_else(|| ahead_ms.first()).copied().unwrap_or(0);
        let wall_ms = self.domain.clock().wall_ms().saturating_add(ahead_ms);
        Incarnation(wall_ms.saturating_add(LIFE_AHEAD_MAX.as_millis() as u64))
    }

    /// Whether a node can have a life of this number by now.
    pub(crate) fn is_credible(&self, incarnation: Incarnation) -> bool {
        incarnation <= self.latest_life(&self.inner.lock())
    }

    /// How often a peer named a life that was not taken note of.
    pub(crate) fn hearsay_refused(&self) -> u64 {
        self.hearsay_refused.load(Ordering::Relaxed)
    }

    pub(super) fn publish_members(&self, inner: &mut Inner, now: Tick) {
        inner.published = Some(inner.freshness.changes());
        let (mut named, hearsay): (Vec<NamedMember>, Vec<NamedMember>) = inner
            .freshness
            .relevant()
            .filter_map(|(origin, _)| inner.name(origin))
            .partition(|member| inner.freshness.is_proven(&member.origin));
        // A frame holds no more; who is known for certain comes first, and of those who is there.
        named.sort_by_key(|member| inner.freshness.is_ending(&member.origin));
        named.extend(hearsay);
        let replaced = inner.replaced.iter().chain(&inner.predecessor).cloned();
        let ended: Vec<_> = named_ends(inner, now).into_iter().chain(replaced).collect();
        named.truncate(MEMBERS_MAX - ended.len());
        named.extend(ended);
        self.members.send_if_modified(|set| {
            let changed = set.members != named;
            if changed {
                *set = Arc::new(MemberSet { version: set.version + 1, members: named });
            }
            changed
        });
        inner.note_tenures(|| self.domain.log().heads(), self.domain.clock().now());
        let Inner { freshness, peers, dropped, .. } = inner;
        if peers.len() > ENDED_KEPT_MAX {
            let named: BTreeSet<Origin> = freshness.ended(now).cloned().collect();
            let kept = |origin: &Origin| freshness.is_relevant(origin) || named.contains(origin);
            // Somebody may still ask for the end of one that is over: all stay until they are too many.
            if peers.keys().filter(|origin| !kept(origin)).count() <= ENDED_KEPT_MAX {
                return;
            }
            peers.retain(|origin, peer| {
                let kept = kept(origin);
                if !kept {
                    self.relaying.forget(origin);
                }
                if let Some(followed) = peer.followed.as_deref().filter(|_| !kept) {
                    dropped.add(&Following::of(followed));
                }
                kept
            });
        }
    }
}

/// What others are to be told of lives that have ended without a goodbye. Each is named as ended; and as one that is
/// there, for releases that heed only that, and for those that heed both: a life that is named as ended alone was
/// replaced, which concerns nobody but its successor.
fn named_ends(inner: &Inner, now: Tick) -> Vec<NamedMember> {
    let mut ends = Vec::new();
    for member in inner.freshness.ended(now).filter_map(|origin| inner.name(origin)) {
        ends.push(NamedMember { ended: true, ..member.clone() });
        // As a relevant one it is there already.
        if !inner.freshness.is_relevant(&member.origin) {
            ends.push(member);
        }
    }
    // What told lives would take beyond that is not passed on.
    ends.truncate(ENDS_NAMED_MAX);
    ends
}

impl Inner {
    /// Notes lives that this node has given up and a peer names as there: nobody else may dial, and what they change is
    /// missed until they have met. That is all it does: whether they are there, their own `Hello` says.
    pub(super) fn note_again<'a>(&mut self, there: impl Iterator<Item = &'a NamedMember>, now: Tick) {
        let Self { freshness, again, .. } = self;
        let lost_grace = freshness.bounds().lost_grace;
        again.retain(|origin, (_, at)| freshness.has_given_up(origin) && now.since(*at) < lost_grace);
        for NamedMember { origin, address, .. } in
            there.filter(|member| freshness.has_given_up(&member.origin))
        {
            if again.len() < AGAIN_MAX || again.contains_key(origin) {
                again.insert(origin.clone(), (*address, now));
            }
        }
    }

    fn name(&self, origin: &Origin) -> Option<NamedMember> {
        let address = self.peers.get(origin)?.address;
        Some(NamedMember { origin: origin.clone(), address, ended: false })
    }
}
