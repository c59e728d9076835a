//! `cargo xtask audit`: cargo-deny with the advisory database.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::workspace::{Workspace, must};

/// The release that `deny.toml` was written for.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Runs every check of cargo-deny. Without the database the other checks still run, and the audit fails.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    if !succeeds(workspace.cargo(&["deny", "--version"])) {
        println!("installing cargo-deny {CARGO_DENY_VERSION}, which takes some minutes");
        must(&mut workspace.cargo(&["install", "--locked", "cargo-deny", "--version", CARGO_DENY_VERSION]))?;
    }
    must(&mut workspace.cargo(&["deny", "check", "bans", "licenses", "sources"]))?;
    let fetched = succeeds(workspace.cargo(&["deny", "fetch", "db"]));
    println!(
        "advisories: {}",
        if fetched { "fetched now" } else { "cannot be fetched, so an older copy if any" }
    );
    let cargo_home =
        env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")));
    let copies = Path::new(&cargo_home.context("neither CARGO_HOME nor HOME is set")?).join("advisory-dbs");
    let mut found = false;
    let entries = copies.read_dir().into_iter().flatten().filter_map(Result::ok);
    // cargo-deny keeps a lock file there too.
    for copy in entries.filter(|entry| entry.path().is_dir()) {
        let show = ["log", "-1", "--format=advisories: %H of %cI"];
        found |= Command::new("git").arg("-C").arg(copy.path()).args(show).status()?.success();
    }
    ensure!(found, "advisories not checked: no copy of the database in {}", copies.display());
    must(&mut workspace.cargo(&["deny", "check", "--disable-fetch", "advisories"]))
}

/// Whether a command that is only asked succeeds.
fn succeeds(mut command: Command) -> bool {
    command.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}
