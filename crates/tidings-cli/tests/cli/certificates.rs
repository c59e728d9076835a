//! `certs` and `init`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{run, run_in};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn keys_are_for_their_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(0);
    run_in(directory.path(), &["certs", "issue", "--node", "n1", "--san", "10.0.0.7", "--san", "n1.example"])
        .exits(0);
    let certs = directory.path().join("certs");
    for (name, expected) in [("ca.pem", 0o644), ("ca.key", 0o600), ("n1.pem", 0o644), ("n1.key", 0o600)] {
        assert_eq!(mode(&certs.join(name)) & !0o022, expected & !0o022, "{name}");
    }
    let ran = run_in(&certs, &["certs", "inspect", "n1.pem", "--json"]).exits(0);
    let info = ran.json();
    assert_eq!((&info["node"], &info["cluster"]), (&"n1".into(), &"shop".into()));
    assert_eq!((&info["is_ca"], &info["valid"]), (&false.into(), &true.into()));
    let names = info["sans"].to_string();
    for name in ["10.0.0.7", "n1.example", "spiffe://shop/node/n1"] {
        assert!(names.contains(name), "{name} is not in {names}");
    }
}

#[test]
fn nothing_is_overwritten_unless_forced() {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(0);
    let before = std::fs::read(certs.join("ca.key")).unwrap();
    let ran = run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(6);
    assert!(ran.stderr.contains("--force"), "{ran:?}");
    assert_eq!(std::fs::read(certs.join("ca.key")).unwrap(), before);
    run_in(directory.path(), &["certs", "init", "--cluster", "shop", "--force"]).exits(0);
    assert_ne!(std::fs::read(certs.join("ca.key")).unwrap(), before);
    assert_eq!(mode(&certs.join("ca.key")), 0o600);
    let names: Vec<String> = names_in(&certs);
    assert_eq!(names.len(), 4, "the old authority is kept beside the new one: {names:?}");
    let old = names.iter().find(|name| name.starts_with("ca.key.old")).unwrap();
    assert_eq!(std::fs::read(certs.join(old)).unwrap(), before);
    assert_eq!(mode(&certs.join(old)), 0o600);
}

#[test]
fn a_second_node_is_made_with_the_authority_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let init =
        |arguments: &[&str]| run_in(directory.path(), &[&["init", "--out", "first"], arguments].concat());
    let certs = directory.path().join("first/certs");
    init(&["--cluster", "shop", "--node", "n1"]).exits(0);
    let authority = || ["ca.pem", "ca.key"].map(|name| std::fs::read(certs.join(name)).unwrap());
    let before = authority();
    init(&["--cluster", "shop", "--node", "n2"]).exits(0);
    init(&["--node", "n3"]).exits(0);
    init(&["--cluster", "shop", "--node", "n2", "--force"]).exits(0);
    assert_eq!(authority(), before, "nodes in service trust this one");
    for node in ["n1", "n2", "n3"] {
        run_in(directory.path(), &["config", "check", &format!("first/{node}.toml")]).exits(0);
    }
    let ran = init(&["--cluster", "other", "--node", "n4", "--force"]).exits(6);
    assert!(ran.stderr.contains("shop") && ran.stderr.contains("other"), "{ran:?}");
    std::fs::remove_file(certs.join("ca.key")).unwrap();
    init(&["--cluster", "shop", "--node", "n5", "--force"]).exits(3);
    assert_eq!(std::fs::read(certs.join("ca.pem")).unwrap(), before[0], "half an authority is not replaced");
}

#[test]
fn no_node_takes_the_authoritys_files() {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(0);
    let key = std::fs::read(directory.path().join("certs/ca.key")).unwrap();
    for force in [&[][..], &["--force"]] {
        for node in ["ca", "CA"] {
            let issue = [&["certs", "issue", "--node", node][..], force].concat();
            let ran = run_in(directory.path(), &issue).exits(2);
            assert!(ran.stderr.contains("authority"), "{ran:?}");
            run_in(directory.path(), &[&["init", "--node", node, "--out", "x"][..], force].concat()).exits(2);
        }
    }
    assert_eq!(std::fs::read(directory.path().join("certs/ca.key")).unwrap(), key);
}

#[test]
fn validities_without_sense_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(0);
    for validity in ["0s", "59s", "100000years"] {
        run_in(directory.path(), &["certs", "issue", "--node", "n1", "--validity", validity]).exits(2);
    }
    assert_eq!(names_in(&directory.path().join("certs")), ["ca.key", "ca.pem"]);
}

#[test]
fn a_set_of_files_is_written_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    // A directory cannot be replaced by a file: the second of the two cannot be put in place.
    std::fs::create_dir_all(certs.join("n1.key")).unwrap();
    run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(0);
    run_in(directory.path(), &["certs", "issue", "--node", "n1"]).exits(6);
    assert_eq!(names_in(&certs), ["ca.key", "ca.pem", "n1.key"]);
}

#[test]
fn a_key_is_not_lost_to_a_certificate_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(0);
    let certs = directory.path().join("certs");
    std::fs::write(certs.join("n1.key"), "precious").unwrap();
    run_in(directory.path(), &["certs", "issue", "--node", "n1"]).exits(6);
    assert!(!certs.join("n1.pem").exists(), "nothing is written if one of the files is there");
    assert_eq!(std::fs::read_to_string(certs.join("n1.key")).unwrap(), "precious");
}

#[test]
fn missing_and_foreign_authorities_are_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let ran = run_in(directory.path(), &["certs", "issue", "--node", "n1"]).exits(3);
    assert!(ran.stderr.contains("certs/ca.pem") && ran.stderr.contains("certs init"), "{ran:?}");
    let certs = directory.path().join("certs");
    std::fs::create_dir(&certs).unwrap();
    for name in ["ca.pem", "ca.key"] {
        std::fs::write(certs.join(name), "not PEM").unwrap();
    }
    run_in(directory.path(), &["certs", "issue", "--node", "n1"]).exits(1);
    run_in(&certs, &["certs", "inspect", "ca.pem"]).exits(1);
    run(&["certs", "inspect", "/nonexistent.pem"]).exits(3);
}

#[test]
fn init_writes_a_node_that_config_check_accepts() {
    let directory = tempfile::tempdir().unwrap();
    let ran =
        run_in(directory.path(), &["init", "--cluster", "shop", "--node", "n1", "--out", "first"]).exits(0);
    assert_eq!(ran.stdout.lines().count(), 5, "{ran:?}");
    let ran = run_in(directory.path(), &["config", "check", "first/n1.toml", "--json"]).exits(0);
    assert_eq!(ran.json()["findings"], serde_json::json!([]));
    let again = ["init", "--cluster", "shop", "--node", "n1", "--out", "first"];
    let ran = run_in(directory.path(), &again).exits(6);
    assert!(ran.stderr.contains("n1.pem") && ran.stderr.contains("--force"), "{ran:?}");
}

#[test]
fn certificates_are_checked_by_the_time_they_have_left() {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), &["certs", "init", "--cluster", "shop"]).exits(0);
    run_in(directory.path(), &["certs", "issue", "--node", "n1", "--validity", "10d"]).exits(0);
    run_in(directory.path(), &["check", "certs", "certs"]).exits(1);
    run_in(directory.path(), &["check", "certs", "certs", "--warning", "9d"]).exits(0);
    run_in(directory.path(), &["check", "certs", "certs", "--critical", "11d"]).exits(2);
    run_in(directory.path(), &["check", "certs", "nowhere"]).exits(3);
    run_in(directory.path(), &["check", "certs", "certs/ca.key"]).exits(3);
}
