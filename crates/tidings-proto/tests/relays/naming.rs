//! Who knows of whom: a writer joins by the origin, behind a relay whose follower the origin does not know yet.
//!
//! Links, member sets, answers and acknowledgements are a model here, of what [`tidings_proto::relay`] says about them:
//! nobody is fresh who has not heard of a writer whose change counts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::search;

/// What is left out on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Omitted {
    Nothing,
    /// The member set before an answer.
    SetBeforeAnswer,
    /// The member set before an acknowledgement.
    SetBeforeAck,
}

/// When the writer's change counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Once the origin knows it; it stays.
    OnceMet,
    /// Once all who are named to it have acknowledged it. It leaves when they have applied its change.
    OnceKnown,
}

const ORIGIN: usize = 0;
const RELAY: usize = 1;
const FOLLOWER: usize = 2;
const WRITER: usize = 3;

/// Whom each asks for what the writer does, and where it acknowledges that.
const TOWARDS_WRITER: [usize; 3] = [WRITER, ORIGIN, RELAY];

/// What can happen. The first of two nodes asks, the second answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Join,
    /// The answer is made at once, and comes when it comes.
    Ask(usize, usize),
    Deliver(usize, usize),
    /// The origin says its member set to the relay of its own accord; others say theirs before what they answer and
    /// acknowledge.
    Tell,
    Acknowledge(usize),
    Write,
    Fetch(usize),
    Leave,
    /// A node has applied everything of the writer, and hears that it has left.
    End(usize),
    Pass,
}

#[derive(Debug)]
enum Message {
    Set(u64, BTreeSet<usize>),
    /// The version of the sender's member set, and as of when it is confirmed of whom.
    Answer(u64, Vec<(usize, u64)>),
    /// Who knows the writer, and whether its change is applied there; with the version of the sender's member set.
    Ack(usize, bool, u64),
}

#[derive(Debug, Default)]
struct Node {
    named: BTreeSet<usize>,
    version: u64,
    /// By neighbour: which version it was told, and which of its own is known here.
    told: BTreeMap<usize, u64>,
    noted: BTreeMap<usize, u64>,
    confirmed: BTreeMap<usize, u64>,
    applied: bool,
    /// The writer has left.
    ended: bool,
    /// What was acknowledged: that the writer is known, and that its change is applied.
    acked: Option<bool>,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct Naming {
    omitted: Omitted,
    counts: Counts,
    now: u64,
    passes: u8,
    asks: u8,
    nodes: Vec<Node>,
    wires: BTreeMap<(usize, usize), VecDeque<Message>>,
    written: Option<u64>,
    /// Who has said to the writer that it knows it, and whether it has applied its change.
    said: BTreeMap<usize, bool>,
}

impl Naming {
    /// The relay has just admitted the follower.
    pub(crate) fn new(counts: Counts, omitted: Omitted) -> Self {
        let sets: [&[usize]; 4] =
            [&[ORIGIN, RELAY], &[ORIGIN, RELAY, FOLLOWER], &[ORIGIN, RELAY, FOLLOWER], &[]];
        let node =
            |named: &&[usize]| Node { named: named.iter().copied().collect(), version: 1, ..Node::default() };
        let mut nodes: Vec<Node> = sets.iter().map(node).collect();
        for (a, b) in [(ORIGIN, RELAY), (RELAY, FOLLOWER)] {
            nodes[a].noted.insert(b, 1);
            nodes[b].noted.insert(a, 1);
            nodes[b].told.insert(a, 1);
            nodes[a].told.insert(b, 1);
        }
        // What the relay's set says since it was last told to the origin.
        nodes[RELAY].version = 2;
        nodes[RELAY].told.insert(FOLLOWER, 2);
        nodes[FOLLOWER].noted.insert(RELAY, 2);
        Self {
            omitted,
            counts,
            now: 1,
            passes: 1,
            asks: 2,
            nodes,
            wires: BTreeMap::new(),
            written: None,
            said: BTreeMap::new(),
        }
    }

    fn note(&mut self, node: usize, named: &BTreeSet<usize>) {
        let node = &mut self.nodes[node];
        let before = node.named.len();
        let ended = node.ended;
        node.named.extend(named.iter().filter(|name| **name != WRITER || !ended));
        node.version += u64::from(node.named.len() > before);
    }

    fn knows(&self, node: usize) -> bool {
        self.nodes[node].named.contains(&WRITER)
    }

    fn say(&mut self, from: usize, to: usize, message: Message) {
        self.wires.entry((from, to)).or_default().push_back(message);
    }

    fn tell(&mut self, from: usize, to: usize) {
        let Node { version, ref named, .. } = self.nodes[from];
        if self.nodes[from].told.get(&to) != Some(&version) {
            let set = Message::Set(version, named.clone());
            self.say(from, to, set);
            self.nodes[from].told.insert(to, version);
        }
    }

    fn join(&mut self) {
        self.note(ORIGIN, &BTreeSet::from([WRITER]));
        let Node { named, version, .. } = &self.nodes[ORIGIN];
        let (named, version) = (named.clone(), *version);
        self.note(WRITER, &named);
        self.nodes[ORIGIN].told.insert(WRITER, version);
        self.nodes[WRITER].noted.insert(ORIGIN, version);
        self.nodes[ORIGIN].noted.insert(WRITER, u64::MAX);
    }

    /// All clocks are one here: what an age would say is a time.
    fn answer(&mut self, node: usize, from: usize) {
        let confirmed = self.nodes[from].confirmed.iter().map(|(of, as_of)| (*of, *as_of));
        let confirmed = confirmed.chain([(from, self.now)]).collect();
        if self.omitted != Omitted::SetBeforeAnswer {
            self.tell(from, node);
        }
        let version = self.nodes[from].version;
        self.say(from, node, Message::Answer(version, confirmed));
    }

    fn acknowledge(&mut self, by: usize, who: usize, applied: bool) {
        let to = TOWARDS_WRITER[by];
        if self.omitted != Omitted::SetBeforeAck {
            self.tell(by, to);
        }
        let version = self.nodes[by].version;
        self.say(by, to, Message::Ack(who, applied, version));
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let Some(message) = self.wires.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return };
        let known = self.nodes[to].noted.get(&from).copied().unwrap_or(0);
        match message {
            Message::Set(version, named) => {
                self.note(to, &named);
                self.nodes[to].noted.insert(from, version);
            }
            Message::Answer(version, confirmed) => {
                assert!(version <= known || self.omitted == Omitted::SetBeforeAnswer);
                for (of, as_of) in confirmed {
                    let newest = self.nodes[to].confirmed.entry(of).or_default();
                    *newest = as_of.max(*newest);
                }
            }
            Message::Ack(who, applied, version) => {
                assert!(version <= known || self.omitted == Omitted::SetBeforeAck);
                match to {
                    WRITER => drop(self.said.insert(who, applied)),
                    _ => self.acknowledge(to, who, applied),
                }
            }
        }
    }

    fn all_said(&self, applied: bool) -> bool {
        let said = |who: &usize| *who == WRITER || self.said.get(who).is_some_and(|it| *it >= applied);
        self.nodes[WRITER].named.iter().all(said)
    }

    fn may_write(&self) -> bool {
        let joined = self.nodes[ORIGIN].noted.contains_key(&WRITER);
        let counts = match self.counts {
            Counts::OnceMet => joined,
            Counts::OnceKnown => joined && self.all_said(false),
        };
        counts && self.written.is_none()
    }

    fn end(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.ended = true;
        node.version += u64::from(node.named.remove(&WRITER));
    }

    /// Whether the writer's change is where a node would fetch it.
    fn is_ahead(&self, node: usize) -> bool {
        match TOWARDS_WRITER[node] {
            WRITER => self.written.is_some(),
            upstream => self.nodes[upstream].applied,
        }
    }

    fn has_left(&self, node: usize) -> bool {
        node != ORIGIN && self.nodes[TOWARDS_WRITER[node]].ended
    }
}

impl search::World for Naming {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let mut out = Vec::new();
        let mut add = |holds: bool, action| out.extend(holds.then_some(action));
        let joined = self.nodes[ORIGIN].noted.contains_key(&WRITER);
        let is_there = joined && !self.nodes[ORIGIN].ended;
        add(!joined, Action::Join);
        // Nobody is confirmed of the writer: who knows it is in doubt until it has left.
        for (node, from) in [(FOLLOWER, RELAY), (RELAY, ORIGIN)] {
            add(self.asks > 0, Action::Ask(node, from));
        }
        for ((from, to), wire) in &self.wires {
            add(!wire.is_empty(), Action::Deliver(*from, *to));
        }
        add(self.nodes[ORIGIN].told[&RELAY] < self.nodes[ORIGIN].version, Action::Tell);
        for node in [ORIGIN, RELAY, FOLLOWER] {
            let Node { applied, acked, .. } = self.nodes[node];
            let knows = self.knows(node);
            let waited = self.counts == Counts::OnceKnown && is_there;
            add(waited && knows && acked < Some(applied), Action::Acknowledge(node));
            add(knows && !applied && self.is_ahead(node), Action::Fetch(node));
            add(knows && applied && self.has_left(node), Action::End(node));
        }
        add(self.may_write(), Action::Write);
        let leaves = self.counts == Counts::OnceKnown && is_there;
        add(leaves && self.written.is_some() && self.all_said(true), Action::Leave);
        add(self.passes > 0, Action::Pass);
        out
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Join => self.join(),
            Action::Ask(node, from) => {
                self.asks -= 1;
                self.answer(node, from);
            }
            Action::Deliver(from, to) => self.deliver(from, to),
            Action::Tell => self.tell(ORIGIN, RELAY),
            Action::Acknowledge(node) => {
                let applied = self.nodes[node].applied;
                self.nodes[node].acked = Some(applied);
                self.acknowledge(node, node, applied);
            }
            Action::Write => self.written = Some(self.now),
            Action::Fetch(node) => self.nodes[node].applied = true,
            Action::Leave => self.end(ORIGIN),
            Action::End(node) => self.end(node),
            Action::Pass => {
                self.passes -= 1;
                self.now += 1;
            }
        }
    }

    /// The follower is confirmed of everybody whom it knows as of later than the change, and has not applied it.
    fn broken(&self) -> Option<String> {
        let Node { named, confirmed, applied, .. } = &self.nodes[FOLLOWER];
        let others = named.iter().filter(|name| **name != FOLLOWER);
        let as_of = others.map(|name| confirmed.get(name).copied().unwrap_or(0)).min()?;
        let stale = self.written.is_some_and(|written| written < as_of) && !applied;
        stale.then(|| format!("the follower is fresh as of {as_of} and lacks what was written before"))
    }
}
