//! One life of one node: its log, its cache, whom it knows, and what it follows and serves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use tidings_proto::follower::{Attempt, Follower};
use tidings_proto::frame::{Hello, MemberSet, NamedMember};
use tidings_proto::freshness::{Bounds, Doubt, Freshness, Published};
use tidings_proto::hash::HASH_VERSION;
use tidings_proto::id::{Incarnation, Lanes, LogId, NodeId, Origin, Sequence};
use tidings_proto::log::{ChangeLog, Cursor, Retention};
use tidings_proto::time::Tick;

use super::cache::Cache;
use super::net::StreamKey;
use super::{Bug, LOST_GRACE, MAX_STALENESS, Ms, SILENT_AFTER, WRITE_HORIZON, ms};

/// A lane as it is followed.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// The requests so far; a frame names its request by its place here.
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) asked: Ms,
    pub(crate) answered: bool,
    /// Frames of the lane wait until then for its fence.
    pub(crate) fencing_until: Ms,
    pub(crate) acked: Sequence,
}

/// An origin as it is followed.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) follower: Follower,
    pub(crate) links: Vec<Link>,
    pub(crate) connected: bool,
    /// When the newest probe that was answered had been sent.
    pub(crate) heard: Ms,
    pub(crate) progressed: Ms,
    told: Option<Tick>,
}

/// A lane as it is served to one follower.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) tag: usize,
    pub(crate) cursor: Cursor,
    pub(crate) in_flight: usize,
    pub(crate) waker: Waker,
    pub(crate) acked: Sequence,
}

/// Puts a stream into its process's list of those to pump: what a waiting sender task would be.
struct StreamWaker(StreamKey, Arc<Mutex<Vec<StreamKey>>>);

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.1.lock().expect("no panic under it").push(self.0.clone());
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) me: Origin,
    pub(crate) log: ChangeLog,
    pub(crate) cache: Cache,
    pub(crate) freshness: Freshness,
    pub(crate) published: Published,
    pub(crate) peers: BTreeMap<Origin, Peer>,
    /// Who has ended, as it was followed, should it turn out to be there.
    kept: BTreeMap<Origin, Peer>,
    pub(crate) streams: BTreeMap<StreamKey, Outgoing>,
    pub(crate) woken: Arc<Mutex<Vec<StreamKey>>>,
    /// Has exchanged hellos with a settled member, or founded the cluster.
    pub(crate) settled: bool,
    pub(crate) members_version: u64,
    pub(crate) dialled: BTreeMap<usize, Ms>,
    /// Newest probe of each follower, and whether an answer is under way.
    pub(crate) probes: BTreeMap<Origin, (u64, bool)>,
    pub(crate) open_writes: usize,
    pub(crate) leaving: Option<Ms>,
    pub(crate) sealed: Option<Vec<Sequence>>,
    pub(crate) goodbye_said: bool,
    pub(crate) ticks: u64,
    /// Heads of the last tick, for [`Bug::HeadsBeforeProbe`].
    pub(crate) old_heads: Vec<Sequence>,
}

pub(crate) fn node_id(index: usize) -> NodeId {
    NodeId::new(&format!("n{index}")).expect("a valid name")
}

pub(crate) fn index_of(node: &NodeId) -> usize {
    node.as_str()[1..].parse().expect("a node of this test")
}

pub(crate) fn origin_of((index, life): (usize, u64)) -> Origin {
    Origin { node: node_id(index), incarnation: Incarnation(life) }
}

impl Process {
    pub(crate) fn new(writer: (usize, u64), lanes: Lanes, events: u64, founder: bool, now: Tick) -> Self {
        let bounds = Bounds {
            max_staleness: ms(MAX_STALENESS),
            lost_grace: ms(LOST_GRACE),
            write_horizon: ms(WRITE_HORIZON),
            doubt_unclean_ends: true,
        };
        let mut freshness = Freshness::new(bounds, !founder, now);
        Self {
            me: origin_of(writer),
            log: ChangeLog::new(lanes, Retention { events, bytes: 0 }),
            cache: Cache::new(),
            published: freshness.publish(now),
            freshness,
            peers: BTreeMap::new(),
            kept: BTreeMap::new(),
            streams: BTreeMap::new(),
            woken: Arc::default(),
            settled: founder,
            members_version: 0,
            dialled: BTreeMap::new(),
            probes: BTreeMap::new(),
            open_writes: 0,
            leaving: None,
            sealed: None,
            goodbye_said: false,
            ticks: 0,
            old_heads: vec![0; usize::from(lanes.count())],
        }
    }

    /// Somebody names an origin, maybe itself. Returns whether it is news.
    pub(crate) fn name(
        &mut self,
        origin: &Origin,
        by: &NodeId,
        now: Tick,
        now_ms: Ms,
        bug: Option<Bug>,
    ) -> bool {
        let itself = origin.node == *by;
        if origin.node == self.me.node || (bug == Some(Bug::EndedForGood) && self.is_closing(origin, now)) {
            return false;
        }
        let new = if itself {
            self.freshness.met(origin, now)
        } else {
            !self.freshness.named(by, [origin]).new.is_empty()
        };
        if !new || self.peers.contains_key(origin) {
            self.members_version += u64::from(new);
            return new;
        }
        let lanes = self.log.lanes();
        let unknown = || Peer {
            follower: Follower::new(origin.clone(), lanes),
            links: lanes.ids().map(|_| Link::default()).collect(),
            connected: false,
            heard: 0,
            progressed: 0,
            told: None,
        };
        let kept = self.kept.remove(origin).unwrap_or_else(unknown);
        let peer = Peer { connected: false, heard: now_ms, progressed: now_ms, told: None, ..kept };
        self.peers.insert(origin.clone(), peer);
        self.members_version += 1;
        true
    }

    /// The newest life of a node that is known and has not left.
    pub(crate) fn newest(&self, node: &NodeId) -> Option<&Origin> {
        self.peers.keys().rev().find(|origin| origin.node == *node)
    }

    /// Somebody live hears an origin.
    pub(crate) fn found(&mut self, origin: &Origin, now: Tick, bug: Option<Bug>) {
        if bug != Some(Bug::EndedForGood) || !self.is_closing(origin, now) {
            self.freshness.found(origin, now);
        }
    }

    fn is_closing(&self, origin: &Origin, now: Tick) -> bool {
        self.freshness.doubts(now).contains(&Doubt::UncleanEnd(origin.clone()))
    }

    /// Passes on what a follower knows by now.
    pub(crate) fn confirm(&mut self, origin: &Origin, now: Tick, bug: Option<Bug>) {
        let ended_for_good = bug == Some(Bug::EndedForGood)
            && (self.is_closing(origin, now) || !self.freshness.is_relevant(origin));
        let Some(peer) = self.peers.get_mut(origin).filter(|_| !ended_for_good) else { return };
        if peer.follower.confirmed() > peer.told {
            if !self.freshness.is_relevant(origin) && !peer.follower.ended() {
                self.freshness.met(origin, now);
            }
            peer.told = peer.follower.confirmed();
            let confirmed = if bug == Some(Bug::ConfirmedAtReceipt) { Some(now) } else { peer.told };
            self.freshness.confirmed(origin, confirmed.expect("later than nothing"));
        }
        if peer.follower.ended() {
            self.freshness.left(origin);
        }
    }

    /// Publishes, and lets go of who is not relevant any more. Returns them, and whether they had said goodbye.
    pub(crate) fn publish(&mut self, now: Tick, now_ms: Ms, bug: Option<Bug>) -> Vec<(Origin, bool)> {
        self.published = self.freshness.publish(now);
        if bug == Some(Bug::NoFloor) {
            self.published.floor = Tick::NEVER;
        }
        if self.freshness.relevant().count() == self.peers.len() {
            return Vec::new();
        }
        // A link outlives the relevance of who is at its other end.
        let linked =
            |peer: &Peer| peer.connected && now_ms <= peer.heard + SILENT_AFTER && !peer.follower.ended();
        let gone = |(origin, peer): (&Origin, &Peer)| {
            (!self.freshness.is_relevant(origin) && !linked(peer)).then(|| origin.clone())
        };
        let gone: Vec<_> = self.peers.iter().filter_map(gone).collect();
        self.members_version += u64::from(!gone.is_empty());
        let let_go = |origin: Origin| {
            let peer = self.peers.remove(&origin).expect("just seen");
            self.streams.retain(|key, _| key.peer != origin);
            let ended = peer.follower.ended();
            self.kept.insert(origin.clone(), peer);
            (origin, ended)
        };
        gone.into_iter().map(let_go).collect()
    }

    pub(crate) fn waker(&self, key: &StreamKey) -> Waker {
        Waker::from(Arc::new(StreamWaker(key.clone(), Arc::clone(&self.woken))))
    }

    pub(crate) fn members(&self) -> MemberSet {
        let address = ([127, 0, 0, 1], 7400).into();
        let member = |origin: &Origin| NamedMember { origin: origin.clone(), address, ended: false };
        let relevant = self.freshness.relevant().map(|(origin, _)| origin);
        MemberSet { version: self.members_version, members: relevant.map(member).collect() }
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            protocols: (1, 1),
            cluster: "model".to_owned(),
            node: self.me.node.clone(),
            incarnation: self.me.incarnation,
            log: LogId(self.me.incarnation.0),
            hash_version: HASH_VERSION,
            lanes: self.log.lanes(),
            address: ([127, 0, 0, 1], 7400).into(),
            zone: String::new(),
            release: String::new(),
            wall_ms: 0,
            age_ms: 0,
            members: self.members(),
        }
    }
}
