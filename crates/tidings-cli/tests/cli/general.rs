//! What holds for every verb.

use crate::support::{run, tidings};

#[test]
fn help_goes_to_stdout_and_names_every_verb_and_exit_code() {
    let ran = run(&["--help"]).exits(0);
    let verbs =
        ["demo", "node", "init", "certs", "config", "members", "status", "forget", "drain", "cache", "watch"];
    for word in
        verbs.into_iter().chain(["replay", "check", "completions", "78 bad configuration", "130 interrupted"])
    {
        assert!(ran.stdout.contains(word), "{word} is not in {}", ran.stdout);
    }
    assert_eq!(ran.stderr, "");
}

#[test]
fn help_of_every_verb_shows_units_and_defaults() {
    let ran = run(&["replay", "--help"]).exits(0);
    for text in ["[default: 64MiB]", "[default: 3s]", "[default: 0.05]", "time_s,key,size_bytes", "Examples:"]
    {
        assert!(ran.stdout.contains(text), "{text} is not in {}", ran.stdout);
    }
}

#[test]
fn a_command_line_without_sense_exits_2() {
    for arguments in [
        &["frobnicate"][..],
        &[],
        &["cache", "invalidate", "users"],
        &["cache", "invalidate", "users", "--all", "--key", "1"],
        &["replay"],
        &["replay", "--trace", "t", "--write-ratio", "2"],
        &["replay", "--trace", "t", "--max-staleness", "3"],
        &["replay", "--trace", "t", "--capacity", "64 mebi"],
        &["demo", "--nodes", "0"],
        &["forget", "no spaces"],
        &["members", "--url", "127.0.0.1:7480"],
        &["members", "--url", "ftp://127.0.0.1:7480"],
        &["cache", "get", "users", ".."],
    ] {
        let ran = run(arguments).exits(2);
        assert_eq!(ran.stdout, "", "{arguments:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]).exits(0);
        let document = run(&["completions", shell, "--json"]).exits(0).json();
        assert_eq!(document, serde_json::json!({ "shell": shell, "script": ran.stdout }));
        assert!(ran.stdout.contains("tidings") && ran.stdout.contains("invalidate"), "{shell}");
        assert_eq!(ran.stderr, "");
    }
}

#[test]
fn colours_are_used_only_where_wanted() {
    let coloured = |arguments: &[&str], no_color: bool| {
        let mut command = tidings();
        command.args(["config", "check", "/nonexistent"]).args(arguments).env_remove("NO_COLOR");
        if no_color {
            command.env("NO_COLOR", "1");
        }
        command.output().unwrap().stderr.contains(&0x1b)
    };
    assert!(!coloured(&[], false), "stderr is no terminal");
    assert!(coloured(&["--color", "always"], false));
    assert!(coloured(&["--color", "always"], true), "what was asked for wins");
    assert!(!coloured(&["--color", "never"], false));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    use std::process::Stdio;
    let mut child = tidings()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
