//! What cargo says about this workspace, and commands run at its root.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The workspace that this program was started in.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    metadata: Value,
}

impl Workspace {
    /// Reads `cargo metadata`, with the lock file as it is.
    pub(crate) fn load() -> Result<Self> {
        let output = Command::new(cargo())
            .args(["metadata", "--format-version", "1", "--locked"])
            .output()
            .context("cannot start cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata: not JSON")?;
        let path =
            |field: &str| metadata[field].as_str().map(PathBuf::from).context("cargo metadata: no paths");
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")?, metadata })
    }

    /// Every package in the lock file's graph, for every platform.
    pub(crate) fn packages(&self) -> impl Iterator<Item = &Value> {
        self.metadata["packages"].as_array().into_iter().flatten()
    }

    /// The packages of the workspace itself.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Value> {
        self.packages().filter(|package| package["source"].is_null())
    }

    /// A command at the root.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// A cargo command at the root, as it would run by itself: build scripts that read what cargo says of the package
    /// it runs would otherwise run again, and all that depends on them, whenever people and this program take turns.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&cargo());
        let of_package =
            |name: &String| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for name in std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(of_package) {
            command.env_remove(name);
        }
        command.args(arguments);
        command
    }

    /// The files that git tracks or would track, relative to the root.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        let listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let output = self.command("git").args(listing).output().context("cannot start git")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "conventions are checked on what git tracks, which needs a clone of one's own: git ls-files: {}",
            said.trim()
        );
        let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
        let mut names: Vec<String> = names.split_terminator('\0').map(str::to_owned).collect();
        names.retain(|name| self.root.join(name).is_file());
        Ok(names)
    }
}

/// Runs a command to its end, its output shown; an error unless it succeeds.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    let name = format!("{} {}", command.get_program().display(), words(command));
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    ensure!(status.success(), "{name}: {status}");
    Ok(())
}

/// An error that lists all findings, unless there are none.
pub(crate) fn none_of(findings: &[String]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    for finding in findings {
        eprintln!("  {finding}");
    }
    bail!("{} findings", findings.len())
}

fn words(command: &Command) -> String {
    command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}
