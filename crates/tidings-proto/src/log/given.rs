//! Appends under stamps that were given otherwise than by the append: what is logged before them may be later.

use super::{AppendError, Appended, ChangeLog, LaneLog, Sealed};
use crate::hlc::Stamp;
use crate::id::Slot;
use crate::record::Draft;

impl LaneLog {
    /// Has room for an event under this stamp. A segment begins with its earliest one.
    pub(super) fn admit(&mut self, stamp: Stamp) {
        if stamp < self.open_base {
            self.seal_segment();
        }
        self.clock.note(stamp);
    }
}

impl ChangeLog {
    /// A stamp for what is appended later by [`ChangeLog::append_as`]: later than everything in its slot's lane so far.
    #[must_use]
    pub fn stamp_in(&self, slot: Slot, wall_ms: u64) -> Stamp {
        self.lock(self.lanes.lane_of(slot)).clock.tick(wall_ms)
    }

    /// As [`ChangeLog::append`], under this stamp.
    ///
    /// # Errors
    /// As [`ChangeLog::append`].
    pub fn append_as(&self, slot: Slot, stamp: Stamp, draft: &Draft<'_>) -> Result<Appended, AppendError> {
        let mut log = self.lock(self.lanes.lane_of(slot));
        if log.sealed {
            return Err(Sealed.into());
        }
        log.admit(stamp);
        Ok(log.append(draft, stamp)?)
    }
}
