//! What a server is started with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::tls::TlsFiles;

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
    /// Where it listens. Port 0: a free one. What is no loopback address needs `tls` and `token_file`.
    pub listen: SocketAddr,
    /// Certificate and key for HTTPS. Default: none, and it speaks HTTP.
    pub tls: Option<TlsFiles>,
    /// Hashes of the tokens that callers need, as [`crate::NewToken`] makes them. Default: none, and whoever can connect
    /// may do everything.
    pub token_file: Option<PathBuf>,
    /// Whether `/livez`, `/readyz`, `/startupz` and `/metrics` need no token. Default: yes.
    pub open_health_and_metrics: bool,
    /// Whether anybody can see values and payloads over HTTP. Default: yes, with tokens that may.
    pub allow_payloads: bool,
    /// Whether the session of a browser may do what cannot be undone, as its token may. Default: no.
    pub allow_destructive_actions: bool,
    /// A file to which a line of JSON is added for whatever somebody does. Default: none.
    pub audit_file: Option<PathBuf>,
    /// Host names, with or without a port, that requests may use besides `localhost` and the address they come to.
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
            tls: None,
            token_file: None,
            open_health_and_metrics: true,
            allow_payloads: true,
            allow_destructive_actions: false,
            audit_file: None,
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
            .field("tls", &self.tls)
            .field("token_file", &self.token_file)
            .field("allowed_hosts", &self.allowed_hosts)
            .finish_non_exhaustive()
    }
}
