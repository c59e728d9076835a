//! What every route works with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use bytes::Bytes;
use prometheus_client::registry::Registry;
use tidings::{AnyCache, Cache, Node};
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Switches, Tokens};
use crate::guard::Hosts;
use crate::lobby::Lobby;
use crate::metrics::{self, StreamsSeen};
use crate::options::Options;
use crate::problem::Problem;
use crate::readiness::Readiness;
use crate::request_id::RequestIds;
use crate::room::Room;
use crate::trail::Trail;

/// Shared by all requests. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Node,
    options: Options,
    hosts: Hosts,
    metrics: Registry,
    streams_seen: Arc<StreamsSeen>,
    access: Arc<Access>,
    trail: Arc<Trail>,
    request_ids: RequestIds,
    lobby: Lobby,
    room: Arc<Room>,
    closing: CancellationToken,
    readiness: Arc<Readiness>,
    /// Held while a cache is opened over HTTP.
    opening: Mutex<()>,
}

/// What a server has read and opened before it begins.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) tokens: Option<Tokens>,
    pub(crate) trail: Trail,
    /// Random bits of this server.
    pub(crate) entropy: u64,
}

/// What is counted of those who come and of those who are turned away.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) access: Arc<Access>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) lobby: Lobby,
    pub(crate) room: Arc<Room>,
}

impl App {
    /// `options.listen` is where the server really listens.
    pub(crate) fn new(node: Node, options: Options, parts: Parts) -> Self {
        let readiness = Arc::new(Readiness::new(node.clone(), options.unready_when_isolated));
        let room = Arc::new(Room::default());
        let streams_seen = Arc::<StreamsSeen>::default();
        let switches = Switches {
            open_health_and_metrics: options.open_health_and_metrics,
            allow_payloads: options.allow_payloads,
            allow_destructive_actions: options.allow_destructive_actions,
        };
        let access = Arc::new(Access::new(parts.tokens, switches));
        let (trail, lobby) = (Arc::new(parts.trail), Lobby::default());
        let door =
            Door { access: access.clone(), trail: trail.clone(), lobby: lobby.clone(), room: room.clone() };
        Self(Arc::new(Shared {
            hosts: Hosts::new(&options.allowed_hosts),
            metrics: metrics::registry(node.clone(), readiness.clone(), door, streams_seen.clone()),
            streams_seen,
            access,
            trail,
            request_ids: RequestIds::new(parts.entropy),
            lobby,
            room,
            closing: CancellationToken::new(),
            readiness,
            opening: Mutex::new(()),
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

    /// Who may do what.
    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    /// Who did what.
    pub(crate) fn trail(&self) -> &Trail {
        &self.0.trail
    }

    /// Names of requests.
    pub(crate) fn request_ids(&self) -> &RequestIds {
        &self.0.request_ids
    }

    /// Connections of those who have not been let in.
    pub(crate) fn lobby(&self) -> &Lobby {
        &self.0.lobby
    }

    pub(crate) fn metrics(&self) -> &Registry {
        &self.0.metrics
    }

    /// How streams stood at the last scrape.
    pub(crate) fn streams_seen(&self) -> &StreamsSeen {
        &self.0.streams_seen
    }

    /// Places for what waits.
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.0.room
    }

    /// Cancelled when the server ends: what is endless has to end.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.0.closing
    }

    /// Whether the node should get requests.
    pub(crate) fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// The right to open a cache: whoever has it decides and opens without another one between.
    pub(crate) fn opening(&self) -> MutexGuard<'_, ()> {
        self.0.opening.lock().unwrap_or_else(PoisonError::into_inner)
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
