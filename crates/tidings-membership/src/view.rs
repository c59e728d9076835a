//! What is known of the members, as others see it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use tidings_proto::id::{NodeId, Origin};
use tidings_proto::time::Tick;

use crate::config::Record;

/// Whether a member can be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Heard over its link, or gossip hears it and there never was a link.
    Live,
    /// Its link is down or silent, or it was only just named; it may be there all the same.
    Suspect,
    /// No link hears it, and gossip says that nobody else does.
    Lost,
    /// It said goodbye.
    Left,
}

impl State {
    /// The state's name, as people and metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Left => "left",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One life of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it says of itself.
    pub record: Record,
    /// Whether it can be heard.
    pub state: State,
    /// Since when it is in that state, on the clock of [`crate::Config::clock`].
    pub since: Tick,
}

/// Everyone known, at one moment. The answering node itself is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The newest known life of each node.
    pub members: BTreeMap<NodeId, Member>,
    /// Older lives of these nodes, until [`crate::Membership::forget`] is told of them.
    pub former: BTreeMap<Origin, Member>,
    /// A later life of this very node: another process runs with its identity, and this one is superseded.
    pub superseded_by: Option<Record>,
    /// What the seeds resolve to at present.
    pub seeds: BTreeSet<SocketAddr>,
}

impl View {
    /// Every known life of every other node, newest and former.
    pub fn lives(&self) -> impl Iterator<Item = &Member> {
        self.members.values().chain(self.former.values())
    }

    /// What is known of one life.
    #[must_use]
    pub fn life(&self, origin: &Origin) -> Option<&Member> {
        self.members
            .get(&origin.node)
            .filter(|member| member.record.origin == *origin)
            .or_else(|| self.former.get(origin))
    }
}
