//! Servers that tests start, each with a directory and a socket of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::PATIENCE;

/// How a server is run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keeping {
    /// Nothing outlives it.
    Nothing,
    /// What it has acknowledged outlives it.
    Everything,
}

/// A server; ends with this value.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    keeping: Keeping,
    home: TempDir,
}

impl Server {
    pub(super) async fn start(keeping: Keeping) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let process = spawn(&home, keeping);
        let mut server = Self { process, keeping, home };
        server.listens().await;
        server
    }

    pub(super) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Ends it by SIGKILL.
    pub(super) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it has ended");
    }

    /// Starts it again where it was killed, with what it kept.
    pub(super) async fn start_again(&mut self) {
        self.process = spawn(&self.home, self.keeping);
        self.listens().await;
    }

    /// Has it stand still, or go on.
    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let process = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(process, signal).expect("it is there");
    }

    /// A way to it beside the driver.
    pub(super) async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("it is a URL");
        // What answers late here does so to the driver too.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        client.get_multiplexed_async_connection_with_config(&config).await.expect("it is there")
    }

    /// Says something to it beside the driver.
    pub(super) async fn say<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.connect().await).await.expect("it is done")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.home.path().join("redis.sock")
    }

    /// A server that reads what it has kept listens before it answers.
    async fn listens(&mut self) {
        let listening = async {
            loop {
                let ended = self.process.try_wait().expect("it can be asked");
                assert!(ended.is_none(), "redis-server has ended: {ended:?}");
                if UnixStream::connect(self.socket()).await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listening).await.expect("redis-server does not listen");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that stands still is killed all the same.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(home: &TempDir, keeping: Keeping) -> Child {
    let socket = home.path().join("redis.sock");
    // A killed one has left its own, to which nobody listens.
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(socket).arg("--dir").arg(home.path());
    match keeping {
        Keeping::Nothing => command.args(["--appendonly", "no"]),
        Keeping::Everything => command.args(["--appendonly", "yes", "--appendfsync", "always"]),
    };
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.expect("redis-server cannot be started: is it installed? (apt-get install redis-server)")
}
