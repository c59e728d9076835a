//! What nodes say to each other, and what becomes of it on the way.

use tidings_proto::follower::Attempt;
use tidings_proto::frame::{Follow, Heartbeat};
use tidings_proto::id::{Incarnation, LaneId, Origin, Sequence};

use crate::Micros;
use crate::chance::Chance;

/// A frame. There is no connection beneath: each may be lost, doubled, delayed and overtaken by itself, which is more
/// than QUIC allows.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Hello(Members),
    Welcome(Members),
    Members(Members),
    /// In place of gossip: whom the sender hears itself.
    Hears(Vec<Origin>),
    Probe(u64),
    Heartbeat(Heartbeat),
    Goodbye(Vec<Sequence>),
    Follow(Attempt, Follow),
    Answer(LaneId, Attempt, Answered),
    Ack(LaneId, Sequence),
}

/// Everybody whom the sender knows, and the version of that set.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    pub(crate) version: u64,
    pub(crate) named: Vec<Origin>,
    /// Of whom it knows that they have ended without a goodbye; they are not among those.
    pub(crate) ended: Vec<Origin>,
}

/// What an origin sends on a lane that is followed.
#[derive(Clone, Debug)]
pub(crate) enum Answered {
    Resume(Sequence),
    Reset(Sequence),
    Events(Vec<u8>),
}

/// Where a frame goes: an address, and the life that was met there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct To {
    pub(crate) node: usize,
    pub(crate) life: Option<Incarnation>,
}

/// Whether frames of one direction pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Open,
    /// Everything is lost.
    Cut,
    /// Everything is held until the path opens again: buffers and retransmissions.
    Held,
}

/// The network, as it is for the time being.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    paths: Vec<Vec<Path>>,
    /// When the newest frame of each direction arrives that is not late: the next one does not overtake it.
    newest: Vec<Vec<Micros>>,
    held: Vec<(usize, Origin, To, Frame)>,
    /// Of a thousand frames, how many are lost.
    pub(crate) lost: u64,
    /// How many come twice.
    pub(crate) doubled: u64,
    /// How many take up to `late_us`.
    pub(crate) late: u64,
    pub(crate) late_us: Micros,
}

impl Network {
    pub(crate) fn new(nodes: usize) -> Self {
        let paths = vec![vec![Path::Open; nodes]; nodes];
        Self {
            paths,
            newest: vec![vec![0; nodes]; nodes],
            held: Vec::new(),
            lost: 0,
            doubled: 0,
            late: 0,
            late_us: 0,
        }
    }

    pub(crate) fn set(&mut self, from: usize, to: usize, path: Path) {
        self.paths[from][to] = path;
    }

    /// Makes the network sound. Returns what was held, to be sent anew.
    pub(crate) fn heal(&mut self) -> Vec<(usize, Origin, To, Frame)> {
        let held = std::mem::take(&mut self.held);
        let newest = std::mem::take(&mut self.newest);
        *self = Self { newest, ..Self::new(self.paths.len()) };
        held
    }

    /// The heartbeats that are held.
    pub(crate) fn release(&mut self) -> Vec<(usize, Origin, To, Frame)> {
        let is_heartbeat =
            |(_, _, _, frame): &mut (usize, Origin, To, Frame)| matches!(frame, Frame::Heartbeat(_));
        self.held.extract_if(.., is_heartbeat).collect()
    }

    /// Whether a frame is on its way. If the path is held, the frame is.
    pub(crate) fn admits(&mut self, (node, from): (usize, &Origin), to: To, frame: &Frame) -> bool {
        match self.paths[node][to.node] {
            Path::Open => true,
            Path::Cut => false,
            Path::Held => {
                self.held.push((node, from.clone(), to, frame.clone()));
                false
            }
        }
    }

    /// When the copies of a frame that is sent now arrive; none if it is lost.
    pub(crate) fn arrivals(
        &mut self,
        (node, to): (usize, usize),
        now: Micros,
        chance: &mut Chance,
    ) -> Vec<Micros> {
        if chance.permille(self.lost) {
            return Vec::new();
        }
        let copies = 1 + usize::from(chance.permille(self.doubled));
        let newest = &mut self.newest[node][to];
        (0..copies)
            .map(|_| {
                if chance.permille(self.late) {
                    return now + chance.between(300, self.late_us);
                }
                *newest = (now + chance.between(300, 3_000)).max(*newest);
                *newest
            })
            .collect()
    }
}
