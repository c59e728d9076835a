//! Runs many seeds, each a process of its own. `TIDINGS_TURMOIL_SEEDS` says how many, `TIDINGS_TURMOIL_FIRST` from
//! which one on.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds, unless the environment says otherwise: 50 seconds on two processors.
const SEEDS: u64 = 200;

/// Processes at a time: as many as continuous integration has processors.
const AT_ONCE: usize = 2;

fn start(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidings-turmoil"))
        .args(arguments)
        .output()
        .expect("the program was built")
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Runs a seed, and returns its figures. `TIDINGS_TURMOIL_WITH=large` gives all clusters relays.
fn run(seed: u64) -> String {
    let with = std::env::var("TIDINGS_TURMOIL_WITH").unwrap_or_default();
    let seed = seed.to_string();
    let arguments: Vec<&str> = std::iter::once(&*seed).chain(with.split_whitespace()).collect();
    let ran = start(&arguments);
    let said = String::from_utf8_lossy(&ran.stdout);
    let again = format!("cargo run --manifest-path tests/turmoil/Cargo.toml -- {}", arguments.join(" "));
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
    let (first, seeds) = (number("TIDINGS_TURMOIL_FIRST", 0), number("TIDINGS_TURMOIL_SEEDS", SEEDS));
    let (next, sums) = (AtomicU64::new(first), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
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
    let tried = [
        "hits",
        "stale",
        "loads",
        "writes",
        "held",
        "faults",
        "crashes",
        "stops",
        "goodbyes",
        "twins",
        "long",
        "resets",
        "shared",
        "redirected",
    ];
    for tried in tried {
        assert!(sums[tried] > 0, "nothing tried: {tried}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    // With faults that last for longer than a lost node may take, and without; with twins, and without.
    // The last one has relays.
    for seed in 0..5 {
        let (once, again) = (run(seed), run(seed));
        assert!(once.contains("fingerprint="), "{once}");
        assert_eq!(once, again, "seed {seed}, of which every packet counts");
    }
}

/// Seeds of which one at least has to show a defect.
const HUNTED: u64 = 100;

/// Asserts that a defect shows by what is read. The rarest, of those below, shows with every seventh seed.
fn is_found_out(defect: &str) {
    let reads = |line: &str| line.starts_with("a hit of key") || line.starts_with("a load of key");
    let found = (0..HUNTED).find(|seed| {
        let ran = start(&[&seed.to_string(), defect]);
        ran.status.code() == Some(1) && String::from_utf8_lossy(&ran.stdout).lines().any(reads)
    });
    assert!(found.is_some(), "of {HUNTED} seeds none shows it: {defect}");
    eprintln!("{defect}: {found:?}");
}

#[test]
fn nodes_that_serve_for_longer_than_they_may_are_found_out() {
    is_found_out("lax");
}

#[test]
fn nodes_that_count_a_confirmation_from_its_receipt_are_found_out() {
    is_found_out("hasty");
}

#[test]
fn nodes_that_fence_nothing_when_a_log_was_overrun_are_found_out() {
    is_found_out("unfenced");
}

#[test]
fn nodes_that_raise_no_floor_when_a_peer_has_died_are_found_out() {
    is_found_out("trusting");
}

#[test]
fn nodes_that_forget_writes_under_way_when_a_peer_has_died_are_found_out() {
    is_found_out("short");
}
