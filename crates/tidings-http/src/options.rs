//! What a server is started with.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value as Json;

type Read = Box<dyn Fn() -> String + Send + Sync>;
type Change = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// How the process's log level is read and changed.
pub struct LogLevel {
    pub(crate) read: Read,
    pub(crate) change: Change,
}

impl LogLevel {
    /// `change` says in words why a level cannot be used.
    pub fn new(
        read: impl Fn() -> String + Send + Sync + 'static,
        change: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self { read: Box::new(read), change: Box::new(change) }
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLevel")
    }
}

/// What a server is started with.
#[derive(Clone)]
pub struct Options {
    /// Where it listens; loopback only. Port 0: a free one.
    pub listen: SocketAddr,
    /// Host names, with or without a port, that requests may use besides `localhost` and the listen address.
    /// Default: none.
    pub allowed_hosts: Vec<String>,
    /// Whether operators may take the node out of service with `POST /v1/drain`. Default: no, and the route is not
    /// there.
    pub drains: bool,
    /// The log level behind `/v1/log-level`. Default: none, and the route is not there.
    pub log_level: Option<Arc<LogLevel>>,
    /// What `GET /v1/configuration` answers; must hold no secrets. Default: none, and the route is not there.
    pub configuration: Option<Json>,
    /// Whether a node calls itself not ready that knows other members and hears none of them, or that none has heard
    /// for so long that they have given it up ([`tidings::Node::expelled`]). Default: no.
    pub unready_when_isolated: bool,
}

impl Options {
    /// The defaults, listening at an address.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            allowed_hosts: Vec::new(),
            drains: false,
            log_level: None,
            configuration: None,
            unready_when_isolated: false,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("allowed_hosts", &self.allowed_hosts)
            .finish_non_exhaustive()
    }
}
