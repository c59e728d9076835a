//! How much happens in each search.

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Scope {
    pub(crate) origins: usize,
    pub(crate) keys: usize,
    /// The second origin is not known to the reader at first; the first one comes to know it.
    pub(crate) joins: bool,
    /// The first origin may be sure that the second one has ended, while the reader is cut off from both.
    pub(crate) ends: bool,
    pub(crate) writes: u8,
    pub(crate) probes: u8,
    pub(crate) losses: u8,
    /// Requests to follow a lane anew that is followed already. One that is not can be followed at any time.
    pub(crate) follows: u8,
    pub(crate) loads: u8,
    pub(crate) reads: u8,
    pub(crate) crashes: u8,
    pub(crate) restarts: u8,
    /// Writes that may clear their lane.
    pub(crate) clears: u8,
    /// Callers that come while a load is under way.
    pub(crate) calls: u8,
    pub(crate) receipts: u8,
    /// Deaths of the reader, each followed by another life.
    pub(crate) renewals: u8,
    /// Steps of time, each as long as the bound.
    pub(crate) passes: u8,
}

/// Nothing happens to two origins, a reader and two keys.
const QUIET: Scope = Scope {
    origins: 2,
    keys: 2,
    joins: false,
    ends: false,
    writes: 0,
    probes: 0,
    losses: 0,
    follows: 0,
    loads: 0,
    reads: 0,
    crashes: 0,
    restarts: 0,
    clears: 0,
    calls: 0,
    receipts: 0,
    renewals: 0,
    passes: 0,
};

/// Loss, and logs that forget: gaps, requests, resets, fences. Each origin can be heard once more.
pub(crate) const LOSS: Scope = Scope { writes: 2, probes: 2, losses: 1, passes: 2, ..QUIET };

/// The same while a key is loaded, and nothing is lost.
pub(crate) const LOADS: Scope = Scope { losses: 0, loads: 1, ..LOSS };

/// Lanes that are followed anew although nothing was missed, as by another connection.
pub(crate) const FOLLOWS: Scope = Scope { writes: 2, probes: 2, follows: 1, passes: 2, ..QUIET };

/// Reads that take their time, and one answer that is late.
pub(crate) const READS: Scope = Scope { writes: 1, probes: 2, loads: 1, reads: 1, passes: 3, ..QUIET };

/// One heartbeat of each origin, and the time to be late.
pub(crate) const BEATS: Scope = Scope { writes: 1, probes: 3, passes: 3, ..QUIET };

/// An origin that dies with a write under way, is given up, or has another life, whose lanes are followed.
pub(crate) const CRASH: Scope = Scope { writes: 1, probes: 2, crashes: 1, restarts: 1, passes: 4, ..QUIET };

/// The same with a loss.
pub(crate) const CRASH_LOSS: Scope = Scope { probes: 1, losses: 1, ..CRASH };

/// The same with two writes, so that logs forget, before anybody is given up.
pub(crate) const CRASH_RESET: Scope = Scope { writes: 2, passes: 2, ..CRASH_LOSS };

/// Receipts, with a loss and logs that forget.
pub(crate) const RECEIPTS: Scope =
    Scope { writes: 2, probes: 1, losses: 1, loads: 1, receipts: 1, passes: 2, ..QUIET };

/// A clear that comes while a key is loaded, and a caller who comes then.
pub(crate) const CLEARS: Scope =
    Scope { writes: 2, probes: 1, loads: 1, clears: 1, calls: 1, passes: 1, ..QUIET };

/// An origin that joins by another one.
pub(crate) const JOIN: Scope = Scope { joins: true, writes: 1, probes: 2, passes: 3, ..QUIET };

/// An origin that joins by another one, and ends before the reader hears of it.
pub(crate) const ENDS: Scope =
    Scope { joins: true, ends: true, writes: 1, probes: 1, crashes: 1, passes: 3, ..QUIET };

/// A reader that is killed, with a receipt under way, and loads in one of its lives.
pub(crate) const RENEWAL: Scope = Scope { writes: 1, loads: 1, receipts: 1, renewals: 1, passes: 2, ..QUIET };

/// Two nodes and a key: a reader that is killed and hears an origin, whose log forgets, until its floor is behind.
pub(crate) const RENEWAL_OF_TWO: Scope =
    Scope { origins: 1, keys: 1, writes: 2, probes: 2, loads: 1, renewals: 1, passes: 3, ..QUIET };

/// By hand: loss, a log that forgets, a load, a crash and a restart, all at once.
pub(crate) const WIDE: Scope = Scope { loads: 1, ..CRASH_RESET };

/// By hand: logs that forget, and an origin that dies and lives again, while both can be heard once more.
pub(crate) const WIDE_CRASH: Scope = Scope { probes: 2, losses: 0, ..CRASH_RESET };

/// By hand: a reader that is killed, with a receipt under way, and hears an origin.
pub(crate) const WIDE_RENEWAL: Scope = Scope { probes: 1, passes: 3, ..RENEWAL };

/// Small enough to be looked at in every order one by one: two nodes and a key, and all of them.
pub(crate) const SMALL: [Scope; 6] = [
    Scope { losses: 1, ..SMALLEST },
    Scope { writes: 1, loads: 1, reads: 1, ..SMALLEST },
    Scope { writes: 1, crashes: 1, restarts: 1, passes: 3, ..SMALLEST },
    Scope { probes: 0, loads: 1, receipts: 1, passes: 1, ..SMALLEST },
    Scope { writes: 1, probes: 2, passes: 2, ..QUIET },
    Scope { keys: 1, writes: 1, crashes: 1, restarts: 1, passes: 2, ..QUIET },
];

const SMALLEST: Scope = Scope { origins: 1, keys: 1, writes: 2, probes: 1, passes: 2, ..QUIET };
