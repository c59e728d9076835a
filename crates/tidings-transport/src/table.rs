//! Which connection to a node counts. Pure: it is told the time, and says what to ask and what to close.
//!
//! A node may be connected several times for a moment: both ends dialled, or one dialled again beside a silent
//! connection. Exactly one of its connections is *current* here. Both ends mostly arrive at the same one, and may
//! differ for a moment, for each knows only what it hears. So one end alone thins them out, the one with the smaller
//! node id, and only while the connection that it keeps answers: an answer shows that the other end has it too, and
//! the other end closes none.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidings_proto::id::{Incarnation, LogId, NodeId};
use tidings_proto::time::Tick;

use crate::limits::{DIAL_ADDRESSES_MAX, LINKS_PER_NODE_MAX, SILENCE, SURPLUS_GRACE, SURPLUS_GRACE_SILENT};

/// Names one connection within a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(u64);

/// When the newest probe was sent that was answered on a connection, if one was. A time of receipt would say less: what
/// a process reads after a pause may be old. Shared between the table and those who hear.
#[derive(Clone, Debug)]
pub(crate) struct Heard(Arc<AtomicU64>);

impl Default for Heard {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(Tick::NEVER.0)))
    }
}

impl Heard {
    pub(crate) fn at(&self, now: Tick) {
        self.0.fetch_max(now.0, Ordering::AcqRel);
    }

    pub(crate) fn last(&self) -> Tick {
        Tick(self.0.load(Ordering::Acquire))
    }
}

/// What decides about a connection.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) log: LogId,
    /// Where the peer says that it can be dialled.
    pub(crate) address: SocketAddr,
    /// Where its packets come from.
    pub(crate) remote: SocketAddr,
    /// Whether this node began it.
    pub(crate) initiated: bool,
}

/// Whether a newcomer can be let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement<L> {
    /// Nothing stands against it.
    Welcome,
    /// Others hold what it claims. If one of them is alive, it is refused.
    Ask(Vec<(LinkId, L)>),
    /// A later life of the same process is known: this handshake was overtaken.
    Overtaken,
    /// Too many connections to this node already.
    Crowded,
}

/// What a change of the table asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome<L> {
    /// Connections to close, and no more part of the table.
    pub(crate) close: Vec<L>,
    /// Connections that became current, or ceased to be.
    pub(crate) turned: Vec<(L, bool)>,
    /// Whether the node has several connections left, so that [`Table::settle`] should be called again soon.
    pub(crate) contested: bool,
}

struct Entry<L> {
    id: LinkId,
    facts: Facts,
    since: Tick,
    heard: Heard,
    current: bool,
    link: L,
}

/// All connections of a node that were admitted and have not ended.
pub(crate) struct Table<L> {
    local: NodeId,
    nodes: HashMap<NodeId, Vec<Entry<L>>>,
    /// Addresses at which nodes say that they can be reached, of connections that there are.
    addresses: HashMap<SocketAddr, NodeId>,
    /// Other addresses at which this node has reached them.
    aliases: HashMap<SocketAddr, NodeId>,
    next: u64,
}

impl<L: Clone> Table<L> {
    pub(crate) fn new(local: NodeId) -> Self {
        Self { local, nodes: HashMap::new(), addresses: HashMap::new(), aliases: HashMap::new(), next: 1 }
    }

    /// Whether a newcomer can be let in, given that some connections have not answered when asked.
    pub(crate) fn judge(&self, newcomer: &Facts, unanswered: &[LinkId]) -> Judgement<L> {
        let own = self.nodes.get(&newcomer.node).map_or(&[][..], Vec::as_slice);
        if own
            .iter()
            .any(|held| held.facts.log == newcomer.log && held.facts.incarnation > newcomer.incarnation)
        {
            return Judgement::Overtaken;
        }
        if own.iter().filter(|held| same_life(&held.facts, newcomer)).count() >= LINKS_PER_NODE_MAX {
            return Judgement::Crowded;
        }
        let holders: Vec<_> = self
            .rivals(newcomer)
            // Two live processes cannot send from one socket: the holder at the newcomer's own address is gone.
            .filter(|held| held.facts.remote != newcomer.remote && !unanswered.contains(&held.id))
            .map(|held| (held.id, held.link.clone()))
            .collect();
        if holders.is_empty() { Judgement::Welcome } else { Judgement::Ask(holders) }
    }

    /// Lets a newcomer in, if the judgement is still that nothing stands against it. What it replaces is to be
    /// closed at once.
    pub(crate) fn register(
        &mut self,
        newcomer: Facts,
        link: L,
        (now, heard): (Tick, Heard),
        unanswered: &[LinkId],
    ) -> Result<(LinkId, Outcome<L>), Judgement<L>> {
        match self.judge(&newcomer, unanswered) {
            Judgement::Welcome => {}
            other => return Err(other),
        }
        let overtaken = self
            .rivals(&newcomer)
            .chain(self.nodes.get(&newcomer.node).into_iter().flatten())
            .filter(|held| !same_life(&held.facts, &newcomer))
            .map(|held| held.id);
        let mut overtaken: Vec<_> = overtaken.collect();
        overtaken.sort_unstable();
        overtaken.dedup();
        let overtaken: Vec<_> = overtaken.into_iter().filter_map(|id| self.take(id)).collect();

        let id = LinkId(self.next);
        self.next += 1;
        let node = newcomer.node.clone();
        if dialable(newcomer.address) {
            self.addresses.insert(newcomer.address, node.clone());
        }
        let entry = Entry { id, facts: newcomer, since: now, heard, current: false, link };
        self.nodes.entry(node.clone()).or_default().push(entry);
        let (mut turned, contested) = self.choose(&node, now);
        for other in overtaken.iter().map(|entry| &entry.facts.node).filter(|other| **other != node) {
            turned.extend(self.choose(other, now).0);
        }
        let close = overtaken.into_iter().map(|entry| entry.link).collect();
        Ok((id, Outcome { close, turned, contested }))
    }

    /// Takes a connection that has ended out of the table.
    pub(crate) fn remove(&mut self, id: LinkId, now: Tick) -> Option<Outcome<L>> {
        let entry = self.take(id)?;
        let (turned, contested) = self.choose(&entry.facts.node, now);
        Some(Outcome { close: Vec::new(), turned, contested })
    }

    /// Looks again at a node with several connections: which is current, and which are to be closed by now.
    pub(crate) fn settle(&mut self, node: &NodeId, now: Tick) -> Outcome<L> {
        let (mut turned, _) = self.choose(node, now);
        let entries = self.nodes.get(node).map_or(&[][..], Vec::as_slice);
        let newest = entries.iter().map(|entry| entry.since).max().unwrap_or(now);
        let decides = self.local < *node;
        let kept = entries.iter().any(|entry| entry.current && entry.answers(now));
        let surplus: Vec<_> = entries
            .iter()
            .filter(|entry| decides && kept && !entry.current)
            .filter(|entry| {
                let grace = if entry.silent(now) { SURPLUS_GRACE_SILENT } else { SURPLUS_GRACE };
                now.since(newest) >= grace
            })
            .map(|entry| entry.id)
            .collect();
        let close = surplus.into_iter().filter_map(|id| self.take(id)).map(|entry| entry.link).collect();
        let (again, contested) = self.choose(node, now);
        turned.extend(again);
        Outcome { close, turned, contested }
    }

    /// The current connection to a node.
    pub(crate) fn current(&self, node: &NodeId) -> Option<&L> {
        self.nodes.get(node)?.iter().find(|entry| entry.current).map(|entry| &entry.link)
    }

    /// The current connection to the node that says it is at an address, or was reached there.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<&L> {
        self.current(self.addresses.get(&address).or_else(|| self.aliases.get(&address))?)
    }

    /// Whether a linked node says that it is at an address.
    pub(crate) fn knows(&self, address: SocketAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Notes that a node was reached at an address other than its own. A node can be at any number of addresses, and
    /// whoever names them has them dialled; so beyond as many as are dialled at a time, those noted before are
    /// forgotten, which costs one more dial each if they are wanted still.
    pub(crate) fn alias(&mut self, address: SocketAddr, node: &NodeId) {
        if self.nodes.contains_key(node) {
            if self.aliases.len() >= DIAL_ADDRESSES_MAX {
                self.aliases.clear();
            }
            self.aliases.insert(address, node.clone());
        }
    }

    /// The current connection to every node.
    pub(crate) fn currents(&self) -> impl Iterator<Item = &L> {
        self.nodes.values().flatten().filter(|entry| entry.current).map(|entry| &entry.link)
    }

    /// Every connection.
    pub(crate) fn all(&self) -> impl Iterator<Item = &L> {
        self.nodes.values().flatten().map(|entry| &entry.link)
    }

    /// Connections of others to what a newcomer claims: its node id with another log, or its address.
    fn rivals<'a>(&'a self, newcomer: &'a Facts) -> impl Iterator<Item = &'a Entry<L>> {
        let namesakes = self.nodes.get(&newcomer.node).into_iter().flatten();
        let holder = self.addresses.get(&newcomer.address).filter(|node| **node != newcomer.node);
        let neighbours = holder.and_then(|node| self.nodes.get(node)).into_iter().flatten();
        namesakes
            .filter(|held| held.facts.log != newcomer.log)
            .chain(neighbours.filter(|held| held.facts.address == newcomer.address))
    }

    fn take(&mut self, id: LinkId) -> Option<Entry<L>> {
        let (node, position) = self.nodes.iter().find_map(|(node, entries)| {
            let position = entries.iter().position(|entry| entry.id == id)?;
            Some((node.clone(), position))
        })?;
        let entries = self.nodes.get_mut(&node)?;
        let taken = entries.remove(position);
        let address = taken.facts.address;
        if entries.iter().all(|entry| entry.facts.address != address)
            && self.addresses.get(&address) == Some(&node)
        {
            self.addresses.remove(&address);
        }
        if entries.is_empty() {
            self.nodes.remove(&node);
            self.aliases.retain(|_, at| *at != node);
        }
        Some(taken)
    }

    /// Makes one connection of a node current, and says what changed and whether there is more than one.
    fn choose(&mut self, node: &NodeId, now: Tick) -> (Vec<(L, bool)>, bool) {
        let prefer_own = self.local < *node;
        let Some(entries) = self.nodes.get_mut(node) else { return (Vec::new(), false) };
        let chosen = entries
            .iter()
            .filter(|entry| !entry.silent(now))
            .min_by_key(|entry| (entry.facts.initiated != prefer_own, entry.id))
            .or_else(|| entries.iter().max_by_key(|entry| entry.id))
            .map(|entry| entry.id);
        let mut turned = Vec::new();
        for entry in entries.iter_mut() {
            let current = Some(entry.id) == chosen;
            if entry.current != current {
                entry.current = current;
                turned.push((entry.link.clone(), current));
            }
        }
        (turned, entries.len() > 1)
    }
}

impl<L> Entry<L> {
    fn silent(&self, now: Tick) -> bool {
        now.since(self.heard.last().max(self.since)) >= SILENCE
    }

    /// Whether the peer is known to have this connection too.
    fn answers(&self, now: Tick) -> bool {
        self.heard.last() >= self.since && !self.silent(now)
    }
}

/// Whether two connections are to the same life of the same process.
fn same_life(held: &Facts, newcomer: &Facts) -> bool {
    held.node == newcomer.node && held.log == newcomer.log && held.incarnation == newcomer.incarnation
}

/// Whether an address can be one node's alone.
fn dialable(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified()
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "table_sim.rs"]
mod sim;
