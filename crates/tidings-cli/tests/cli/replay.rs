//! `replay`: bad input, and what it leaves behind.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{DEADLINE, Ran, pause, ran, run, tidings, until};

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

/// Nodes that were started with a configuration below this directory and run.
fn nodes_below(directory: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let gone = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
        let read = std::fs::read(entry.path().join("cmdline")).ok()?;
        (!gone).then(|| String::from_utf8_lossy(&read).replace('\0', " "))
    });
    let directory = directory.to_str().unwrap();
    arguments.filter(|arguments| arguments.contains(directory) && arguments.contains("node")).collect()
}

/// Starts a run under chaos that keeps its files below a directory, and waits for its nodes.
fn chaos_in(directory: &Path) -> Child {
    let mut command = tidings();
    command.args(["replay", "--generate", "1000000", "--chaos", "--quiet"]).env("TMPDIR", directory);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("three nodes run", DEADLINE, || (nodes_below(directory).len() == 3).then_some(()));
    child
}

#[test]
fn a_run_under_chaos_that_is_told_to_stop_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let mut child = chaos_in(directory.path());
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal:?}");
        until("no node runs", DEADLINE, || nodes_below(directory.path()).is_empty().then_some(()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "{signal:?}");
    }
}

#[test]
fn nodes_of_a_run_that_was_killed_end_with_it_even_if_they_are_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = chaos_in(directory.path());
    let id = child.id().to_string();
    let nodes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned();
        (parent == id).then(|| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))?
    });
    kill_process(nodes.into_iter().next().unwrap(), Signal::STOP).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("no node runs", DEADLINE, || nodes_below(directory.path()).is_empty().then_some(()));
}

#[test]
fn the_directory_of_a_run_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let mut child = chaos_in(directory.path());
    let entry = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap();
    let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    assert_eq!(mode, 0o700);
}

#[test]
fn numbers_without_sense_exit_2_and_never_panic() {
    for arguments in [
        &["--speed", "1e-300"][..],
        &["--speed", "0.0001"],
        &["--max-staleness", "0s"],
        &["--max-staleness", "61s"],
        &["--capacity", "0"],
        &["--cache", "bad\"name"],
        &["--cache", ""],
        &["--chaos", "--cache", "x\"\nmode = \"local"],
    ] {
        run(&[&["replay", "--generate", "100"][..], arguments].concat()).exits(2);
    }
    run(&["demo", "--http-port", "65535"]).exits(2);
    run(&["demo", "--max-staleness", "0s"]).exits(2);
}

fn replay_of(text: &str, arguments: &[&str]) -> Ran {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    run(&[&["replay", "--trace", file.path().to_str().unwrap()][..], arguments].concat())
}

#[test]
fn times_beyond_a_year_are_named_by_their_line() {
    let ran = replay_of("0,a,1\n1e30,b,1\n", &["--speed", "1.0"]).exits(1);
    assert!(ran.stderr.contains("line 2"), "{ran:?}");
}

#[test]
fn a_trace_without_requests_proves_nothing() {
    let ran = replay_of("# nothing\n", &["--json"]).exits(1);
    assert!(ran.stderr.contains("no request"), "{ran:?}");
}

#[test]
fn a_malformed_last_line_does_not_cost_the_summary() {
    let ran = replay_of("0,a,1\n0,a,1\n1,b\n", &["--json"]).exits(1);
    assert_eq!(ran.json()["requests"], 2);
    assert!(ran.stderr.contains("line 3: expected time_s,key,size_bytes"), "{ran:?}");
}

#[test]
fn a_long_bound_is_waited_out_at_the_start() {
    let report = run(&["replay", "--generate", "1000", "--max-staleness", "25s", "--json"]).exits(0).json();
    assert_eq!(report["stale_reads_after_bound"], 0);
}

#[test]
fn a_reader_of_stderr_that_is_gone_costs_no_summary() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = tidings();
    command.args(["replay", "--generate", "2000"]).stdout(Stdio::piped()).stderr(writer);
    let ran = ran(command.spawn().unwrap().wait_with_output().unwrap()).exits(0);
    assert_eq!(ran.json()["requests"], 2000);
}

#[test]
fn an_interrupt_ends_a_wait_for_stdin() {
    for arguments in [&["cache", "put", "c", "k", "-"][..], &["config", "check", "-"]] {
        let mut listened = 0;
        for tries in 1..=4 {
            let mut command = tidings();
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            // It waits for stdin when its threads sleep; before it listens the interrupt ends it all the same.
            pause(Duration::from_millis(200) * tries);
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
            let what = format!("{arguments:?} ends");
            let ended = until(&what, DEADLINE, || child.try_wait().unwrap());
            let too_early = ended.signal() == Some(Signal::INT.as_raw());
            assert!(ended.code() == Some(130) || too_early, "{ended:?}");
            listened += usize::from(!too_early);
        }
        assert!(listened > 0, "{arguments:?} never heeded an interrupt");
    }
}

#[test]
fn endless_input_is_refused_at_its_limit() {
    for arguments in [&["cache", "put", "c", "k", "-"][..], &["config", "check", "-"]] {
        let mut command = tidings();
        command.args(arguments).stdin(File::open("/dev/zero").unwrap());
        let ran = ran(command.output().unwrap());
        assert!(ran.stderr.contains("1MiB"), "{ran:?}");
    }
}
