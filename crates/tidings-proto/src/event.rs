//! What happened to a cache, in the words that subscribers and the wire share.

use std::fmt;

/// What a subscriber is told has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventKind {
    /// A value was stored where there was none.
    Inserted = 1,
    /// A value replaced another.
    Updated = 2,
    /// A key was removed; told also when it was absent.
    Deleted = 3,
    /// Everything was removed.
    Cleared = 4,
    /// An entry's time ran out, here.
    Expired = 5,
    /// An entry was displaced to keep within the capacity, here.
    Evicted = 6,
    /// A change by another node removed the local copy.
    Invalidated = 7,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Inserted,
        Self::Updated,
        Self::Deleted,
        Self::Cleared,
        Self::Expired,
        Self::Evicted,
        Self::Invalidated,
    ];

    /// The kind with this number on the wire.
    #[must_use]
    pub fn of(byte: u8) -> Option<Self> {
        // They are numbered from 1 in this order.
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// Lower-case name, as in the HTTP interface.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inserted => "inserted",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Cleared => "cleared",
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Invalidated => "invalidated",
        }
    }

    /// Whether this is news that evicts a peer's copy. Expiry and eviction are local facts and never do.
    #[must_use]
    pub fn is_mutation(self) -> bool {
        matches!(self, Self::Inserted | Self::Updated | Self::Deleted | Self::Cleared)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The call that made the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the cache operation of its name")]
pub enum Operation {
    Insert = 0,
    InsertIfAbsent = 1,
    Replace = 2,
    Compute = 3,
    Increment = 4,
    Remove = 5,
    Take = 6,
    WriteThrough = 7,
    Invalidate = 8,
    Clear = 9,
    Expire = 10,
    Evict = 11,
}

impl Operation {
    const ALL: [Self; 12] = [
        Self::Insert,
        Self::InsertIfAbsent,
        Self::Replace,
        Self::Compute,
        Self::Increment,
        Self::Remove,
        Self::Take,
        Self::WriteThrough,
        Self::Invalidate,
        Self::Clear,
        Self::Expire,
        Self::Evict,
    ];

    /// The operation with this number on the wire.
    #[must_use]
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    /// Lower-case name, as in the HTTP interface.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::InsertIfAbsent => "insert_if_absent",
            Self::Replace => "replace",
            Self::Compute => "compute",
            Self::Increment => "increment",
            Self::Remove => "remove",
            Self::Take => "take",
            Self::WriteThrough => "write_through",
            Self::Invalidate => "invalidate",
            Self::Clear => "clear",
            Self::Expire => "expire",
            Self::Evict => "evict",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_the_wire_name_what_they_came_from() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::of(kind as u8), Some(kind));
        }
        for operation in Operation::ALL {
            assert_eq!(Operation::of(operation as u8), Some(operation));
        }
        assert_eq!((EventKind::of(0), Operation::of(200)), (None, None));
    }
}
