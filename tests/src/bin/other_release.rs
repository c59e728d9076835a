//! A node of another release, for tests of clusters in which releases are mixed: `other-release DIALECT node --config FILE`
//! takes the configurations that the rig writes. It works as this release does, and speaks as the other would
//! ([`tidings_proto::dialect`]).

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tidings::{Identity, Node};
use tidings_http::{CacheSettings, Options, Server};
use tidings_proto::dialect::{Dialect, speak};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use toml::{Table, Value};

/// How long a clean shutdown may take, as in the program.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dialect, verb, flag, file] = &arguments[..] else { bail!("DIALECT node --config FILE") };
    ensure!((verb.as_str(), flag.as_str()) == ("node", "--config"), "DIALECT node --config FILE");
    speak(match dialect.as_str() {
        "older" => Dialect::Older,
        "newer" => Dialect::Newer,
        "foreign" => Dialect::Foreign,
        other => bail!("no dialect {other}"),
    });
    let config: Table = std::fs::read_to_string(file).context("no configuration")?.parse()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let node = start(&config).await?;
    for cache in config["cache"].as_array().context("no caches")? {
        open(&node, cache)?;
    }
    let listen = text(&config, "http", "listen")?.parse()?;
    let server = Server::bind(node.clone(), Options { drains: true, ..Options::new(listen) }).await?;
    let (stop, mut serving) = (CancellationToken::new(), JoinSet::new());
    serving.spawn(server.run(stop.clone().cancelled_owned()));
    terminate.recv().await;
    stop.cancel();
    serving.join_all().await;
    ensure!(node.shutdown(SHUTDOWN_MAX).await, "peers did not acknowledge everything in time");
    Ok(())
}

fn text<'a>(config: &'a Table, table: &str, name: &str) -> Result<&'a str> {
    let value = config.get(table).and_then(|table| table.get(name)).and_then(Value::as_str);
    value.with_context(|| format!("no {table}.{name}"))
}

async fn start(config: &Table) -> Result<Node> {
    let cluster = |name: &str| text(config, "cluster", name);
    let tls = |name: &str| text(config, "tls", name);
    let coherence = config["coherence"].as_table().context("no coherence")?;
    let mut builder = Node::builder(cluster("name")?)
        .node_id(cluster("node_id")?)
        .listen(cluster("listen")?.parse()?)
        .identity(Identity::from_pem_files(tls("ca")?, tls("cert")?, tls("key")?)?)
        .seeds(
            config["cluster"]["seeds"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned),
        );
    for (name, value) in coherence {
        let time = value.as_str().and_then(tidings_http::quantity::duration);
        let time = time.with_context(|| format!("coherence.{name} is no duration"))?;
        builder = match name.as_str() {
            "max_staleness" => builder.max_staleness(time),
            "write_horizon" => builder.write_horizon(time),
            other => bail!("coherence.{other} is not known here"),
        };
    }
    Ok(builder.start().await?)
}

fn open(node: &Node, cache: &Value) -> Result<()> {
    let mut settings = cache.as_table().context("no cache")?.clone();
    let name = settings.remove("name");
    let name = name.as_ref().and_then(Value::as_str).context("a cache without a name")?;
    tidings_http::open(node.domain(), name, &CacheSettings::deserialize(Value::Table(settings))?)?;
    Ok(())
}
