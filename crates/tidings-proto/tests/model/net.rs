//! The network: a link may delay, lose, double or reorder what it carries, or be cut one way.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidings_proto::id::Origin;

use super::Ms;
use super::rng::Rng;
use super::truth::Writer;

/// What a frame travels on. Lanes are told apart by the request that opened them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Channel {
    Dial,
    Answer,
    Control,
    Lane { lane: u8, tag: usize },
}

/// A lane of one follower, at its origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamKey {
    pub(crate) peer: Origin,
    pub(crate) lane: u8,
}

/// Room in a sender's window, to be given back when the frame has gone.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) sender: Writer,
    pub(crate) key: StreamKey,
    pub(crate) tag: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) from: Writer,
    pub(crate) to: usize,
    /// `None` for a dial: whoever lives there.
    pub(crate) to_life: Option<u64>,
    pub(crate) channel: Channel,
    pub(crate) bytes: Bytes,
    /// Whether the sender is a settled member: what a seed is.
    pub(crate) settled: bool,
    pub(crate) flow: Option<Flow>,
    /// A cut held it back: whether it comes depends on its sender.
    pub(crate) held: bool,
}

pub(crate) struct Arrivals {
    pub(crate) first: Ms,
    pub(crate) lost: bool,
    pub(crate) again: Option<Ms>,
}

#[derive(Debug)]
pub(crate) struct Net {
    /// Whether streams may lose, double and reorder frames; else only a cut or a new connection disturbs them.
    rough: bool,
    loss_percent: u64,
    /// Frames between these two, in this direction, do not pass before then.
    cuts: BTreeMap<(usize, usize), Ms>,
    slow_until: Ms,
    last: BTreeMap<(Writer, usize, Channel), Ms>,
}

impl Net {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let rough = rng.percent(50);
        let loss_percent = rng.range(1, 15);
        Self { rough, loss_percent, cuts: BTreeMap::new(), slow_until: 0, last: BTreeMap::new() }
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, until: Ms) {
        self.cuts.insert((from, to), until);
    }

    pub(crate) fn slow(&mut self, until: Ms) {
        self.slow_until = until;
    }

    pub(crate) fn smooth(&mut self) {
        self.rough = false;
        self.cuts.clear();
        self.slow_until = 0;
    }

    pub(crate) fn cut_until(&self, from: usize, to: usize, now: Ms) -> Option<Ms> {
        self.cuts.get(&(from, to)).copied().filter(|until| *until > now)
    }

    /// Whether a frame that is held back by a cut is lost instead.
    pub(crate) fn loses_held(&self, rng: &mut Rng, channel: Channel) -> bool {
        matches!(channel, Channel::Dial | Channel::Answer) || (self.rough && rng.percent(40))
    }

    pub(crate) fn arrivals(&mut self, rng: &mut Rng, now: Ms, envelope: &Envelope) -> Arrivals {
        let delay = match rng.range(0, 100) {
            0..90 => rng.range(1, 8),
            90..98 => rng.range(8, 40),
            _ => rng.range(40, 150),
        };
        let delay = if now < self.slow_until { delay + rng.range(20, 250) } else { delay };
        let last = self.last.entry((envelope.from, envelope.to, envelope.channel)).or_insert(0);
        let reordered = self.rough && rng.percent(10);
        let first = if reordered { now + delay } else { (now + delay).max(*last) };
        *last = first.max(*last);
        let lost = self.rough && rng.percent(self.loss_percent);
        let again = (self.rough && rng.percent(8)).then(|| first + rng.range(0, 200));
        Arrivals { first, lost, again }
    }
}
