//! Runs many seeds, each a process of its own. `TIDINGS_TURMOIL_SEEDS` says how many.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds, unless the environment says otherwise.
const SEEDS: u64 = 40;

/// Processes at a time: as many as continuous integration has processors.
const AT_ONCE: usize = 2;

fn start(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidings-turmoil"))
        .args(arguments)
        .output()
        .expect("the program was built")
}

/// Runs a seed, and returns its figures.
fn run(seed: u64) -> String {
    let ran = start(&[&seed.to_string()]);
    let said = String::from_utf8_lossy(&ran.stdout);
    let again = format!("cargo run --manifest-path tests/turmoil/Cargo.toml -- {seed}");
    assert!(ran.status.success(), "{said}{}\nagain: {again}", String::from_utf8_lossy(&ran.stderr));
    said.trim().to_owned()
}

fn add(sums: &mut BTreeMap<String, u64>, figures: &str) {
    for (name, value) in figures.split(' ').filter_map(|figure| figure.split_once('=')) {
        if let Ok(value) = value.parse::<u64>() {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
}

#[test]
fn whole_clusters_keep_every_promise_whatever_a_seed_does_to_them() {
    let seeds = std::env::var("TIDINGS_TURMOIL_SEEDS").map_or(SEEDS, |text| text.parse().expect("a number"));
    let (next, sums) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let figures = run(seed);
                    add(&mut sums.lock().expect("nothing panics while it is locked"), &figures);
                }
            });
        }
    });
    let sums = sums.into_inner().expect("nothing panicked");
    eprintln!("{seeds} seeds: {sums:?}");
    for tried in ["hits", "stale", "loads", "writes", "crashes", "faults"] {
        assert!(sums[tried] > 0, "nothing tried: {tried}");
    }
}

#[test]
fn nodes_that_serve_for_longer_than_they_may_are_found_out() {
    let found = (0..SEEDS).any(|seed| {
        let ran = start(&[&seed.to_string(), "lax"]);
        let said = String::from_utf8_lossy(&ran.stdout);
        ran.status.code() == Some(1) && said.lines().any(|line| line.contains("a hit of key"))
    });
    assert!(found, "of {SEEDS} seeds none shows it");
}
