//! The HTTP API of a node: health, metrics, the cluster, caches and their entries, change events, durable streams, and a
//! plain status page.
//!
//! It serves one [`tidings::Node`] and keeps no state of its own but what is open, connections, subscriptions and
//! sessions, and what was done last, all of it bounded. The node is the caller's: the server neither starts nor stops it.
//!
//! On a loopback address it asks nobody who they are, unless it has a token file. On any other it does not start without
//! TLS and tokens. What a token may do depends on its [`Role`], and whether it may see values and payloads is a permission
//! of its own; the OpenAPI document says what each route asks for.
//!
//! Caches that are opened over HTTP, or through [`CacheSettings`], hold bytes under text keys. Those that a service
//! opened with types of its own are listed, can be emptied and their events heard, but their entries are not touched.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let node = tidings::Node::builder("shop").node_id("n1").start().await?;
//! let server = tidings_http::Server::bind(node, tidings_http::Options::new("127.0.0.1:7480".parse()?)).await?;
//! println!("http://{}", server.local_addr());
//! server.run(std::future::pending()).await;
//! # Ok(())
//! # }
//! ```

mod access;
mod app;
#[doc(hidden)]
pub mod documents;
mod doubt;
#[doc(hidden)]
pub mod exposition;
mod extract;
mod guard;
pub mod limits;
mod lobby;
mod metrics;
mod options;
mod problem;
pub mod quantity;
mod readiness;
mod reload;
mod request_id;
mod room;
mod routes;
mod server;
mod settings;
mod socket;
mod tls;
mod token;
mod trail;

pub use access::{NewToken, Role, TokenError, TokenFileError, Tokens};
pub use options::{LogLevel, Options};
pub use reload::{ReloadError, Reloader};
pub use server::{BindError, Server};
pub use settings::{
    CacheMode, CacheSettings, Capacity, InvalidCapacity, InvalidSettings, NEEDS_LOADER, open,
};
pub use tls::{CertificateError, TlsFiles};
