//! A node that wants TLS and tokens, and what its clients show and believe.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::Node;
use crate::support::{DEADLINE, Ran, run, run_in, until};

/// A directory with certificates of a node, tokens, and its configuration.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new(listen: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        run_in(path, &["certs", "init", "--cluster", "c", "--out", "."]).exits(0);
        run_in(path, &["certs", "issue", "--dir", ".", "--node", "n1", "--san", "127.0.0.1"]).exits(0);
        let text = format!(
            "[cluster]\nname = \"c\"\nnode_id = \"n1\"\nlisten = \"127.0.0.1:0\"\n\
             [tls]\nca = \"ca.pem\"\ncert = \"n1.pem\"\nkey = \"n1.key\"\n\
             [http]\nlisten = \"{listen}\"\ntoken_file = \"tokens\"\ntls_cert = \"n1.pem\"\ntls_key = \"n1.key\"\n\
             audit_file = \"audit.jsonl\"\n[[cache]]\nname = \"users\"\n[telemetry]\nlog = \"error\"\n"
        );
        std::fs::write(path.join("n1.toml"), text).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a token that the node knows, and the file for its holder.
    fn token(&self, role: &str, more: &[&str]) -> PathBuf {
        let made = run(&[&["token", "create", "--role", role, "--name", role, "--json"], more].concat());
        let made = made.exits(0).json();
        let tokens = self.path("tokens");
        let before = std::fs::read_to_string(&tokens).unwrap_or_default();
        secret(&tokens, &format!("{before}{}\n", made["line"].as_str().unwrap()));
        let file = self.path(role);
        secret(&file, made["token"].as_str().unwrap());
        file
    }

    fn config(&self) -> PathBuf {
        self.path("n1.toml")
    }
}

fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_token_is_printed_once_with_the_line_that_knows_it() {
    let ran = run(&["token", "create", "--role", "operator", "--name", "deploy"]).exits(0);
    let [token, line] = ran.stdout.lines().collect::<Vec<_>>()[..] else { panic!("{ran:?}") };
    assert!(token.starts_with("tidings_") && token.len() == 51, "{token}");
    assert!(line.starts_with("deploy operator sha256:") && !line.contains(token), "{line}");
    assert!(!ran.stderr.contains(token), "{ran:?}");
    let other = run(&["token", "create", "--role", "viewer", "--payloads", "--json"]).exits(0).json();
    assert_ne!(other["token"], token);
    assert!(other["line"].as_str().unwrap().contains(" viewer payloads sha256:"), "{other}");
    assert!(other["name"].as_str().unwrap().starts_with("viewer-"), "{other}");
    run(&["token", "create", "--role", "root"]).exits(2);
    run(&["token", "create"]).exits(2);
    run(&["token", "create", "--role", "admin", "--name", "no spaces"]).exits(2);
    run(&["token", "create", "--role", "admin", "--name", "loopback"]).exits(2);
}

#[test]
fn a_configuration_that_protects_too_little_starts_nothing() {
    let scene = Scene::new("0.0.0.0:0");
    let config = scene.config();
    let check = || run(&["config", "check", text(&config), "--json"]);
    let keys = |ran: Ran| -> Vec<String> {
        let findings = ran.json();
        let all = findings["findings"].as_array().unwrap_or_else(|| panic!("{findings}"));
        all.iter().map(|finding| finding["key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(check().exits(78)), ["http.token_file"]);
    run(&["node", "--config", text(&config)]).exits(78);
    scene.token("admin", &[]);
    check().exits(0);

    let tokens = scene.path("tokens");
    std::fs::set_permissions(&tokens, PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(keys(check().exits(78)), ["http.token_file"]);
    std::fs::set_permissions(&tokens, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(keys(check().exits(0)), ["http.token_file"]);
    std::fs::set_permissions(&tokens, PermissionsExt::from_mode(0o600)).unwrap();
    let whole = std::fs::read_to_string(&config).unwrap();
    for without in ["token_file = \"tokens\"\n", "tls_cert = \"n1.pem\"\n", "tls_key = \"n1.key\"\n"] {
        std::fs::write(&config, whole.replace(without, "")).unwrap();
        let found = keys(check().exits(78));
        assert!(found.contains(&"http.listen".to_owned()), "{without}: {found:?}");
    }
    std::fs::write(&config, whole.replace("tls_key = \"n1.key\"", "tls_key = \"ca.key\"")).unwrap();
    assert_eq!(keys(check().exits(78)), ["http.tls_cert"]);
    std::fs::write(&config, whole.replace("audit.jsonl", "none/audit.jsonl")).unwrap();
    assert_eq!(keys(check().exits(78)), ["http.audit_file"]);
    run(&["node", "--config", text(&config)]).exits(78);
}

#[test]
fn clients_of_a_protected_node_need_its_authority_and_a_token() {
    let scene = Scene::new("0.0.0.0:0");
    let (viewer, operator) = (scene.token("viewer", &[]), scene.token("operator", &["--payloads"]));
    let node = Node::start(&scene.config());
    let url = node.url.replace("0.0.0.0", "127.0.0.1");
    assert!(url.starts_with("https://"), "{url}");
    let ca = scene.path("ca.pem");
    let ask = |arguments: &[&str], more: &[&str]| run(&[arguments, &["--url", &url], more].concat());
    let with = |arguments: &[&str], token: &Path| {
        ask(arguments, &["--ca-file", text(&ca), "--token-file", text(token)])
    };

    let untrusted = ask(&["members"], &["--ca-file", text(&scene.path("n1.toml"))]);
    assert_eq!(untrusted.code, 78, "{untrusted:?}");
    let other = tempfile::tempdir().unwrap();
    run_in(other.path(), &["certs", "init", "--cluster", "c", "--out", "."]).exits(0);
    let untrusted = ask(&["members"], &["--ca-file", text(&other.path().join("ca.pem"))]).exits(5);
    assert!(untrusted.stderr.contains("--ca-file"), "{untrusted:?}");
    let stranger = ask(&["members"], &["--ca-file", text(&ca)]).exits(5);
    assert!(stranger.stderr.contains("--token-file"), "{stranger:?}");
    let seen = with(&["members", "--json"], &viewer).exits(0).json();
    assert_eq!(seen["node"], "n1");
    with(&["cache", "put", "users", "7", "Ann"], &viewer).exits(5);
    with(&["cache", "put", "users", "7", "Ann"], &operator).exits(0);
    assert_eq!(with(&["cache", "get", "users", "7"], &operator).exits(0).stdout, "Ann");
    with(&["cache", "get", "users", "7"], &viewer).exits(5);
    with(&["check", "node"], &viewer).exits(0);
    // Probes need no token.
    ask(&["check", "ready"], &["--ca-file", text(&ca)]).exits(0);

    let said = std::fs::read_to_string(scene.path("audit.jsonl")).unwrap();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines.iter().map(|line| (line["who"].as_str(), line["outcome"].as_str())).collect();
    assert_eq!(told, [(Some("viewer"), Some("refused")), (Some("operator"), Some("done"))]);

    // SIGHUP, without which it would look by itself.
    let fresh = scene.token("admin", &[]);
    node.signal(Signal::HUP);
    until("the new token counts", DEADLINE, || Some(()).filter(|()| with(&["members"], &fresh).code == 0));
    node.signal(Signal::TERM);
    assert_eq!(node.ends().0, 0);
}
