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
use tidings_transport::Quiet;
use tokio::time::Instant;

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
    /// A peer can set its clock as often as it is asked for it.
    quiet: Quiet<NodeId>,
}

impl Clocks {
    pub(crate) fn new(bounds: ClockBounds) -> Self {
        Self { bounds, peers: Mutex::default(), exceeded: AtomicU64::new(0), quiet: Quiet::default() }
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
        match (before.is_some_and(|known| known.exceeded), exceeded) {
            (false, true) => {
                self.exceeded.fetch_add(1, Ordering::Relaxed);
                self.say(node, offset, exceeded);
            }
            (true, false) => self.say(node, offset, exceeded),
            _ => {}
        }
    }

    fn say(&self, node: &NodeId, offset: Offset, exceeded: bool) {
        let what = if exceeded { "clock off" } else { "clock right" };
        let Some(passed) = self.quiet.speaks(node.clone(), what, Instant::now()) else { return };
        let (ahead_s, uncertain_s, suppressed) = (offset.ahead(), offset.uncertainty(), passed.field());
        if exceeded {
            let remedy = "set the clock of the one that is wrong (NTP), or raise max_clock_offset";
            tracing::warn!(%node, ahead_s, uncertain_s, suppressed, remedy, "a peer's wall clock is off");
        } else {
            tracing::info!(%node, ahead_s, uncertain_s, suppressed, "a peer's wall clock is right again");
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
        // One that has not spoken yet is left out: counted as if it agreed, it would let a node pass whose clock is off.
        let said = live.filter_map(|node| Some((node, peers.get(node)?.1.offset.aged(now))));
        let said: Vec<_> = said.collect();
        drop(peers);
        if !is_own_clock_off(said.iter().map(|(_, offset)| *offset), self.bounds.max_offset) {
            return Vec::new();
        }
        let beyond =
            said.iter().filter(|(_, offset)| offset.judge(self.bounds.max_offset) == Judgement::Beyond);
        let reasons = beyond.map(|(node, offset)| {
            let (ahead, side) =
                (offset.ahead().abs(), if offset.ahead() < 0.0 { "ahead of" } else { "behind" });
            let most = self.bounds.max_offset.as_secs_f64();
            format!(
                "the wall clock here is {ahead:.3} s {side} that of {node}, and may be {most} s: set it (NTP)"
            )
        });
        reasons.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_to_and_fro_is_counted_each_time() {
        let (clocks, now) = (Clocks::new(ClockBounds::default()), Tick(1 << 50));
        let node = NodeId::new("n1").unwrap();
        let said = |ahead_ms: u64| {
            let walls = (1_700_000_000_000 + ahead_ms, 1_700_000_000_000);
            clocks.measured(&node, Offset::measure(walls, Duration::from_millis(5), now), now);
        };
        (0..10).for_each(|turn| said(turn % 2 * 600_000));
        assert_eq!(clocks.exceeded(), 5);
        let quiet = |what| clocks.quiet.speaks(node.clone(), what, Instant::now()).is_none();
        assert!(quiet("clock off") && quiet("clock right"), "and said once a second at most");
    }
}
