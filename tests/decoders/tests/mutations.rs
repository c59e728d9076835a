//! Nothing that comes from outside makes a decoder panic or allocate out of proportion.
//!
//! `TIDINGS_FUZZ_INPUTS=1000000` feeds each with so many mutated samples, `TIDINGS_FUZZ_SEED=7` with others.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use peak_alloc::PeakAlloc;
use tidings_decoders::{DECODERS, Decoder, Mutator};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Inputs of each decoder unless the environment says otherwise.
const INPUTS: u64 = 20_000;

/// Memory is that of the process: one decoder runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Runs a decoder and returns whether it accepted the input.
fn feed(decoder: &Decoder, input: &[u8]) -> bool {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let decoded = catch_unwind(|| (decoder.decode)(input));
    let used = MEMORY.peak_usage().saturating_sub(before);
    let Ok(accepted) = decoded else { panic!("{} panics at {}", decoder.name, input.escape_ascii()) };
    let most = decoder.bytes_fixed + decoder.bytes_per_byte * input.len();
    assert!(used <= most, "{}: {used} bytes for {} of {}", decoder.name, input.len(), input.escape_ascii());
    accepted
}

fn feed_mutated(name: &str) {
    let _alone = alone();
    let decoder = tidings_decoders::decoder(name).unwrap();
    let mut mutator = Mutator::new((decoder.samples)(), of_environment("TIDINGS_FUZZ_SEED", 1));
    let inputs = of_environment("TIDINGS_FUZZ_INPUTS", INPUTS);
    let accepted = (0..inputs).filter(|_| feed(decoder, &mutator.input())).count() as u64;
    println!("{name}: {accepted} of {inputs} accepted");
    // Were all of them refused at the door, nothing behind it would have been tried.
    assert!(accepted > inputs / 200 && accepted < inputs, "{accepted} of {inputs} accepted");
}

#[test]
fn every_sample_is_accepted() {
    let _alone = alone();
    for decoder in DECODERS.iter().filter(|decoder| decoder.name != "config") {
        for sample in (decoder.samples)() {
            assert!(feed(decoder, &sample), "{}: {}", decoder.name, sample.escape_ascii());
        }
    }
}

/// What fuzzing has found stays found: `tests/fuzz/seeds/TARGET/` keeps it.
#[test]
fn what_was_found_once_is_harmless() {
    let _alone = alone();
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let mut fed = 0;
    for decoder in DECODERS {
        for file in std::fs::read_dir(seeds.join(decoder.name)).unwrap() {
            feed(decoder, &std::fs::read(file.unwrap().path()).unwrap());
            fed += 1;
        }
    }
    assert!(fed >= DECODERS.len(), "the seeds are not there");
}

/// The manifest is another workspace's, which no other test reads.
#[test]
fn every_decoder_is_a_target_of_the_fuzzer() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let name_of = |target: &toml::Value| {
        let name = target["name"].as_str().unwrap().to_owned();
        assert!(["test", "doc", "bench"].iter().all(|key| target[key].as_bool() == Some(false)), "{name}");
        let source = std::fs::read_to_string(fuzz.join(target["path"].as_str().unwrap())).unwrap();
        assert!(source.contains(&format!("tidings_decoders::run(\"{name}\", bytes)")), "{name}");
        name
    };
    let mut targets: Vec<_> = manifest["bin"].as_array().unwrap().iter().map(name_of).collect();
    let mut decoders: Vec<_> = DECODERS.iter().map(|decoder| decoder.name).collect();
    targets.sort_unstable();
    decoders.sort_unstable();
    assert_eq!(targets, decoders);
}

#[test]
fn a_decoder_that_allocates_what_a_length_claims_is_found() {
    let _alone = alone();
    let claims = |bytes: &[u8]| {
        let claimed = bytes.first().map_or(0, |byte| usize::from(*byte) << 16);
        Vec::<u8>::with_capacity(claimed).capacity() > 0
    };
    let credulous = Decoder {
        name: "credulous",
        decode: claims,
        samples: || vec![vec![1]],
        bytes_fixed: 1 << 20,
        bytes_per_byte: 64,
    };
    assert!(feed(&credulous, &[1]));
    assert!(catch_unwind(|| feed(&credulous, &[200])).is_err());
}

#[test]
fn streams_of_frames_are_read_in_proportion() {
    feed_mutated("stream");
}

#[test]
fn control_frames_are_read_in_proportion() {
    feed_mutated("control");
}

#[test]
fn questions_and_answers_are_read_in_proportion() {
    feed_mutated("ask");
}

#[test]
fn questions_and_answers_about_leases_are_read_in_proportion() {
    feed_mutated("lease");
}

#[test]
fn batches_of_records_are_read_in_proportion() {
    feed_mutated("batch");
}

#[test]
fn keys_are_read_in_proportion() {
    feed_mutated("key");
}

#[test]
fn questions_of_auditors_are_read_in_proportion() {
    feed_mutated("audit_question");
}

#[test]
fn answers_to_auditors_are_read_in_proportion() {
    feed_mutated("audit_answer");
}

#[test]
fn questions_about_copies_and_their_answers_are_read_in_proportion() {
    feed_mutated("copy");
}

#[test]
fn gossip_is_read_in_proportion() {
    feed_mutated("gossip");
}

#[test]
fn signed_records_are_read_in_proportion() {
    feed_mutated("signed_record");
}

#[test]
fn log_files_are_read_in_proportion() {
    feed_mutated("log_file");
}

#[test]
fn traces_are_read_in_proportion() {
    feed_mutated("trace");
}

#[test]
fn configurations_are_read_in_proportion() {
    feed_mutated("config");
}
