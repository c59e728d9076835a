//! `stream`, `group`, `dlq` and `consume` against a node with a store on disk.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::cluster::Node;
use crate::support::{DEADLINE, Ran, ran, run, tidings, until};

/// A configuration with streams, and where their store is.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let scene = Self { directory };
        scene.configure("n1");
        scene
    }

    /// Configurations of several nodes name the same store.
    fn configure(&self, id: &str) -> PathBuf {
        let file = self.path().join(format!("{id}.toml"));
        let text = format!(
            "[cluster]\nname = \"c\"\nnode_id = \"{id}\"\nlisten = \"127.0.0.1:0\"\n[tls]\ndevelopment = true\n\
             [http]\nlisten = \"127.0.0.1:0\"\n[[cache]]\nname = \"users\"\ntee_to_stream = \"changes\"\n\
             [streams]\npath = \"data\"\n[streams.defaults]\nbackoff = {{ initial = \"0s\" }}\n\
             [[streams.topic]]\nname = \"orders\"\nmax_deliveries = 2\n[[streams.topic]]\nname = \"changes\"\n\
             [telemetry]\nlog = \"error\"\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn start(&self) -> Node {
        Node::start(&self.path().join("n1.toml"))
    }

    fn store(&self) -> String {
        self.path().join("data").to_str().unwrap().to_owned()
    }
}

fn stops(node: Node) {
    node.signal(Signal::TERM);
    assert_eq!(node.ends().0, 0, "the node ends cleanly");
}

fn publish(node: &Node, payload: &str) -> String {
    node.ask(&["stream", "publish", "orders", payload, "--key", "k"]).exits(0).stdout.trim_end().to_owned()
}

/// Runs the program with something on its stdin.
fn given(node: &Node, arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = tidings();
    command.args(arguments).args(["--url", &node.url]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    ran(child.wait_with_output().unwrap())
}

fn events(lines: &str) -> Vec<Json> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn events_go_through_a_command_that_acknowledges_or_fails_them() {
    let scene = Scene::new();
    let node = scene.start();
    let ids = ["good", "bad"].map(|payload| publish(&node, payload));
    let command = format!(
        "cat >> {}/handled; echo $TIDINGS_ID $TIDINGS_KEY; ! grep -q bad {}/handled",
        scene.path().display(),
        scene.path().display()
    );
    let consume = ["consume", "orders", "--group", "g", "--max", "3", "--batch", "1", "--exec", &command];
    let consumed = node.ask(&consume).exits(0);
    assert!(consumed.stderr.contains("3 events, 1 acknowledged, 2 failed"), "{consumed:?}");
    assert_eq!(consumed.stdout, format!("{} k\n{} k\n{} k\n", ids[0], ids[1], ids[1]));
    assert_eq!(std::fs::read_to_string(scene.path().join("handled")).unwrap(), "goodbadbad");

    let dead = node.ask(&["dlq", "ls", "--json"]).exits(0).json()["events"][0].clone();
    assert_eq!(
        (&dead["payload"], &dead["attempts"], &dead["group"]),
        (&json!("bad"), &json!(2), &json!("g"))
    );
    assert!(dead["error"].as_str().unwrap().contains("exit status: 1"), "{dead}");
    let id = dead["id"].as_str().unwrap();
    assert!(node.ask(&["dlq", "view", id]).exits(0).stdout.contains("bad"));
    let would = node.ask(&["dlq", "retry", "--topic", "orders", "--dry-run"]).exits(0);
    assert_eq!(would.stdout, "1 dead letters would be retried\n");
    node.ask(&["dlq", "retry", "--topic", "orders"]).exits(0);
    let again =
        node.ask(&["consume", "orders", "--group", "g", "--wait", "0s", "--auto-ack", "--json"]).exits(0);
    assert_eq!(events(&again.stdout)[0]["payload"], "bad");
    node.ask(&["dlq", "view", id]).exits(3);
    stops(node);
}

#[test]
fn a_consumer_that_is_told_to_stop_finishes_what_it_has_and_leaves_nothing_pending() {
    let scene = Scene::new();
    let node = scene.start();
    for payload in ["a", "b", "c"] {
        publish(&node, payload);
    }
    let file = |name: &str| scene.path().join(name);
    let command = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.02; done",
        file("begun").display(),
        file("go").display()
    );
    let mut consume = tidings();
    consume
        .args(["consume", "orders", "--group", "g", "--batch", "1", "--exec", &command, "--url", &node.url]);
    let child = consume.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the first event is being handled", DEADLINE, || file("begun").exists().then_some(()));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    std::fs::write(file("go"), "").unwrap();
    let ended = ran(child.wait_with_output().unwrap()).exits(0);
    assert!(ended.stderr.contains("1 events, 1 acknowledged, 0 failed"), "{ended:?}");
    let group = node.ask(&["group", "ls", "orders", "--json"]).exits(0).json()["groups"][0].clone();
    assert_eq!((&group["pending"], &group["lag"]), (&json!(0), &json!(2)), "{group}");
    stops(node);
}

#[test]
fn a_consumer_that_waits_ends_at_once_when_it_is_told_to_stop() {
    let scene = Scene::new();
    let node = scene.start();
    let mut consume = tidings();
    consume.args(["consume", "orders", "--group", "g", "--auto-ack", "--url", &node.url]);
    let child = consume.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It waits for events once its group is there.
    until("it waits", DEADLINE, || {
        let groups = node.ask(&["group", "ls", "orders", "--json"]);
        (groups.code == 0 && groups.stdout.contains("\"g\"")).then_some(())
    });
    let begun = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = ran(child.wait_with_output().unwrap()).exits(0);
    assert!(ended.stderr.contains("0 events"), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "it waited for its answer");
    stops(node);
}

#[test]
fn what_is_only_printed_stays_pending_and_a_restart_forgets_nothing() {
    let scene = Scene::new();
    let node = scene.start();
    let id = publish(&node, "kept");
    let consume = ["consume", "orders", "--group", "g", "--max", "1"];
    let printed = node.ask(&consume).exits(0);
    assert!(printed.stderr.contains("after 2 times are dead letters"), "{printed:?}");
    assert!(printed.stdout.starts_with(&id) && printed.stdout.contains("kept"), "{printed:?}");
    stops(node);
    let node = scene.start();
    let pending = node.ask(&["group", "pending", "orders", "g", "--json"]).exits(0).json();
    assert_eq!(
        (&pending["pending"][0]["id"], &pending["pending"][0]["consumer"]),
        (&json!(id), &json!("cli"))
    );
    let claim = ["group", "claim", "orders", "g", "--min-idle", "0s", "--json"];
    assert_eq!(node.ask(&claim).exits(0).json()["events"][0]["attempts"], 2);
    stops(node);
}

#[test]
fn a_killed_node_has_lost_nothing_that_it_had_answered() {
    let scene = Scene::new();
    let node = scene.start();
    let ids = ["a", "b", "c"].map(|payload| publish(&node, payload));
    node.ask(&["consume", "orders", "--group", "g", "--max", "1", "--auto-ack"]).exits(0);
    node.signal(Signal::KILL);
    assert_eq!(node.ends().0, -1);
    let node = scene.start();
    let held = events(&node.ask(&["stream", "export", "orders"]).exits(0).stdout);
    assert_eq!(
        held.iter().map(|event| &event["id"]).collect::<Vec<_>>(),
        ids.each_ref().map(|id| id.as_str())
    );
    assert_eq!(node.ask(&["group", "ls", "orders", "--json"]).exits(0).json()["groups"][0]["lag"], 2);
    stops(node);
}

#[test]
fn topics_are_listed_shown_viewed_and_trimmed() {
    let scene = Scene::new();
    let node = scene.start();
    for n in 0..3 {
        publish(&node, &format!("payload {n}"));
    }
    let listed = node.ask(&["stream", "ls"]).exits(0);
    assert!(listed.stdout.contains("orders") && listed.stdout.contains("changes"), "{listed:?}");
    assert!(listed.stderr.contains("embedded store of n1, sync"), "{listed:?}");
    let info = node.ask(&["stream", "info", "orders", "--json"]).exits(0).json();
    assert_eq!((&info["events"], &info["settings"]["max_deliveries"]), (&json!(3), &json!(2)));
    let viewed = node.ask(&["stream", "view", "orders", "--limit", "2"]).exits(0);
    let rows: Vec<&str> = viewed.stdout.lines().collect();
    assert!(rows[1].contains("payload 2") && rows[2].contains("payload 1") && rows.len() == 3, "{viewed:?}");
    assert!(viewed.stderr.contains("there is more: --after"), "{viewed:?}");
    let one = node.ask(&["stream", "view", "orders", "1", "--json"]).exits(0).json();
    assert_eq!(one["payload"], "payload 0");
    node.ask(&["stream", "view", "orders", "99"]).exits(3);
    node.ask(&["stream", "info", "none"]).exits(3);
    node.ask(&["stream", "publish", "none", "x"]).exits(3);

    let would = node.ask(&["stream", "trim", "--all", "--max-events", "1", "--dry-run"]).exits(0);
    assert!(would.stdout.contains("orders: 2 events would be removed, 0 kept for groups"), "{would:?}");
    let one =
        node.ask(&["stream", "trim", "--all", "--max-events", "1", "--dry-run", "--json"]).exits(0).json();
    assert_eq!(one["topics"][0]["topic"], "orders", "a list, though nothing is in the other topic");
    node.ask(&["stream", "trim"]).exits(2);
    node.ask(&["group", "add", "orders", "g"]).exits(0);
    let kept = node.ask(&["stream", "trim", "orders", "--max-events", "1", "--json"]).exits(0).json();
    assert_eq!((&kept["removed"], &kept["kept_for_groups"]), (&json!(0), &json!(2)));
    // What destroys is asked about, and nobody is there to be asked.
    for destroys in [
        &["stream", "purge", "orders"][..],
        &["group", "rm", "orders", "g"],
        &["group", "seek", "orders", "g", "latest"],
        &["dlq", "purge", "--all"],
    ] {
        let refused = node.ask(destroys).exits(2);
        assert!(refused.stderr.contains("--yes"), "{refused:?}");
    }
    let purged = node.ask(&["stream", "purge", "orders", "--force", "--yes", "--json"]).exits(0).json();
    assert_eq!(purged["removed"], 3);
    node.ask(&["dlq", "purge"]).exits(2);
    stops(node);
}

#[test]
fn groups_are_made_moved_and_removed() {
    let scene = Scene::new();
    let node = scene.start();
    let ids = ["a", "b"].map(|payload| publish(&node, payload));
    node.ask(&["group", "add", "orders", "g", "--start", "latest"]).exits(0);
    let would = node.ask(&["group", "seek", "orders", "g", &ids[1], "--dry-run", "--json"]).exits(0).json();
    assert_eq!(would["again"], 1);
    node.ask(&["group", "seek", "orders", "g", &ids[1], "--yes"]).exits(0);
    node.ask(&["group", "pause", "orders", "g"]).exits(0);
    let none = ["consume", "orders", "--group", "g", "--wait", "0s", "--auto-ack", "--json"];
    assert_eq!(node.ask(&none).exits(0).stdout, "", "a paused group takes nothing");
    node.ask(&["group", "resume", "orders", "g"]).exits(0);
    let taken = events(&node.ask(&none).exits(0).stdout);
    assert_eq!(taken.iter().map(|event| &event["id"]).collect::<Vec<_>>(), [&json!(ids[1])]);
    assert_eq!(node.ask(&["group", "ls", "orders", "--json"]).exits(0).json()["groups"][0]["lag"], 0);
    node.ask(&["group", "rm", "orders", "g", "--yes"]).exits(0);
    node.ask(&["group", "pause", "orders", "g"]).exits(3);
    stops(node);
}

#[test]
fn events_are_exported_imported_replayed_and_looked_at() {
    let scene = Scene::new();
    let node = scene.start();
    let bytes = [0, 159, 146, 150];
    given(&node, &["stream", "publish", "orders", "-"], &bytes).exits(0);
    publish(&node, "text");
    let file = scene.path().join("orders.ndjson");
    let out = file.to_str().unwrap();
    let exported = node.ask(&["stream", "export", "orders", "--out", out, "--json"]).exits(0).json();
    assert_eq!(exported["exported"], 2);
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(node.ask(&["stream", "export", "orders"]).exits(0).stdout, lines);
    let imported = given(&node, &["stream", "import", "orders", "-", "--json"], lines.as_bytes()).exits(0);
    assert_eq!(imported.json()["imported"], 2);
    let broken =
        given(&node, &["stream", "import", "orders", "-"], format!("{lines}\n\nnonsense\n").as_bytes());
    assert!(broken.exits(1).stderr.contains("line 5"));
    node.ask(&["stream", "import", "orders", "/nonexistent"]).exits(3);
    let replayed = node.ask(&["stream", "replay", "orders", "--to", "changes", "--json"]).exits(0).json();
    assert_eq!(replayed["replayed"], 6, "what was right before the broken line counts");
    let changes = events(&node.ask(&["stream", "export", "changes"]).exits(0).stdout);
    assert_eq!(
        (changes[0]["payload_base64"].as_str(), &changes[1]["payload"]),
        (Some("AJ+Slg=="), &json!("text"))
    );

    let verified = node.ask(&["stream", "verify"]).exits(0);
    assert!(verified.stdout.contains("12 events and 0 dead letters are sound"), "{verified:?}");
    let store = scene.store();
    let busy = run(&["stream", "verify", "--dir", &store]).exits(6);
    assert!(busy.stderr.contains("in use"), "{busy:?}");
    stops(node);
    assert_eq!(run(&["stream", "verify", "--dir", &store, "--json"]).exits(0).json()["events"], 12);
    let offline = run(&["stream", "export", "orders", "--dir", &store]).exits(0).stdout;
    assert!(offline.starts_with(&lines), "{offline}");
    run(&["stream", "export", "none", "--dir", &store]).exits(3);
    run(&["stream", "verify", "--dir", "/nonexistent"]).exits(3);
}

#[test]
fn a_store_in_use_ends_a_second_node_with_6_and_a_wrong_configuration_with_78() {
    let scene = Scene::new();
    let node = scene.start();
    let second = scene.configure("n2");
    let refused = run(&["node", "--config", second.to_str().unwrap()]).exits(6);
    assert!(refused.stderr.contains("in use") && refused.stderr.contains("streams.path"), "{refused:?}");
    stops(node);
    let text = std::fs::read_to_string(&second).unwrap();
    std::fs::write(&second, text.replace("path =", "pth =")).unwrap();
    let refused = run(&["node", "--config", second.to_str().unwrap()]).exits(78);
    assert!(refused.stderr.contains("did you mean \"path\"?"), "{refused:?}");
}

#[test]
fn changes_of_a_cache_are_captured_into_its_topic() {
    let scene = Scene::new();
    let node = scene.start();
    node.ask(&["cache", "put", "users", "42", "Ann"]).exits(0);
    node.ask(&["cache", "del", "users", "42"]).exits(0);
    let consume = ["consume", "changes", "--group", "g", "--max", "2", "--auto-ack", "--json"];
    let taken = events(&node.ask(&consume).exits(0).stdout);
    let kinds: Vec<Json> = taken
        .iter()
        .map(|event| serde_json::from_str::<Json>(event["payload"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!((&kinds[0]["kind"], &kinds[1]["kind"]), (&json!("inserted"), &json!("deleted")));
    assert_eq!((&taken[0]["key"], &kinds[1]["target"]["key"]), (&json!("42"), &json!("42")));
    stops(node);
}

#[test]
fn looking_at_a_store_that_no_node_has_open_changes_nothing_in_it() {
    const EVENTS: usize = 1_200;
    let scene = Scene::new();
    let file = scene.path().join("n1.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let more = text.replace("name = \"orders\"", "name = \"orders\"\nretention.max_events = 5000");
    assert_ne!(more, text);
    std::fs::write(&file, more).unwrap();
    let node = scene.start();
    let lines: String = (0..EVENTS).map(|n| format!("{{\"payload\":\"{n}\"}}\n")).collect();
    given(&node, &["stream", "import", "orders", "-"], lines.as_bytes()).exits(0);
    stops(node);
    let store = scene.store();
    for _ in 0..2 {
        let verified = run(&["stream", "verify", "--dir", &store, "--json"]).exits(0).json();
        assert_eq!(verified["events"], EVENTS);
        let exported = run(&["stream", "export", "orders", "--dir", &store]).exits(0);
        assert_eq!(exported.stdout.lines().count(), EVENTS);
    }

    // A directory that is none is left as it is.
    let wrong = scene.path().join("wrong");
    std::fs::create_dir(&wrong).unwrap();
    for verb in [&["verify"][..], &["export", "orders"]] {
        let arguments = [&["stream"], verb, &["--dir", wrong.to_str().unwrap()]].concat();
        let refused = run(&arguments).exits(3);
        assert!(refused.stderr.contains("there is no store in"), "{refused:?}");
    }
    assert_eq!(std::fs::read_dir(&wrong).unwrap().count(), 0);
}
