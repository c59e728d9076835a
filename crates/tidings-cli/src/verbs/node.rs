//! `node`: a node as a process of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tidings::{Node, NotReady};
use tidings_http::{LogLevel, Options};

use crate::api::{self, Servers};
use crate::args::NodeArgs;
use crate::config::{self, Config, Values};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::signals::Signals;
use crate::{logging, setup};

/// How long a clean shutdown may take: peers have to acknowledge what they have not applied yet.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// Runs a node until it is told to stop.
pub(crate) async fn run(args: &NodeArgs, output: &Output) -> Result<(), Failure> {
    let judged = config::load(&args.config)?;
    let Some(config) = &judged.config else {
        return super::config::report(&args.config, &judged, output);
    };
    super::config::remarks(&judged, output);
    let log_level = logging::start(&config.log, output)?;
    let mut signals = Signals::listen()?;
    let node = start(config).await?;
    let mut servers = Servers::default();
    let result = match serve_http(&node, config, &judged.values, &log_level, &mut servers).await {
        Ok(http) => serve(&node, config, http, &mut signals, output).await,
        Err(failure) => Err(failure),
    };
    signals.patiently(servers.stop()).await?;
    let clean = signals.patiently(node.shutdown(SHUTDOWN_MAX)).await?;
    if !clean {
        output.warn(
            "peers did not acknowledge everything in time: they will doubt the last changes for a while",
        );
    }
    result
}

async fn start(config: &Config) -> Result<Node, Failure> {
    let node = setup::builder(config).await?.start().await.map_err(|error| setup::cannot_start(&error))?;
    for cache in &config.caches {
        setup::open(&node, cache)?;
    }
    Ok(node)
}

async fn serve_http(
    node: &Node,
    config: &Config,
    values: &Values,
    log_level: &Arc<LogLevel>,
    servers: &mut Servers,
) -> Result<Option<SocketAddr>, Failure> {
    let Some(http) = &config.http else { return Ok(None) };
    let listen = api::resolve("http.listen", &http.listen).await?;
    let options = Options {
        allowed_hosts: http.allowed_hosts.clone(),
        drain: Some(Arc::new(|| ())),
        configuration: Some(config::document(values)),
        unready_when_isolated: config.coherence.unready_when_isolated,
        ..api::options(listen, log_level)
    };
    servers.add(node, options).await.map(Some)
}

/// Says when the node is ready, and waits until it is told to stop or can no longer take part.
async fn serve(
    node: &Node,
    config: &Config,
    http: Option<SocketAddr>,
    signals: &mut Signals,
    output: &Output,
) -> Result<(), Failure> {
    let origin = node.origin();
    let (name, address) = (origin.node.as_str(), node.address());
    let http = http.map(|address| format!("http://{address}"));
    if output.is_json() {
        output.json(&json!({ "cluster": node.cluster(), "node": name, "address": address, "http": http }))?;
    } else {
        let http = http.map(|url| format!(", {url}")).unwrap_or_default();
        output.line(format!("{name} of cluster {} listens on {address} (UDP){http}", node.cluster()))?;
    }
    let readiness = tokio::select! {
        readiness = node.ready(config.cluster.ready_timeout) => readiness,
        () = signals.next() => return Ok(()),
    };
    match readiness {
        Ok(()) => output.note(format!("{name} is ready")),
        Err(NotReady::Waiting { reasons }) => {
            output.warn(format!("{name} is not ready yet, and goes on trying: {}", reasons.join("; ")));
        }
        Err(conflict) => return Err(Failure::new(Exit::Conflict, conflict.to_string())),
    }
    tokio::select! {
        () = signals.next() => Ok(()),
        conflict = conflict(node) => Err(Failure::new(Exit::Conflict, conflict)),
    }
}

async fn conflict(node: &Node) -> String {
    let mut observer = node.observe();
    loop {
        if let Some(conflict) = node.conflict() {
            return conflict.to_string();
        }
        if observer.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
