//! What every route works with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::StatusCode;
use bytes::Bytes;
use prometheus_client::registry::Registry;
use tidings::{AnyCache, Cache, Node, NotReady, State};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::guard::Hosts;
use crate::limits::SUBSCRIPTIONS_MAX;
use crate::metrics;
use crate::options::Options;
use crate::problem::Problem;

/// Shared by all requests. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Node,
    options: Options,
    hosts: Hosts,
    metrics: Registry,
    subscriptions: Arc<Semaphore>,
    closing: CancellationToken,
    started: AtomicBool,
    draining: AtomicBool,
}

impl App {
    /// `options.listen` is where the server really listens.
    pub(crate) fn new(node: Node, options: Options) -> Self {
        Self(Arc::new(Shared {
            hosts: Hosts::new(options.listen.ip(), &options.allowed_hosts),
            metrics: metrics::registry(node.clone()),
            subscriptions: Arc::new(Semaphore::new(SUBSCRIPTIONS_MAX)),
            closing: CancellationToken::new(),
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            node,
            options,
        }))
    }

    pub(crate) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn hosts(&self) -> &Hosts {
        &self.0.hosts
    }

    pub(crate) fn metrics(&self) -> &Registry {
        &self.0.metrics
    }

    /// One permit for each subscription that is open.
    pub(crate) fn subscriptions(&self) -> Arc<Semaphore> {
        self.0.subscriptions.clone()
    }

    /// Cancelled when the server ends: what is endless has to end.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.0.closing
    }

    /// Not ready from now on.
    pub(crate) fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Why the node should get no requests now; nothing if it should.
    pub(crate) fn unready(&self) -> Vec<String> {
        let mut reasons = match self.0.node.readiness() {
            Ok(()) => Vec::new(),
            Err(NotReady::Waiting { reasons }) => reasons,
            Err(error) => vec![error.to_string()],
        };
        if self.0.draining.load(Ordering::Relaxed) {
            reasons.push("the node is draining".to_owned());
        }
        if self.0.options.unready_when_isolated && self.is_isolated() {
            reasons.push("no other member is heard".to_owned());
        }
        if reasons.is_empty() {
            self.0.started.store(true, Ordering::Relaxed);
        }
        reasons
    }

    /// Why the node has never been ready since its start; nothing if it once was.
    pub(crate) fn unstarted(&self) -> Vec<String> {
        let reasons = self.unready();
        if self.0.started.load(Ordering::Relaxed) { Vec::new() } else { reasons }
    }

    fn is_isolated(&self) -> bool {
        let members = self.0.node.members();
        let mut others =
            members.iter().filter(|member| !member.this_node && member.state != State::Left).peekable();
        others.peek().is_some() && others.all(|member| !member.synced())
    }

    /// An open cache of any types.
    pub(crate) fn cache(&self, name: &str) -> Result<Arc<dyn AnyCache>, Problem> {
        self.0.node.domain().cache(name).ok_or_else(|| Problem::unknown_cache(name))
    }

    /// An open cache of bytes under text keys.
    pub(crate) fn bytes_cache(&self, name: &str) -> Result<Cache<String, Bytes>, Problem> {
        if let Some(cache) = self.0.node.lookup(name) {
            return Ok(cache);
        }
        self.cache(name)?;
        let detail =
            format!("cache {name:?} holds its service's own types: no entry of it can be named here");
        Err(Problem::new(StatusCode::CONFLICT, "other_type", detail))
    }
}
