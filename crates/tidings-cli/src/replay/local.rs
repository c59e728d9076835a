//! A whole cluster in this process as a target: real nodes, real QUIC on loopback, mutual TLS.

use std::convert::Infallible;
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings::{Cache, Item, Listener, Node, NodeId, Scope, Share, WITHIN};
use tidings_transport::{Authority, Identity};
use tokio::time::{Instant, sleep, timeout};

use super::latency::{Sampler, is_sampled};
use super::target::{Answer, Coherence, Counters, Latency, Source, Target};
use crate::exit::{Exit, Failure, chain};

/// How long the cluster may take to form, beyond the doubt at its start, which takes as long as the bound.
const FORM_MAX: Duration = Duration::from_secs(20);

/// How long each node may take to shut down.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

/// Pause between two looks at a cluster that forms.
const POLL: Duration = Duration::from_millis(10);

/// Gossip is only about who is there: fast, so that the cluster forms at once.
const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);

/// Coarse clocks stand still for so long: what is confirmed may be that much older than it looks.
const COARSE_CLOCK: Duration = Duration::from_millis(10);

/// Partitions of events: of sampled keys, and of the others.
const PARTITIONS: usize = 2;

/// How long the certificates of nodes that live as long as this process are valid.
const VALIDITY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What nodes in this process are started with.
#[derive(Clone, Debug)]
pub(crate) struct LocalSettings {
    /// How many.
    pub(crate) nodes: usize,
    /// Bytes that the cache on each node holds.
    pub(crate) capacity: u64,
    /// Oldest value that a node may serve while it cannot know better.
    pub(crate) max_staleness: Duration,
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// Name of the cache.
    pub(crate) cache: String,
}

/// Nodes in this process.
#[derive(Debug)]
pub(crate) struct LocalNodes {
    nodes: Vec<Node>,
    caches: Vec<Cache<String, Bytes>>,
    names: Vec<String>,
    sampler: Arc<Sampler>,
    _listeners: Vec<Listener>,
}

impl LocalNodes {
    /// Starts the nodes, and waits until everybody follows everybody and no doubt is left.
    ///
    /// # Errors
    /// A node does not start, or the cluster does not form in time.
    pub(crate) async fn start(settings: &LocalSettings) -> Result<Self, Failure> {
        let mut nodes: Vec<Node> = Vec::new();
        let authority = Authority::generate(&settings.cluster).map_err(|error| cannot_start(&error))?;
        for index in 0..settings.nodes {
            let seeds: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
            nodes.push(start_node(settings, &authority, index, seeds).await?);
        }
        let names: Vec<String> = nodes.iter().map(|node| node.origin().node.to_string()).collect();
        let caches: Result<Vec<_>, Failure> = nodes.iter().map(|node| open(node, settings)).collect();
        let (caches, sampler) = (caches?, Arc::new(Sampler::default()));
        let listeners: Result<Vec<_>, Failure> =
            caches.iter().map(|cache| listen(cache, names.clone(), Arc::clone(&sampler))).collect();
        let all = Self { nodes, caches, names, sampler, _listeners: listeners? };
        all.formed(FORM_MAX + settings.max_staleness).await?;
        Ok(all)
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Shuts the nodes down, one after the other.
    pub(crate) async fn shutdown(&self) {
        for node in &self.nodes {
            node.shutdown(SHUTDOWN_MAX).await;
        }
    }

    async fn formed(&self, within: Duration) -> Result<(), Failure> {
        let count = self.nodes.len();
        let waiting = async {
            while !self.nodes.iter().all(|node| node.members().len() == count && node.readiness().is_ok()) {
                sleep(POLL).await;
            }
            for node in &self.nodes {
                node.fresh(within).await;
            }
        };
        let timely = timeout(within, waiting).await.is_ok();
        let doubts: Vec<String> = self
            .nodes
            .iter()
            .filter(|node| !timely || !node.doubts().is_empty())
            .map(|node| format!("{}: {:?} {:?}", node.origin().node, node.readiness(), node.doubts()))
            .collect();
        if doubts.is_empty() {
            return Ok(());
        }
        let message = format!("the cluster did not form within {}s: {}", within.as_secs(), doubts.join("; "));
        Err(Failure::new(Exit::Unreachable, message))
    }

    fn sample(&self, node: usize, key: &str, written: &tidings::Written<'_>) {
        if let Some((lane, sequence)) = written.positions.first().filter(|_| is_sampled(key)) {
            self.sampler.returned((node, *lane, *sequence), self.nodes.len() - 1);
        }
    }
}

impl Target for LocalNodes {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn can_write_through(&self) -> bool {
        true
    }

    async fn read<L>(&self, node: usize, key: &String, load: L) -> Result<Answer, Failure>
    where
        L: FnOnce() -> Bytes + Send,
    {
        let mut source = Source::Hit;
        let load = || {
            source = Source::Loaded;
            ready(Ok::<Bytes, Infallible>(load()))
        };
        let value = self.caches[node].get_or_load(key, load).await.map_err(|error| failed(&error))?;
        Ok(Answer { value, source })
    }

    async fn remove(&self, node: usize, key: &String) -> Result<(), Failure> {
        let written = self.caches[node].remove(key).map_err(|error| failed(&error))?;
        self.sample(node, key, &written);
        Ok(())
    }

    async fn write_through<W>(&self, node: usize, key: &String, write: W) -> Result<(), Failure>
    where
        W: FnOnce() -> Bytes + Send,
    {
        let write = || ready(Ok::<Bytes, Infallible>(write()));
        let (_, written) =
            self.caches[node].write_through(key, write).await.map_err(|error| failed(&error))?;
        self.sample(node, key, &written);
        Ok(())
    }

    async fn peek(&self, node: usize, key: &String) -> Result<Option<Bytes>, Failure> {
        Ok(self.caches[node].peek(key).map(|(value, _)| value))
    }

    async fn has_applied(&self, before: Instant) -> Result<bool, Failure> {
        let applied = |node: &Node| {
            let since = before.elapsed();
            let members = node.members();
            let peers = members.iter().filter(|member| !member.this_node);
            peers
                .filter(|member| member.state == tidings::State::Live)
                .all(|member| member.confirmed.is_some_and(|confirmed| confirmed + COARSE_CLOCK < since))
        };
        Ok(self.nodes.iter().all(applied))
    }

    async fn counters(&self) -> Result<Counters, Failure> {
        let mut sum = Counters::default();
        sum.coalesced = self.caches.iter().map(|cache| cache.counts().coalesced).sum();
        for node in &self.nodes {
            sum.published += node.domain().events_published();
            for member in node.members() {
                sum.applied += member.applied;
                sum.gaps += member.gaps;
                sum.resets += member.resets;
            }
        }
        Ok(sum)
    }

    fn invalidation_latency(&self) -> Latency {
        self.sampler.latency()
    }

    fn coherent(&self) -> Vec<Coherence> {
        let measured: Vec<_> = self.nodes.iter().map(|node| node.measured().writes.since_start).collect();
        let together = |(index, within): (usize, &Duration)| {
            let sum = |all: Share, shares: &[Share; WITHIN.len()]| Share {
                coherent: all.coherent + shares[index].coherent,
                judged: all.judged + shares[index].judged,
            };
            let share = measured.iter().fold(Share::default(), sum).ratio()?;
            Some(Coherence { within_ms: within.as_millis() as u64, share })
        };
        WITHIN.iter().enumerate().filter_map(together).collect()
    }
}

async fn start_node(
    settings: &LocalSettings,
    authority: &Authority,
    index: usize,
    seeds: Vec<String>,
) -> Result<Node, Failure> {
    let name = format!("n{}", index + 1);
    let id = NodeId::new(&name).map_err(|error| cannot_start(&error))?;
    let issued = authority.issue(&id, &[], VALIDITY).map_err(|error| cannot_start(&error))?;
    let identity = Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem)
        .map_err(|error| cannot_start(&error))?;
    Node::builder(&settings.cluster)
        .node_id(name)
        .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .identity(identity)
        .seeds(seeds)
        .gossip_interval(GOSSIP_INTERVAL)
        .max_staleness(settings.max_staleness)
        // The nodes have no former life whose last write could still be landing.
        .write_horizon(Duration::ZERO)
        .start()
        .await
        .map_err(|error| cannot_start(&error))
}

fn open(node: &Node, settings: &LocalSettings) -> Result<Cache<String, Bytes>, Failure> {
    node.cache(&settings.cache)
        .max_capacity(settings.capacity)
        .weigher(|key: &[u8], value: &Bytes| u32::try_from(key.len() + value.len()).unwrap_or(u32::MAX))
        .partitions(PARTITIONS)
        .partitioner(|key: &String| Some(usize::from(!is_sampled(key))))
        .open()
        .map_err(|error| cannot_start(&error))
}

/// Reports a node's evictions of sampled keys.
fn listen(
    cache: &Cache<String, Bytes>,
    names: Vec<String>,
    sampler: Arc<Sampler>,
) -> Result<Listener, Failure> {
    let report = move |item: Item<tidings::Event<String>>| {
        let Item::Event(event) = item else { return };
        let writer = names.iter().position(|name| *name == *event.origin.node.as_str());
        if let (Some(writer), Some((lane, sequence))) = (writer, event.position) {
            sampler.evicted((writer, lane, sequence), names.len() - 1);
        }
    };
    let subscription = cache.subscribe().partition(0).scope(Scope::Remote);
    subscription.listen(report).map_err(|error| cannot_start(&error))
}

fn cannot_start(error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot start the cluster: {}", chain(error)))
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failed, chain(error))
}
