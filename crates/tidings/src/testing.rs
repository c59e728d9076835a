//! An in-process cluster for the tests of services that embed a node: real QUIC on loopback, real gossip.

use std::time::Duration;

use crate::builder::NodeBuilder;
use crate::node::{Node, StartError};

/// How long a cluster of tests may take to form.
const FORM_TIME: Duration = Duration::from_secs(60);

/// Several nodes in this process.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
}

/// A cluster did not come up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A node could not be started.
    #[error("node {0}")]
    Start(usize, #[source] StartError),
    /// It did not form in time.
    #[error("the cluster did not form: {0}")]
    Form(String),
}

impl Cluster {
    /// Starts `count` nodes, named `n1`, `n2`, …, and waits until everybody follows everybody and no doubt is left.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start(count: usize) -> Result<Self, ClusterError> {
        Self::start_with(count, |_, builder| builder).await
    }

    /// As [`Cluster::start`], with a say in how each node, counted from 0, is built. To keep tests short, the write
    /// horizon is 0 unless that says otherwise: the nodes have no former life.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start_with(
        count: usize,
        build: impl Fn(usize, NodeBuilder) -> NodeBuilder,
    ) -> Result<Self, ClusterError> {
        let cluster = format!("test-{:08x}", rand::random::<u32>());
        let mut nodes: Vec<Node> = Vec::with_capacity(count);
        for index in 0..count {
            let seeds: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
            let builder = Node::builder(&cluster)
                .node_id(format!("n{}", index + 1))
                .write_horizon(Duration::ZERO)
                .gossip_interval(Duration::from_millis(200))
                .seeds(seeds);
            let started = build(index, builder).start().await;
            nodes.push(started.map_err(|error| ClusterError::Start(index, error))?);
        }
        let cluster = Self { nodes };
        cluster.formed().await?;
        Ok(cluster)
    }

    async fn formed(&self) -> Result<(), ClusterError> {
        let all = self.nodes.len();
        let in_step =
            |node: &Node| node.members().len() == all && node.readiness().is_ok() && node.doubts().is_empty();
        // All at the same time: a machine that stands still brings back what was over.
        let waited = async {
            while !self.nodes.iter().all(in_step) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(FORM_TIME, waited).await.is_ok() {
            return Ok(());
        }
        let states: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{}: {:?}, doubts {:?}", node.origin(), node.readiness(), node.doubts()))
            .collect();
        Err(ClusterError::Form(states.join(" | ")))
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Shuts all nodes down, one after the other.
    pub async fn shutdown(self) {
        for node in self.nodes {
            node.shutdown(Duration::from_secs(5)).await;
        }
    }
}

impl std::ops::Index<usize> for Cluster {
    type Output = Node;

    fn index(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}
