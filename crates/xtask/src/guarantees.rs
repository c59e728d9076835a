//! `cargo xtask guarantees`: runs the trials that try to break the guarantees, and prints what they read as a table.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::packages;
use crate::workspace::{Workspace, must};

/// What the tests note their figures in, as `tidings-tests` names it.
const FACTS: &str = "TIDINGS_FACTS";

/// How many guarantees there are: G1 to G17.
const GUARANTEES: u32 = 17;

/// The trials of whole nodes.
const OF_NODES: [&str; 7] = ["test", "--locked", "--no-fail-fast", "-p", "tidings-tests", "--test", "it"];

/// The trials of one cache against concurrent loads, which only optimised code does fast enough.
const OF_A_CACHE: [&str; 8] =
    ["test", "--locked", "--no-fail-fast", "--release", "-p", "tidings-cache", "--test", "no_stale_set"];

/// The trials of parts of a node and of nodes in one process: package, binary, and what the names of its tests contain.
const OF_PARTS: [(&str, &str, &[&str]); 7] = [
    ("tidings", "cluster", &["fills_are_silent", "clear_reaches_everybody"]),
    (
        "tidings",
        "facade",
        &["clocks::", "credentials::", "leases::one_loader_runs", "measuring::", "named::", "starting::"],
    ),
    ("tidings", "hostile", &["that_break_the_protocol", "counted_as_one_gap"]),
    ("tidings", "loud_start", &["readiness_names", "a_newcomer_waits", "is_refused_is_named"]),
    ("tidings-cache", "behaviour", &["callers_of_one_key_load_once", "fetch::what_was_changed_or_fenced"]),
    ("tidings-http", "api", &["writes_from_other_sites"]),
    ("tidings-transport", "handshakes", &["refused"]),
];

/// What multiplies how much and how long the tests do.
const SCALE: &str = "TIDINGS_TEST_SCALE";

/// How many reads race loads and invalidations, and how many do with `--large`.
const READS: &str = "TIDINGS_STALE_READS";
const LARGE_READS: &str = "100000000";

/// Trials of whole nodes that do more with `--large`: how their names begin, and their scale then. 200 rounds of kills, a
/// minute with a frozen peer, a million changes in a lossy network, a million entries of which one is lost.
const LARGE: [(&str, &str); 4] = [
    ("restarts::nodes_", "50"),
    ("frozen::a_frozen_peer", "7.5"),
    ("loss::of_a_network", "20"),
    ("repair::one_lost", "500"),
];

pub(crate) fn run(workspace: &Workspace, large: bool) -> Result<()> {
    packages::install()?;
    must(&mut workspace.cargo(&["build", "--release", "--locked"]))?;
    let facts = workspace.target.join("guarantees.jsonl");
    let _ = std::fs::remove_file(&facts);
    let mut failed = Vec::new();
    for mut trial in trials(workspace, large) {
        trial.command.env(FACTS, &facts).env("TIDINGS_BIN", workspace.target.join("release/tidings"));
        failed.extend(trial.run().err());
    }
    let facts = read(&facts)?;
    print!("{}", table(&facts)?);
    // What failed has no row that says so.
    ensure!(failed.is_empty(), "not all trials passed: {failed:?}");
    let untried = untried(&facts);
    ensure!(untried.is_empty(), "no trial has noted anything of {untried:?}");
    Ok(())
}

/// Tests that are run, and what their names contain: each of these stands for one at least.
struct Trial {
    command: Command,
    names: Vec<&'static str>,
}

impl Trial {
    /// All tests.
    fn of_all(command: Command) -> Self {
        // Every name contains it.
        Self { command, names: vec![""] }
    }

    /// Runs them, and shows what they say as it comes.
    fn run(&mut self) -> Result<()> {
        let name = format!("{:?}", self.command);
        let started = self.command.stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("cannot start {name}"))?;
        let output = child.stdout.take().context("it has no output")?;
        let mut ran = Vec::new();
        for line in BufReader::new(output).lines() {
            let line = line.with_context(|| format!("cannot read what {name} prints"))?;
            println!("{line}");
            ran.extend(test_in(&line).map(str::to_owned));
        }
        let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
        ensure!(status.success(), "{name}: {status}");
        let nobodys = nobodys(&self.names, &ran);
        ensure!(nobodys.is_empty(), "{name}: no test was run whose name contains {nobodys:?}");
        Ok(())
    }
}

/// The test that a line says was run: `test cuts::of_two ... ok`.
fn test_in(line: &str) -> Option<&str> {
    let (name, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    (!verdict.starts_with("ignored")).then_some(name)
}

/// What no name of a test contains.
fn nobodys(names: &[&'static str], ran: &[String]) -> Vec<&'static str> {
    names.iter().copied().filter(|name| !ran.iter().any(|test| test.contains(name))).collect()
}

fn trials(workspace: &Workspace, large: bool) -> Vec<Trial> {
    let (mut of_nodes, mut of_a_cache) = (workspace.cargo(&OF_NODES), workspace.cargo(&OF_A_CACHE));
    let mut trials: Vec<_> = OF_PARTS.into_iter().map(|part| of_a_part(workspace, part)).collect();
    if large {
        of_nodes.arg("--");
        for (name, scale) in LARGE {
            of_nodes.args(["--skip", name]);
            let mut command = workspace.cargo(&OF_NODES);
            command.args(["--", name]).env(SCALE, scale);
            trials.push(Trial { command, names: vec![name] });
        }
        if std::env::var_os(READS).is_none() {
            of_a_cache.env(READS, LARGE_READS);
        }
    }
    trials.extend([of_nodes, of_a_cache].map(Trial::of_all));
    trials
}

fn of_a_part(workspace: &Workspace, (package, binary, tests): (&str, &str, &[&'static str])) -> Trial {
    let mut command =
        workspace.cargo(&["test", "--locked", "--no-fail-fast", "-p", package, "--test", binary, "--"]);
    command.args(tests);
    Trial { command, names: tests.to_vec() }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("no trial noted anything in {}", path.display()))
}

/// One row per fact, in the order of the guarantees.
fn table(facts: &str) -> Result<String> {
    let mut rows = Vec::new();
    for line in facts.lines() {
        let fact: Value = serde_json::from_str(line).with_context(|| format!("no fact: {line}"))?;
        let field = |name: &str| fact[name].as_str().map(cell).with_context(|| format!("no {name}: {line}"));
        rows.push([field("guarantees")?, field("trial")?, field("read")?]);
    }
    ensure!(!rows.is_empty(), "no trial noted anything");
    rows.sort_by_key(|row| (number(&row[0]), row.clone()));
    // Of several things that came to the same.
    rows.dedup();
    let mut table = String::from("| | trial | read |\n|---|---|---|\n");
    for row in rows {
        table.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    Ok(table)
}

/// The guarantees that no fact speaks of.
fn untried(facts: &str) -> Vec<String> {
    let facts: Vec<Value> = facts.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let speaks_of = |guarantee: &str| {
        let named = |fact: &Value| {
            fact["guarantees"].as_str().is_some_and(|all| all.split(' ').any(|it| it == guarantee))
        };
        facts.iter().any(named)
    };
    (1..=GUARANTEES).map(|number| format!("G{number}")).filter(|guarantee| !speaks_of(guarantee)).collect()
}

/// The first guarantee's number: G10 comes after G9.
fn number(guarantees: &str) -> u32 {
    let digits = guarantees.trim_start_matches('G');
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(u32::MAX)
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(guarantees: &str, read: &str) -> String {
        format!("{{\"guarantees\":\"{guarantees}\",\"trial\":\"a cut\",\"read\":\"{read}\"}}\n")
    }

    #[test]
    fn rows_are_in_the_order_of_the_guarantees() {
        let facts = [fact("G10", "a"), fact("G2 G13", "b"), fact("G2", "c|d"), fact("G10", "a")].concat();
        let table = table(&facts).expect("three facts");
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows, ["| G2 | a cut | c\\|d |", "| G2 G13 | a cut | b |", "| G10 | a cut | a |"]);
    }

    #[test]
    fn a_guarantee_of_which_nothing_was_noted_is_named() {
        let all: String = (1..=GUARANTEES).map(|number| fact(&format!("G{number} G1"), "a")).collect();
        assert_eq!(untried(&all), [] as [&str; 0]);
        assert_eq!(untried(&all.replace("\"G7 ", "\"G17 ")), ["G7"]);
    }

    #[test]
    fn a_name_that_no_test_has_is_found() {
        let said = [
            "running 3 tests",
            "test cuts::a_cut ... ok",
            "test cuts::b ... ignored, slow",
            "test result: ok. 1",
        ];
        let ran: Vec<String> = said.into_iter().filter_map(test_in).map(str::to_owned).collect();
        assert_eq!(ran, ["cuts::a_cut"]);
        assert_eq!(nobodys(&["cuts::", "", "cuts::b", "renamed"], &ran), ["cuts::b", "renamed"]);
        assert_eq!(nobodys(&[""], &[]), [""], "no test at all");
    }

    #[test]
    fn nothing_noted_is_an_error() {
        assert!(table("").is_err());
        assert!(table("{}").is_err());
    }
}
