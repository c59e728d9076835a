//! How far the wall clocks of peers are from this node's. Nothing that keeps caches coherent reads a wall clock, but what
//! people compare does; so a clock that is wrong is said, counted, and by default holds up a start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::frame::MEMBERS_MAX;
use tidings_proto::hlc::SKEW_MAX;
use tidings_proto::id::NodeId;
use tidings_proto::offset::{Judgement, Offset, is_own_clock_off};
use tidings_proto::time::Tick;

/// What may lie between two wall clocks, and what happens beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockBounds {
    /// The most that a peer's clock may be ahead or behind. Default: 500 ms, beyond which a stamp will be refused where
    /// the last writer wins.
    pub max_offset: Duration,
    /// Whether a node does not become ready while its clock is off. One that was ready once stays so. Default: `true`.
    pub unready: bool,
}

impl Default for ClockBounds {
    fn default() -> Self {
        Self { max_offset: SKEW_MAX, unready: true }
    }
}

/// How far a peer's wall clock is from this node's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockOffset {
    /// Seconds that it is ahead; negative: behind.
    pub ahead: f64,
    /// Seconds that this may be off by: half of a round trip, and the resolution of the clocks.
    pub uncertainty: f64,
    /// It is beyond [`ClockBounds::max_offset`] for certain.
    pub exceeded: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    offset: Offset,
    exceeded: bool,
}

/// The wall clocks of peers.
#[derive(Debug)]
pub(crate) struct Clocks {
    bounds: ClockBounds,
    /// As many as can be members; of more, what was measured longest ago goes.
    peers: Mutex<BTreeMap<NodeId, (Tick, Known)>>,
    exceeded: AtomicU64,
}

impl Clocks {
    pub(crate) fn new(bounds: ClockBounds) -> Self {
        Self { bounds, peers: Mutex::default(), exceeded: AtomicU64::new(0) }
    }

    /// A peer's clock was measured. Says so if it has come to be beyond the bound, or is within it again.
    pub(crate) fn measured(&self, node: &NodeId, newer: Offset, now: Tick) {
        let mut peers = self.peers.lock();
        let before = peers.get(node).map(|(_, known)| *known);
        let offset = before.map_or(newer, |known| known.offset.refined(newer));
        let exceeded = match offset.judge(self.bounds.max_offset) {
            Judgement::Beyond => true,
            Judgement::Within => false,
            Judgement::Unclear => before.is_some_and(|known| known.exceeded),
        };
        peers.insert(node.clone(), (now, Known { offset, exceeded }));
        if peers.len() > MEMBERS_MAX
            && let Some((oldest, _)) = peers.iter().min_by_key(|(_, (at, _))| *at)
        {
            let oldest = oldest.clone();
            peers.remove(&oldest);
        }
        drop(peers);
        let (ahead_s, uncertain_s) = (offset.ahead(), offset.uncertainty());
        match (before.is_some_and(|known| known.exceeded), exceeded) {
            (false, true) => {
                self.exceeded.fetch_add(1, Ordering::Relaxed);
                let remedy = "set the clock of the one that is wrong (NTP), or raise max_clock_offset";
                tracing::warn!(%node, ahead_s, uncertain_s, remedy, "a peer's wall clock is off");
            }
            (true, false) => {
                tracing::info!(%node, ahead_s, uncertain_s, "a peer's wall clock is right again")
            }
            _ => {}
        }
    }

    /// How far a peer's clock is from this node's, if it has said.
    pub(crate) fn offset(&self, node: &NodeId, now: Tick) -> Option<ClockOffset> {
        let (_, Known { offset, exceeded }) = *self.peers.lock().get(node)?;
        let offset = offset.aged(now);
        Some(ClockOffset { ahead: offset.ahead(), uncertainty: offset.uncertainty(), exceeded })
    }

    /// How often a peer's clock has come to be beyond the bound.
    pub(crate) fn exceeded(&self) -> u64 {
        self.exceeded.load(Ordering::Relaxed)
    }

    /// What keeps a node that starts among these peers from being ready: its own clock disagrees with most of theirs.
    pub(crate) fn misses<'a>(&self, live: impl Iterator<Item = &'a NodeId>, now: Tick) -> Vec<String> {
        if !self.bounds.unready {
            return Vec::new();
        }
        let peers = self.peers.lock();
        let known: Vec<_> =
            live.filter_map(|node| Some((node, peers.get(node)?.1.offset.aged(now)))).collect();
        drop(peers);
        if !is_own_clock_off(known.iter().map(|(_, offset)| *offset), self.bounds.max_offset) {
            return Vec::new();
        }
        let beyond =
            known.iter().filter(|(_, offset)| offset.judge(self.bounds.max_offset) == Judgement::Beyond);
        let said = beyond.map(|(node, offset)| {
            let (ahead, side) =
                (offset.ahead().abs(), if offset.ahead() < 0.0 { "ahead of" } else { "behind" });
            let most = self.bounds.max_offset.as_secs_f64();
            format!(
                "the wall clock here is {ahead:.3} s {side} that of {node}, and may be {most} s: set it (NTP)"
            )
        });
        said.collect()
    }
}
