//! Servers that tests start, each with a directory and a port of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::PATIENCE;

/// What a server has that keeps messages, and takes the largest events.
const KEEPING: &str = "max_payload: 2MB\njetstream { store_dir: \"%\" }\n";

/// A server; ends with this value.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    port: u16,
    settings: String,
    home: TempDir,
}

impl Server {
    /// One that keeps messages, and takes the largest events.
    pub(super) async fn start() -> Self {
        Self::start_with(KEEPING).await
    }

    /// One that is configured like this; `%` is its directory.
    pub(super) async fn start_with(settings: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let settings = settings.replace('%', &home.path().display().to_string());
        // It takes a port that is free, and says which.
        let process = spawn(home.path(), -1, &settings);
        let mut server = Self { process, port: 0, settings, home };
        server.listens().await;
        server
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends it by SIGKILL.
    pub(super) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it has ended");
    }

    /// Starts it again where it was killed, with what it kept.
    pub(super) async fn start_again(&mut self) {
        self.process = spawn(self.home.path(), i32::from(self.port), &self.settings);
        self.listens().await;
    }

    /// Has it stand still: all of it, when this is over.
    pub(super) async fn stand_still(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.process.id());
        let stands = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.expect("it can be read").path().join("stat"));
            // The state stands behind the name, which is in brackets.
            stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
        };
        let standing = async {
            while !std::fs::read_dir(&tasks).expect("it is there").all(stands) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, standing).await.expect("nats-server does not stand still");
    }

    /// Has it go on.
    pub(super) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(process, signal).expect("it is there");
    }

    /// A way to it beside the driver.
    pub(super) async fn jetstream(&self) -> async_nats::jetstream::Context {
        let client = async_nats::connect(self.url()).await.expect("it is there");
        async_nats::jetstream::new(client)
    }

    /// A server that reads what it has kept listens when it has read it.
    async fn listens(&mut self) {
        let file = self.home.path().join(format!("nats-server_{}.ports", self.process.id()));
        let listening = async {
            loop {
                let ended = self.process.try_wait().expect("it can be asked");
                assert!(ended.is_none(), "nats-server has ended: {ended:?}");
                let said = std::fs::read_to_string(&file).unwrap_or_default();
                let port =
                    said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next()?.parse().ok());
                if let Some(port) = port
                    && TcpStream::connect(("127.0.0.1", port)).await.is_ok()
                {
                    return port;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        self.port = tokio::time::timeout(PATIENCE, listening).await.expect("nats-server does not listen");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that stands still is killed all the same.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(home: &Path, port: i32, settings: &str) -> Child {
    let file = home.join("nats.conf");
    std::fs::write(&file, format!("listen: \"127.0.0.1:{port}\"\n{settings}")).expect("it can be written");
    // Where it is installed an ordinary user's PATH may not lead.
    let installed = Path::new("/usr/sbin/nats-server");
    let mut command = Command::new(if installed.is_file() { installed } else { Path::new("nats-server") });
    command.arg("-c").arg(file).arg("--ports_file_dir").arg(home);
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.expect("nats-server cannot be started: is it installed? (apt-get install nats-server)")
}
