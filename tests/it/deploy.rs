//! What `deploy/` holds: that it is true of this release, and that its parts agree with each other. What is not at hand
//! where tests run (registries, a Kubernetes, systemd as the first process) is not started; it is judged by the tools
//! that read such files, or by what it says.

mod compose;
mod config;
mod kubernetes;
mod metrics;
mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use tidings_tests::node::{program, run_program};
use yaml_rust2::{Yaml, YamlLoader};

/// A file or directory of `deploy/`.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn text(name: &str) -> Result<String> {
    fs::read_to_string(path(name)).with_context(|| name.to_owned())
}

/// The documents of a file.
fn documents(name: &str) -> Result<Vec<Yaml>> {
    YamlLoader::load_from_str(&text(name)?).with_context(|| name.to_owned())
}

/// The one document of a file.
fn document(name: &str) -> Result<Yaml> {
    let mut documents = documents(name)?;
    ensure!(documents.len() == 1, "{name}: {} documents", documents.len());
    Ok(documents.remove(0))
}

/// A list, empty where there is none.
fn list(yaml: &Yaml) -> &[Yaml] {
    yaml.as_vec().map(Vec::as_slice).unwrap_or_default()
}

/// The texts of a list.
fn texts(yaml: &Yaml) -> Vec<&str> {
    list(yaml).iter().filter_map(Yaml::as_str).collect()
}

/// Runs a command to its end; what it printed, if it succeeds.
fn succeeds(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, printed(&output));
    Ok(printed(&output))
}

fn printed(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// Makes an authority and the certificates of nodes in a directory.
fn certificates(directory: &Path, cluster: &str, nodes: &[&str]) -> Result<()> {
    let directory = directory.to_str().context("a path that is not UTF-8")?;
    run_program(&["certs", "init", "--cluster", cluster, "--out", directory])?;
    for node in nodes {
        run_program(&["certs", "issue", "--dir", directory, "--node", node])?;
    }
    Ok(())
}

/// What the program finds in a configuration, with variables that override it.
fn findings(file: &Path, variables: &[(&str, String)]) -> Result<Vec<serde_json::Value>> {
    let mut command = Command::new(program()?);
    command.args(["config", "check", "--json"]).arg(file);
    let output = command.envs(variables.iter().map(|(name, value)| (name, value))).output()?;
    let judged: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| printed(&output))?;
    judged["findings"].as_array().cloned().context("no findings")
}
