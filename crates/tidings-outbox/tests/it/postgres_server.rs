//! A PostgreSQL server of the tests' own: a directory, a socket in it, and no port.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Whom the server runs as where the tests run as root, which it refuses: `nobody`.
const UNPRIVILEGED: u32 = 65_534;

/// How long it may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server; ends with the last who has it.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    home: TempDir,
}

/// The one that those who are there share.
static SHARED: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());

impl Server {
    /// The server that tests share which are not about its end.
    pub(crate) async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&server);
        server
    }

    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            chown(home.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("root may");
        }
        std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o700)).expect("it is ours");
        let data = home.path().join("data");
        let made = command("initdb", is_root)
            .args(["--no-sync", "--auth=trust", "--username=tests", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .output()
            .expect("initdb starts");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let process = spawn(home.path(), is_root);
        let server = Self { process, home };
        server.answers().await;
        server
    }

    pub(crate) fn options(&self) -> PgConnectOptions {
        options_of(self.home.path())
    }

    /// Where it is, for processes that are told.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Ends it by SIGQUIT, which says goodbye to nobody and is as a crash to what it holds.
    pub(crate) fn crash(&mut self) {
        let process = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(process, rustix::process::Signal::QUIT).expect("it is there");
        self.process.wait().expect("it has ended");
    }

    /// Starts it again where it has crashed.
    pub(crate) async fn start_again(&mut self) {
        self.process = spawn(self.home.path(), rustix::process::geteuid().is_root());
        self.answers().await;
    }

    async fn answers(&self) {
        let begun = Instant::now();
        loop {
            match self.options().connect().await {
                Ok(connection) => return drop(connection.close().await),
                Err(error) => assert!(begun.elapsed() < PATIENCE, "the server does not answer: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its other processes end when they see that it has; killed, it would leave their shared memory behind.
        let process = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(process, rustix::process::Signal::QUIT).ok();
        drop(self.process.wait());
    }
}

/// How a server is reached that is at home somewhere.
pub(crate) fn options_of(home: &Path) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass().socket(home).username("tests").database("postgres")
}

fn spawn(home: &Path, is_root: bool) -> Child {
    let mut server = command("postgres", is_root);
    server.arg("-D").arg(home.join("data")).arg("-k").arg(home);
    // What outlives a loss of power is not what is tried here.
    let settings = ["listen_addresses=", "fsync=off", "max_connections=60", "shared_buffers=16MB"];
    for setting in settings {
        server.args(["-c", setting]);
    }
    let log = std::fs::File::create(home.join("log")).expect("it is ours");
    server.stdout(Stdio::null()).stderr(log).spawn().expect("postgres starts")
}

fn command(name: &str, is_root: bool) -> Command {
    let mut command = Command::new(program(name));
    if is_root {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    // A directory that it may be in.
    command.current_dir("/");
    command
}

/// Where Debian keeps the programs of the newest release that is installed.
fn program(name: &str) -> PathBuf {
    let releases = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = releases.map(|entry| entry.path()).filter(|path| path.join("bin").join(name).is_file());
    let newest = newest.max_by_key(number);
    newest.expect("PostgreSQL is not installed (apt-get install postgresql)").join("bin").join(name)
}
