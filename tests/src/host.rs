//! A host of its own on this machine: a network namespace. Needs root.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::directory::{ended_owner, entries, name_of, unique_name};

/// Where `ip netns` keeps its names.
const NAMESPACES: &str = "/run/netns";

static SWEPT: Once = Once::new();

/// A network namespace with a name, deleted on drop. Processes in it must have ended by then.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with nothing in it but its loopback device.
    pub fn create() -> Result<Self> {
        SWEPT.call_once(sweep);
        let namespace = Self { name: unique_name() };
        ip(&["netns", "add", &namespace.name]).context("cannot make a host: is this root?")?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, for `ip -n NAME` and `ip netns exec NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on its devices and addresses.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Does something on a thread inside: what it opens and starts there stays inside.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                enter_namespace(&path)?;
                Ok(action())
            });
            inside.join().map_err(|_| anyhow!("panicked inside {}", path.display()))?
        })
    }

    /// Runs a program inside; what it printed, if it succeeds.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.enter(|| Command::new(program).args(arguments).stdin(Stdio::null()).output())?;
        let output = output.with_context(|| format!("cannot start {program}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("cannot delete {}: {error:#}", self.name);
        }
    }
}

/// A namespace with an address, and a runtime whose sockets are all inside it.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    address: Ipv4Addr,
    runtime: Option<Runtime>,
}

impl Host {
    /// Makes one. Whoever connects it gives its device the address.
    pub fn create(address: Ipv4Addr) -> Result<Self> {
        let namespace = Namespace::create()?;
        let path = namespace.path();
        let inside = move || enter_namespace(&path).expect("a namespace that was just made");
        let runtime =
            Builder::new_multi_thread().worker_threads(1).on_thread_start(inside).enable_all().build()?;
        Ok(Self { namespace, address, runtime: Some(runtime) })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The runtime inside: what a task on it opens is inside.
    #[must_use]
    pub fn runtime(&self) -> Handle {
        self.runtime.as_ref().expect("there until drop").handle().clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Dropping a runtime waits for it, which no task may do; tests are tasks.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn enter_namespace(path: &Path) -> Result<()> {
    let link = File::open(path).with_context(|| path.display().to_string())?;
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter a namespace")
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("cannot start ip (package iproute2)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), errors.trim());
    Ok(())
}

/// Deletes the namespaces of test processes that have ended.
fn sweep() {
    for path in entries(Path::new(NAMESPACES)) {
        if let Some(name) = name_of(&path)
            && ended_owner(name).is_some()
        {
            // Two test processes may find the same one.
            let _ = ip(&["netns", "del", name]);
        }
    }
}
