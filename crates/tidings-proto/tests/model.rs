//! Every read of a small simulated cluster, judged. `TIDINGS_SEEDS` says how many seeds to run (default 200),
//! `TIDINGS_SEED` which is the first.

#[path = "model/mod.rs"]
mod model;

use model::{Bug, Failure, MAX_STALENESS, Stats, World};

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn seeds() -> impl Iterator<Item = u64> {
    let first = from_env("TIDINGS_SEED", 1);
    first..first + from_env("TIDINGS_SEEDS", 200)
}

fn add(total: &mut Stats, run: Stats) {
    let Stats { events, writes, hits, loads, loads_ended, applied, duplicates, gaps, stale, .. } = run;
    total.events += events;
    total.writes += writes;
    total.hits += hits;
    total.loads += loads;
    total.loads_ended += loads_ended;
    total.applied += applied;
    total.duplicates += duplicates;
    total.gaps += gaps;
    total.stale += stale;
    total.violations += run.violations;
    total.resets += run.resets;
    total.goodbyes += run.goodbyes;
    total.unclean_ends += run.unclean_ends;
    total.crashes += run.crashes;
    total.pauses += run.pauses;
    total.cuts += run.cuts;
    total.expulsions += run.expulsions;
    total.late_heartbeats += run.late_heartbeats;
    total.oldest_hit = total.oldest_hit.max(run.oldest_hit);
}

#[test]
fn no_hit_is_older_than_the_bound_and_nothing_differs_at_the_end() {
    let mut total = Stats::default();
    for seed in seeds() {
        match World::new(seed, None, false).run() {
            Ok(stats) => add(&mut total, stats),
            Err(_) => {
                let Err(Failure { what, history }) = World::new(seed, None, true).run() else {
                    panic!("seed {seed} fails only without history")
                };
                history.iter().for_each(|line| eprintln!("{line}"));
                panic!(
                    "seed {seed}: {what}\nreplay: TIDINGS_SEED={seed} TIDINGS_SEEDS=1 cargo test -p tidings-proto \
                     --test model no_hit_is_older"
                );
            }
        }
    }
    println!("{total:?}");
    if from_env("TIDINGS_SEEDS", 200) >= 100 {
        let Stats { duplicates, gaps, stale, resets, goodbyes, unclean_ends, late_heartbeats, .. } = total;
        let tried =
            [duplicates, gaps, stale, resets, goodbyes, unclean_ends, late_heartbeats, total.loads_ended];
        assert!(tried.iter().all(|count| *count > 100), "something was hardly tried: {total:?}");
        assert!(total.expulsions > 20, "hardly anybody was apart for long: {total:?}");
        assert!(total.oldest_hit > MAX_STALENESS * 3 / 4, "no hit came near the bound: {total:?}");
    }
}

/// Runs seeds until a planted bug shows; some need several rare events at once.
fn assert_found(bug: Bug) {
    let mut tried = 0;
    let first = from_env("TIDINGS_SEED", 1);
    for seed in first..first + 5 * from_env("TIDINGS_SEEDS", 200) {
        tried += 1;
        if let Err(Failure { what, .. }) = World::new(seed, Some(bug), false).run() {
            println!("{bug:?} found after {tried} seeds: {what}");
            return;
        }
    }
    panic!("{bug:?} was not found in {tried} seeds");
}

#[test]
fn a_reset_without_a_fence_is_found() {
    assert_found(Bug::NoFence);
}

#[test]
fn a_position_taken_before_its_fence_is_found() {
    assert_found(Bug::ExpectedBeforeFence);
}

#[test]
fn a_confirmation_of_the_time_of_receipt_is_found() {
    assert_found(Bug::ConfirmedAtReceipt);
}

#[test]
fn an_unclean_end_without_a_floor_is_found() {
    assert_found(Bug::NoFloor);
}

#[test]
fn heads_read_before_the_probe_are_found() {
    assert_found(Bug::HeadsBeforeProbe);
}

#[test]
fn an_end_that_is_final_though_its_origin_is_heard_again_is_found() {
    assert_found(Bug::EndedForGood);
}

#[test]
fn a_confirmation_past_a_member_that_is_unknown_is_found() {
    assert_found(Bug::UnknownMembers);
}

#[test]
fn a_load_that_survives_an_invalidation_is_found() {
    assert_found(Bug::LoadSurvives);
}
