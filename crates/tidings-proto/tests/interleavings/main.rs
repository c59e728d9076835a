//! Everything that can happen to a small cluster, in every order: no hit is older than the bound, none is older than
//! what was applied or fenced before its read began, or than what a receipt says was, and no call is answered with
//! less.
//!
//! There are up to three nodes, two that write and one that reads, and up to two keys with a lane each. Change logs,
//! followers, freshness and receipts are the real ones; the network, the system of record and the reader's two
//! entries are as small as they can be. What is bounded is how often each thing happens, not when: within its scope a
//! search is complete. [`THREE`] has all that can go wrong once; [`WIDE`] has more of it, and is cut short unless
//! `TIDINGS_MODEL_STATES=20000000` has it looked at as a whole, by `cargo test -p tidings-proto --test interleavings
//! wide`. What else there is has a scope of its own, and so has each planted mistake, which has to be found.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

mod search;
mod world;

use crate::search::{Outcome, search};
use crate::world::World;

/// What the harness does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// A lane goes on after a reset although nothing was fenced.
    NoFence,
    /// A lane goes on after a reset, and is fenced at some time.
    LateFence,
    /// A change returns before it is in the log.
    SequenceOutsideLock,
    /// A confirmation dates from the moment at which the answer came.
    ConfirmedAtReceipt,
    /// An origin ends and leaves no floor.
    NoFloor,
    /// A hit reads its entry before it reads until when entries count.
    EntryFirst,
    /// A heartbeat confirms although its sender knows a member that the receiver does not.
    UnknownMember,
    /// Events count as applied that were not.
    SilentDrop,
    /// Who has ended is named no more, also to those who never knew it.
    UnnamedEnd,
    /// A caller joins a load that began before a clear.
    JoinsAcrossClear,
    /// What a fence is to cover is acknowledged before the fence.
    AcksBeforeFence,
    /// Whoever has not probed for a bound has expired, though the change is younger.
    ExpiresByProbes,
}

/// How much happens.
#[derive(Clone, Copy, Debug, Hash)]
struct Scope {
    origins: usize,
    keys: usize,
    /// The second origin is not known to the reader at first; the first one comes to know it.
    joins: bool,
    /// The first origin may be sure that the second one has ended, while the reader is cut off from both.
    ends: bool,
    writes: u8,
    probes: u8,
    losses: u8,
    follows: u8,
    loads: u8,
    reads: u8,
    crashes: u8,
    restarts: u8,
    /// Writes that may clear their lane.
    clears: u8,
    /// Callers that come while a load is under way.
    calls: u8,
    receipts: u8,
    /// Deaths of the reader, each followed by another life.
    renewals: u8,
    /// Steps of time, each as long as the bound.
    passes: u8,
}

/// Nothing happens to one origin.
const QUIET: Scope = Scope {
    origins: 1,
    keys: 1,
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

/// Loss, and a log that forgets: gaps, requests, resets, fences.
const LOSS: Scope = Scope { writes: 2, probes: 2, losses: 1, follows: 1, loads: 1, passes: 2, ..QUIET };

/// Reads that take their time.
const READS: Scope = Scope { writes: 1, probes: 2, loads: 1, reads: 1, passes: 3, ..QUIET };

/// A crash with a write under way, and a restart.
const CRASH: Scope =
    Scope { writes: 1, probes: 1, follows: 1, loads: 1, crashes: 1, restarts: 1, passes: 4, ..QUIET };

/// Two origins with a key each.
const TWO: Scope = Scope { origins: 2, keys: 2, writes: 2, probes: 1, losses: 1, passes: 2, ..QUIET };

/// Three nodes and two keys: a write, a probe, a frame that is lost, a crash and a restart, while four bounds pass.
const THREE: Scope = Scope {
    origins: 2,
    keys: 2,
    writes: 1,
    probes: 1,
    losses: 1,
    crashes: 1,
    restarts: 1,
    passes: 4,
    ..QUIET
};

/// The same with a second write, so that logs forget, and a request to follow again.
const WIDE: Scope = Scope { writes: 2, follows: 1, ..THREE };

/// Receipts, with a log that forgets.
const RECEIPTS: Scope = Scope { writes: 2, probes: 1, loads: 1, receipts: 1, passes: 2, ..QUIET };

/// A clear that comes while a key is loaded, and a caller who comes then.
const CLEARS: Scope = Scope { writes: 2, probes: 1, loads: 1, clears: 1, calls: 1, passes: 1, ..QUIET };

/// An origin that joins by another one.
const JOIN: Scope = Scope { origins: 2, joins: true, writes: 1, probes: 2, follows: 1, passes: 3, ..QUIET };

/// An origin that joins by another one, and ends before the reader hears of it.
const ENDS: Scope =
    Scope { origins: 2, joins: true, ends: true, writes: 1, probes: 1, crashes: 1, passes: 3, ..QUIET };

/// States that a search looks at before it is given up.
const STATES_MAX: usize = 1_000_000;

/// States of the wide scope that are looked at unless the environment says otherwise.
const WIDE_STATES: usize = 100_000;

fn run(scope: Scope, planted: Planted) -> Outcome {
    search(&World::new(scope, planted), &World::new(scope, planted).whole(), STATES_MAX)
}

fn assert_kept(scope: Scope) {
    let outcome = run(scope, Planted::Nothing);
    println!("{} states, {} steps deep: {scope:?}", outcome.states, outcome.deepest);
    assert!(outcome.broken.is_none(), "{}", outcome.broken.unwrap_or_default());
    assert!(!outcome.cut_short, "the scope is too large to be looked at as a whole");
}

fn assert_found(scope: Scope, planted: Planted) {
    let outcome = run(scope, planted);
    let broken =
        outcome.broken.unwrap_or_else(|| panic!("{planted:?} was not found in {} states", outcome.states));
    println!("{planted:?}: {}", broken.lines().take(2).collect::<Vec<_>>().join(" "));
}

#[test]
fn the_bound_is_kept_whatever_is_lost_and_forgotten() {
    assert_kept(LOSS);
}

#[test]
fn the_bound_is_kept_by_reads_that_take_their_time() {
    assert_kept(READS);
}

#[test]
fn the_bound_is_kept_over_a_crash_and_a_restart() {
    assert_kept(CRASH);
}

#[test]
fn the_bound_is_kept_with_two_origins() {
    assert_kept(TWO);
}

#[test]
fn the_bound_is_kept_as_far_as_a_wide_scope_is_looked_at() {
    let most = std::env::var("TIDINGS_MODEL_STATES").map_or(WIDE_STATES, |text| text.parse().unwrap());
    let outcome =
        search(&World::new(WIDE, Planted::Nothing), &World::new(WIDE, Planted::Nothing).whole(), most);
    let cut = if outcome.cut_short { ", and not all of them" } else { "" };
    println!("{} states{cut}, {} steps deep: {WIDE:?}", outcome.states, outcome.deepest);
    assert!(outcome.broken.is_none(), "{}", outcome.broken.unwrap_or_default());
}

#[test]
fn the_bound_is_kept_while_an_origin_joins_by_another_one() {
    assert_kept(JOIN);
}

#[test]
fn the_bound_is_kept_by_three_nodes_with_two_keys() {
    assert_kept(THREE);
}

#[test]
fn a_receipt_holds_what_it_says() {
    assert_kept(RECEIPTS);
}

#[test]
fn a_call_is_answered_with_nothing_older_than_a_clear_that_was_applied() {
    assert_kept(CLEARS);
}

#[test]
fn a_load_that_is_joined_across_a_clear_is_found() {
    assert_found(CLEARS, Planted::JoinsAcrossClear);
}

#[test]
fn an_acknowledgement_before_the_fence_is_found() {
    assert_found(RECEIPTS, Planted::AcksBeforeFence);
}

#[test]
fn a_peer_taken_for_expired_by_its_probes_alone_is_found() {
    assert_found(RECEIPTS, Planted::ExpiresByProbes);
}

#[test]
fn a_reset_without_its_fence_is_found() {
    assert_found(LOSS, Planted::NoFence);
}

#[test]
fn a_fence_after_the_lane_went_on_is_found() {
    assert_found(LOSS, Planted::LateFence);
}

#[test]
fn a_sequence_taken_outside_the_lock_is_found() {
    assert_found(LOSS, Planted::SequenceOutsideLock);
}

#[test]
fn a_confirmation_that_dates_from_its_receipt_is_found() {
    assert_found(READS, Planted::ConfirmedAtReceipt);
}

#[test]
fn events_dropped_in_silence_are_found() {
    assert_found(LOSS, Planted::SilentDrop);
}

#[test]
fn an_origin_that_ends_without_a_floor_is_found() {
    assert_found(CRASH, Planted::NoFloor);
}

#[test]
fn an_entry_read_before_the_time_until_which_it_counts_is_found() {
    assert_found(READS, Planted::EntryFirst);
}

#[test]
fn a_heartbeat_that_confirms_past_an_unknown_member_is_found() {
    assert_found(JOIN, Planted::UnknownMember);
}

#[test]
fn the_bound_is_kept_while_an_origin_comes_and_ends_that_the_reader_never_knew() {
    assert_kept(ENDS);
}

#[test]
fn an_end_that_nobody_tells_is_found() {
    assert_found(ENDS, Planted::UnnamedEnd);
}

#[test]
fn zz_try() {
    let text = std::env::var("M3").unwrap_or_default();
    for line in text.split(';').filter(|l| !l.is_empty()) {
        let mut s = Scope { origins: 2, keys: 2, ..QUIET };
        let mut planted = vec![Planted::Nothing];
        for kv in line.split(',') {
            let (k, v) = kv.split_once('=').unwrap();
            let n: u8 = v.parse().unwrap_or(0);
            match k {
                "o" => s.origins = n.into(), "k" => s.keys = n.into(), "j" => s.joins = n > 0, "e" => s.ends = n > 0,
                "w" => s.writes = n, "p" => s.probes = n, "l" => s.losses = n, "f" => s.follows = n, "ld" => s.loads = n,
                "r" => s.reads = n, "c" => s.crashes = n, "rs" => s.restarts = n, "cl" => s.clears = n, "ca" => s.calls = n,
                "rc" => s.receipts = n, "rn" => s.renewals = n, "t" => s.passes = n,
                "x" => planted = vec![Planted::NoFence, Planted::LateFence, Planted::SequenceOutsideLock, Planted::ConfirmedAtReceipt,
                    Planted::NoFloor, Planted::EntryFirst, Planted::UnknownMember, Planted::SilentDrop, Planted::UnnamedEnd,
                    Planted::JoinsAcrossClear, Planted::AcksBeforeFence, Planted::ExpiresByProbes],
                _ => panic!("{k}"),
            }
        }
        let most = std::env::var("M3MAX").map_or(3_000_000, |t| t.parse().unwrap());
        for planted in planted {
            let t = std::time::Instant::now();
            let o = search(&World::new(s, planted), &World::new(s, planted).whole(), most);
            println!("{line} {planted:?}: {} states{} deep {} in {:?} {}", o.states, if o.cut_short {" CUT"} else {""}, o.deepest, t.elapsed(),
              o.broken.map(|b| b.lines().take(2).collect::<Vec<_>>().join(" ")).unwrap_or_default());
        }
    }
}
