//! Nodes as child processes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tidings_proto::id::NodeId;
use tidings_transport::Authority;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::relay::{Cuts, Relay};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::files;
use crate::units;
use crate::verbs::certs;

/// How long a node may take until it is ready: a certain doubt after a crash takes seconds.
const READY_MAX: Duration = Duration::from_secs(30);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(50);

/// How long the certificates of nodes that live for one run are valid.
const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where a run keeps its files, below the directory for temporary files.
const DIRECTORY: &str = "tidings-replay";

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

/// Running nodes. Dropped, they are killed.
#[derive(Debug)]
pub(crate) struct Children {
    nodes: Vec<ChildNode>,
    clients: Vec<Client>,
    cuts: Cuts,
    directory: Directory,
    verbose: bool,
    _relays: JoinSet<()>,
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
            Authority::generate("replay").map_err(|error| certs::cannot("make the authority", &error))?;
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
            directory,
            verbose: settings.verbose,
            _relays: tasks,
        };
        for (node, ports) in ports.iter().enumerate() {
            let configuration = all.directory.write(settings, &authority, node, ports, &fronts)?;
            let process = spawn(&configuration, all.verbose)?;
            all.nodes.push(ChildNode { configuration, process });
            all.clients.push(Client::new(&format!("http://{}", ports.http), None)?);
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
    /// One is not in time.
    pub(crate) async fn ready(&self) -> Result<(), Failure> {
        let began = Instant::now();
        for (node, client) in self.clients.iter().enumerate() {
            loop {
                let why = match client.readiness().await {
                    Ok((true, _)) => break,
                    Ok((false, why)) => why,
                    Err(failure) => failure.to_string(),
                };
                if began.elapsed() > READY_MAX {
                    let message =
                        format!("n{} is not ready within {}s: {why}", node + 1, READY_MAX.as_secs());
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

/// A directory for certificates and configurations, removed when dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("{DIRECTORY}-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot make the directory {}: {error}", path.display()))
        })?;
        Ok(Self(path))
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
        files::write(&certs::node_files(authority, &self.0, &id, &[], VALIDITY)?, false)?;
        files::write(&certs::authority_files(authority, &self.0), true)?;
        let seeds: Vec<String> = (0..fronts.len())
            .filter(|other| *other != node)
            .map(|other| format!("\"{}\"", fronts[other]))
            .collect();
        let text = format!(
            "[cluster]\nname = \"replay\"\nnode_id = \"{name}\"\nlisten = \"{}\"\nadvertise = \"{}\"\nseeds = [{}]\n\
             gossip_interval = \"200ms\"\n\
             [tls]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n\
             [http]\nlisten = \"{}\"\n\
             [coherence]\nmax_staleness = \"{}\"\n\
             [[cache]]\nname = \"{}\"\nmax_capacity = \"{}\"\n\
             [telemetry]\nlog = \"{}\"\n",
            ports.udp,
            fronts[node],
            seeds.join(", "),
            ports.http,
            units::show_duration(settings.max_staleness),
            settings.cache,
            units::show_bytes(settings.capacity),
            if settings.verbose { "info" } else { "error" },
        );
        let path = self.0.join(format!("{name}.toml"));
        files::write(&[files::Draft::public(path.clone(), text)], false)?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed stays where temporary files do.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn spawn(configuration: &Path, verbose: bool) -> Result<Child, Failure> {
    let program = std::env::current_exe().map_err(failed)?;
    Command::new(program)
        .args(["--quiet", "node", "--config"])
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(if verbose { Stdio::inherit() } else { Stdio::null() })
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)
}

fn failed(error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot run a node as a process: {error}"))
}
