//! Slots where writes came to be known by earlier stamps: what others wrote between may have lost against the former ones
//! here, and floors that were set down may hide what was forgotten. They are compared with the members soon, as after a gap.

use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::id::SlotSet;
use tidings_proto::time::Tick;

/// How long after something was renamed its slot is compared: the members have heard of it by then. Not more often either,
/// for a slot is unreadable meanwhile.
const LOOK_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Slots {
    waiting: SlotSet,
    /// Of these, those that may hide a difference: what a tag has removed goes by the stamp of what it removed.
    waiting_listed: SlotSet,
    due: Tick,
    listed: SlotSet,
}

/// Slots that are to be compared, a bit each.
#[derive(Debug, Default)]
pub(crate) struct Renamed(Mutex<Slots>);

impl Renamed {
    /// Something was renamed. `listed`: whatever the slots add up to, they are to be compared key by key.
    pub(crate) fn note(&self, slots: SlotSet, listed: bool, now: Tick) {
        let mut all = self.0.lock();
        if all.waiting.is_empty() {
            all.due = now.after(LOOK_AFTER);
        }
        all.waiting = all.waiting.or(slots);
        if listed {
            all.waiting_listed = all.waiting_listed.or(slots);
        }
    }

    /// Takes the slots whose time has come.
    pub(crate) fn take_due(&self, now: Tick) -> SlotSet {
        let mut all = self.0.lock();
        if all.waiting.is_empty() || now < all.due {
            return SlotSet::default();
        }
        all.listed = all.listed.or(std::mem::take(&mut all.waiting_listed));
        std::mem::take(&mut all.waiting)
    }

    /// The slots that are compared key by key.
    pub(crate) fn listed(&self) -> SlotSet {
        self.0.lock().listed
    }

    /// Slots were compared with every member.
    pub(crate) fn compared(&self, slots: SlotSet) {
        let mut all = self.0.lock();
        all.listed = all.listed.without(slots);
    }
}
