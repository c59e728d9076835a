//! Whether a node should get requests, and whether it ever should have.

use std::sync::atomic::{AtomicBool, Ordering};

use tidings::{Node, NotReady, State};

/// The readiness of a node as its server tells it: to probes, and in metrics.
#[derive(Debug)]
pub(crate) struct Readiness {
    node: Node,
    unready_when_isolated: bool,
    started: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    pub(crate) fn new(node: Node, unready_when_isolated: bool) -> Self {
        Self {
            node,
            unready_when_isolated,
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Not ready from now on.
    pub(crate) fn drain(&self) {
        // A node that is ready now has started, even if nobody has asked yet.
        self.unready();
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Why the node should get no requests now; nothing if it should.
    pub(crate) fn unready(&self) -> Vec<String> {
        let mut reasons = match self.node.readiness() {
            Ok(()) => Vec::new(),
            Err(NotReady::Waiting { reasons }) => reasons,
            Err(error) => vec![error.to_string()],
        };
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("the node is draining".to_owned());
        }
        if self.unready_when_isolated && self.is_isolated() {
            reasons.push("no other member is heard".to_owned());
        }
        if let Some(time) = self.node.expelled().filter(|_| self.unready_when_isolated) {
            reasons.push(format!("expelled: no member has heard this node for {} s", time.as_secs()));
        }
        if reasons.is_empty() {
            self.started.store(true, Ordering::Relaxed);
        }
        reasons
    }

    /// What is not as it should be, and keeps no request away: members whose logs have another number of lanes.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let members = self.node.members();
        let Some(ours) = members.iter().find(|member| member.this_node).and_then(|own| own.lanes) else {
            return Vec::new();
        };
        let there = members.iter().filter(|member| member.state != State::Left);
        let differing =
            there.filter_map(|member| Some((&member.node, member.lanes?))).filter(|it| it.1 != ours);
        let warning = |(node, theirs)| {
            format!("{node} has {theirs} lanes and this node {ours}: set coherence.lanes alike")
        };
        differing.map(warning).collect()
    }

    /// Why the node has never been ready since its start; nothing if it once was.
    pub(crate) fn unstarted(&self) -> Vec<String> {
        let reasons = self.unready();
        if self.started.load(Ordering::Relaxed) { Vec::new() } else { reasons }
    }

    fn is_isolated(&self) -> bool {
        let members = self.node.members();
        let mut others =
            members.iter().filter(|member| !member.this_node && member.state != State::Left).peekable();
        others.peek().is_some() && others.all(|member| !member.synced())
    }
}
