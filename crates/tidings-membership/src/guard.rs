//! What stands between the wire and chitchat: every message from a peer is taken apart, and chitchat is
//! handed only what may be believed of it.
//!
//! - A node is mentioned to chitchat only once its record, signed by itself, has been seen, and only such
//!   records are. A node's versions are the serial numbers that it has signed, so nobody else can invent one.
//! - Heartbeats are judged as [`crate::heartbeat`] says. chitchat sees numbers of this guard's own making,
//!   which rise by one with each piece of news; so no claim can leave it with a number that the truth cannot
//!   reach.
//! - A claim that is not believed is left out, and the rest of the message stands: the sender may be honest
//!   and have been lied to, and refusing its word altogether would let a liar silence it.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::id::NodeId;
use tidings_proto::time::Tick;

use crate::attest::{Attestor, Invalid, Statement};
use crate::budget::{Budget, PER_FRAME};
use crate::heartbeat::{Claim, Heartbeat};
use crate::stats::{Reason, Stats};
use crate::wire::{Change, DIGEST_NODES_MAX, Identity, Message, Seen, Unpacker};

/// Most bytes of the digest of all remembered lives, this node's own included. chitchat always sends its
/// digest whole, and panics when too little of its 65,507 bytes is left for the rest.
const DIGEST_BYTES_MAX: usize = 48 << 10;

/// Most lives of one node that are remembered at a time; a node that restarts every 6 s has 30 within the
/// default [`crate::Config::gossip_memory`].
const LIVES_MAX: usize = 32;

/// How long a life stays remembered that chitchat does not know (yet), so that its first heartbeat finds it.
const UNKNOWN_TO_GOSSIP: Duration = Duration::from_secs(60);

/// How many records that did not verify are remembered, and for how long, so that repeating one costs
/// nothing.
const REFUSED_MAX: usize = 64;
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// News of a node that chitchat is told at once, before the pace of its gossip interval applies: it calls a
/// node live after its third heartbeat.
const FIRST_NEWS: u32 = 4;

/// Least share of a gossip interval between two pieces of news of one node, in percent. chitchat expects news
/// at the pace of the past; without this, ten fast seconds would make it impatient in the slow ones that
/// follow.
const PACE_PERCENT: u32 = 95;

/// The gate for gossip of one node. Synchronous, and told the time.
pub(crate) struct Guard {
    cluster: String,
    me: Identity,
    attestor: Arc<dyn Attestor>,
    stats: Arc<Stats>,
    known: BTreeMap<Identity, Known>,
    /// The newest of this node's own serial numbers that each peer has shown to know.
    shown_to: BTreeMap<SocketAddr, u64>,
    refused: VecDeque<(u64, Tick)>,
    budget: Budget,
    /// Signatures that may still be checked of the present frame.
    checks_left: u32,
    unpacker: Unpacker,
    hasher: RandomState,
    /// The last heartbeat number handed to chitchat, for whichever node.
    last_news: u64,
    pace: Duration,
}

/// A life whose record has been seen.
struct Known {
    serial: u64,
    text: String,
    since: Tick,
    /// Its record does not verify any more.
    denied: bool,
    heartbeat: Heartbeat,
    news: u64,
    news_at: Tick,
    news_count: u32,
}

/// What may be believed of a message.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// The message, for chitchat.
    pub(crate) message: Vec<u8>,
    /// Statements of members that were not known before.
    pub(crate) statements: Vec<Statement>,
}

impl Guard {
    pub(crate) fn new(
        cluster: String,
        me: Identity,
        (attestor, stats): (Arc<dyn Attestor>, Arc<Stats>),
        gossip_interval: Duration,
    ) -> Self {
        Self {
            cluster,
            me,
            attestor,
            stats,
            known: BTreeMap::new(),
            shown_to: BTreeMap::new(),
            refused: VecDeque::new(),
            budget: Budget::default(),
            checks_left: 0,
            unpacker: Unpacker::default(),
            hasher: RandomState::new(),
            last_news: 0,
            pace: gossip_interval * PACE_PERCENT / 100,
        }
    }

    /// Judges a frame from a peer, of whose identity the transport is sure, and which says that it is at this address.
    pub(crate) fn admit(
        &mut self,
        from: (&NodeId, SocketAddr),
        frame: &[u8],
        now: Tick,
    ) -> Result<Admitted, Reason> {
        let mut parsed = Message::parse(frame, &mut self.unpacker)?;
        self.checks_left = PER_FRAME;
        (0..parsed.omitted).for_each(|_| self.stats.reject(Reason::Operation));
        let mut statements = Vec::new();
        match &mut parsed.message {
            Message::BadCluster => return Err(Reason::Cluster),
            Message::Syn { cluster, .. } if *cluster != self.cluster => return Err(Reason::Cluster),
            Message::Syn { digest, .. } => self.see_all(digest, from, now),
            // Records first: a message may introduce a node and say what is known of it.
            Message::SynAck { digest, delta } => {
                self.attest_all(delta, &mut statements, (from.0, now));
                self.see_all(digest, from, now);
            }
            Message::Ack { delta } => self.attest_all(delta, &mut statements, (from.0, now)),
        }
        Ok(Admitted { message: parsed.message.encode(), statements })
    }

    /// Puts the true heartbeats back into a message that chitchat has written.
    pub(crate) fn release(&self, message: &mut [u8]) -> Result<(), Reason> {
        crate::wire::replace_heartbeats(message, |node| {
            let best = || self.known.get(node).map_or(0, |known| known.heartbeat.best());
            (*node != self.me).then(best)
        })
    }

    /// Forgets the lives that chitchat has forgotten.
    pub(crate) fn retain(&mut self, gossiped: &BTreeSet<Identity>, now: Tick) {
        self.known
            .retain(|node, known| gossiped.contains(node) || now.since(known.since) < UNKNOWN_TO_GOSSIP);
    }

    /// Checks all records again. Of those that do not verify any more, no gossip is accepted until they do.
    pub(crate) fn recheck(&mut self) {
        for (node, known) in &mut self.known {
            let place = (&node.origin, node.address, known.serial);
            let verified = Statement::verify(&self.cluster, place, &known.text, &*self.attestor);
            known.denied = verified.is_err();
        }
    }

    /// Whether the peer at this address has shown that it knows this node's record with this serial number.
    pub(crate) fn knows_me(&self, peer: SocketAddr, serial: u64) -> bool {
        self.shown_to.get(&peer).is_some_and(|shown| *shown >= serial)
    }

    fn attest_all(&mut self, delta: &mut Vec<Change>, statements: &mut Vec<Statement>, at: (&NodeId, Tick)) {
        delta.retain(|change| match self.attest(change, at) {
            Ok(statement) => {
                statements.extend(statement);
                true
            }
            Err(reason) => {
                self.stats.reject(reason);
                false
            }
        });
    }

    /// Whether a change may reach chitchat, and what news it holds. What is cheap is asked first.
    fn attest(&mut self, change: &Change, at: (&NodeId, Tick)) -> Result<Option<Statement>, Reason> {
        let node = &change.node;
        // Nobody tells a node what it has said itself.
        if *node == self.me {
            return Err(Reason::Forged);
        }
        let known = self.known.get(node);
        let newest = change.record.as_ref().map_or(0, |(serial, _)| *serial);
        if known.is_some_and(|known| known.denied && newest <= known.serial) {
            return Err(Reason::Forged);
        }
        let Some((serial, text)) = &change.record else {
            return known.map(|_| None).ok_or(Reason::Unattested);
        };
        if known.is_some_and(|known| known.serial == *serial && known.text == *text) {
            return Ok(None);
        }
        if known.is_none() {
            self.check_room(node)?;
        }
        let statement = self.verify(node, *serial, text, at)?;
        match self.known.get_mut(node) {
            Some(known) if known.serial >= *serial => return Ok(None),
            Some(known) => {
                known.serial = *serial;
                known.text.clone_from(text);
                known.denied = false;
            }
            None => self.remember(node, *serial, text, at.1),
        }
        Ok(Some(statement))
    }

    fn verify(
        &mut self,
        node: &Identity,
        serial: u64,
        text: &str,
        (from, now): (&NodeId, Tick),
    ) -> Result<Statement, Reason> {
        if node.address.ip().is_unspecified() || node.address.port() == 0 {
            return Err(Reason::Operation);
        }
        let hash = self.hasher.hash_one((node, serial, text));
        self.refused.retain(|(_, at)| now.since(*at) < REFUSED_FOR);
        if self.refused.iter().any(|(refused, _)| *refused == hash) {
            return Err(Reason::Forged);
        }
        if self.checks_left == 0 || !self.budget.take(from, now) {
            return Err(Reason::Budget);
        }
        self.checks_left -= 1;
        let place = (&node.origin, node.address, serial);
        Statement::verify(&self.cluster, place, text, &*self.attestor).map_err(|invalid| match invalid {
            Invalid::Unreadable => Reason::Operation,
            Invalid::Forged => {
                self.refused.truncate(REFUSED_MAX - 1);
                self.refused.push_front((hash, now));
                Reason::Forged
            }
        })
    }

    /// Whether a new life can be remembered.
    fn check_room(&self, node: &Identity) -> Result<(), Reason> {
        let lives = self.known.keys().filter(|known| known.origin.node == node.origin.node).count();
        let bytes: usize = self.known.keys().chain([&self.me, node]).map(Identity::digest_bytes).sum();
        // With this node itself and the new one, a digest still has a length that peers accept.
        let full = self.known.len() + 2 > DIGEST_NODES_MAX || bytes > DIGEST_BYTES_MAX;
        if full || lives >= LIVES_MAX { Err(Reason::Capacity) } else { Ok(()) }
    }

    fn remember(&mut self, node: &Identity, serial: u64, text: &str, now: Tick) {
        let known = Known {
            serial,
            text: text.to_owned(),
            since: now,
            denied: false,
            heartbeat: Heartbeat::default(),
            news: 0,
            news_at: Tick::NEVER,
            news_count: 0,
        };
        self.known.insert(node.clone(), known);
    }

    fn see_all(&mut self, digest: &mut Vec<Seen>, from: (&NodeId, SocketAddr), now: Tick) {
        digest.retain_mut(|seen| match self.see(seen, from, now) {
            Ok(()) => true,
            Err(reason) => {
                self.stats.reject(reason);
                false
            }
        });
    }

    /// Judges what a peer has seen of a node, and puts the number in it that chitchat is to see.
    fn see(&mut self, seen: &mut Seen, from: (&NodeId, SocketAddr), now: Tick) -> Result<(), Reason> {
        if seen.node == self.me {
            self.note_shown(from.1, seen.version);
            return Ok(());
        }
        let known = self.known.get_mut(&seen.node).filter(|known| !known.denied).ok_or(Reason::Unattested)?;
        // By its certificate too: anybody may say that it is at the address of one who cannot be asked now.
        let claim = if from == (&seen.node.origin.node, seen.node.address) {
            known.heartbeat.hear(seen.heartbeat, now)
        } else {
            known.heartbeat.hear_of(seen.heartbeat, now)
        };
        if claim == Claim::Implausible {
            return Err(Reason::Heartbeat);
        }
        let paced = known.news_count < FIRST_NEWS || now.since(known.news_at) >= self.pace;
        // chitchat must see some number, even of a node whose first mention is no news.
        if known.news == 0 || claim == Claim::News && paced {
            self.last_news += 1;
            known.news = self.last_news;
            known.news_at = now;
            known.news_count = known.news_count.saturating_add(1);
        }
        seen.heartbeat = known.news;
        Ok(())
    }

    fn note_shown(&mut self, peer: SocketAddr, serial: u64) {
        // Only addresses of remembered lives, which are bounded.
        if self.known.keys().any(|node| node.address == peer) {
            self.shown_to.insert(peer, serial);
        }
        if self.shown_to.len() > self.known.len() {
            self.shown_to.retain(|peer, _| self.known.keys().any(|node| node.address == *peer));
        }
    }
}

#[cfg(test)]
mod tests;
