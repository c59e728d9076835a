//! What the tests of a whole node share.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, Identity, Node, NodeBuilder, NodeId};
use tidings_transport::{Authority, NODE_VALIDITY};
use tokio::time::Instant;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The bound of clusters that are to notice a cut quickly.
pub(crate) const BOUND: Duration = Duration::from_millis(600);

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Lets time pass that nothing can be seen of.
pub(crate) async fn for_a_while(time: Duration) {
    let over = Instant::now() + time;
    until("the time has passed", || Instant::now() > over).await;
}

pub(crate) fn open_on(node: &Node) -> Cache<String, u64> {
    node.cache("numbers").open().expect("the name is free")
}

pub(crate) fn open(cluster: &Cluster) -> Vec<Cache<String, u64>> {
    cluster.nodes().iter().map(open_on).collect()
}

pub(crate) async fn quick(count: usize) -> Cluster {
    bounded(count, BOUND).await
}

/// A cluster of which nobody is in doubt though the machine stands still for two seconds: what is held stays readable,
/// and who has applied a change is not called expired. It takes as long to form as its bound is.
pub(crate) async fn patient(count: usize) -> Cluster {
    bounded(count, Duration::from_secs(3)).await
}

/// A cluster with this bound.
pub(crate) async fn bounded(count: usize, bound: Duration) -> Cluster {
    let built = Cluster::start_with(count, |_, builder| builder.max_staleness(bound)).await;
    built.expect("the cluster forms")
}

/// A node to be added to a cluster, as [`Cluster::start_with`] builds its own.
pub(crate) fn joiner(cluster: &str, id: &str, seeds: &[&Node]) -> NodeBuilder {
    Node::builder(cluster)
        .node_id(id)
        .write_horizon(Duration::ZERO)
        .gossip_interval(Duration::from_millis(200))
        .max_staleness(BOUND)
        .seeds(seeds.iter().map(|node| node.address().to_string()))
}

pub(crate) async fn fill(caches: &[Cache<String, u64>], key: &str, value: u64) {
    for cache in caches {
        cache
            .get_or_load(&key.to_owned(), || async { Ok::<_, ()>(value) })
            .await
            .expect("the loader does not fail");
    }
}

/// A certificate of an authority for a node.
pub(crate) fn identity(authority: &Authority, node: &str) -> Identity {
    let node = NodeId::new(node).expect("a good name");
    let issued = authority.issue(&node, &[], NODE_VALIDITY).expect("an authority issues");
    Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).expect("just issued")
}

/// What a node sees of another.
pub(crate) fn member(node: &Node, id: &str) -> Option<tidings::MemberInfo> {
    node.members().into_iter().find(|member| member.node.as_str() == id)
}
