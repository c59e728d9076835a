//! A service that embeds a node: reads go through the cache, writes evict the key on every replica.
//!
//! Two replicas on one host:
//! ```text
//! cargo run -p tidings --example axum_service -- a 127.0.0.1:7401 127.0.0.1:8001
//! cargo run -p tidings --example axum_service -- b 127.0.0.1:7402 127.0.0.1:8002 127.0.0.1:7401
//! curl 127.0.0.1:8001/users/7; curl -X PUT -d Ada 127.0.0.1:8002/users/7; curl 127.0.0.1:8001/users/7
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use tidings::{Cache, Node};

#[derive(Clone)]
struct App {
    users: Cache<u64, Arc<str>>,
    /// The system of record: here a directory of files, shared by all replicas.
    records: std::path::PathBuf,
}

async fn read(State(app): State<App>, Path(id): Path<u64>) -> Result<String, StatusCode> {
    let file = app.records.join(id.to_string());
    let user = app.users.get_or_load(&id, || async { tokio::fs::read_to_string(file).await.map(Arc::from) });
    match user.await {
        Ok(name) => Ok(format!("{name}\n")),
        Err(_) => Err(StatusCode::NOT_FOUND),
    }
}

async fn write(State(app): State<App>, Path(id): Path<u64>, name: String) -> Result<(), StatusCode> {
    let file = app.records.join(id.to_string());
    let store = || async move {
        tokio::fs::write(file, &name).await?;
        Ok::<_, io::Error>(Arc::from(name))
    };
    app.users.write_through(&id, store).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |default: &str| args.next().unwrap_or_else(|| default.to_owned());
    let (id, listen, http) = (next("a"), next("127.0.0.1:7401"), next("127.0.0.1:8001"));
    let seeds: Vec<String> = args.collect();

    let node = Node::builder("example").node_id(id).listen(listen.parse()?).seeds(seeds).start().await?;
    let users = node.cache("users").max_capacity(100_000).time_to_live(Duration::from_secs(300)).open()?;
    let records = std::env::temp_dir().join("tidings-example");
    tokio::fs::create_dir_all(&records).await?;

    let app = Router::new().route("/users/{id}", get(read).put(write)).with_state(App { users, records });
    let listener = tokio::net::TcpListener::bind(&http).await?;
    println!("serving on http://{http}/users/ID, node {} at {}", node.origin(), node.address());
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    node.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
