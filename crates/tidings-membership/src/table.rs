//! Who is a member and whether it can be heard: evidence in, with the time; a view out. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tidings_proto::frame::MEMBERS_MAX;
use tidings_proto::id::{Incarnation, NodeId, Origin};
use tidings_proto::time::Tick;

use crate::attest::Statement;
use crate::config::Record;
use crate::view::{Member, State, View};

/// All lives of all other nodes, and what speaks for each.
pub(crate) struct Table {
    me: Origin,
    patience: Patience,
    lives: BTreeMap<Origin, Life>,
    /// The newest lives of nodes that were told to be forgotten. At most [`MEMBERS_MAX`].
    forgotten: BTreeMap<NodeId, Forgotten>,
    superseded_by: Option<Record>,
}

/// How long silence is borne.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// A link on which nothing was heard for so long is silent.
    pub(crate) link_silence: Duration,
    /// A life is suspect for at least so long, after its link was last heard or it was named, before it is
    /// lost.
    pub(crate) grace: Duration,
}

struct Life {
    record: Record,
    link: Link,
    /// When its link was last heard; before there was one, when it was named.
    heard: Tick,
    gossiped: bool,
    left: bool,
    state: State,
    since: Tick,
}

/// A life that was told to be forgotten. That gossip names it, or an older one of its node, does not bring it back; a
/// link does, or that others hear it again.
struct Forgotten {
    upto: Incarnation,
    /// As it was when it was dropped.
    origin: Origin,
    life: Life,
    /// Gossip has not heard it since.
    silent: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Never,
    Up,
    Down,
}

/// Every piece of evidence answers whether the view has changed.
impl Table {
    pub(crate) fn new(me: Origin, patience: Patience) -> Self {
        Self { me, patience, lives: BTreeMap::new(), forgotten: BTreeMap::new(), superseded_by: None }
    }

    /// A member's own signed word has arrived by gossip.
    pub(crate) fn stated(&mut self, statement: &Statement, now: Tick) -> bool {
        let Statement { record, left, .. } = statement;
        if record.origin.node == self.me.node {
            return self.see_own_name(record);
        }
        if self.is_forgotten(&record.origin) {
            return false;
        }
        let Some((life, new)) = self.name(record, now) else { return false };
        // A link's greeting is fresher than what travels by gossip.
        let changed = life.link != Link::Up && life.record != *record;
        if changed {
            life.record = record.clone();
        }
        life.left |= left;
        self.settle(&record.origin, now) || changed || new
    }

    /// chitchat's failure detector hears exactly these.
    pub(crate) fn gossiped(&mut self, live: &BTreeSet<Origin>, now: Tick) -> bool {
        for (origin, life) in &mut self.lives {
            life.gossiped = live.contains(origin);
        }
        for forgotten in self.forgotten.values_mut() {
            forgotten.silent |= !live.contains(&forgotten.origin);
        }
        let room = MEMBERS_MAX.saturating_sub(self.lives.len());
        let again = |_: &NodeId, it: &mut Forgotten| it.silent && !it.life.left && live.contains(&it.origin);
        let again: Vec<_> = self.forgotten.extract_if(.., again).take(room).collect();
        let back = !again.is_empty();
        for (_, Forgotten { origin, life, .. }) in again {
            self.lives.insert(origin, Life { gossiped: true, since: now, ..life });
        }
        self.settle_all(now) || back
    }

    /// A link to a member is up; the record is from its greeting, on a connection that proves its node id.
    pub(crate) fn link_up(&mut self, record: Record, now: Tick) -> bool {
        if record.origin.node == self.me.node {
            return self.see_own_name(&record);
        }
        let origin = record.origin.clone();
        if self.is_forgotten(&origin) {
            self.forgotten.remove(&origin.node);
        }
        let Some((life, new)) = self.name(&record, now) else { return false };
        let changed = life.record != record;
        life.record = record;
        life.link = Link::Up;
        life.heard = now;
        self.settle(&origin, now) || changed || new
    }

    /// Something arrived over a member's link.
    pub(crate) fn link_heard(&mut self, origin: &Origin, now: Tick) -> bool {
        match self.lives.get_mut(origin) {
            Some(life) if life.link == Link::Up => {
                life.heard = life.heard.max(now);
                life.state != State::Live && self.settle(origin, now)
            }
            _ => false,
        }
    }

    /// Whether the member is known to have a link.
    pub(crate) fn is_linked(&self, origin: &Origin) -> bool {
        self.lives.get(origin).is_some_and(|life| life.link == Link::Up)
    }

    /// No link to the member is left.
    pub(crate) fn link_down(&mut self, origin: &Origin, now: Tick) -> bool {
        let Some(life) = self.lives.get_mut(origin).filter(|life| life.link == Link::Up) else {
            return false;
        };
        life.link = Link::Down;
        self.settle(origin, now)
    }

    /// No link to the member is needed any more: it is judged by gossip alone, as if there never had been one.
    pub(crate) fn link_let_go(&mut self, origin: &Origin, now: Tick) -> bool {
        let Some(life) = self.lives.get_mut(origin).filter(|life| life.link == Link::Up) else {
            return false;
        };
        life.link = Link::Never;
        life.heard = now;
        self.settle(origin, now)
    }

    /// The member has said goodbye over its link.
    pub(crate) fn left(&mut self, origin: &Origin, now: Tick) -> bool {
        let Some(life) = self.lives.get_mut(origin) else { return false };
        life.left = true;
        self.settle(origin, now)
    }

    /// Drops a life and all older ones of its node, unless they can be heard.
    pub(crate) fn forget(&mut self, origin: &Origin) -> bool {
        let dropped = |known: &Origin, life: &mut Life| {
            known.node == origin.node && known.incarnation <= origin.incarnation && life.state != State::Live
        };
        let Some((newest, life)) = self.lives.extract_if(.., dropped).last() else { return false };
        let before = self.forgotten.remove(&origin.node).map(|forgotten| forgotten.upto);
        let upto = before.max(Some(origin.incarnation)).unwrap_or(origin.incarnation);
        let forgotten = Forgotten { upto, origin: newest, silent: !life.gossiped, life };
        self.forgotten.insert(origin.node.clone(), forgotten);
        if self.forgotten.len() > MEMBERS_MAX {
            // Losing this memory costs only that gossip, while it lasts, may name the node once more.
            self.forgotten.pop_first();
        }
        true
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Tick) -> bool {
        self.settle_all(now)
    }

    /// When [`Table::tick`] will next change something, if nothing else happens; maybe at once.
    pub(crate) fn deadline(&self, now: Tick) -> Option<Tick> {
        let of = |life: &Life| match self.patience.judge(life, now) {
            (state, _) if state != life.state => Some(now),
            (_, deadline) => deadline,
        };
        self.lives.values().filter_map(of).min()
    }

    pub(crate) fn view(&self, seeds: BTreeSet<SocketAddr>) -> View {
        let mut view = View { superseded_by: self.superseded_by.clone(), seeds, ..View::default() };
        for (origin, life) in &self.lives {
            let member = Member { record: life.record.clone(), state: life.state, since: life.since };
            // In ascending order of incarnations, so each displaces its predecessor.
            if let Some(older) = view.members.insert(origin.node.clone(), member) {
                view.former.insert(older.record.origin.clone(), older);
            }
        }
        view
    }

    fn see_own_name(&mut self, record: &Record) -> bool {
        let newest =
            self.superseded_by.as_ref().map_or(self.me.incarnation, |known| known.origin.incarnation);
        let newer = record.origin.incarnation > newest;
        if newer {
            self.superseded_by = Some(record.clone());
        }
        newer
    }

    fn is_forgotten(&self, origin: &Origin) -> bool {
        self.forgotten.get(&origin.node).is_some_and(|forgotten| origin.incarnation <= forgotten.upto)
    }

    /// The life with this record, entered if it is new. None if there is no room: a life that has left makes
    /// some.
    fn name(&mut self, record: &Record, now: Tick) -> Option<(&mut Life, bool)> {
        let origin = &record.origin;
        let new = !self.lives.contains_key(origin);
        if new && self.lives.len() >= MEMBERS_MAX {
            let left = self.lives.iter().filter(|(_, life)| life.state == State::Left);
            let oldest = left.min_by_key(|(_, life)| life.since)?.0.clone();
            self.lives.remove(&oldest);
        }
        let life = self.lives.entry(origin.clone()).or_insert_with(|| Life {
            record: record.clone(),
            link: Link::Never,
            heard: now,
            gossiped: false,
            left: false,
            state: State::Suspect,
            since: now,
        });
        Some((life, new))
    }

    fn settle(&mut self, origin: &Origin, now: Tick) -> bool {
        let patience = self.patience;
        self.lives.get_mut(origin).is_some_and(|life| patience.settle(life, now))
    }

    fn settle_all(&mut self, now: Tick) -> bool {
        let patience = self.patience;
        let mut changed = false;
        for life in self.lives.values_mut() {
            changed |= patience.settle(life, now);
        }
        changed
    }
}

impl Patience {
    /// A life's state, and when it changes by itself.
    fn judge(self, life: &Life, now: Tick) -> (State, Option<Tick>) {
        let silent_at = life.heard.after(self.link_silence);
        let lost_at = life.heard.after(self.grace);
        if life.left {
            (State::Left, None)
        } else if life.link == Link::Up && now < silent_at {
            (State::Live, Some(silent_at))
        } else if life.gossiped {
            (if life.link == Link::Never { State::Live } else { State::Suspect }, None)
        } else if now < lost_at {
            (State::Suspect, Some(lost_at))
        } else {
            (State::Lost, None)
        }
    }

    fn settle(self, life: &mut Life, now: Tick) -> bool {
        let (state, _) = self.judge(life, now);
        let changed = life.state != state;
        if changed {
            life.state = state;
            life.since = now;
        }
        changed
    }
}

#[cfg(test)]
mod tests;
