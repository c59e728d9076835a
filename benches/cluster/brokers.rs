//! The reference servers, each started once for a run and stopped with it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tidings_benches::clock::now_ns;

use crate::setup::System;

/// A broker that does not listen after this long will not.
const START_NS: u64 = 5_000_000_000;

/// A running server; ends with this value.
#[derive(Debug)]
pub(crate) struct Broker {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Broker {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The brokers that these systems need, by system.
pub(crate) fn start(systems: &[System], directory: &Path) -> Result<BTreeMap<System, Broker>> {
    let mut brokers = BTreeMap::new();
    for system in systems {
        let port = free_port()?;
        let command = match system {
            System::RedisCrate | System::RedisRaw => redis(port, directory),
            System::NatsTls | System::NatsPlain => nats(*system, port, directory)?,
            System::Tidings
            | System::TidingsResident
            | System::TidingsThread
            | System::Quinn
            | System::Harness => continue,
        };
        brokers.insert(*system, launch(command, port)?);
    }
    Ok(brokers)
}

fn redis(port: u16, directory: &Path) -> Command {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
        .arg(port.to_string())
        .arg("--dir")
        .arg(directory)
        // Never cut a subscriber off: the publisher waits for the slowest anyway.
        .args(["--client-output-buffer-limit", "pubsub 0 0 0"]);
    command
}

fn nats(system: System, port: u16, directory: &Path) -> Result<Command> {
    let mut text = format!("listen: \"127.0.0.1:{port}\"\n");
    if system == System::NatsTls {
        let file = |name| directory.join(name).display().to_string();
        text += &format!("tls {{ cert_file: {:?}, key_file: {:?} }}\n", file("node.pem"), file("node.key"));
    }
    let path = directory.join(format!("{}.conf", system.name()));
    fs::write(&path, text)?;
    let mut command = Command::new("nats-server");
    command.arg("--config").arg(path);
    Ok(command)
}

fn launch(mut command: Command, port: u16) -> Result<Broker> {
    let program = command.get_program().to_owned();
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().with_context(|| {
        format!("cannot start {}: install it (apt-get install redis-server nats-server)", program.display())
    })?;
    let mut broker = Broker { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
    let start = now_ns();
    while TcpStream::connect_timeout(&broker.address, Duration::from_millis(100)).is_err() {
        if broker.process.try_wait()?.is_some() || now_ns() - start > START_NS {
            bail!("{} does not listen on port {port}", program.display());
        }
        wait_a_moment();
    }
    Ok(broker)
}

#[allow(clippy::disallowed_methods, reason = "a server of another project cannot say when it listens")]
fn wait_a_moment() {
    std::thread::sleep(Duration::from_millis(5));
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
