//! `certs` and `init`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{run, run_in};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
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
    assert_eq!(std::fs::read_dir(&certs).unwrap().count(), 2, "nothing is left behind");
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
    run_in(directory.path(), &["init", "--cluster", "shop", "--node", "n1", "--out", "first"]).exits(6);
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
