//! The HTTP API of a node: health, metrics, the cluster, caches and their entries, change events, durable streams, and a
//! plain status page.
//!
//! It serves one [`tidings::Node`] on a loopback address and keeps no state of its own but what is open: connections
//! and subscriptions, both bounded. The node is the caller's: the server neither starts nor stops it.
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

mod app;
#[doc(hidden)]
pub mod documents;
mod doubt;
#[doc(hidden)]
pub mod exposition;
mod extract;
mod guard;
pub mod limits;
mod metrics;
mod options;
mod problem;
pub mod quantity;
mod readiness;
mod room;
mod routes;
mod server;
mod settings;
mod socket;
mod token;

pub use options::{LogLevel, Options};
pub use server::{BindError, Server};
pub use settings::{
    CacheMode, CacheSettings, Capacity, InvalidCapacity, InvalidSettings, NEEDS_LOADER, open,
};
