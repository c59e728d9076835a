//! The unit for machines that run systemd, judged by systemd's own tool.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use tidings_tests::directory::Directory;
use tidings_tests::node::program;

use super::{path, succeeds, text};

const UNIT: &str = "systemd/tidings.service";

/// Where the unit looks for the program.
const INSTALLED: &str = "/usr/local/bin/tidings";

/// Most that the unit may be exposed, in tenths of systemd's measure: what remains is the network that it serves.
const EXPOSURE_MAX: &str = "15";

#[test]
fn systemd_understands_the_unit() -> Result<()> {
    let directory = Directory::create()?;
    let unit = directory.path().join("tidings.service");
    let built = program()?;
    // It says so of a program that is not there.
    let built = built.to_str().context("a path that is not UTF-8")?;
    fs::write(&unit, text(UNIT)?.replace(&format!("ExecStart={INSTALLED}"), &format!("ExecStart={built}")))?;
    let told = succeeds(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit))?;
    assert!(!told.contains("tidings.service"), "{told}");
    Ok(())
}

#[test]
fn the_unit_exposes_little() -> Result<()> {
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let arguments = ["security", "--no-pager", "--offline=true", threshold.as_str()];
    succeeds(Command::new("systemd-analyze").args(arguments).arg(path(UNIT)))?;
    Ok(())
}
