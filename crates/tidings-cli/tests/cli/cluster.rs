//! Nodes as processes, and whole clusters in one.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::Instant;

use crate::support::{Ran, run, run_in, tidings};

/// How long anything may take that should take a second or two.
const DEADLINE: Duration = Duration::from_secs(30);

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/twitter_cluster52_20k.csv");

/// A cluster's certificates, in a directory of their own.
struct Cluster {
    directory: tempfile::TempDir,
}

/// A running node. Dropped, it is killed.
struct Node {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    address: String,
    url: String,
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
    fn start(file: &Path) -> Self {
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

    fn ask(&self, arguments: &[&str]) -> Ran {
        run(&[arguments, &["--url", &self.url]].concat())
    }

    /// Asks again and again until the exit code is this one.
    #[track_caller]
    fn comes_to(&self, arguments: &[&str], code: i32) -> Ran {
        let began = Instant::now();
        loop {
            let ran = self.ask(arguments);
            if ran.code == code {
                return ran;
            }
            assert!(began.elapsed() < DEADLINE, "{ran:#?}");
        }
    }

    fn signal(&self, signal: Signal) {
        signal_to(&self.child, signal);
    }

    fn ends(mut self) -> (i32, String) {
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
        let began = Instant::now();
        while !three(&node.ask(&["members", "--json"]).exits(0)) {
            assert!(began.elapsed() < DEADLINE);
        }
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

    first.ask(&["drain"]).exits(0);
    first.comes_to(&["check", "node"], 2);
}

#[test]
fn a_node_told_to_stop_says_goodbye() {
    let cluster = Cluster::new();
    let first = cluster.start("n1", &[]);
    let second = cluster.start("n2", &[&first.address]);
    second.comes_to(&["check", "node"], 0);
    second.signal(Signal::TERM);
    assert_eq!(second.ends().0, 0);
    let began = Instant::now();
    loop {
        let members = first.ask(&["members", "--json"]).exits(0).json();
        let state =
            members["members"].as_array().unwrap().iter().find(|member| member["node"] == "n2").cloned();
        if state.is_none_or(|member| member["state"] == "left") {
            break;
        }
        assert!(began.elapsed() < DEADLINE, "{members:#}");
    }
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
    second.ask(&["check", "node"]).exits(0);
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
    for name in ["stale_reads_after_bound", "differing_at_end", "wrong_values", "errors", "gaps", "resets"] {
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
        report["requests"].as_u64().unwrap() > 1_000 && report["writes"].as_u64().unwrap() > 10,
        "{report:#}"
    );
    assert!(report["invalidation_latency_us"]["p50"].as_u64().unwrap() > 0, "{report:#}");
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
    assert_eq!(ran.stdout, "");
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
    assert!(report["series"].as_array().unwrap().len() >= 7, "{report:#}");
}
