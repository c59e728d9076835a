//! Everything that can happen to a small cluster, in every order: no hit is older than the bound, none is older than
//! what was applied or fenced before its read began, or than what a receipt says was, and no call is answered with
//! less.
//!
//! There are three nodes, two that write and one that reads, and two keys with a lane each. Change logs, which hold
//! one change, followers, freshness and receipts are the real ones; the network, the system of record and the reader's
//! two entries are as small as they can be. What is bounded is how often each thing happens, not when: within its
//! scope a search is complete. Many orders come to the same and are looked at once: `world/order.rs` and
//! `world/settled.rs` say which, and why that misses nothing.
//!
//! No scope has everything. Each has another part of it: losses and logs that forget, so that gaps, requests, resets
//! and fences follow; loads; lanes that are followed anew; reads that take their time; an origin's crash and restart,
//! with a loss, with logs that forget, and until its floor is behind; receipts with a loss; clears; an origin that
//! joins by another, and ends; a reader that dies with a receipt under way. What is not covered: more than two writes,
//! losses of two frames, two crashes, an origin's crash together with a receipt or a clear; a crash together with a
//! load, but by hand; and of the reader's next life with two origins all that takes longer than two bounds: until
//! entries count again that are older than one, it is followed with one origin and one key ([`RENEWAL_OF_TWO`]).
//!
//! [`WIDE`], [`WIDE_CRASH`] and [`WIDE_RENEWAL`] have more at once, and are cut short unless `TIDINGS_MODEL_STATES=20000000` has them
//! looked at as a whole, by `cargo test -p tidings-proto --test interleavings wide`. Each planted mistake has to be
//! found among three nodes with two keys.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

mod scopes;
mod search;
mod world;

use crate::scopes::{
    BEATS, CLEARS, CRASH, CRASH_LOSS, CRASH_RESET, ENDS, FOLLOWS, JOIN, LOADS, LOSS, READS, RECEIPTS,
    RENEWAL, RENEWAL_OF_TWO, SMALL, Scope, WIDE, WIDE_CRASH, WIDE_RENEWAL,
};
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

impl Planted {
    /// Nothing, and everything.
    const ALL: [Self; 13] = [
        Self::Nothing,
        Self::NoFence,
        Self::LateFence,
        Self::SequenceOutsideLock,
        Self::ConfirmedAtReceipt,
        Self::NoFloor,
        Self::EntryFirst,
        Self::UnknownMember,
        Self::SilentDrop,
        Self::UnnamedEnd,
        Self::JoinsAcrossClear,
        Self::AcksBeforeFence,
        Self::ExpiresByProbes,
    ];
}

/// States that a search looks at before it is given up.
const STATES_MAX: usize = 1_000_000;

/// States of the scopes by hand that are looked at unless the environment says otherwise.
const WIDE_STATES: usize = 30_000;

fn run(scope: Scope, planted: Planted, states_max: usize) -> Outcome {
    let begin = World::new(scope, planted);
    search(&begin, &begin.clone().whole(), states_max)
}

fn assert_kept(scope: Scope) {
    let outcome = run(scope, Planted::Nothing, STATES_MAX);
    println!("{} states, {} steps deep: {scope:?}", outcome.states, outcome.deepest);
    assert!(outcome.broken.is_none(), "{}", outcome.broken.unwrap_or_default());
    assert!(!outcome.cut_short, "the scope is too large to be looked at as a whole");
}

fn assert_kept_as_far_as_looked(scope: Scope) {
    let most = std::env::var("TIDINGS_MODEL_STATES").map_or(WIDE_STATES, |text| text.parse().unwrap());
    let outcome = run(scope, Planted::Nothing, most);
    let cut = if outcome.cut_short { ", and not all of them" } else { "" };
    println!("{} states{cut}, {} steps deep: {scope:?}", outcome.states, outcome.deepest);
    assert!(outcome.broken.is_none(), "{}", outcome.broken.unwrap_or_default());
}

/// It is found among three nodes with two keys.
fn assert_found(scope: Scope, planted: Planted) {
    assert_eq!((scope.origins, scope.keys), (2, 2));
    let outcome = run(scope, planted, STATES_MAX);
    let broken =
        outcome.broken.unwrap_or_else(|| panic!("{planted:?} was not found in {} states", outcome.states));
    println!("{planted:?}: {}", broken.lines().take(2).collect::<Vec<_>>().join(" "));
}

#[test]
fn the_bound_is_kept_whatever_is_lost_and_forgotten() {
    assert_kept(LOSS);
}

#[test]
fn the_bound_is_kept_while_a_key_is_loaded() {
    assert_kept(LOADS);
}

#[test]
fn the_bound_is_kept_by_lanes_that_are_followed_anew() {
    assert_kept(FOLLOWS);
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
fn the_bound_is_kept_over_a_crash_with_a_loss() {
    assert_kept(CRASH_LOSS);
}

#[test]
fn the_bound_is_kept_over_a_crash_with_logs_that_forget() {
    assert_kept(CRASH_RESET);
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
fn the_bound_is_kept_while_an_origin_joins_by_another_one() {
    assert_kept(JOIN);
}

#[test]
fn the_bound_is_kept_while_an_origin_comes_and_ends_that_the_reader_never_knew() {
    assert_kept(ENDS);
}

#[test]
fn a_receipt_holds_over_the_death_of_a_reader() {
    assert_kept(RENEWAL);
}

#[test]
fn the_bound_is_kept_by_the_next_life_of_a_reader() {
    assert_kept(RENEWAL_OF_TWO);
}

#[test]
fn the_bound_is_kept_as_far_as_a_wide_scope_is_looked_at() {
    assert_kept_as_far_as_looked(WIDE);
}

#[test]
fn the_bound_is_kept_over_a_crash_as_far_as_a_wide_scope_is_looked_at() {
    assert_kept_as_far_as_looked(WIDE_CRASH);
}

#[test]
fn the_next_life_of_a_reader_keeps_the_bound_as_far_as_a_wide_scope_is_looked_at() {
    assert_kept_as_far_as_looked(WIDE_RENEWAL);
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
    assert_found(BEATS, Planted::ConfirmedAtReceipt);
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
fn an_end_that_nobody_tells_is_found() {
    assert_found(ENDS, Planted::UnnamedEnd);
}

/// What rests on an argument is tried as well: every order by itself, nothing forgotten, comes to the same.
#[test]
fn nothing_is_missed_by_looking_at_fewer_orders() {
    let mut found = 0;
    for scope in SMALL {
        for planted in Planted::ALL {
            let begin = World::new(scope, planted).whole();
            let whole = search(&begin, &begin, STATES_MAX);
            assert!(!whole.cut_short, "{scope:?}");
            let fewer = run(scope, planted, STATES_MAX);
            assert_eq!(whole.broken.is_some(), fewer.broken.is_some(), "{planted:?} in {scope:?}");
            found += u32::from(whole.broken.is_some());
        }
    }
    assert!(found >= 10, "{found} mistakes were found at all");
}
