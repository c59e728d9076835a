//! `node`: a node as a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tidings::{IdentityError, Node, NotReady};
use tidings_http::{LogLevel, Options, Reloader};
use tokio::time::interval;

use crate::api::{self, Servers};
use crate::args::NodeArgs;
use crate::config::{self, Config, Values};
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use crate::signals::{Signals, Told};
use crate::{logging, setup};

/// How long a clean shutdown may take: peers have to acknowledge what they have not applied yet.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// Pause between two looks at whether the node can still take part.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs a node until it is told to stop.
pub(crate) async fn run(args: &NodeArgs, output: &Output) -> Result<(), Failure> {
    if let Some(parent) = args.parent {
        end_with(parent)?;
    }
    let judged = config::load(&args.config).await?;
    let Some(config) = &judged.config else {
        return super::config::report(&args.config, &judged, output);
    };
    super::config::remarks(&judged, output);
    let log_level = logging::start(&config.log, output)?;
    let mut signals = Signals::listen()?;
    let node = tokio::select! {
        node = start(config) => node?,
        () = signals.stop() => return Ok(()),
    };
    let mut servers = Servers::default();
    let result = async {
        open_caches(&node, config)?;
        let http = serve_http(&node, config, &judged.values, &log_level, &mut servers).await?;
        greet(&node, config, http.as_ref().map(|(address, _)| *address), output)?;
        let running = Running { node: &node, http: http.map(|(_, reloader)| reloader) };
        serve(&running, args, config, &mut signals, output).await
    }
    .await;
    signals.patiently(servers.stop()).await?;
    let clean = signals.patiently(node.shutdown(SHUTDOWN_MAX)).await?;
    if !clean {
        output.warn(
            "not everything was done in time: peers did not acknowledge all changes, and will doubt the last ones for \
             a while, or the store of streams did not take all that was captured, or was not closed",
        );
    }
    result
}

async fn start(config: &Config) -> Result<Node, Failure> {
    setup::builder(config).await?.start().await.map_err(|error| setup::cannot_start(&error))
}

fn open_caches(node: &Node, config: &Config) -> Result<(), Failure> {
    config.caches.iter().try_for_each(|cache| setup::open(node.domain(), cache))?;
    setup::capture(node, &config.caches)
}

async fn serve_http(
    node: &Node,
    config: &Config,
    values: &Values,
    log_level: &Arc<LogLevel>,
    servers: &mut Servers,
) -> Result<Option<(SocketAddr, Reloader)>, Failure> {
    let Some(http) = &config.http else { return Ok(None) };
    let listen = api::resolve("http.listen", &http.listen).await?;
    let options = Options {
        tls: http.tls.clone(),
        token_file: http.token_file.clone(),
        open_health_and_metrics: http.open_health_and_metrics,
        allow_payloads: http.allow_payloads,
        allow_destructive_actions: http.allow_destructive_actions,
        audit_file: http.audit_file.clone(),
        allowed_hosts: http.allowed_hosts.clone(),
        drains: true,
        configuration: Some(config::document(values)),
        unready_when_isolated: config.coherence.unready_when_isolated,
        ..api::options(listen, log_level)
    };
    servers.add(node, options).await.map(Some)
}

/// What runs, and what it reads again when it is told to.
struct Running<'a> {
    node: &'a Node,
    http: Option<Reloader>,
}

/// Says where the node listens.
fn greet(node: &Node, config: &Config, http: Option<SocketAddr>, output: &Output) -> Result<(), Failure> {
    let origin = node.origin();
    let (name, address) = (origin.node.as_str(), node.address());
    let has_tls = config.http.as_ref().is_some_and(|http| http.tls.is_some());
    let scheme = if has_tls { "https" } else { "http" };
    let http = http.map(|address| format!("{scheme}://{address}"));
    if output.is_json() {
        return output
            .json(&json!({ "cluster": node.cluster(), "node": name, "address": address, "http": http }));
    }
    let http = http.map(|url| format!(", {url}")).unwrap_or_default();
    output.line(format!("{name} of cluster {} listens on {address} (UDP){http}", node.cluster()))
}

/// Says when the node is ready, and waits until it is told to stop or can no longer take part.
async fn serve(
    running: &Running<'_>,
    args: &NodeArgs,
    config: &Config,
    signals: &mut Signals,
    output: &Output,
) -> Result<(), Failure> {
    let node = running.node;
    let readiness = tokio::select! {
        readiness = node.ready(config.cluster.ready_timeout) => readiness,
        () = signals.stop() => return Ok(()),
    };
    let name = node.origin().node;
    match readiness {
        Ok(()) => output.note(format!("{name} is ready")),
        Err(NotReady::Waiting { reasons }) => {
            output.warn(format!("{name} is not ready yet, and goes on trying: {}", reasons.join("; ")));
        }
        Err(conflict) => return Err(Failure::new(Exit::Conflict, conflict.to_string())),
    }
    let mut look = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::Stop => return Ok(()),
                Told::Hangup => reload(running, &args.config).await,
            },
            _ = look.tick() => {}
        }
        if let Some(conflict) = node.conflict() {
            return Err(Failure::new(Exit::Conflict, conflict.to_string()));
        }
        if !node.is_running() {
            return Err(Failure::new(Exit::Failed, "the node has ended: its log says why"));
        }
    }
}

/// What a configuration that cannot be used leaves as it was. What the HTTP API reads is read whatever it says.
const NOT_RELOADED: &str = "the deny list and the node's certificates were not reloaded";

/// Reads the certificates, the deny list and the tokens again. What cannot be used changes nothing.
async fn reload(Running { node, http }: &Running<'_>, file: &Path) {
    match http.as_ref().map_or(Ok(()), Reloader::reload) {
        Ok(()) => tracing::info!("what the HTTP API reads was reloaded"),
        Err(errors) => errors.iter().for_each(|error| tracing::error!("{}", chain(error))),
    }
    let judged = match config::load(file).await {
        Ok(judged) => judged,
        Err(failure) => return tracing::error!("{NOT_RELOADED}: {failure}"),
    };
    let Some(config) = &judged.config else {
        let errors = judged.findings.iter().filter(|finding| finding.severity == config::Severity::Error);
        let errors: Vec<String> = errors.map(ToString::to_string).collect();
        return tracing::error!("{NOT_RELOADED}: {}", errors.join("; "));
    };
    node.set_denied(&config.denied);
    tracing::info!(denied = config.denied.len(), "the deny list was reloaded");
    match node.identity().reload() {
        Ok(()) => tracing::info!("the certificates were reloaded"),
        // An identity for development has no files.
        Err(IdentityError::NoFiles) => {}
        Err(error) => tracing::error!("the certificates were not reloaded: {}", chain(&error)),
    }
}

/// Ends this process when its parent ends, however that happens, and even if this process is stopped then.
#[cfg(target_os = "linux")]
fn end_with(parent: i32) -> Result<(), Failure> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot end with process {parent}: {error}")))?;
    // It may have ended before that.
    if getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, format!("process {parent} is not the parent")))
    }
}

/// Elsewhere a parent that is killed leaves its nodes behind.
#[cfg(not(target_os = "linux"))]
fn end_with(_parent: i32) -> Result<(), Failure> {
    Ok(())
}
