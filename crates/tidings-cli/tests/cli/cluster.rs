//! Nodes as processes, and whole clusters in one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{DEADLINE, Ran, run, run_in, tidings, until};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/twitter_cluster52_20k.csv");

/// A cluster's certificates, in a directory of their own.
struct Cluster {
    directory: tempfile::TempDir,
}

/// A running node. Dropped, it is killed.
pub(crate) struct Node {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    address: String,
    pub(crate) url: String,
}

impl Cluster {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        run_in(directory.path(), &["certs", "init", "--cluster", "c", "--out", "."]).exits(0);
        Self { directory }
    }

    fn configure(&self, id: &str, listen: &str, seeds: &[&str]) -> PathBuf {
        let path = self.directory.path();
        run_in(path, &["certs", "issue", "--dir", ".", "--node", id, "--force"]).exits(0);
        let file = path.join(format!("{id}.toml"));
        let text = format!(
            "[cluster]\nname = \"c\"\nnode_id = \"{id}\"\nlisten = \"{listen}\"\nseeds = {seeds:?}\n\
             gossip_interval = \"100ms\"\n[tls]\nca = \"ca.pem\"\ncert = \"{id}.pem\"\nkey = \"{id}.key\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\n[[cache]]\nname = \"users\"\n[telemetry]\nlog = \"error\"\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    fn start(&self, id: &str, seeds: &[&str]) -> Node {
        Node::start(&self.configure(id, "127.0.0.1:0", seeds))
    }
}

impl Node {
    pub(crate) fn start(file: &Path) -> Self {
        let mut command = tidings();
        command.args(["node", "--json", "--quiet", "--config"]).arg(file);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Ok(up) = serde_json::from_str::<Value>(&line) else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("the node did not start: {stderr}");
        };
        let text = |name: &str| up[name].as_str().unwrap().to_owned();
        Self { child, stdout, address: text("address"), url: text("http") }
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Ran {
        run(&[arguments, &["--url", &self.url]].concat())
    }

    /// Asks again and again until the exit code is this one.
    #[track_caller]
    fn comes_to(&self, arguments: &[&str], code: i32) -> Ran {
        let what = format!("{arguments:?} exits {code}");
        until(&what, DEADLINE, || Some(self.ask(arguments)).filter(|ran| ran.code == code))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_to(&self.child, signal);
    }

    /// Waits until its log says something. Its log goes nowhere else.
    fn says(&mut self, text: &str) {
        let stderr = self.child.stderr.as_mut().unwrap();
        let (mut said, mut byte) = (String::new(), [0]);
        while !said.contains(text) {
            assert_ne!(stderr.read(&mut byte).unwrap(), 0, "it ended and said: {said}");
            said.push(char::from(byte[0]));
        }
    }

    pub(crate) fn ends(mut self) -> (i32, String) {
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (code, rest)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal_to(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_change_on_one_node_evicts_the_copy_on_the_others() {
    let cluster = Cluster::new();
    let first = cluster.start("n1", &[]);
    let second = cluster.start("n2", &[&first.address]);
    let third = cluster.start("n3", &[&first.address]);
    let nodes = [&first, &second, &third];
    for node in nodes {
        let three = |ran: &Ran| ran.json()["members"].as_array().unwrap().len() == 3;
        until("three members", DEADLINE, || three(&node.ask(&["members", "--json"]).exits(0)).then_some(()));
        node.comes_to(&["check", "node"], 0);
    }
    first.comes_to(&["check", "cluster"], 0);

    first.ask(&["cache", "put", "users", "42", "Ann"]).exits(0);
    assert_eq!(first.ask(&["cache", "get", "users", "42"]).exits(0).stdout, "Ann");
    second.ask(&["cache", "put", "users", "42", "Bob"]).exits(0);
    first.comes_to(&["cache", "get", "users", "42"], 3);
    third.ask(&["cache", "invalidate", "users", "--all"]).exits(0);
    second.comes_to(&["cache", "get", "users", "42"], 3);
    assert_eq!(first.ask(&["cache", "info", "users", "--json"]).exits(0).json()["name"], "users");
    first.ask(&["cache", "info", "nothing"]).exits(3);
    first.ask(&["forget", "n2"]).exits(6);
    first.ask(&["forget", "n9"]).exits(3);

    let urls = nodes.map(|node| node.url.as_str()).join(",");
    let replay = ["replay", "--trace", SAMPLE, "--limit", "3000", "--urls", &urls, "--json"];
    let report = run(&replay).exits(0).json();
    assert_eq!(report["requests"], 3000);
    assert_eq!((&report["stale_reads_after_bound"], &report["differing_at_end"]), (&0.into(), &0.into()));
    assert_eq!(report["events_published"], report["writes"]);

    first.ask(&["cache", "info", "replay"]).exits(3);

    first.ask(&["drain"]).exits(0);
    first.ask(&["check", "node"]).exits(2);
    assert_eq!(metric(&first, "tidings_ready"), 0.0);
}

#[test]
fn a_node_told_to_stop_says_goodbye() {
    let cluster = Cluster::new();
    let first = cluster.start("n1", &[]);
    let second = cluster.start("n2", &[&first.address]);
    second.comes_to(&["check", "node"], 0);
    second.signal(Signal::TERM);
    assert_eq!(second.ends().0, 0);
    until("n2 has left", DEADLINE, || {
        let members = first.ask(&["members", "--json"]).exits(0).json();
        let mut members = members["members"].as_array().unwrap().iter();
        members
            .find(|member| member["node"] == "n2")
            .is_none_or(|member| member["state"] == "left")
            .then_some(())
    });
}

#[test]
fn a_second_signal_ends_a_shutdown_that_waits() {
    let cluster = Cluster::new();
    let first = cluster.start("n1", &[]);
    let second = cluster.start("n2", &[&first.address]);
    first.comes_to(&["check", "cluster"], 0);
    second.comes_to(&["check", "node"], 0);
    second.signal(Signal::STOP);
    first.ask(&["cache", "put", "users", "1", "Ann"]).exits(0);
    first.signal(Signal::TERM);
    // The HTTP API ends before the node waits for its peers.
    first.comes_to(&["members"], 4);
    first.signal(Signal::TERM);
    // At the end of a shutdown that was waited for it would be 0.
    assert_eq!(first.ends().0, 130);
    second.signal(Signal::CONT);
}

#[test]
fn a_node_on_ipv6_is_served_and_asked() {
    let cluster = Cluster::new();
    let start = |id: &str, seeds: &[&str]| {
        let file = cluster.configure(id, "[::1]:0", seeds);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("listen = \"127.0.0.1:0\"", "listen = \"[::1]:0\"")).unwrap();
        Node::start(&file)
    };
    let first = start("n1", &[]);
    let second = start("n2", &[&first.address]);
    assert!(first.address.starts_with("[::1]:") && first.url.starts_with("http://[::1]:"), "{}", first.url);
    second.comes_to(&["check", "node"], 0);
    first.comes_to(&["check", "cluster"], 0);
    first.ask(&["cache", "put", "users", "42", "Ann"]).exits(0);
    assert_eq!(first.ask(&["cache", "get", "users", "42"]).exits(0).stdout, "Ann");
    second.ask(&["cache", "del", "users", "42"]).exits(0);
    first.comes_to(&["cache", "get", "users", "42"], 3);
    assert!(first.ask(&["members"]).exits(0).stdout.contains(&second.address));
}

#[test]
fn addresses_that_cannot_be_used_are_named() {
    let cluster = Cluster::new();
    let run_with = |listen: &str, more: &str| {
        let file = cluster.configure("n1", listen, &[]);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("gossip_interval", &format!("{more}gossip_interval"))).unwrap();
        run(&["node", "--config", file.to_str().unwrap()])
    };
    // An address of a documentation network is nobody's.
    let ran = run_with("192.0.2.1:7401", "").exits(1);
    assert!(ran.stderr.contains("cluster.listen") && ran.stderr.contains("192.0.2.1"), "{ran:?}");
    let ran = run_with("nowhere.invalid:7401", "advertise = \"127.0.0.1:1\"\n").exits(78);
    assert!(ran.stderr.contains("cluster.listen") && ran.stderr.contains("nowhere.invalid"), "{ran:?}");
    let ran = run_with("127.0.0.1:0", "advertise = \"nowhere.invalid:1\"\n").exits(1);
    assert!(ran.stderr.contains("cluster.advertise") && ran.stderr.contains("nowhere.invalid"), "{ran:?}");
}

#[test]
fn a_hangup_reloads_certificates_and_the_deny_list() {
    let cluster = Cluster::new();
    let file = cluster.configure("n1", "127.0.0.1:0", &[]);
    let text = std::fs::read_to_string(&file).unwrap().replace("log = \"error\"", "log = \"info\"");
    std::fs::write(&file, &text).unwrap();
    let mut first = Node::start(&file);
    let second = cluster.start("n2", &[&first.address]);
    second.comes_to(&["check", "node"], 0);
    first.comes_to(&["check", "cluster"], 0);
    let expiry = |node: &Node| metric(node, "tidings_tls_certificate_expiry_seconds");
    let before = expiry(&first);
    run_in(
        cluster.directory.path(),
        &["certs", "issue", "--dir", ".", "--node", "n1", "--validity", "10d", "--force"],
    )
    .exits(0);
    std::fs::write(&file, text.replace("[http]", "denied = [\"n2\"]\n[http]")).unwrap();
    first.signal(Signal::HUP);
    first.says("the certificates were reloaded");
    assert!(expiry(&first) < before, "a shorter life than before: {before}");
    // The link is closed, and a new one refused.
    second.comes_to(&["check", "cluster"], 2);
    std::fs::write(&file, text.replace("[http]", "denid = [\"n2\"]\n[http]")).unwrap();
    first.signal(Signal::HUP);
    first.says("the deny list and the node's certificates were not reloaded");
    std::fs::write(&file, text).unwrap();
    first.signal(Signal::HUP);
    first.says("the certificates were reloaded");
    second.comes_to(&["check", "cluster"], 0);
}

#[test]
fn a_log_level_that_is_none_is_refused() {
    let cluster = Cluster::new();
    let first = cluster.start("n1", &[]);
    let put = |level: &str| {
        let body = format!("{{\"level\":\"{level}\"}}");
        request(&first.url, "PUT", "/v1/log-level", &body)
    };
    for level in ["bogus", "", "inf0"] {
        let answer = put(level);
        assert!(answer.starts_with("HTTP/1.1 422") && answer.contains("invalid_level"), "{answer}");
    }
    assert!(put("debug").starts_with("HTTP/1.1 200"));
    let file = cluster.configure("n2", "127.0.0.1:0", &[]);
    let text = std::fs::read_to_string(&file).unwrap().replace("log = \"error\"", "log = \"loud\"");
    std::fs::write(&file, text).unwrap();
    let ran = run(&["config", "check", file.to_str().unwrap()]).exits(78);
    assert!(ran.stderr.contains("telemetry.log"), "{ran:?}");
}

/// Sends a request of the test's own, and reads the whole answer.
pub(crate) fn request(url: &str, method: &str, path: &str, body: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}"
    );
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The one sample of a metric.
fn metric(node: &Node, name: &str) -> f64 {
    let text = request(&node.url, "GET", "/metrics", "");
    let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    sample.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn a_port_that_is_taken_is_named_with_the_way_out() {
    let cluster = Cluster::new();
    let first = cluster.start("n1", &[]);
    let file = cluster.configure("n2", &first.address, &[]);
    let ran = run(&["node", "--config", file.to_str().unwrap()]).exits(1);
    assert!(ran.stderr.contains(&first.address) && ran.stderr.contains("cluster.listen"), "{ran:?}");
    let taken = first.url.strip_prefix("http://").unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text
        .replace(&first.address, "127.0.0.1:0")
        .replace("[http]\nlisten = \"127.0.0.1:0\"", &format!("[http]\nlisten = \"{taken}\""));
    std::fs::write(&file, text).unwrap();
    let ran = run(&["node", "--config", file.to_str().unwrap()]).exits(1);
    assert!(ran.stderr.contains(taken) && ran.stderr.contains("http.listen"), "{ran:?}");
}

#[test]
fn a_second_process_with_the_id_of_a_live_node_exits_6() {
    let cluster = Cluster::new();
    let first = cluster.start("n1", &[]);
    let second = cluster.start("n2", &[&first.address]);
    second.comes_to(&["check", "node"], 0);
    let file = cluster.configure("n2", "127.0.0.1:0", &[&first.address]);
    let ran = run(&["node", "--config", file.to_str().unwrap()]).exits(6);
    assert!(ran.stderr.contains("n2") && ran.stderr.contains(&second.address), "{ran:?}");
    second.comes_to(&["check", "node"], 0);
}

#[test]
fn a_node_with_a_bad_configuration_exits_78() {
    let cluster = Cluster::new();
    let file = cluster.configure("n1", "127.0.0.1:0", &[]);
    let text = std::fs::read_to_string(&file).unwrap().replace("gossip_interval", "gosip_interval");
    std::fs::write(&file, text).unwrap();
    let ran = run(&["node", "--config", file.to_str().unwrap()]).exits(78);
    assert!(ran.stderr.contains("did you mean \"gossip_interval\"?"), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[track_caller]
fn is_sound(report: &Value) {
    for name in [
        "stale_reads_after_bound",
        "differing_at_end",
        "uncompared_at_end",
        "wrong_values",
        "errors",
        "gaps",
        "resets",
    ] {
        assert_eq!(report[name], 0, "{name} in {report:#}");
    }
    assert_eq!(report["settled"], true, "{report:#}");
    let (published, applied) = (report["events_published"].as_u64(), report["events_applied"].as_u64());
    assert_eq!(applied, published.map(|published| 2 * published), "three nodes");
}

#[test]
fn the_demonstration_runs_and_sums_up() {
    let ran = run(&["demo", "--duration", "2s", "--http-port", "0", "--json", "--quiet"]).exits(0);
    let report = ran.json();
    is_sound(&report);
    assert_eq!(report["nodes"], 3);
    assert!(
        report["requests"].as_u64().unwrap() > 100 && report["writes"].as_u64().unwrap() > 0,
        "{report:#}"
    );
    assert!(report["invalidation_latency_us"]["p50"].as_u64().unwrap() > 0, "{report:#}");
    let coherent = &report["coherent"][3];
    assert!(coherent["within_ms"] == 1_000 && coherent["share"].as_f64() > Some(0.5), "{report:#}");
    assert_eq!(ran.stderr, "");
}

#[test]
fn the_demonstration_shuts_down_cleanly_at_the_first_interrupt() {
    let mut command = tidings();
    command.args(["demo", "--http-port", "0", "--nodes", "2"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("dashboard") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
    }
    signal_to(&child, Signal::INT);
    stderr.read_to_string(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["nodes"], &report["differing_at_end"]), (&2.into(), &0.into()));
}

#[test]
fn a_trace_is_replayed_without_a_read_beyond_the_bound() {
    let report = run(&["replay", "--trace", SAMPLE, "--write-ratio", "0.1", "--json"]).exits(0).json();
    is_sound(&report);
    assert_eq!(report["requests"], 19_994);
    assert!(report["compared_at_end"].as_u64().unwrap() > 0);
}

#[test]
fn fills_are_silent() {
    let report = run(&["replay", "--trace", SAMPLE, "--write-ratio", "0", "--json"]).exits(0).json();
    is_sound(&report);
    assert_eq!((&report["events_published"], &report["stale_reads"]), (&0.into(), &0.into()));
}

#[test]
fn a_malformed_trace_ends_with_its_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# c\n0,a,1\n0,b\n").unwrap();
    let ran = run(&["replay", "--trace", file.path().to_str().unwrap()]).exits(1);
    assert!(ran.stderr.contains("line 3: expected time_s,key,size_bytes"), "{ran:?}");
    assert_eq!(ran.json()["requests"], 1, "what was done until then");
}

#[test]
fn nodes_are_killed_and_cut_off_without_a_read_beyond_the_bound() {
    let arguments = [
        "replay",
        "--generate",
        "100000",
        "--chaos",
        "--duration",
        "8s",
        "--speed",
        "0.2",
        "--max-staleness",
        "1s",
        "--json",
    ];
    let ran = run(&arguments).exits(0);
    let report = ran.json();
    assert_eq!((&report["stale_reads_after_bound"], &report["differing_at_end"]), (&0.into(), &0.into()));
    assert!(report["chaos"].as_array().unwrap().len() >= 2, "{report:#}");
    assert!(
        report["compared_at_end"].as_u64().unwrap() > 0 && report["uncompared_at_end"] == 0,
        "{report:#}"
    );
    assert!(report["series"].as_array().unwrap().len() >= 7, "{report:#}");
}
