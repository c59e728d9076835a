//! A member that only invalidates: for batch jobs that change a system of record and cache nothing.

use std::time::Duration;

use tidings_cache::{Cache, Key, OpenError, WriteError, Written};

use crate::builder::NodeBuilder;
use crate::node::{Node, NotReady, StartError};

/// Entries that the client's own caches may hold: none is ever put there.
const CAPACITY: u64 = 1;

/// A client could not join its cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The node could not be started.
    #[error("start")]
    Start(#[from] StartError),
    /// It did not reach everybody in time: some would not hear what it invalidates.
    #[error("the cluster was not reached in time: {0}")]
    NotReady(NotReady),
}

/// A member of a cluster that only invalidates. End it with [`Client::finish`], so that nothing that it said is lost.
#[derive(Clone, Debug)]
pub struct Client {
    node: Node,
}

impl Client {
    /// Joins the cluster as the builder says, and waits until every live member follows.
    ///
    /// # Errors
    /// [`ClientError`]; nothing runs.
    pub async fn join(builder: NodeBuilder, time: Duration) -> Result<Self, ClientError> {
        let node = builder.start().await?;
        match node.ready(time).await {
            Ok(()) => Ok(Self { node }),
            Err(missing) => {
                node.shutdown(Duration::ZERO).await;
                Err(ClientError::NotReady(missing))
            }
        }
    }

    /// The cache of this name, to be invalidated.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn cache<K: Key>(&self, name: &str) -> Result<InvalidateOnly<K>, OpenError> {
        let cache = match self.node.lookup(name) {
            Some(cache) => cache,
            None => self.node.cache(name).max_capacity(CAPACITY).open()?,
        };
        Ok(InvalidateOnly { cache })
    }

    /// The node behind it.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Waits until every member has applied what was invalidated, and leaves. Returns whether all did in time.
    #[must_use = "false means that some member may not have heard everything"]
    pub async fn finish(self, deadline: Duration) -> bool {
        self.node.shutdown(deadline).await
    }
}

/// A cache that is only invalidated. No call waits for a peer.
#[derive(Clone, Debug)]
pub struct InvalidateOnly<K> {
    cache: Cache<K, ()>,
}

impl<K: Key> InvalidateOnly<K> {
    /// Tells every member that a key has changed.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn invalidate(&self, key: &K) -> Result<Written<'_>, WriteError> {
        self.cache.write().invalidate(key)
    }

    /// Tells every member that several keys have changed.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn invalidate_many(&self, keys: impl IntoIterator<Item = K>) -> Result<Written<'_>, WriteError> {
        self.cache.write().remove_many(keys)
    }

    /// Tells every member that whatever has this tag has changed.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn invalidate_tag(&self, tag: &str) -> Result<Written<'_>, WriteError> {
        self.cache.invalidate_tag(tag)
    }

    /// As [`InvalidateOnly::invalidate_tag`] for each of several tags, every one of which is judged before any is told
    /// of.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn invalidate_tags<T: AsRef<str>>(
        &self,
        tags: impl IntoIterator<Item = T>,
    ) -> Result<Written<'_>, WriteError> {
        self.cache.invalidate_tags(tags)
    }

    /// Tells every member that whatever has a key that starts so has changed. Only for keys that are a `String`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn invalidate_prefix(&self, prefix: &str) -> Result<Written<'_>, WriteError> {
        self.cache.invalidate_prefix(prefix)
    }

    /// Tells every member that everything has changed.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn clear(&self) -> Result<Written<'_>, WriteError> {
        self.cache.clear()
    }
}
