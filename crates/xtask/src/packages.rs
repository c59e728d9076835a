//! The Debian packages that the tests need.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::must;

/// A program that tests start, and the package that has it.
struct Needed {
    program: &'static str,
    package: &'static str,
}

const NEEDED: [Needed; 8] = [
    // Hosts of their own: namespaces, links, bridges.
    Needed { program: "ip", package: "iproute2" },
    // Cuts and loss between them.
    Needed { program: "nft", package: "nftables" },
    // What durable streams can be kept in; tests start servers of their own.
    Needed { program: "redis-server", package: "redis-server" },
    // What the outbox can be in; tests start a server of their own.
    Needed { program: "initdb", package: "postgresql" },
    Needed { program: "nats-server", package: "nats-server" },
    // A browser that logs in.
    Needed { program: "chromium", package: "chromium" },
    // Judges rules, alerts and their tests.
    Needed { program: "promtool", package: "prometheus" },
    // Judges the unit; need not run here.
    Needed { program: "systemd-analyze", package: "systemd" },
];

/// Where system programs live that an ordinary user's PATH may leave out.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Where Debian keeps programs of PostgreSQL, by release.
const POSTGRESQL: &str = "/usr/lib/postgresql";

/// Installs what is missing. Without root it names the packages and fails.
pub(crate) fn install() -> Result<()> {
    let missing: Vec<&str> =
        NEEDED.iter().filter(|needed| !is_installed(needed.program)).map(|needed| needed.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        bail!("missing Debian packages; as root: apt-get install {}", missing.join(" "));
    }
    println!("installing {}", missing.join(" "));
    must(apt_get().args(["update", "-q"]))?;
    must(apt_get().args(["install", "-q", "-y", "--no-install-recommends"]).args(&missing))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_installed(program: &str) -> bool {
    let path = env::var("PATH").unwrap_or_default();
    let releases = fs::read_dir(POSTGRESQL).into_iter().flatten().flatten();
    env::split_paths(&format!("{path}:{SYSTEM_DIRECTORIES}"))
        .chain(releases.map(|release| release.path().join("bin")))
        .any(|directory| directory.join(program).is_file())
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("cannot start id")?;
    Ok(output.stdout.trim_ascii() == b"0")
}
