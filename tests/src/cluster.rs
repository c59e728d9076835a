//! A cluster of processes: certificates, configurations, and the nodes.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::api::Api;
use crate::directory::{Alone, Directory};
use crate::network::Network;
use crate::node::{Node, run_program};
use crate::wait::until;

/// The cache that every node opens.
pub const CACHE: &str = "records";

/// A cache that every node opens, and of which it tells nobody.
pub const APART: &str = "apart";

/// Longest time until nodes that are ready see each other live and in step.
pub const FORMED_WITHIN: Duration = Duration::from_secs(60);

/// Ports of a node that has a host for itself.
const CLUSTER_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;

/// What a cluster shall be.
#[derive(Debug)]
pub struct Setup {
    /// How many nodes.
    pub nodes: usize,
    /// The bound that every node promises.
    pub max_staleness: Duration,
    /// Further lines of `[coherence]`; `{id}` stands for the node's id.
    pub coherence: &'static str,
    /// Hosts of their own, one for each; else the nodes share this machine's loopback device.
    pub network: Option<Network>,
}

impl Setup {
    /// Nodes on this machine's loopback device.
    #[must_use]
    pub fn loopback(nodes: usize) -> Self {
        Self { nodes, max_staleness: Duration::from_secs(3), coherence: "", network: None }
    }

    /// Nodes each on a host of its own. Needs root.
    pub fn hosts(nodes: usize) -> Result<Self> {
        Ok(Self { network: Some(Network::bridged(nodes)?), ..Self::loopback(nodes) })
    }

    /// Nodes each on a host of its own, between which packets can be held back. Needs root and a runtime.
    pub fn switched(nodes: usize) -> Result<Self> {
        Ok(Self { network: Some(Network::switched(nodes)?), ..Self::loopback(nodes) })
    }
}

/// Nodes that know each other's addresses. Holds other clusters back while it lives.
#[derive(Debug)]
pub struct Cluster {
    // In the order of their ends.
    nodes: Vec<Node>,
    network: Option<Network>,
    directory: Directory,
    max_staleness: Duration,
    _alone: Alone,
}

struct Place {
    listen: String,
    http: String,
}

impl Cluster {
    /// Writes what the nodes need, and starts none.
    pub fn prepare(setup: Setup) -> Result<Self> {
        let alone = Alone::wait()?;
        let directory = Directory::create()?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let certificates = path("certs");
        run_program(&["certs", "init", "--cluster", "rig", "--out", &certificates])?;
        let places = places(&setup)?;
        let mut nodes = Vec::new();
        for (number, place) in places.iter().enumerate() {
            let id = format!("n{}", number + 1);
            run_program(&["certs", "issue", "--dir", &certificates, "--node", &id])?;
            let config = path(&format!("{id}.toml"));
            std::fs::write(&config, configuration(&id, number, &places, &certificates, &setup))?;
            let host = setup.network.as_ref().map(|network| Arc::clone(&network.hosts()[number]));
            nodes.push(Node::new(&id, Path::new(&config), &place.http, host)?);
        }
        Ok(Self {
            nodes,
            network: setup.network,
            directory,
            max_staleness: setup.max_staleness,
            _alone: alone,
        })
    }

    /// Prepares all nodes, starts them and waits until they have formed.
    pub async fn start(setup: Setup) -> Result<Self> {
        let mut cluster = Self::prepare(setup)?;
        for node in &mut cluster.nodes {
            node.start()?;
        }
        cluster.formed().await?;
        Ok(cluster)
    }

    /// Waits until every started node is ready and sees every other live and in step.
    pub async fn formed(&mut self) -> Result<()> {
        for node in self.nodes.iter_mut().filter(|node| node.is_started()) {
            node.ready().await?;
        }
        let started: Vec<&Node> = self.nodes.iter().filter(|node| node.is_started()).collect();
        for node in &started {
            let others: Vec<&str> =
                started.iter().map(|other| other.id()).filter(|id| *id != node.id()).collect();
            let what = format!("{} is in step with {others:?}", node.id());
            until(&what, FORMED_WITHIN, async || in_step(node.api(), &others).await).await?;
        }
        Ok(())
    }

    /// One of its nodes.
    #[must_use]
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// One of its nodes, to be started or ended.
    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number]
    }

    /// Clients of all nodes, in order.
    #[must_use]
    pub fn apis(&self) -> Vec<Api> {
        self.nodes.iter().map(|node| node.api().clone()).collect()
    }

    /// The addresses of all nodes' HTTP interfaces, in order.
    #[must_use]
    pub fn urls(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| node.api().url()).collect()
    }

    /// The ids of all nodes, in order.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.id().to_owned()).collect()
    }

    /// The network between its hosts.
    pub fn network(&mut self) -> &mut Network {
        self.network.as_mut().expect("this cluster has hosts of its own")
    }

    /// The bound that it promises.
    #[must_use]
    pub fn max_staleness(&self) -> Duration {
        self.max_staleness
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

async fn in_step(api: &Api, others: &[&str]) -> Result<()> {
    let view = api.cluster().await?;
    for other in others {
        let Some(member) = view.members.iter().find(|member| member.node == *other) else {
            bail!("{other} is unknown");
        };
        ensure!(member.state == "live" && member.synced, "{member:?}");
    }
    Ok(())
}

fn places(setup: &Setup) -> Result<Vec<Place>> {
    if let Some(network) = &setup.network {
        let place = |address| Place {
            listen: format!("{address}:{CLUSTER_PORT}"),
            http: format!("127.0.0.1:{HTTP_PORT}"),
        };
        return Ok(network.hosts().iter().take(setup.nodes).map(|host| place(host.address())).collect());
    }
    // All held until all are chosen, so that no two are the same.
    let held: Vec<(UdpSocket, TcpListener)> = (0..setup.nodes)
        .map(|_| Ok((UdpSocket::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?)))
        .collect::<Result<_>>()?;
    let place = |(listen, http): &(UdpSocket, TcpListener)| -> Result<Place> {
        Ok(Place { listen: listen.local_addr()?.to_string(), http: http.local_addr()?.to_string() })
    };
    held.iter().map(place).collect()
}

fn configuration(id: &str, number: usize, places: &[Place], certificates: &str, setup: &Setup) -> String {
    let Place { listen, http } = &places[number];
    let others = places.iter().enumerate().filter(|(other, _)| *other != number);
    let seeds: Vec<&str> = others.map(|(_, place)| place.listen.as_str()).collect();
    let max_staleness = setup.max_staleness.as_millis();
    let coherence = setup.coherence.replace("{id}", id);
    format!(
        r#"[cluster]
name = "rig"
node_id = "{id}"
listen = "{listen}"
seeds = {seeds:?}

[tls]
ca = "{certificates}/ca.pem"
cert = "{certificates}/{id}.pem"
key = "{certificates}/{id}.key"

[http]
listen = "{http}"

[coherence]
max_staleness = "{max_staleness}ms"
{coherence}

[[cache]]
name = "{CACHE}"
max_capacity = "64MiB"

[[cache]]
name = "{APART}"
mode = "local"
"#
    )
}
