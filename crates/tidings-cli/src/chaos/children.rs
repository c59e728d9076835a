//! Nodes as child processes.

use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tidings_proto::id::NodeId;
use tidings_transport::Authority;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::relay::{Cuts, Relay};
use crate::client::{Client, Credentials};
use crate::exit::{Exit, Failure};
use crate::files::{self, Draft, Present};
use crate::units;
use crate::verbs::certs;

/// How long a node may take until it is ready, beyond the doubt after a crash, which takes as long as the bound.
const READY_MAX: Duration = Duration::from_secs(30);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(50);

/// How long the certificates of nodes that live for one run are valid.
const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// What the directory of a run is called, below the one for temporary files.
const DIRECTORY: &str = "tidings-replay-";

/// Name of the cluster.
const CLUSTER: &str = "replay";

/// What the processes are started with.
#[derive(Clone, Debug)]
pub(crate) struct ChildSettings {
    /// How many.
    pub(crate) nodes: usize,
    /// Name of the cache.
    pub(crate) cache: String,
    /// Bytes that it holds on each node.
    pub(crate) capacity: u64,
    /// Oldest value that a node may serve while it cannot know better.
    pub(crate) max_staleness: Duration,
    /// Whether their logs are shown.
    pub(crate) verbose: bool,
}

/// Running nodes. Dropped, they are killed, and their files removed; if this process is killed, so are they.
#[derive(Debug)]
pub(crate) struct Children {
    nodes: Vec<ChildNode>,
    clients: Vec<Client>,
    cuts: Cuts,
    ready_max: Duration,
    verbose: bool,
    _relays: JoinSet<()>,
    directory: Directory,
}

#[derive(Debug)]
struct ChildNode {
    configuration: PathBuf,
    process: Child,
}

impl Children {
    /// Starts the nodes, and waits until each is ready.
    ///
    /// # Errors
    /// One cannot be started, or is not ready in time.
    pub(crate) async fn start(settings: &ChildSettings) -> Result<Self, Failure> {
        let directory = Directory::make()?;
        let authority =
            Authority::generate(CLUSTER).map_err(|error| certs::cannot("make the authority", &error))?;
        let mut relays = Vec::new();
        let mut ports = Vec::new();
        for _ in 0..settings.nodes {
            relays.push(Relay::bind().await.map_err(failed)?);
            ports.push(Ports::free().map_err(failed)?);
        }
        let fronts: Vec<SocketAddr> = relays.iter().map(Relay::address).collect();
        let addresses: Arc<[SocketAddr]> = ports.iter().map(|ports| ports.udp).collect();
        let cuts = Cuts::default();
        let mut tasks = JoinSet::new();
        for (node, relay) in relays.into_iter().enumerate() {
            tasks.spawn(relay.run(node, Arc::clone(&addresses), cuts.clone()));
        }
        let mut all = Self {
            nodes: Vec::new(),
            clients: Vec::new(),
            cuts,
            ready_max: READY_MAX + settings.max_staleness,
            verbose: settings.verbose,
            _relays: tasks,
            directory,
        };
        // Nobody issues anything later: the authority's key stays in this process.
        let [certificate, _key] = certs::authority_files(&authority, all.directory.path());
        files::write(&[certificate], Present::Replaced)?;
        for (node, ports) in ports.iter().enumerate() {
            let configuration = all.directory.write(settings, &authority, node, ports, &fronts)?;
            let process = spawn(&configuration, all.verbose)?;
            all.nodes.push(ChildNode { configuration, process });
            all.clients.push(Client::new(&format!("http://{}", ports.http), Credentials::default())?);
        }
        all.ready().await?;
        Ok(all)
    }

    /// Clients for the nodes' APIs.
    pub(crate) fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// What the relays drop.
    pub(super) fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    /// How many nodes there are.
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Kills a node, as a crash would.
    pub(super) async fn kill(&mut self, node: usize) -> Result<(), Failure> {
        self.nodes[node].process.kill().await.map_err(failed)
    }

    /// Starts a killed node again.
    pub(super) fn restart(&mut self, node: usize) -> Result<(), Failure> {
        self.nodes[node].process = spawn(&self.nodes[node].configuration, self.verbose)?;
        Ok(())
    }

    /// Stops a node where it stands.
    pub(super) fn pause(&self, node: usize) -> Result<(), Failure> {
        self.signal(node, Signal::STOP)
    }

    /// Lets a stopped node go on.
    pub(super) fn resume(&self, node: usize) -> Result<(), Failure> {
        self.signal(node, Signal::CONT)
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// One is not in time, or has ended instead.
    pub(crate) async fn ready(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        for (node, client) in self.clients.iter().enumerate() {
            loop {
                let child = &mut self.nodes[node];
                if let Some(status) = child.process.try_wait().map_err(failed)? {
                    let log = std::fs::read_to_string(child.log()).unwrap_or_default();
                    let message = format!("n{} ended: {status}: {}", node + 1, log.trim());
                    return Err(Failure::new(Exit::Failed, message));
                }
                let why = match client.readiness().await {
                    Ok((true, _)) => break,
                    Ok((false, why)) => why,
                    Err(failure) => failure.to_string(),
                };
                if began.elapsed() > self.ready_max {
                    let message =
                        format!("n{} is not ready within {}s: {why}", node + 1, self.ready_max.as_secs());
                    return Err(Failure::new(Exit::Unreachable, message));
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    fn signal(&self, node: usize, signal: Signal) -> Result<(), Failure> {
        let id = self.nodes[node].process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let id = id.ok_or_else(|| Failure::new(Exit::Failed, format!("n{} has ended", node + 1)))?;
        kill_process(id, signal).map_err(|error| failed(error.into()))
    }
}

/// Ports of a node. They are free when chosen; another process would have to take them within milliseconds.
#[derive(Debug)]
struct Ports {
    udp: SocketAddr,
    http: SocketAddr,
}

impl Ports {
    fn free() -> std::io::Result<Self> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Ok(Self { udp, http })
    }
}

/// A directory for certificates and configurations, for its owner only, removed when dropped.
#[derive(Debug)]
struct Directory(TempDir);

impl Directory {
    fn make() -> Result<Self, Failure> {
        let made =
            tempfile::Builder::new().prefix(DIRECTORY).permissions(Permissions::from_mode(0o700)).tempdir();
        made.map(Self).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot make a directory for temporary files: {error}"))
        })
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(
        &self,
        settings: &ChildSettings,
        authority: &Authority,
        node: usize,
        ports: &Ports,
        fronts: &[SocketAddr],
    ) -> Result<PathBuf, Failure> {
        let name = format!("n{}", node + 1);
        let id = NodeId::new(&name).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        files::write(&certs::node_files(authority, self.path(), &id, &[], VALIDITY)?, Present::Replaced)?;
        let others = fronts.iter().enumerate().filter(|(other, _)| *other != node);
        let seeds: Vec<String> = others.map(|(_, front)| front.to_string()).collect();
        let document = json!({
            "cluster": { "name": CLUSTER, "node_id": name, "listen": ports.udp, "advertise": fronts[node], "seeds": seeds,
                "gossip_interval": "200ms" },
            "tls": { "ca": "ca.pem", "cert": format!("{name}.pem"), "key": format!("{name}.key") },
            "http": { "listen": ports.http },
            "coherence": { "max_staleness": units::show_duration(settings.max_staleness) },
            "cache": [{ "name": settings.cache, "max_capacity": units::show_bytes(settings.capacity) }],
            "telemetry": { "log": if settings.verbose { "info" } else { "error" } },
        });
        let text = toml::to_string(&document)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot write a configuration: {error}")))?;
        let path = self.path().join(format!("{name}.toml"));
        files::write(&[Draft::public(path.clone(), text)], Present::Replaced)?;
        Ok(path)
    }
}

impl ChildNode {
    /// What it printed on stderr, unless that is shown.
    fn log(&self) -> PathBuf {
        log_of(&self.configuration)
    }
}

fn log_of(configuration: &Path) -> PathBuf {
    configuration.with_extension("log")
}

fn spawn(configuration: &Path, verbose: bool) -> Result<Child, Failure> {
    let program = std::env::current_exe().map_err(failed)?;
    let stderr =
        if verbose { Stdio::inherit() } else { File::create(log_of(configuration)).map_err(failed)?.into() };
    Command::new(program)
        .args(["--quiet", "node", "--parent", &std::process::id().to_string(), "--config"])
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)
}

fn failed(error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot run a node as a process: {error}"))
}
