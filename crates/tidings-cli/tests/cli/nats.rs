//! Streams of nodes on a NATS server: what they share, and what is said where there is none that will do.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::cluster::Node;
use crate::redis::{Scene, stops};
use crate::support::{DEADLINE, until};

/// A server with a directory and a port of its own. Dropped, it is killed.
struct Server {
    child: Child,
    port: u16,
    home: tempfile::TempDir,
}

impl Server {
    fn start(settings: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let child = spawn(home.path(), -1, settings);
        let mut server = Self { child, port: 0, home };
        let file = server.home.path().join(format!("nats-server_{}.ports", server.child.id()));
        server.port = until("nats-server says where it listens", DEADLINE, || {
            let said = std::fs::read_to_string(&file).ok()?;
            said.split("127.0.0.1:").nth(1)?.split('"').next()?.parse().ok()
        });
        server
    }

    /// One that keeps what it is told.
    fn keeping() -> Self {
        Self::start("jetstream { store_dir: \"%\" }\n")
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(home: &Path, port: i32, settings: &str) -> Child {
    let file = home.join("nats.conf");
    let settings = settings.replace('%', &home.display().to_string());
    std::fs::write(&file, format!("listen: \"127.0.0.1:{port}\"\n{settings}")).unwrap();
    let mut command = Command::new("nats-server");
    command.arg("-c").arg(file).arg("--ports_file_dir").arg(home);
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.expect("nats-server cannot be started: is it installed? (apt-get install nats-server)")
}

#[test]
fn nodes_share_topics_and_groups_and_a_server_that_comes_back_has_kept_them() {
    let (mut server, scene) = (Server::keeping(), Scene::new());
    let start = |id: &str| Node::start(&scene.configure(id, &server.url()));
    let (first, second) = (start("n1"), start("n2"));
    first.ask(&["stream", "publish", "orders", "seven", "--key", "k"]).exits(0);
    let listed = second.ask(&["stream", "ls", "--json"]).exits(0).json();
    let store = json!({ "driver": "nats", "node": "n2", "durability": "server" });
    assert_eq!((&listed["streams"][0]["events"], &listed["store"]), (&json!(1), &store));

    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let publish = ["stream", "publish", "orders", "eight", "--key", "k"];
    let refused = first.ask(&publish).exits(4);
    assert!(refused.stderr.contains("store_unreachable"), "{refused:?}");
    server.child = spawn(server.home.path(), server.port.into(), "jetstream { store_dir: \"%\" }\n");
    until("streams are back", DEADLINE, || (first.ask(&publish).code == 0).then_some(()));
    let consume = ["consume", "orders", "--group", "g", "--max", "1", "--auto-ack", "--json"];
    assert_eq!(second.ask(&consume).exits(0).json()["payload"], "seven");
    stops(first);
    stops(second);
}

#[test]
fn a_server_that_will_not_do_ends_a_start_with_what_to_do() {
    let scene = Scene::new();
    let nobody = scene.fails("nats://127.0.0.1:1").exits(4);
    assert!(nobody.stderr.contains("no NATS server answers at 127.0.0.1:1"), "{nobody:?}");
    let forgetful = Server::start("");
    let refused = scene.fails(&forgetful.url()).exits(6);
    assert!(refused.stderr.contains("has no JetStream for this account: start it with -js"), "{refused:?}");
    let wrong = scene.fails("nats://user:not-the-one@nowhere:port").exits(78);
    assert!(wrong.stderr.contains("streams.url (line") && !wrong.stderr.contains("not-the-one"), "{wrong:?}");
}
