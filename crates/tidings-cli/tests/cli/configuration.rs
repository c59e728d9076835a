//! `config` and how configuration is judged.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::support::{Ran, ran, run, tidings};

const SOUND: &str = "[cluster]\nname = \"c\"\nnode_id = \"n1\"\n[tls]\ndevelopment = true\n";

fn check(text: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    on(text, &["config", "check", "-"], arguments, variables)
}

fn on(text: &str, verb: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = tidings();
    command.args(verb).args(arguments).envs(variables.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    ran(child.wait_with_output().unwrap())
}

#[test]
fn the_default_file_is_accepted() {
    let file = run(&["config", "default"]).exits(0).stdout;
    let ran = check(&file, &["--json"], &[]).exits(0);
    assert_eq!(ran.json()["findings"], serde_json::json!([]));
    assert!(file.contains("listen = \"127.0.0.1:7481\""), "{file}");
}

#[test]
fn unknown_keys_are_errors_with_a_suggestion_and_a_line() {
    let ran = check(&SOUND.replace("node_id", "node_idd"), &[], &[]).exits(78);
    assert!(
        ran.stderr.contains("cluster.node_idd (line 3): unknown key; did you mean \"node_id\"?"),
        "{ran:?}"
    );
    assert_eq!(ran.stdout, "");
}

#[test]
fn passwords_of_urls_are_never_shown() {
    const URL: &str = "redis://user:secret@redis.shop:6379";
    let text = format!("{SOUND}[streams]\nurl = \"{URL}\"\n");
    let lists = format!("{SOUND}[cluster.seeds]\nurl = \"{URL}\"\n");
    let misplaced = text.replace("url =", "strict =");
    let variable = [("TIDINGS_STREAMS__URL", URL), ("TIDINGS_STREAMS__STRICT", URL)];
    for (text, variables) in [
        (&text, &[][..]),
        (&lists, &[]),
        (&misplaced, &[]),
        (&SOUND.to_owned(), &variable[..1]),
        (&text, &variable),
    ] {
        for verb in ["show", "check"] {
            for arguments in [&[][..], &["--json"]] {
                let ran = on(text, &["config", verb, "-"], arguments, variables);
                assert!(!ran.stdout.contains("secret") && !ran.stderr.contains("secret"), "{ran:?}");
            }
        }
    }
    let shown = on(&text, &["config", "show", "-"], &[], &[]).exits(0);
    assert!(shown.stdout.contains("redis://user:***@redis.shop:6379"), "{shown:?}");
}

#[test]
fn every_finding_is_reported_at_once_and_as_json_on_stdout() {
    let text =
        format!("{SOUND}[coherence]\nlanes = 5\nmax_stalenes = \"3s\"\n[http]\nlisten = \"0.0.0.0:80\"\n");
    let ran = check(&text, &["--json"], &[]).exits(78);
    let document = ran.json();
    let keys: Vec<&str> = document["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["coherence.lanes", "coherence.max_stalenes", "http.listen"]);
    assert_eq!(document["ok"], false);
    assert_eq!(document["findings"][0]["line"], 7);
    assert_eq!(ran.stderr, "");
}

#[test]
fn variables_override_the_file_and_show_as_origin() {
    let ran =
        on(SOUND, &["config", "show", "-"], &["--json"], &[("TIDINGS_COHERENCE__MAX_STALENESS", "200ms")]);
    let document = ran.exits(0).json();
    let entry = |key: &str| {
        let entries = document.as_array().unwrap();
        entries.iter().find(|entry| entry["key"] == key).unwrap_or_else(|| panic!("no {key}")).clone()
    };
    assert_eq!(entry("coherence.max_staleness")["value"], "200ms");
    assert_eq!(entry("coherence.max_staleness")["origin"]["environment"], "TIDINGS_COHERENCE__MAX_STALENESS");
    assert_eq!(entry("cluster.name")["origin"]["file"], 2);
    assert_eq!(entry("coherence.lanes")["origin"], "default");
}

#[test]
fn variables_that_override_nothing_are_errors() {
    let ran = check(SOUND, &[], &[("TIDINGS_COHERENCE__MAX_STALENES", "1s")]).exits(78);
    assert!(ran.stderr.contains("did you mean TIDINGS_COHERENCE__MAX_STALENESS?"), "{ran:?}");
}

#[test]
fn a_file_that_cannot_be_read_exits_78_and_says_what_to_do() {
    let ran = run(&["config", "check", "/nonexistent/n1.toml"]).exits(78);
    assert!(
        ran.stderr.contains("/nonexistent/n1.toml") && ran.stderr.contains("tidings config default"),
        "{ran:?}"
    );
}

#[test]
fn certificates_are_looked_for_beside_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let file = path.join("n1.toml");
    let text = SOUND.replace("development = true", "ca = \"ca.pem\"\ncert = \"n1.pem\"\nkey = \"n1.key\"");
    std::fs::write(&file, text).unwrap();
    let check = |file: &Path| run(&["config", "check", file.to_str().unwrap()]);
    let ran = check(&file).exits(78);
    assert!(ran.stderr.contains(path.join("n1.key").to_str().unwrap()), "{ran:?}");
    for name in ["ca.pem", "n1.pem", "n1.key"] {
        std::fs::write(path.join(name), "").unwrap();
    }
    check(&file).exits(78);
    run(&["certs", "init", "--cluster", "c", "--out", path.to_str().unwrap(), "--force"]).exits(0);
    run(&["certs", "issue", "--dir", path.to_str().unwrap(), "--node", "n1", "--force"]).exits(0);
    check(&file).exits(0);
    run(&["certs", "issue", "--dir", path.to_str().unwrap(), "--node", "n2"]).exits(0);
    std::fs::copy(path.join("n2.pem"), path.join("n1.pem")).unwrap();
    let ran = check(&file).exits(78);
    assert!(ran.stderr.contains("tls.key (line 7)"), "{ran:?}");
    std::fs::copy(path.join("n2.key"), path.join("n1.key")).unwrap();
    let ran = check(&file).exits(78);
    assert!(ran.stderr.contains("tls.cert (line 6)") && ran.stderr.contains("n2"), "{ran:?}");
}

#[test]
fn the_schema_is_json_and_refuses_unknown_keys() {
    let schema = run(&["config", "schema"]).exits(0).json();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["coherence"]["properties"]["lanes"]["maximum"], 64);
}

#[test]
fn a_cache_may_do_in_doubt_what_others_do_not() {
    let text = format!(
        "{SOUND}[coherence]\nwhen_isolated = \"serve\"\n[[cache]]\nname = \"a\"\n\
         [[cache]]\nname = \"b\"\nwhen_isolated = \"flush\"\n"
    );
    check(&text, &[], &[]).exits(0);
    let shown = on(&text, &["config", "show", "-"], &["--json"], &[]).exits(0).json();
    let value = |key: &str| {
        shown.as_array().unwrap().iter().find(|entry| entry["key"] == key).map(|entry| entry["value"].clone())
    };
    assert_eq!(value("coherence.when_isolated"), Some("serve".into()));
    assert_eq!(value("cache[1].when_isolated"), Some("flush".into()));
    let refused = check(&text.replace("flush", "ignore"), &[], &[]).exits(78);
    assert!(refused.stderr.contains("when_isolated") && refused.stderr.contains("bypass"), "{refused:?}");
}

#[test]
fn what_a_start_would_refuse_is_found_before() {
    let cache = |more: &str| format!("{SOUND}[[cache]]\nname = \"users\"\n{more}");
    check(&cache(""), &[], &[]).exits(0);
    for (more, part) in [
        ("time_to_live = \"200years\"\n", "time_to_live"),
        ("time_to_idle = \"101years\"\n", "time_to_idle"),
        ("replica_lag = \"2days\"\n", "replica lag"),
        ("ttl_jitter = 1\n", "ttl_jitter"),
        ("schema = 4294967296\n", "schema"),
        ("one_loader = \"all\"\n", "one_loader"),
        ("mode = \"local\"\none_loader = \"cluster\"\n", "one_loader"),
        ("lease_time = \"6m\"\n", "lease_time"),
        ("fail_safe = \"1h\"\n", "which a service opens that embeds a node"),
        ("eager_refresh = 0.9\n", "eager_refresh"),
        ("negative_ttl = \"10s\"\n", "negative_ttl"),
        ("[[cache]]\nmax_capacity = 1\n", "cache[1].name"),
        ("[[cache]]\nname = \"no spaces\"\n", "cache[1]"),
    ] {
        let ran = check(&cache(more), &[], &[]).exits(78);
        assert!(ran.stderr.contains(part), "{ran:?}");
    }
}
