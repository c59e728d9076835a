//! The suite against drivers that are right, and against drivers that are wrong.

use tidings_streams::Durability;
use tidings_streams::conformance::{cases, check, run};

use crate::harness::{EmbeddedHarness, TestClock};
use crate::memory::{Bug, MemoryHarness};

#[tokio::test]
async fn the_memory_driver_conforms() {
    check(&MemoryHarness { clock: TestClock::new(), bug: None }).await;
}

#[tokio::test]
async fn the_embedded_driver_conforms() {
    check(&EmbeddedHarness::new(Durability::Sync)).await;
}

#[tokio::test]
async fn the_relaxed_embedded_driver_conforms() {
    check(&EmbeddedHarness::new(Durability::Relaxed)).await;
}

#[tokio::test]
async fn the_embedded_driver_conforms_though_time_passes_amid_a_call() {
    check(&EmbeddedHarness::ticking()).await;
}

// Nothing but waits takes any time there.
#[tokio::test(start_paused = true)]
async fn every_planted_bug_is_found() {
    let bugs = [
        (Bug::NoRedelivery, "what_nobody_settles_goes_to_another_consumer"),
        (Bug::DoubleDeadLetter, "the_last_failure_makes_one_dead_letter_with_its_story"),
        (Bug::AttemptOffByOne, "attempts_are_counted_from_one"),
        (Bug::TrimBelowPending, "what_is_pending_is_kept"),
        (Bug::NoParking, "only_the_key_that_fails_is_parked"),
        (Bug::StaleWords, "a_word_about_an_earlier_delivery_is_stale"),
        (Bug::NoIdempotency, "an_idempotency_key_stores_an_event_once"),
        (Bug::RetryForAll, "a_retry_goes_to_its_group_alone_and_begins_anew"),
        (Bug::OneTooMany, "nothing_is_delivered_more_often_than_it_may_be"),
        (Bug::PublishForgetsWaiters, "a_wait_ends_with_what_is_published"),
        (Bug::CloseForgetsWaiters, "a_wait_ends_when_the_store_is_closed"),
        (Bug::TrimForgetsWaiters, "a_forced_trim_lets_those_go_on_who_wait"),
        (Bug::ClaimIgnoresPause, "a_paused_group_takes_nothing"),
        (Bug::SilentBurials, "what_is_given_up_as_somebody_takes_events_is_told"),
    ];
    for (bug, case) in bugs {
        let failures = run(&MemoryHarness { clock: TestClock::new(), bug: Some(bug) }).await;
        let found: Vec<&str> = failures.iter().map(|failure| failure.case).collect();
        assert!(found.contains(&case), "{bug:?} is found by {found:?} only");
    }
}

#[test]
fn cases_have_names_of_their_own() {
    let mut names: Vec<&str> = cases().iter().map(|case| case.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
