//! `cargo xtask guarantees`: runs the trials that try to break the guarantees, and prints what they read as a table.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::packages;
use crate::workspace::{Workspace, must};

/// What the tests note their figures in, as `tidings-tests` names it.
const FACTS: &str = "TIDINGS_FACTS";

/// The trials: of whole nodes, and of one cache against concurrent loads, which only optimised code does fast enough.
const TRIALS: [&[&str]; 2] = [
    &["test", "--locked", "--no-fail-fast", "-p", "tidings-tests", "--test", "it"],
    &["test", "--locked", "--no-fail-fast", "--release", "-p", "tidings-cache", "--test", "no_stale_set"],
];

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    packages::install()?;
    must(&mut workspace.cargo(&["build", "--release", "--locked"]))?;
    let facts = workspace.target.join("guarantees.jsonl");
    let _ = std::fs::remove_file(&facts);
    let mut failed = Vec::new();
    for trial in TRIALS {
        let mut command = workspace.cargo(trial);
        command.env(FACTS, &facts).env("TIDINGS_BIN", workspace.target.join("release/tidings"));
        failed.extend(must(&mut command).err());
    }
    print!("{}", table(&read(&facts)?)?);
    // What failed has no row that says so.
    ensure!(failed.is_empty(), "not all trials passed: {failed:?}");
    Ok(())
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
