//! The HTTP servers of the nodes in this process.

use std::net::SocketAddr;
use std::sync::Arc;

use tidings::Node;
use tidings_http::{BindError, LogLevel, Options, Reloader, Server};
use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure, chain};

/// Running HTTP servers.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Servers {
    /// Serves a node, and says where, and with what its files are read again.
    ///
    /// # Errors
    /// The address cannot be bound, or what protects it cannot be used.
    pub(crate) async fn add(
        &mut self,
        node: &Node,
        options: Options,
    ) -> Result<(SocketAddr, Reloader), Failure> {
        let server = Server::bind(node.clone(), options).await.map_err(|error| cannot_bind(&error))?;
        let (address, reloader) = (server.local_addr(), server.reloader());
        self.tasks.spawn(server.run(self.stop.clone().cancelled_owned()));
        Ok((address, reloader))
    }

    /// Ends all servers and waits until they have.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What a server of this process is started with.
pub(crate) fn options(listen: SocketAddr, log_level: &Arc<LogLevel>) -> Options {
    Options { log_level: Some(Arc::clone(log_level)), ..Options::new(listen) }
}

/// The first address of `host:port`.
///
/// # Errors
/// It has none.
pub(crate) async fn resolve(setting: &str, address: &str) -> Result<SocketAddr, Failure> {
    let failed = |why: String| Failure::new(Exit::Configuration, format!("{setting}: {address}: {why}"));
    let mut addresses = lookup_host(address).await.map_err(|error| failed(error.to_string()))?;
    addresses.next().ok_or_else(|| failed("it has no address".to_owned()))
}

fn cannot_bind(error: &BindError) -> Failure {
    let exit = match error {
        BindError::Unprotected(_)
        | BindError::Tokens(_)
        | BindError::Certificate(_)
        | BindError::AuditFile { .. } => Exit::Configuration,
        _ => Exit::Failed,
    };
    let failure = Failure::new(exit, format!("cannot start the HTTP API: {}", chain(error)));
    match error {
        BindError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => failure
            .hint("another process has this port: stop it, or choose another one (http.listen, --http-port)"),
        _ => failure,
    }
}
