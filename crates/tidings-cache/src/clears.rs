//! Changes of other nodes that name no keys, such as clears. Every lane carries its own copy, which stands for that
//! lane's slots; subscribers are told once, after the last copy was applied.
//!
//! Not at the first: another lane may still bring what happened before the change, and a subscriber that hears of it
//! afterwards would take it for true. A copy may never come (its origin is gone, or its log was overrun, which is told
//! by itself), so that a change is told without it after a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::hlc::Stamp;
use tidings_proto::id::Origin;
use tidings_proto::time::Tick;

use crate::event::RawTarget;
use crate::remote::RemoteChange;
use crate::topic::Told;

/// How long a change waits for the copies of other lanes. They come together but for a lane that is cut off.
const WAIT: Duration = Duration::from_secs(5);

/// Most changes that are remembered. More are told before all of their copies have come.
const CHANGES_MAX: usize = 64;

/// What subscribers are to be told now.
pub(crate) type Due = (RawTarget, Told);

#[derive(Debug)]
struct Change {
    origin: Arc<Origin>,
    /// All copies of one change have the same, and no other change of the origin has it.
    stamp: Stamp,
    /// Bits of the lanes whose copies have not come.
    awaited: u64,
    since: Tick,
    /// Nothing, once it was told.
    due: Option<Due>,
}

/// What has not come on every lane yet.
#[derive(Debug, Default)]
pub(crate) struct Clears(Mutex<VecDeque<Change>>);

impl Clears {
    /// Notes one copy. Returns what is to be told because of it.
    pub(crate) fn arrive(&self, change: &RemoteChange<'_>, due: impl FnOnce() -> Due, now: Tick) -> Vec<Due> {
        let mut changes = self.0.lock();
        let stamp = change.record.stamp;
        let bit = 1_u64 << change.lane.index();
        let known = changes.iter().position(|one| one.stamp == stamp && one.origin == *change.origin);
        let at = known.unwrap_or_else(|| {
            let awaited = change.lanes.ids().fold(0, |bits, lane| bits | 1 << lane.index());
            let origin = change.origin.clone();
            changes.push_back(Change { origin, stamp, awaited, since: now, due: Some(due()) });
            changes.len() - 1
        });
        changes[at].awaited &= !bit;
        let whole = if changes[at].awaited == 0 { changes.remove(at) } else { None };
        let over = if changes.len() > CHANGES_MAX { changes.pop_front() } else { None };
        over.into_iter().chain(whole).filter_map(|one| one.due).collect()
    }

    /// What has waited for long enough.
    pub(crate) fn overdue(&self, now: Tick) -> Vec<Due> {
        let mut changes = self.0.lock();
        changes
            .iter_mut()
            .filter(|one| now.since(one.since) >= WAIT)
            .filter_map(|one| one.due.take())
            .collect()
    }
}
