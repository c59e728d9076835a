//! Streams of nodes on a Redis server: what they share, what is said where there is none, and what becomes of them when
//! it goes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value as Json, json};

use crate::cluster::{Node, request};
use crate::support::{DEADLINE, Ran, run, tidings, until};

const PASSWORD: &str = "hush-hush";

/// A server with a directory and a socket of its own. Dropped, it is killed.
struct Server {
    child: Child,
    home: tempfile::TempDir,
    password: Option<&'static str>,
}

impl Server {
    fn start(password: Option<&'static str>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let child = spawn(home.path(), password);
        let server = Self { child, home, password };
        server.listens();
        server
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("redis.sock")
    }

    fn url(&self) -> String {
        let password = self.password.map(|password| format!("?pass={password}")).unwrap_or_default();
        format!("unix://{}{password}", self.socket().display())
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again where it was killed, with what it kept.
    fn start_again(&mut self) {
        self.child = spawn(self.home.path(), self.password);
        self.listens();
    }

    fn listens(&self) {
        until("redis-server listens", DEADLINE, || UnixStream::connect(self.socket()).ok());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(home: &Path, password: Option<&str>) -> Child {
    let socket = home.join("redis.sock");
    // A killed one has left its own, to which nobody listens.
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    command.arg("--dir").arg(home).arg("--unixsocket").arg(socket);
    if let Some(password) = password {
        command.args(["--requirepass", password]);
    }
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.expect("redis-server cannot be started: is it installed? (apt-get install redis-server)")
}

/// A server that says it is of this release, and knows nothing else. Ends with the test's process.
fn claims(release: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream, release));
        }
    });
    format!("redis://{address}")
}

fn answer(stream: TcpStream, release: &str) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let line = |reader: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0).map(|_| line.trim_end().to_owned())
    };
    loop {
        let words: usize = line(&mut reader)?.strip_prefix('*')?.parse().ok()?;
        let mut said = Vec::new();
        for _ in 0..words {
            let length: usize = line(&mut reader)?.strip_prefix('$')?.parse().ok()?;
            let mut word = vec![0; length + 2];
            reader.read_exact(&mut word).ok()?;
            said.push(String::from_utf8_lossy(&word[..length]).into_owned());
        }
        let info = format!("redis_version:{release}\r\nrole:master\r\n");
        let answer = match said[0].as_str() {
            "INFO" => format!("${}\r\n{info}\r\n", info.len()),
            _ => "+OK\r\n".to_owned(),
        };
        reader.get_mut().write_all(answer.as_bytes()).ok()?;
    }
}

/// Configurations of nodes, each a cluster of its own: what they share is the store.
pub(crate) struct Scene(tempfile::TempDir);

impl Scene {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn configure(&self, id: &str, url: &str) -> PathBuf {
        let driver = if url.starts_with("nats") { "nats" } else { "redis" };
        let file = self.0.path().join(format!("{id}.toml"));
        let text = format!(
            "[cluster]\nname = \"{id}\"\nnode_id = \"{id}\"\nlisten = \"127.0.0.1:0\"\n[tls]\ndevelopment = true\n\
             [http]\nlisten = \"127.0.0.1:0\"\n[[cache]]\nname = \"users\"\n\
             [streams]\ndriver = \"{driver}\"\nurl = \"{url}\"\nprefix = \"shop\"\n\
             [streams.defaults]\nbackoff = {{ initial = \"0s\" }}\n\
             [[streams.topic]]\nname = \"orders\"\nmax_deliveries = 2\n[telemetry]\nlog = \"error\"\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    fn start(&self, id: &str, server: &Server) -> Node {
        Node::start(&self.configure(id, &server.url()))
    }

    /// A start that comes to nothing.
    pub(crate) fn fails(&self, url: &str) -> Ran {
        let file = self.configure("n1", url);
        run(&["node", "--config", file.to_str().unwrap()])
    }
}

pub(crate) fn stops(node: Node) {
    node.signal(Signal::TERM);
    assert_eq!(node.ends().0, 0, "the node ends cleanly");
}

#[test]
fn nodes_share_topics_groups_and_dead_letters() {
    let (server, scene) = (Server::start(None), Scene::new());
    let (first, second) = (scene.start("n1", &server), scene.start("n2", &server));
    let id = first.ask(&["stream", "publish", "orders", "seven", "--key", "k"]).exits(0).stdout;

    let list = ["stream", "ls", "--json"];
    let (of_first, of_second) = (first.ask(&list).exits(0).json(), second.ask(&list).exits(0).json());
    assert_eq!(of_first["streams"], of_second["streams"]);
    let store = json!({ "driver": "redis", "node": "n2", "durability": "server" });
    assert_eq!((&of_second["streams"][0]["events"], &of_second["store"]), (&json!(1), &store));
    let said = second.ask(&["stream", "ls"]).exits(0);
    assert!(said.stderr.contains("redis store that nodes share"), "{said:?}");

    let status = second.ask(&["status"]).exits(0).stdout;
    let line = "\nstreams  redis store that nodes share, as durable as its server: 1 topics, 1 events, 0 dead letters; \
                0 groups, none behind, 0 pending\n";
    assert!(status.contains(line), "{status}");

    // What one has and does not settle the other one gets no more, and what fails here is dead there.
    let consume = ["consume", "orders", "--group", "g", "--max", "2", "--batch", "1", "--exec", "false"];
    let consumed = second.ask(&consume).exits(0);
    assert!(consumed.stderr.contains("2 events, 0 acknowledged, 2 failed"), "{consumed:?}");
    let dead = first.ask(&["dlq", "ls", "--json"]).exits(0).json()["events"][0].clone();
    assert_eq!((&dead["original_id"], &dead["payload"]), (&json!(id.trim_end()), &json!("seven")), "{dead}");
    first.ask(&["dlq", "retry", "--topic", "orders"]).exits(0);
    let consume = ["consume", "orders", "--group", "g", "--max", "1", "--auto-ack", "--json"];
    assert_eq!(second.ask(&consume).exits(0).json()["payload"], "seven");
    stops(first);
    stops(second);
}

#[test]
fn a_store_that_cannot_be_had_ends_a_start_with_what_to_do() {
    let scene = Scene::new();
    let nobody = scene.fails("unix:///nonexistent/redis.sock").exits(4);
    assert!(nobody.stderr.contains("no Redis server answers at /nonexistent/redis.sock"), "{nobody:?}");
    assert!(nobody.stderr.contains("start it, or correct the URL"), "{nobody:?}");

    let old = scene.fails(&claims("6.0.16")).exits(6);
    assert!(old.stderr.contains("is Redis 6.0.16: streams need 6.2.0 or later, upgrade it"), "{old:?}");

    let server = Server::start(Some(PASSWORD));
    for password in ["", "?pass=not-the-one"] {
        let refused = scene.fails(&format!("unix://{}{password}", server.socket().display())).exits(5);
        assert!(refused.stderr.contains("correct the user and the password in the URL"), "{refused:?}");
        assert!(!refused.stderr.contains("not-the-one"), "{refused:?}");
    }

    let wrong = scene.fails("redis://:not-the-one@nowhere:port").exits(78);
    assert!(wrong.stderr.contains("streams.url (line") && !wrong.stderr.contains("not-the-one"), "{wrong:?}");
}

#[test]
fn a_server_that_goes_away_takes_streams_along_and_brings_them_back() {
    let (mut server, scene) = (Server::start(None), Scene::new());
    let node = scene.start("n1", &server);
    node.ask(&["stream", "publish", "orders", "kept"]).exits(0);
    server.kill();

    let publish = ["stream", "publish", "orders", "later"];
    let refused = node.ask(&publish).exits(4);
    assert!(refused.stderr.contains("store_unreachable"), "{refused:?}");
    assert!(refused.stderr.contains("no Redis server answers"), "{refused:?}");
    node.ask(&["cache", "put", "users", "42", "Ann"]).exits(0);
    node.ask(&["check", "node"]).exits(0);
    let status = node.ask(&["status"]).exits(0).stdout;
    assert!(status.contains("\nstreams  ") && status.contains("store_unreachable"), "{status}");
    let page = request(&node.url, "GET", "/", "");
    assert!(page.contains("<h2>Streams</h2>") && page.contains("<p class=\"bad\">"), "{page}");
    let scraped = request(&node.url, "GET", "/metrics", "");
    assert!(scraped.contains("\ntidings_stream_store_up 0.0\n"), "{scraped}");

    server.start_again();
    until("streams are back", DEADLINE, || (node.ask(&publish).code == 0).then_some(()));
    let consume = ["consume", "orders", "--group", "g", "--max", "1", "--auto-ack", "--json"];
    assert_eq!(node.ask(&consume).exits(0).json()["payload"], "kept");
    stops(node);
}

#[test]
fn the_password_of_a_store_is_never_shown() {
    let (server, scene) = (Server::start(Some(PASSWORD)), Scene::new());
    let file = scene.configure("n1", &server.url());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("log = \"error\"", "log = \"trace\"")).unwrap();
    let logged = scene.0.path().join("log");
    let mut command = tidings();
    command.args(["node", "--json", "--config"]).arg(&file).stdout(Stdio::piped());
    let mut child = command.stderr(std::fs::File::create(&logged).unwrap()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let up: Json = serde_json::from_str(&line).unwrap();
    let url = up["http"].as_str().unwrap();
    run(&["stream", "publish", "orders", "x", "--url", url]).exits(0);

    let path = file.to_str().unwrap();
    let mut shown = ["/v1/configuration", "/v1/streams", "/metrics", "/"]
        .map(|path| request(url, "GET", path, ""))
        .to_vec();
    for arguments in [["config", "show", path], ["config", "check", path]] {
        let ran = run(&arguments).exits(0);
        shown.extend([ran.stdout, ran.stderr]);
    }
    assert!(shown.iter().any(|text| text.contains("?pass=***")), "{shown:#?}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    shown.push(std::fs::read_to_string(&logged).unwrap());
    assert!(shown.last().unwrap().contains("streams are on a Redis server"), "{shown:#?}");
    assert!(!shown.iter().any(|text| text.contains(PASSWORD)), "{shown:#?}");
}
