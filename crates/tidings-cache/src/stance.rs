//! Whether a node makes changes, and why not.

use std::sync::atomic::Ordering;

use tidings_proto::log::Stuck;

use crate::domain::Domain;
use crate::write::WriteError;

/// The node has begun to shut down.
const LEAVING: u8 = 1;

/// Not everybody knows of the node.
const HELD: u8 = 2;

/// Another process has its place.
const SUPERSEDED: u8 = 4;

/// The log takes nothing, for its files are stuck.
const STUCK: u8 = 8;

impl Domain {
    /// Refuses mutations from now on, except the ends of write-throughs that have begun.
    pub fn leave(&self) {
        self.inner().stance.fetch_or(LEAVING, Ordering::SeqCst);
    }

    /// Refuses mutations from now on, or no longer, because not everybody knows of this node: as with
    /// [`Domain::leave`], what has begun may end.
    pub fn hold(&self, hold: bool) {
        self.take_stance(HELD, hold);
    }

    /// Refuses mutations from now on, or no longer, because the log's files are [`Stuck`]: before they have changed anything
    /// here. The log itself refuses what comes before this was said, and the ends of what has begun.
    pub fn log_stuck(&self, stuck: bool) {
        self.take_stance(STUCK, stuck);
    }

    fn take_stance(&self, bit: u8, taken: bool) {
        let stance = &self.inner().stance;
        let _ = if taken {
            stance.fetch_or(bit, Ordering::SeqCst)
        } else {
            stance.fetch_and(!bit, Ordering::SeqCst)
        };
    }

    /// Refuses mutations from now on, because another process has this node's id and keeps it: nobody follows this one.
    pub fn supersede(&self) {
        self.inner().stance.fetch_or(SUPERSEDED, Ordering::SeqCst);
    }

    /// Whether changes may begin.
    #[inline]
    pub(crate) fn may_begin(&self) -> Result<(), WriteError> {
        match self.inner().stance.load(Ordering::Relaxed) {
            0 => Ok(()),
            stance if stance & LEAVING != 0 => Err(WriteError::Leaving),
            stance if stance & SUPERSEDED != 0 => Err(WriteError::Superseded),
            stance if stance & STUCK != 0 => Err(WriteError::Stuck(Stuck)),
            _ => Err(WriteError::NotKnown),
        }
    }
}
