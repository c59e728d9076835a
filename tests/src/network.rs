//! Hosts on one network, and faults between them: cuts in one or both directions, and loss.
//!
//! Cuts and loss are packet filter rules of the receiving host, so a sender notices nothing. The hosts meet on a bridge
//! in a namespace of its own, where nothing else on this machine filters; or, if packets shall be late, on a
//! [`crate::switch::Switch`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::host::{Host, Namespace};
use crate::switch::Switch;

/// Most hosts of a network: their number is the last part of their address.
pub const HOSTS_MAX: usize = 250;

/// What happens to packets from one host to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Cut,
    Loss { percent: u8 },
}

#[derive(Debug)]
enum Medium {
    Bridge(#[expect(dead_code, reason = "keeps the bridge there")] Namespace),
    Switch(Switch),
}

/// Hosts that can reach each other, but for the faults between them.
#[derive(Debug)]
pub struct Network {
    // Before the hosts: it ends before what it connects.
    medium: Medium,
    hosts: Vec<Arc<Host>>,
    faults: BTreeMap<(usize, usize), Fault>,
}

impl Network {
    /// Hosts on a bridge.
    pub fn bridged(hosts: usize) -> Result<Self> {
        let hosts = create_hosts(hosts)?;
        let bridge = Namespace::create()?;
        bridge.ip(&["link", "add", "br0", "type", "bridge"])?;
        bridge.ip(&["link", "set", "br0", "up"])?;
        for (number, host) in hosts.iter().enumerate() {
            let port = format!("p{number}");
            let namespace = host.namespace().name();
            bridge.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", namespace])?;
            bridge.ip(&["link", "set", &port, "master", "br0", "up"])?;
            set_address(host)?;
        }
        Ok(Self { medium: Medium::Bridge(bridge), hosts, faults: BTreeMap::new() })
    }

    /// Hosts on a switch that can delay packets. Needs a runtime, and costs it a task per host.
    pub fn switched(hosts: usize) -> Result<Self> {
        let hosts = create_hosts(hosts)?;
        let switch = Switch::start(&hosts)?;
        for host in &hosts {
            set_address(host)?;
        }
        Ok(Self { medium: Medium::Switch(switch), hosts, faults: BTreeMap::new() })
    }

    /// Its hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// Drops everything that one host sends to another.
    pub fn cut(&mut self, from: usize, to: usize) -> Result<()> {
        self.faults.insert((from, to), Fault::Cut);
        self.apply(to)
    }

    /// Drops everything between a host and all others, in both directions.
    pub fn isolate(&mut self, host: usize) -> Result<()> {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.cut(host, other)?;
            self.cut(other, host)?;
        }
        Ok(())
    }

    /// Loses this share of the packets that one host sends to another.
    pub fn lose(&mut self, from: usize, to: usize, percent: u8) -> Result<()> {
        self.faults.insert((from, to), Fault::Loss { percent });
        self.apply(to)
    }

    /// What can delay packets and hold them back, if this network has it.
    #[must_use]
    pub fn switch(&self) -> Option<&Switch> {
        match &self.medium {
            Medium::Switch(switch) => Some(switch),
            Medium::Bridge(_) => None,
        }
    }

    /// Ends every cut and all loss.
    pub fn heal(&mut self) -> Result<()> {
        self.faults.clear();
        (0..self.hosts.len()).try_for_each(|host| self.apply(host))
    }

    /// Replaces the receiving host's rules in one transaction.
    fn apply(&self, to: usize) -> Result<()> {
        let mut rules = String::from(
            "add table inet faults\n\
             add chain inet faults input { type filter hook input priority 0; policy accept; }\n\
             flush chain inet faults input\n",
        );
        for ((from, _), fault) in self.faults.iter().filter(|((_, receiver), _)| *receiver == to) {
            let source = self.hosts[*from].address();
            match fault {
                Fault::Cut => writeln!(rules, "add rule inet faults input ip saddr {source} drop")?,
                Fault::Loss { percent } => writeln!(
                    rules,
                    "add rule inet faults input ip saddr {source} numgen random mod 100 < {percent} drop"
                )?,
            }
        }
        self.hosts[to].namespace().enter(|| filter(&rules))?
    }
}

fn create_hosts(count: usize) -> Result<Vec<Arc<Host>>> {
    assert!(count <= HOSTS_MAX, "at most {HOSTS_MAX} hosts");
    (1..=count as u8).map(|number| Ok(Arc::new(Host::create(Ipv4Addr::new(10, 77, 0, number))?))).collect()
}

fn set_address(host: &Host) -> Result<()> {
    let address = format!("{}/24", host.address());
    host.namespace().ip(&["addr", "add", &address, "dev", "eth0"])?;
    host.namespace().ip(&["link", "set", "eth0", "up"])
}

fn filter(rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut nft = command.spawn().context("cannot start nft (package nftables)")?;
    nft.stdin.take().context("nft takes no input")?.write_all(rules.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
