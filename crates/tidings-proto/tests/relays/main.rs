//! Origins followed by way of relays: that nobody is fresh who lacks a write, and what a large cluster costs.
//!
//! The model looks at every order of events of a few nodes, the machines being the real ones. The simulation runs
//! clusters of up to thousands in virtual time. ARCHITECTURE.md shows its table, and the command that prints it with
//! `TIDINGS_RELAY_NODES` and `TIDINGS_RELAY_SECONDS`.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

mod model;
mod naming;
#[allow(dead_code, reason = "the model draws in more ways")]
#[path = "../model/rng.rs"]
mod rng;
mod search;
mod simulation;

use std::time::Duration;

use crate::model::{Planted, Scope, World};
use crate::naming::{Counts, Naming, Omitted};
use crate::rng::Rng;
use crate::search::{World as _, search};
use crate::simulation::{Cluster, Cost, HEAD, Setup, change_bytes, quantile};

/// States that a search looks at before it is given up.
const STATES_MAX: usize = 400_000;

/// Ways through the wide scope that are taken unless `TIDINGS_RELAY_WALKS` says otherwise, and their length.
const WALKS: u64 = 20_000;
const STEPS: usize = 80;

/// Nothing happens.
const QUIET: Scope = Scope {
    sources: &[&[], &[0], &[1], &[2]],
    writes: 0,
    asks: 0,
    losses: 0,
    follows: 0,
    passes: 0,
    cut: false,
};

/// Three in a line behind the origin: the second relays what was relayed.
const LINE: Scope = Scope { writes: 1, asks: 3, passes: 2, ..QUIET };

/// A relay that forgets what is asked for.
const FORGETS: Scope = Scope { sources: &[&[], &[0], &[1]], writes: 2, asks: 2, passes: 2, ..QUIET };

/// Two relays that ask each other, and nobody else.
const CIRCLE: Scope =
    Scope { sources: &[&[], &[0, 2], &[1]], writes: 1, asks: 3, passes: 3, cut: true, ..QUIET };

/// A follower of two relays, one of which may stand still.
const AROUND: Scope =
    Scope { sources: &[&[], &[0], &[0], &[1, 2]], writes: 1, asks: 1, follows: 1, passes: 2, ..QUIET };

/// Everything at once: ways are taken at random.
const WIDE: Scope = Scope {
    sources: &[&[], &[0, 2], &[0, 1], &[1, 2], &[3]],
    writes: 6,
    asks: 40,
    losses: 4,
    follows: 8,
    passes: 12,
    cut: false,
};

fn assert_kept<W: search::World>(begin: impl Fn() -> W) {
    let outcome = search(begin, STATES_MAX);
    println!("{} states, {} steps deep", outcome.states, outcome.deepest);
    assert!(outcome.broken.is_none(), "{}", outcome.broken.unwrap_or_default());
    assert!(!outcome.cut_short, "the scope is too large to be looked at as a whole");
}

fn assert_found<W: search::World>(begin: impl Fn() -> W) {
    let outcome = search(begin, STATES_MAX);
    let broken = outcome.broken.unwrap_or_else(|| panic!("nothing was found in {} states", outcome.states));
    println!("{}", broken.lines().take(2).collect::<Vec<_>>().join(" "));
}

#[test]
fn the_bound_is_kept_behind_a_line_of_relays() {
    assert_kept(|| World::new(LINE, Planted::Nothing));
}

#[test]
fn the_bound_is_kept_where_a_relay_has_forgotten_what_is_asked_for() {
    assert_kept(|| World::new(FORGETS, Planted::Nothing));
}

#[test]
fn the_bound_is_kept_by_relays_that_ask_each_other() {
    assert_kept(|| World::new(CIRCLE, Planted::Nothing));
}

#[test]
fn the_bound_is_kept_around_a_relay_that_stands_still() {
    assert_kept(|| World::new(AROUND, Planted::Nothing));
}

/// The first promise that is broken on any of so many ways through the wide scope.
fn walk(planted: Planted, walks: u64) -> Option<String> {
    (0..walks).find_map(|seed| {
        let (mut world, mut rng) = (World::new(WIDE, planted), Rng::new(seed));
        (0..STEPS).find_map(|_| {
            let actions = world.actions();
            world.act(rng.pick(&actions));
            Some(format!("{} (seed {seed})", world.broken()?))
        })
    })
}

#[test]
fn the_bound_is_kept_on_ways_through_a_wide_scope() {
    let walks = std::env::var("TIDINGS_RELAY_WALKS").map_or(WALKS, |text| text.parse().unwrap());
    assert_eq!(walk(Planted::Nothing, walks), None);
    for planted in [Planted::AtReceipt, Planted::Unapplied, Planted::Circle, Planted::NoFence] {
        println!("{planted:?}: {:?}", walk(planted, walks).expect("a planted bug is found"));
    }
}

#[test]
fn a_relay_that_answers_with_the_time_of_the_question_is_found() {
    assert_found(|| World::new(LINE, Planted::AtReceipt));
}

#[test]
fn a_relay_that_confirms_what_it_has_not_applied_is_found() {
    assert_found(|| World::new(LINE, Planted::Unapplied));
}

#[test]
fn relays_that_confirm_each_other_in_a_circle_are_found() {
    assert_found(|| World::new(CIRCLE, Planted::Circle));
}

#[test]
fn a_reset_without_its_fence_is_found() {
    assert_found(|| World::new(FORGETS, Planted::NoFence));
}

#[test]
fn nobody_is_fresh_past_a_writer_that_somebody_on_the_way_knows() {
    assert_kept(|| Naming::new(Counts::OnceMet, Omitted::Nothing));
    assert_kept(|| Naming::new(Counts::OnceKnown, Omitted::Nothing));
}

#[test]
fn an_answer_without_the_member_set_before_it_is_found() {
    assert_found(|| Naming::new(Counts::OnceMet, Omitted::SetBeforeAnswer));
}

/// The writer is never told of the follower, and has left before anybody tells the follower of it.
#[test]
fn an_acknowledgement_without_the_member_set_before_it_is_found() {
    assert_found(|| Naming::new(Counts::OnceKnown, Omitted::SetBeforeAck));
}

/// The usual bound.
const MAX_STALENESS: Duration = Duration::from_secs(3);

fn setup(nodes: usize, relays: bool, churn: f64) -> Setup {
    // Ten nodes are a mesh by default: with relays all the same, to compare.
    let relay_above = if relays { 50.min(nodes / 2) } else { usize::MAX };
    Setup { nodes, zones: 3, relay_above, churn, seconds: seconds(), seed: 1 }
}

fn seconds() -> u64 {
    std::env::var("TIDINGS_RELAY_SECONDS").map_or(3, |text| text.parse().unwrap())
}

#[test]
fn table() {
    let sizes = std::env::var("TIDINGS_RELAY_NODES").unwrap_or_else(|_| "10,100".to_owned());
    println!("A change of a 24-byte key is {} bytes.\n{HEAD}", change_bytes());
    for nodes in sizes.split(',').map(|text| text.parse().unwrap()) {
        for (relays, churn) in [(false, 0.0), (false, 0.01), (true, 0.0), (true, 0.01)] {
            let setup = setup(nodes, relays, churn);
            println!("{}", Cluster::run(setup).line(setup));
        }
    }
}

#[test]
fn relays_send_each_change_to_everybody_once() {
    let mut figures = Cluster::run(setup(100, true, 0.0));
    assert_eq!(figures.copies, figures.applied);
    assert!(figures.applied > 10_000, "{}", figures.applied);
    assert!(quantile(&mut figures.hops, 1_000) <= 3);
    let cost = Cost::of(setup(100, true, 0.0));
    assert!(cost.links.1 < 99 && cost.busiest < 3.0, "{cost:?}");
}

/// Whose relay goes, without a word, has another before the bound is over.
#[test]
fn relays_that_go_put_nobody_in_doubt() {
    let mut figures = Cluster::run(Setup { seconds: 6, ..setup(100, true, 0.03) });
    assert!(figures.redirected > 0, "somebody's relay has gone");
    let oldest = quantile(&mut figures.ages, 1_000);
    assert!(oldest < MAX_STALENESS, "{oldest:?}");
}
