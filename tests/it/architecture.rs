//! Which crate may depend on which, from what cargo itself says.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// For every crate of the workspace, the crates of the workspace that it may depend on. What is not named here may
/// depend on nothing: a new crate needs a line, which is the moment to think about its place.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("tidings-proto", &[]),
    // These four meet in `tidings` and nowhere else.
    ("tidings-membership", &["tidings-proto"]),
    ("tidings-transport", &["tidings-proto"]),
    ("tidings-cache", &["tidings-proto"]),
    ("tidings-streams", &["tidings-proto"]),
    // A service that has streams has it beside them: nodes know nothing of databases.
    ("tidings-outbox", &["tidings-streams"]),
    (
        "tidings",
        &["tidings-proto", "tidings-membership", "tidings-transport", "tidings-cache", "tidings-streams"],
    ),
    ("tidings-http", &["tidings", "tidings-proto"]),
    // The identities of a cluster are made with the transport's own means.
    ("tidings-cli", &["tidings", "tidings-http", "tidings-proto", "tidings-transport"]),
    ("xtask", &[]),
    // What a node says of itself is read with its own means, and one of its programs is a node of another release.
    ("tidings-tests", &["tidings", "tidings-facts", "tidings-http", "tidings-proto"]),
    // Tests of every crate note what they have read with it.
    ("tidings-facts", &[]),
    // What comes from outside is taken apart in these.
    ("tidings-decoders", &["tidings", "tidings-http", "tidings-membership", "tidings-proto"]),
    // They look at the parts as well as at the whole.
    ("tidings-benches", PARTS),
];

const PARTS: &[&str] = &[
    "tidings",
    "tidings-cache",
    "tidings-membership",
    "tidings-proto",
    "tidings-streams",
    "tidings-transport",
];

/// What the state machines must do without: I/O, clocks of their own, randomness.
const BANNED_IN_PROTO: [&str; 8] =
    ["tokio", "quinn", "rand", "getrandom", "mio", "socket2", "rustix", "fastrand"];

#[test]
fn crates_depend_only_on_those_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let graph = Graph::load();
    for (name, dependencies) in &graph.direct {
        let Some(allowed) = allowed.get(name.as_str()) else {
            panic!("{name} has no place in the architecture")
        };
        for dependency in dependencies.iter().filter(|dependency| graph.direct.contains_key(*dependency)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
    assert!(graph.direct.contains_key("tidings-proto"), "the graph is not the workspace's");
}

#[test]
fn the_state_machines_have_no_io_no_clock_and_no_randomness() {
    let reached = Graph::load().reached_from("tidings-proto");
    assert!(reached.contains("bytes"), "the graph has no edges");
    for banned in BANNED_IN_PROTO {
        assert!(!reached.contains(banned), "tidings-proto reaches {banned}");
    }
}

#[test]
fn only_the_tests_of_whole_nodes_can_pass_for_another_release() {
    const FEATURE: &str = "dialects";
    let mut turned_on = BTreeSet::new();
    for package in list(&metadata()["packages"]) {
        let name = text(&package["name"]);
        if let Some(features) = package["features"].as_object().filter(|_| name.starts_with("tidings")) {
            let by_another = features.iter().find(|(_, turns_on)| turns_on.to_string().contains(FEATURE));
            assert_eq!(by_another, None, "{name} turns it on by another feature");
        }
        let asks =
            |dependency: &Value| list(&dependency["features"]).iter().any(|feature| feature == FEATURE);
        if list(&package["dependencies"]).iter().any(asks) {
            turned_on.insert(name);
        }
    }
    assert_eq!(turned_on, BTreeSet::from(["tidings-tests".to_owned()]));
}

/// Dependencies that are built with a crate; what only its own tests need does not count.
struct Graph {
    /// Of the workspace's crates.
    direct: BTreeMap<String, BTreeSet<String>>,
    /// Of every package, by package id.
    edges: BTreeMap<String, BTreeSet<String>>,
    names: BTreeMap<String, String>,
}

/// What cargo says of the workspace.
fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--locked"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().expect("a list").clone()
}

impl Graph {
    fn load() -> Self {
        let metadata = metadata();
        let names: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let mut edges = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let built = |edge: &&Value| list(&edge["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            let targets = list(&node["deps"]).iter().filter(built).map(|edge| text(&edge["pkg"])).collect();
            edges.insert(text(&node["id"]), targets);
        }
        let members = list(&metadata["workspace_members"]);
        let direct = members.iter().map(|member| {
            let id = text(member);
            let targets: &BTreeSet<String> = &edges[&id];
            (names[&id].clone(), targets.iter().map(|target| names[target].clone()).collect())
        });
        Self { direct: direct.collect(), edges, names }
    }

    /// The names of all packages that a crate needs, however far.
    fn reached_from(&self, name: &str) -> BTreeSet<String> {
        let mut waiting: Vec<&String> =
            self.names.iter().filter(|(_, named)| *named == name).map(|(id, _)| id).collect();
        let mut reached = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            for target in &self.edges[id] {
                if reached.insert(target) {
                    waiting.push(target);
                }
            }
        }
        reached.into_iter().map(|id| self.names[id].clone()).collect()
    }
}
