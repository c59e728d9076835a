//! What a node says of itself, and the times by which it judges others.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::id::Origin;
use tidings_proto::time::Tick;

use crate::resolve::Resolver;

/// Longest zone or release of a record, in bytes. Keeps a cluster's records within a gossip frame.
pub(crate) const TEXT_BYTES_MAX: usize = 128;

/// Mean heartbeat intervals without news after which chitchat calls a node dead.
///
/// News of a node reach chitchat at most once per 0.95 gossip intervals, so that the mean stays near one
/// interval whatever the rate of gossip, and a silent node is called dead 4 to 5 intervals after its last
/// heartbeat. A false alarm takes four rounds in a row without a message from the node or about it.
pub(crate) const PHI_THRESHOLD: f64 = 4.0;

/// Heartbeat intervals that chitchat averages over. Small, so that one slow phase is forgotten within a
/// minute.
pub(crate) const SAMPLES: usize = 32;

/// Longest heartbeat interval that counts as a sample, in gossip intervals: the end of a cut is not a slow
/// node.
pub(crate) const SAMPLE_MAX_INTERVALS: u32 = 3;

/// Gossip intervals for which a member is suspect at least before it can be lost: since it was last heard
/// over its link or, if it never was, since it was first named. Covers chitchat's need of three heartbeats
/// and one round.
pub(crate) const GRACE_INTERVALS: u32 = 5;

/// A clock that counts suspended time, if it can. It is read often, so it should be cheap.
pub type Clock = Arc<dyn Fn() -> Tick + Send + Sync>;

/// What a member says of itself. It signs this, and keeps it unchanged for its whole life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which life of which node.
    pub origin: Origin,
    /// Where it can be dialled.
    pub address: SocketAddr,
    /// Its availability zone, or nothing. At most 128 bytes.
    pub zone: String,
    /// Its release, for people. At most 128 bytes.
    pub release: String,
}

/// How a node takes part in membership.
#[derive(Clone)]
pub struct Config {
    /// Name of the cluster. Records and gossip of any other are not accepted.
    pub cluster: String,
    /// What this node says of itself.
    pub me: Record,
    /// Where to find others: `host:port`. A name is resolved again every 30 s, and every 2 s while it does not
    /// resolve; [`crate::Membership::start`] does not wait for that.
    pub seeds: Vec<String>,
    /// What resolves their names; default the system. Whoever starts membership again with the same one does not
    /// begin a look-up that has not ended.
    pub resolver: Resolver,
    /// Time between rounds of gossip; default 1 s. For 10 s after any change of the view it is at most 200
    /// ms. A node without a link to here is called dead 4 to 5 intervals after its last heartbeat. Shorter
    /// costs traffic in proportion: per round and peer about two digests, each some 45 bytes and a name per
    /// member.
    pub gossip_interval: Duration,
    /// A link on which nothing was heard for so long is silent, and its member suspect; default 1.5 s, six of
    /// the heartbeats that links carry every 250 ms.
    pub link_silence: Duration,
    /// How long gossip remembers a dead life; default 3 min. It is named to others for half of that, so this
    /// should be at least twice the time for which ended origins must stay named.
    pub gossip_memory: Duration,
    /// The clock by which links are judged and [`crate::Member::since`] is given; default tokio's, which
    /// stands still while the machine is suspended.
    pub clock: Clock,
}

impl Config {
    /// A configuration with the defaults and no seeds.
    #[must_use]
    pub fn new(cluster: impl Into<String>, me: Record) -> Self {
        let started = tokio::time::Instant::now();
        Self {
            cluster: cluster.into(),
            me,
            seeds: Vec::new(),
            resolver: Resolver::default(),
            gossip_interval: Duration::from_secs(1),
            link_silence: Duration::from_millis(1500),
            gossip_memory: Duration::from_secs(180),
            clock: Arc::new(move || Tick(1).after(started.elapsed())),
        }
    }

    pub(crate) fn grace(&self) -> Duration {
        self.gossip_interval * GRACE_INTERVALS
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("cluster", &self.cluster)
            .field("me", &self.me)
            .field("seeds", &self.seeds)
            .field("gossip_interval", &self.gossip_interval)
            .field("link_silence", &self.link_silence)
            .field("gossip_memory", &self.gossip_memory)
            .finish_non_exhaustive()
    }
}
