//! `replay`: bad input.

use crate::support::run;

const URL: [&str; 2] = ["--urls", "http://127.0.0.1:9"];

#[test]
fn a_trace_that_is_not_there_exits_3() {
    let ran = run(&[&["replay", "--trace", "/nonexistent.csv"][..], &URL].concat()).exits(3);
    assert!(ran.stderr.contains("/nonexistent.csv"), "{ran:?}");
}

#[test]
fn nodes_that_are_not_there_exit_4() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/twitter_cluster52_20k.csv");
    run(&[&["replay", "--trace", sample][..], &URL].concat()).exits(4);
}
