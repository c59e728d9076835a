//! `cargo xtask audit`: cargo-deny with the advisory database.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, must};

/// The release that `deny.toml` was written for.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Runs every check of cargo-deny, with the freshest advisories that can be had.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    if !succeeds(workspace.cargo(&["deny", "--version"])) {
        println!("installing cargo-deny {CARGO_DENY_VERSION}, which takes some minutes");
        must(&mut workspace.cargo(&["install", "--locked", "cargo-deny", "--version", CARGO_DENY_VERSION]))?;
    }
    must(&mut workspace.cargo(&["deny", "check", "bans", "licenses", "sources"]))?;
    let databases = match env::var_os("TIDINGS_ADVISORY_DB") {
        Some(copy) => {
            println!("advisories: the copy in {}", copy.display());
            vec![PathBuf::from(copy)]
        }
        None if succeeds(workspace.cargo(&["deny", "fetch", "db"])) => {
            println!("advisories: fetched now");
            databases()?
        }
        None => {
            println!("advisories: cannot be fetched; the last copy on this machine");
            databases()?
        }
    };
    if databases.is_empty() {
        bail!("advisories not checked: no database here; set TIDINGS_ADVISORY_DB to a copy of it");
    }
    for database in &databases {
        let mut log = Command::new("git");
        must(log.arg("-C").arg(database).args(["log", "-1", "--format=advisories: as of %cI, commit %H"]))?;
    }
    let mut check = workspace.cargo(&["deny", "check", "--disable-fetch", "advisories"]);
    if let Some(copy) = env::var_os("TIDINGS_ADVISORY_DB") {
        // deny.toml takes the directory that holds the copies from here.
        check.env("TIDINGS_ADVISORY_DBS", Path::new(&copy).parent().context("TIDINGS_ADVISORY_DB has no parent")?);
    }
    must(&mut check)
}

/// Whether a command that is only asked succeeds.
fn succeeds(mut command: Command) -> bool {
    command.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The databases that cargo-deny has fetched before.
fn databases() -> Result<Vec<PathBuf>> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = cargo_home.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    let Ok(entries) = home.context("no home directory")?.join("advisory-dbs").read_dir() else {
        return Ok(Vec::new());
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.join(".git").exists()).collect())
}
