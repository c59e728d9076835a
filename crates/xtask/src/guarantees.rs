//! `cargo xtask guarantees`: runs the trials that try to break the guarantees, and prints what they read as a table.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::packages;
use crate::workspace::{Workspace, must};

/// What the tests note their figures in, as `tidings-tests` names it.
const FACTS: &str = "TIDINGS_FACTS";

/// The trials of whole nodes.
const OF_NODES: [&str; 7] = ["test", "--locked", "--no-fail-fast", "-p", "tidings-tests", "--test", "it"];

/// The trials of one cache against concurrent loads, which only optimised code does fast enough.
const OF_A_CACHE: [&str; 8] =
    ["test", "--locked", "--no-fail-fast", "--release", "-p", "tidings-cache", "--test", "no_stale_set"];

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
    for mut command in trials(workspace, large) {
        command.env(FACTS, &facts).env("TIDINGS_BIN", workspace.target.join("release/tidings"));
        failed.extend(must(&mut command).err());
    }
    print!("{}", table(&read(&facts)?)?);
    // What failed has no row that says so.
    ensure!(failed.is_empty(), "not all trials passed: {failed:?}");
    Ok(())
}

fn trials(workspace: &Workspace, large: bool) -> Vec<Command> {
    let (mut of_nodes, mut of_a_cache) = (workspace.cargo(&OF_NODES), workspace.cargo(&OF_A_CACHE));
    if !large {
        return vec![of_nodes, of_a_cache];
    }
    of_nodes.arg("--");
    let mut trials = Vec::new();
    for (name, scale) in LARGE {
        of_nodes.args(["--skip", name]);
        let mut trial = workspace.cargo(&OF_NODES);
        trial.args(["--", name]).env(SCALE, scale);
        trials.push(trial);
    }
    if std::env::var_os(READS).is_none() {
        of_a_cache.env(READS, LARGE_READS);
    }
    trials.extend([of_nodes, of_a_cache]);
    trials
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
    let mut table = String::from("| | trial | read |\n|---|---|---|\n");
    for row in rows {
        table.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    Ok(table)
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
        let facts = [fact("G10", "a"), fact("G2 G13", "b"), fact("G2", "c|d")].concat();
        let table = table(&facts).expect("three facts");
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows, ["| G2 | a cut | c\\|d |", "| G2 G13 | a cut | b |", "| G10 | a cut | a |"]);
    }

    #[test]
    fn nothing_noted_is_an_error() {
        assert!(table("").is_err());
        assert!(table("{}").is_err());
    }
}
