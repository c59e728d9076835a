//! An origin in one of its lives, and what it has under way to the reader.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::frame::Heartbeat;
use tidings_proto::hash::CacheId;
use tidings_proto::id::{Incarnation, NodeId, Origin, Sequence, Slot};
use tidings_proto::log::{ChangeLog, Cursor, Retention};
use tidings_proto::receipt::Tenure;
use tidings_proto::record::{Draft, DraftTarget, Parts};
use tidings_proto::time::Tick;

use super::lanes;
use super::receipts::Asked;

/// What a position of a lane says.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Change {
    pub(super) version: usize,
    pub(super) clear: bool,
}

#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum Frame {
    Resume(Sequence),
    Reset(Sequence),
    Events(Sequence, u32),
}

/// One life of an origin, as it is.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) me: Origin,
    pub(super) log: Rc<ChangeLog>,
    pub(super) alive: bool,
    /// Since when it lives no more.
    pub(super) died: Option<Tick>,
    /// The node's last life whose changes counted, and when it ended, until this one's do.
    pub(super) former: Option<(Origin, Tick)>,
    /// The reader has met it, in any life of its own: others know it, and its changes count.
    pub(super) counts: bool,
    /// What each lane's positions say.
    pub(super) said: [Vec<Change>; 2],
    /// Committed and not announced.
    pub(super) open: [Option<usize>; 2],
    /// Announced and not in the log, which only a planted bug allows.
    pub(super) entering: [Option<Change>; 2],
    pub(super) cursors: [Option<Cursor>; 2],
    pub(super) probe: Option<u64>,
    pub(super) beats: VecDeque<Heartbeat>,
    pub(super) wire: [VecDeque<Frame>; 2],
    pub(super) version: u64,
    /// Since when the reader is a member, where receipts are asked for.
    pub(super) tenure: Option<Tenure>,
    /// When the reader's last probe was read.
    pub(super) heard: Tick,
    /// What the reader has acknowledged, by lane.
    pub(super) acked: Vec<Sequence>,
    /// Receipts that are waited for.
    pub(super) asked: [Option<Asked>; 2],
}

/// A life of an origin, or of the reader, which is number 2.
pub(super) fn life(origin: usize, number: u64) -> Origin {
    Origin { node: NodeId::new(["a", "b", "c"][origin]).unwrap(), incarnation: Incarnation(number) }
}

impl Home {
    pub(super) fn new(me: Origin) -> Self {
        Self {
            me,
            log: log_of([0; 2]),
            alive: true,
            died: None,
            former: None,
            counts: false,
            said: Default::default(),
            open: [None; 2],
            entering: [None; 2],
            cursors: [None; 2],
            probe: None,
            beats: VecDeque::new(),
            wire: Default::default(),
            version: 1,
            tenure: None,
            heard: Tick::NEVER,
            acked: Vec::new(),
            asked: [None, None],
        }
    }

    /// What it had for itself is gone; what it has sent is under way.
    pub(super) fn die(&mut self, now: Tick) {
        self.alive = false;
        self.died = Some(now);
        self.entering = [None; 2];
        self.cursors = [None; 2];
        self.probe = None;
        self.tenure = None;
        self.acked = Vec::new();
        self.asked = [None, None];
    }

    /// The reader's links have ended.
    pub(super) fn cut_off(&mut self) {
        self.cursors = [None; 2];
        self.probe = None;
        self.beats.clear();
        self.wire = Default::default();
    }

    pub(super) fn enter(&mut self, key: usize, change: Change) {
        self.said[key].push(change);
        self.log = log_of([self.said[0].len(), self.said[1].len()]);
    }
}

/// The log that so many changes of each key were appended to. A log is what was appended to it, for readers leave no
/// trace in one that seals a segment at every append: each is made once and shared by all worlds that have it.
fn log_of(appended: [usize; 2]) -> Rc<ChangeLog> {
    thread_local! {
        static LOGS: RefCell<HashMap<[usize; 2], Rc<ChangeLog>>> = RefCell::default();
    }
    let make = || {
        let log = ChangeLog::new(lanes(), Retention { events: 1, bytes: Retention::BYTES_MIN });
        for (key, appended) in appended.into_iter().enumerate() {
            (0..appended).for_each(|_| append(&log, Slot::new(key as u8).unwrap()));
        }
        Rc::new(log)
    };
    LOGS.with_borrow_mut(|logs| Rc::clone(logs.entry(appended).or_insert_with(make)))
}

fn append(log: &ChangeLog, slot: Slot) {
    let draft = Draft::new(Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache: CacheId(1),
        slot,
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(b"k"),
    });
    log.append(slot, 1, &draft.unwrap()).unwrap().waiters.wake();
}

impl Hash for Home {
    /// Of what it is, without the log, which `said` stands for.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { me, log: _, alive, said, open, entering, cursors, probe, beats, wire, version, .. } = self;
        let Self { tenure, heard, acked, asked, died, former, counts, .. } = self;
        (me, alive, said, open, entering, cursors, probe, beats, wire, version).hash(state);
        (tenure, heard, acked, asked, died, former, counts).hash(state);
    }
}

impl Debug for Home {
    /// A log is what was appended to it: all of them forget alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, log: _, alive, said, open, entering, cursors, probe, beats, wire, version, .. } = self;
        let Self { tenure, heard, acked, asked, died, former, counts, .. } = self;
        write!(
            f,
            "{me} {alive} {said:?} {open:?} {entering:?} {cursors:?} {probe:?} {beats:?} {wire:?} {version} "
        )?;
        write!(f, "{tenure:?} {heard:?} {acked:?} {asked:?} {died:?} {former:?} {counts}")
    }
}
