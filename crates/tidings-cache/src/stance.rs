//! Whether a node makes changes, and why not.

use std::sync::atomic::Ordering;

use crate::domain::Domain;
use crate::write::WriteError;

/// The node has begun to shut down.
const LEAVING: u8 = 1;

/// Not everybody knows of the node.
const HELD: u8 = 2;

/// Another process has its place.
const SUPERSEDED: u8 = 4;

impl Domain {
    /// Refuses mutations from now on, except the ends of write-throughs that have begun.
    pub fn leave(&self) {
        self.inner().stance.fetch_or(LEAVING, Ordering::SeqCst);
    }

    /// Refuses mutations from now on, or no longer, because not everybody knows of this node: as with
    /// [`Domain::leave`], what has begun may end.
    pub fn hold(&self, hold: bool) {
        if hold {
            self.inner().stance.fetch_or(HELD, Ordering::SeqCst);
        } else {
            self.inner().stance.fetch_and(!HELD, Ordering::SeqCst);
        }
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
            HELD => Err(WriteError::NotKnown),
            stance if stance & LEAVING == 0 => Err(WriteError::Superseded),
            _ => Err(WriteError::Leaving),
        }
    }
}
