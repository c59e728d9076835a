//! How a node is described and started.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use tidings_cache::Clock;
use tidings_proto::freshness::Bounds;
use tidings_proto::id::Lanes;
use tidings_proto::log::Retention;
use tidings_transport::Identity;

use crate::clocks::ClockBounds;
use crate::coherence::BeforeKnown;
use crate::config::{Config, Simulated};
use crate::node::{Node, StartError};
use crate::relays::RELAY_ABOVE;
use crate::spending::COPY_BYTES_PER_SECOND;

/// Describes a node. Without an identity it makes one for development, good on loopback only.
#[derive(Clone)]
#[must_use = "a node does nothing until it is started"]
pub struct NodeBuilder {
    config: Config,
    advertise: Option<String>,
    #[cfg(feature = "streams")]
    streams: Option<crate::streams::StreamsConfig>,
}

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("cluster", &self.config.cluster)
            .field("node_id", &self.config.node_id)
            .field("listen", &self.config.listen)
            .finish_non_exhaustive()
    }
}

impl NodeBuilder {
    pub(crate) fn new(cluster: impl Into<String>) -> Self {
        let config = Config {
            cluster: cluster.into(),
            node_id: format!("node-{:08x}", rand::random::<u32>()),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            advertise: None,
            seeds: Vec::new(),
            identity: Identity::development(),
            denied: Vec::new(),
            zone: String::new(),
            bounds: Bounds::default(),
            before_known: BeforeKnown::default(),
            clocks: ClockBounds::default(),
            audit_keys_per_second: 0,
            relay_above: RELAY_ABOVE,
            copy_bytes_per_second: COPY_BYTES_PER_SECOND,
            gossip_interval: Duration::from_secs(1),
            lanes: Lanes::default(),
            retention: Retention::default(),
            log_dir: None,
            clock: Clock::system(),
            on_calling_runtime: false,
            simulated: None,
        };
        Self {
            config,
            advertise: None,
            #[cfg(feature = "streams")]
            streams: None,
        }
    }

    /// Its id: unique in the cluster, and that of its certificate. Default: random.
    pub fn node_id(mut self, id: impl Into<String>) -> Self {
        self.config.node_id = id.into();
        self
    }

    /// The UDP address to bind. Default: any free port of 127.0.0.1.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.config.listen = address;
        self
    }

    /// Where peers can reach it, `host:port`, if that is not the address it binds.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Where to find the cluster, `host:port` each; names are resolved again and again. Without seeds the node is the
    /// first of its cluster.
    pub fn seeds<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.config.seeds = seeds.into_iter().map(Into::into).collect();
        self
    }

    /// Its certificate and key, and whom it trusts.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.config.identity = identity;
        self
    }

    /// Node ids and certificate serials that are refused.
    pub fn denied<S: Into<String>>(mut self, denied: impl IntoIterator<Item = S>) -> Self {
        self.config.denied = denied.into_iter().map(Into::into).collect();
        self
    }

    /// Its availability zone: for people, and so that relays cross to other zones as seldom as can be.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.config.zone = zone.into();
        self
    }

    /// How old an unmarked hit may be. Default: 3 s.
    pub fn max_staleness(mut self, time: Duration) -> Self {
        self.config.bounds.max_staleness = time;
        self
    }

    /// How long a member that nobody hears may come back as if nothing had happened. Default: 60 s.
    pub fn lost_grace(mut self, time: Duration) -> Self {
        self.config.bounds.lost_grace = time;
        self
    }

    /// The longest that a write of the application may still be under way when its process dies. Default: 5 s.
    pub fn write_horizon(mut self, time: Duration) -> Self {
        self.config.bounds.write_horizon = time;
        self
    }

    /// What becomes of changes that are made before everybody who is there knows of this node, which takes a moment after
    /// its start and whenever a member comes. Whom nobody hears is not waited for. Default: [`BeforeKnown::Uncovered`];
    /// with [`BeforeKnown::Refuse`], a node whose seeds cannot be reached makes no changes at all.
    pub fn before_known(mut self, before: BeforeKnown) -> Self {
        self.config.before_known = before;
        self
    }

    /// `false`: a member that ends without a goodbye is trusted to have told everything. Default: `true`.
    pub fn doubt_unclean_ends(mut self, doubt: bool) -> Self {
        self.config.bounds.doubt_unclean_ends = doubt;
        self
    }

    /// How far a peer's wall clock may be from this node's. Default: 500 ms. What is beyond is said, and counted; it makes
    /// no hit staler, for nothing that keeps caches coherent reads a wall clock.
    pub fn max_clock_offset(mut self, offset: Duration) -> Self {
        self.config.clocks.max_offset = offset;
        self
    }

    /// `false`: a node becomes ready although its wall clock is beyond [`NodeBuilder::max_clock_offset`] from those of
    /// most of its peers. Default: `true`; one that was ready once stays so either way.
    pub fn unready_when_clock_off(mut self, unready: bool) -> Self {
        self.config.clocks.unready = unready;
        self
    }

    /// Compares so many entries a second with what other members hold, over and over, in caches that are audited on
    /// both sides ([`tidings_cache::CacheBuilder::audited`]): each entry counts once for each member that hosts its cache, and
    /// at most a megabyte a second is sent and received. Default: 0, only when [`Node::audit`] asks for it. A million
    /// entries in ten minutes are 1,667 a second.
    pub fn audit(mut self, keys_per_second: u64) -> Self {
        self.config.audit_keys_per_second = keys_per_second;
        self
    }

    /// In a cluster of more nodes than this, changes go by way of relays: each node keeps links to some tens of others, and
    /// a change reaches everybody over two or three hops, instead of over one from a writer who sends it to all. Zones
    /// ([`NodeBuilder::zone`]) are each entered once. Set it alike on all nodes. Default: 50.
    ///
    /// With relays members are believed about others' changes, not only about their own: one that lies can keep what
    /// follows it stale. Where that matters, set it above the number of nodes.
    pub fn relay_above(mut self, nodes: usize) -> Self {
        self.config.relay_above = nodes;
        self
    }

    /// Most bytes per second that this node copies from others in caches whose values travel
    /// ([`tidings_cache::CacheBuilder::replicate`]), in all: when it joins, or may have missed writes. Default: 12 MiB, a
    /// tenth of a gigabit link. While it copies, what it does not have yet is a miss. What one member brings takes five
    /// minutes at most; what it had brought by then is kept, and the rest is asked for again.
    pub fn copy_rate(mut self, bytes_per_second: NonZeroU64) -> Self {
        self.config.copy_bytes_per_second = bytes_per_second;
        self
    }

    /// Time between rounds of gossip. Default: 1 s.
    pub fn gossip_interval(mut self, time: Duration) -> Self {
        self.config.gossip_interval = time;
        self
    }

    /// How many independent logs carry this node's changes. Default: 4.
    pub fn lanes(mut self, lanes: Lanes) -> Self {
        self.config.lanes = lanes;
        self
    }

    /// How much each lane remembers for peers that fall behind.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.config.retention = retention;
        self
    }

    /// Writes the log down in files of this directory, which is made if it is not there: plain writes, and nothing is
    /// flushed to the disk. Default: none.
    ///
    /// Without it, a process that is killed leaves its peers in doubt: each doubts what it holds until `write_horizon` and
    /// `max_staleness` have passed, and loads it all again. With it, the next process with this node id serves from there
    /// what peers have not had, and they drop the keys that were changed and no others.
    ///
    /// **What this process writes to a system of record it must write by [`crate::Cache::write_through`] or
    /// [`crate::Cache::begin_write`]**, which are written down before they begin. Of a write that was made by itself, and
    /// whose `remove` or `insert` was yet to come when the process was killed, nobody knows: peers serve the old value until
    /// it expires. Without log files the doubt covers that, too: who cannot promise it leaves them out. After the machine
    /// itself went down, or if anything is damaged or missing, it is as if there were no log files.
    ///
    /// If the files cannot be written any more, they are removed, and the node goes on as if it had none. If they cannot
    /// be removed either, the next process would take them for everything: until they can, changes are refused
    /// ([`crate::WriteError::Stuck`]), and no goodbye is said. Peers doubt what had begun by then.
    ///
    /// Each append takes a system call more, under a lock. The directory should be on a file system of this machine that
    /// never makes a writer wait; one in memory (`/run`, `/dev/shm`) serves as well as any. It takes twice
    /// [`Retention::bytes`] for each lane, and as much again during a start.
    pub fn log_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.log_dir = Some(directory.into());
        self
    }

    /// The clock to live by, for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.config.clock = clock;
        self
    }

    /// Keeps durable streams ([`crate::streams`]): the store is opened when the node starts, and closed when it is shut
    /// down. Default: none. What looks after the store, and consumers, run on the runtime that starts the node.
    #[cfg(feature = "streams")]
    pub fn streams(mut self, streams: crate::streams::StreamsConfig) -> Self {
        self.streams = Some(streams);
        self
    }

    /// Runs the node on the runtime that starts it, which must outlive it, rather than on a thread of its own.
    ///
    /// A change then goes out from the thread that made it, as soon as the task that made it waits for something: no
    /// other thread is woken for it. The price is that the node waits for its turn with everything else that the runtime
    /// runs: tasks that keep its threads busy for long delay this node's invalidations and heartbeats, so that it doubts
    /// its entries and its peers doubt it. It never serves more than that; for services that never block their runtime.
    pub fn on_calling_runtime(mut self) -> Self {
        self.config.on_calling_runtime = true;
        self
    }

    /// Runs the node on the calling runtime, over a simulated network: for this project's own tests, and no promise.
    #[doc(hidden)]
    pub fn simulated(mut self, simulated: Simulated) -> Self {
        self.config.simulated = Some(simulated);
        self.on_calling_runtime()
    }

    /// Starts the node. The cluster need not be there: it joins whenever it can.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs.
    pub async fn start(mut self) -> Result<Node, StartError> {
        if let Some(name) = self.advertise.take() {
            let resolved = tokio::net::lookup_host(&name).await;
            let first = resolved.and_then(|mut addresses| {
                addresses.next().ok_or_else(|| std::io::Error::other("no address"))
            });
            let address = first.map_err(|source| StartError::Advertise { name, source })?;
            self.config.advertise = Some(address);
        }
        #[cfg(feature = "streams")]
        if let Some(streams) = self.streams {
            let opened = streams.open().await?;
            return Node::start_with_streams(self.config, opened).await;
        }
        Node::start(self.config).await
    }
}
