//! The verbs that speak to a node, and what its answers mean for the exit code.

use std::net::TcpListener;

use serde_json::{Value as Json, json};

use crate::support::{Answer, Api, run};

const CLUSTER: &str = r#"{"cluster":"shop","node":"n1","incarnation":7,"ready":true,"members":[
    {"node":"n1","self":true,"state":"live","synced":true},
    {"node":"n2","self":false,"incarnation":9,"state":"live","address":"127.0.0.1:7402","rtt_ms":0.2,"synced":true,
     "lag_events":0,"confirmed_ms":120.0}]}"#;

#[test]
fn members_are_listed_for_people_and_programs() {
    let api = Api::new(&[("GET /v1/cluster", Answer::new(200, CLUSTER))]);
    let ran = api.run(&["members"]).exits(0);
    assert!(ran.stdout.contains("n1 (self)") && ran.stdout.contains("127.0.0.1:7402"), "{ran:?}");
    assert_eq!(api.run(&["members", "--json"]).exits(0).json()["members"][1]["node"], "n2");
}

#[test]
fn members_of_a_large_cluster_are_listed_with_whom_they_are_heard_by_way_of() {
    let large =
        CLUSTER.replace("\"rtt_ms\":0.2", "\"via\":\"n3\"").replace("\"ready\"", "\"relays\":true,\"ready\"");
    let api = Api::new(&[
        ("GET /v1/cluster", Answer::new(200, &large)),
        ("GET /readyz", Answer::new(200, "ready")),
        ("GET /v1/caches", Answer::new(200, "[]")),
        ("GET /v1/coherence", Answer::problem(404, "not_found")),
    ]);
    let listed = api.run(&["members"]).exits(0).stdout;
    assert!(listed.lines().any(|line| line.starts_with("n2") && line.contains(" n3 ")), "{listed}");
    let status = api.run(&["status"]).exits(0).stdout;
    assert!(status.contains("relays   stand for 1 of the others"), "{status}");
}

#[test]
fn status_says_why_a_node_is_not_ready() {
    let api = Api::new(&[
        ("GET /v1/cluster", Answer::new(200, CLUSTER)),
        (
            "GET /readyz",
            Answer::new(503, r#"{"code":"not_ready","detail":"no member has been heard","reasons":[]}"#),
        ),
        ("GET /v1/caches", Answer::new(200, r#"[{"name":"users"}]"#)),
    ]);
    let ran = api.run(&["status"]).exits(0);
    assert!(
        ran.stdout.contains("not ready: no member has been heard") && ran.stdout.contains("users"),
        "{ran:?}"
    );
}

#[test]
fn status_says_how_coherent_writes_were_and_whose_clock_is_off() {
    let cluster = CLUSTER.replace(r#""lag_events":0"#, r#""clock_off":true,"clock_ahead_ms":600000.0"#);
    let coherence = r#"{"writes":{"within":[{"ms":1,"last_minute":0.98765,"since_start":0.5},
        {"ms":10,"last_minute":1.0,"since_start":1.0},{"ms":100,"last_minute":null,"since_start":null}],"pending":3}}"#;
    let api = Api::new(&[
        ("GET /v1/cluster", Answer::new(200, &cluster)),
        ("GET /readyz", Answer::new(200, r#"{"status":"ready"}"#)),
        ("GET /v1/caches", Answer::new(200, "[]")),
        ("GET /v1/coherence", Answer::new(200, coherence)),
    ]);
    let ran = api.run(&["status"]).exits(0);
    assert!(
        ran.stdout.contains("98.765 % within 1 ms, 100 % within 10 ms; 3 pending")
            && ran.stdout.contains("n2 is 600.0 s ahead of n1's"),
        "{ran:?}"
    );
    assert_eq!(api.run(&["status", "--json"]).exits(0).json()["coherence"]["writes"]["pending"], 3);
}

#[test]
fn status_says_why_not_every_hit_counts_and_whose_lanes_differ() {
    let cluster = CLUSTER.replace(r#""self":true"#, r#""lanes":4,"self":true"#);
    let cluster = cluster.replace(r#""lag_events":0"#, r#""lag_events":0,"lanes":16"#);
    let coherence = r#"{"writes":{"within":[],"pending":0},"doubts":[{"reason":"unheard","node":"n2","incarnation":7,
        "text":"n2 is not heard"}]}"#;
    let api = Api::new(&[
        ("GET /v1/cluster", Answer::new(200, &cluster)),
        ("GET /readyz", Answer::new(200, r#"{"status":"ready"}"#)),
        ("GET /v1/caches", Answer::new(200, "[]")),
        ("GET /v1/coherence", Answer::new(200, coherence)),
    ]);
    let ran = api.run(&["status"]).exits(0);
    assert!(ran.stdout.contains("doubt    n2 is not heard\n"), "{ran:?}");
    assert!(ran.stdout.contains("lanes    n2 has 16, n1 has 4: set coherence.lanes alike\n"), "{ran:?}");
    let document = api.run(&["status", "--json"]).exits(0).json();
    assert_eq!(document["coherence"]["doubts"][0]["reason"], "unheard");
}

#[test]
fn problems_become_exit_codes() {
    for (status, code, exit) in [
        (404, "unknown_cache", 3),
        (401, "unauthorized", 5),
        (403, "forbidden", 5),
        (421, "foreign_host", 5),
        (409, "conflict", 6),
        (412, "precondition", 6),
        (413, "too_large", 1),
        (500, "internal", 1),
        (503, "not_ready", 4),
    ] {
        let api = Api::new(&[("GET /v1/caches/users", Answer::problem(status, code))]);
        let ran = api.run(&["cache", "info", "users"]).exits(exit);
        assert!(ran.stderr.contains("made up") && ran.stderr.contains(code), "{ran:?}");
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn a_key_may_be_empty() {
    let entry = "/v1/caches/users/entries/";
    let api = Api::new(&[
        (&format!("GET {entry}"), Answer::new(200, "Ann")),
        (&format!("PUT {entry}"), Answer::new(204, "")),
        (&format!("DELETE {entry}"), Answer::new(204, "")),
    ]);
    assert_eq!(api.run(&["cache", "get", "users", ""]).exits(0).stdout, "Ann");
    let put = api.run(&["cache", "put", "users", "", "Ann"]).exits(0);
    assert!(put.stderr.contains("the empty key is in users"), "{put:?}");
    api.run(&["cache", "del", "users", ""]).exits(0);
    let lines: Vec<_> = api.got().into_iter().map(|got| got.line).collect();
    assert_eq!(lines, ["GET", "PUT", "DELETE"].map(|method| format!("{method} {entry}")));
    api.run(&["cache", "get", "", "k"]).exits(2);
}

#[test]
fn a_node_that_is_not_there_exits_4() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let ran = run(&["members", "--url", &url]).exits(4);
    assert!(ran.stderr.contains(&url) && ran.stderr.contains("TIDINGS_URL"), "{ran:?}");
}

#[test]
fn something_else_that_answers_is_not_taken_for_a_node() {
    let api = Api::new(&[("GET /v1/cluster", Answer::new(200, "<html>"))]);
    api.run(&["members"]).exits(1);
}

#[test]
fn values_come_as_they_are_and_misses_exit_3() {
    let api = Api::new(&[
        ("GET /v1/caches/users/entries/42", Answer::new(200, "Ann\n\n").header("tidings-age", "3")),
        (
            "GET /v1/caches/users/entries/a%2Fb",
            Answer::problem(404, "not_cached").header("tidings-fill-token", "t"),
        ),
    ]);
    assert_eq!(api.run(&["cache", "get", "users", "42"]).exits(0).stdout, "Ann\n\n");
    let ran = api.run(&["cache", "get", "users", "42", "--json"]).exits(0);
    assert_eq!(
        ran.json(),
        json!({"cache":"users","key":"42","value":"Ann\n\n","bytes":5,"age":"3","stale":false})
    );
    let ran = api.run(&["cache", "get", "users", "a/b"]).exits(3);
    assert_eq!(ran.stdout, "");
}

#[test]
fn a_change_that_some_peers_have_not_applied_exits_7() {
    let receipt = r#"{"applied":["n2"],"missing":[{"node":"n3","reason":"lagging"}],"expired":["n4"]}"#;
    let api = Api::new(&[("PUT /v1/caches/users/entries/42", Answer::new(207, receipt))]);
    let arguments =
        ["cache", "put", "users", "42", "Ann", "--ttl", "90s", "--meta", "cause=import", "--acked", "50ms"];
    let ran = api.run(&arguments).exits(7);
    assert!(ran.stdout.contains("n3") && ran.stdout.contains("lagging"), "{ran:?}");
    assert!(ran.stdout.contains("n4"), "who expired is named too: {ran:?}");
    let got = &api.got()[0];
    assert_eq!(got.line, "PUT /v1/caches/users/entries/42?ttl=1m30s&acked=50ms");
    assert_eq!((got.headers["tidings-meta-cause"].as_str(), got.body.as_str()), ("import", "Ann"));
}

#[test]
fn every_change_can_be_waited_for_and_says_who_has_applied_it() {
    let receipt = r#"{"applied":["n2","n3"],"missing":[],"expired":[]}"#;
    let partial = r#"{"applied":[],"missing":[{"node":"n2","reason":"isolated"}],"expired":[]}"#;
    for (answer, exit) in [(Answer::new(200, receipt), 0), (Answer::new(207, partial), 7)] {
        let api = Api::new(&[
            ("PUT /v1/caches/users/entries/42", answer.clone()),
            ("DELETE /v1/caches/users/entries/42", answer.clone()),
            ("POST /v1/caches/users/invalidate", answer.clone()),
        ]);
        for arguments in [
            &["put", "users", "42", "Ann"][..],
            &["del", "users", "42"],
            &["invalidate", "users", "--all"],
            &["invalidate", "users", "--tag", "red", "--tag", "round"],
            &["invalidate", "users", "--prefix", "user:"],
        ] {
            let ran = api.run(&[&["cache"], arguments, &["--acked", "50ms", "--json"]].concat()).exits(exit);
            let expected: serde_json::Value =
                serde_json::from_str(if exit == 0 { receipt } else { partial }).unwrap();
            assert_eq!(ran.json(), expected);
            assert!(api.got().pop().unwrap().line.ends_with("?acked=50ms"));
        }
    }
}

#[test]
fn tags_of_what_is_put_may_be_repeated_or_separated_by_commas() {
    let api = Api::new(&[("PUT /v1/caches/users/entries/42", Answer::new(204, ""))]);
    for arguments in [&["--tag", "red", "--tag", "round"][..], &["--tags", "red,round"]] {
        api.run(&[&["cache", "put", "users", "42", "Ann"], arguments].concat()).exits(0);
        let line = api.got().pop().unwrap().line;
        assert_eq!(line, "PUT /v1/caches/users/entries/42?tags=red%2Cround");
    }
}

#[test]
fn exactly_what_is_named_is_invalidated() {
    let api = Api::new(&[("POST /v1/caches/users/invalidate", Answer::new(200, "{}"))]);
    for (arguments, expected) in [
        (&["--key", "1", "--key", "2"][..], json!({"keys":["1","2"]})),
        (&["--tag", "a"], json!({"tags":["a"]})),
        (&["--prefix", ""], json!({"prefix":""})),
        (&["--all"], json!({"all":true})),
    ] {
        api.run(&[&["cache", "invalidate", "users"], arguments].concat()).exits(0);
        let body = api.got().pop().unwrap().body;
        assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap(), expected);
    }
}

#[test]
fn watch_ends_at_its_limit_and_tells_what_was_missed() {
    let events = "event: inserted\ndata: {\"kind\":\"inserted\",\"target\":{\"key\":\"1\"}}\n\n\
        event: lagged\ndata: {\"missed\":3}\n\nevent: deleted\ndata: {\"kind\":\"deleted\"}\n\n\
        event: deleted\ndata: {\"kind\":\"deleted\"}\n\n";
    let api = Api::new(&[("GET /v1/caches/users/events", Answer::new(200, events))]);
    let ran = api.run(&[
        "watch",
        "users",
        "--kinds",
        "inserted,deleted",
        "--scope",
        "remote",
        "--limit",
        "2",
        "--json",
    ]);
    let ran = ran.exits(0);
    let kinds: Vec<serde_json::Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].clone())
        .collect();
    assert_eq!(kinds, ["inserted", "lagged", "deleted"]);
    assert_eq!(api.got()[0].line, "GET /v1/caches/users/events?kinds=inserted%2Cdeleted&scope=remote");
    let ran = api.run(&["watch", "users", "--limit", "9"]).exits(4);
    assert!(ran.stderr.contains("3 events were missed"), "{ran:?}");
}

#[test]
fn tokens_are_sent_and_unusable_ones_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "secret\n").unwrap();
    let api = Api::new(&[("GET /v1/cluster", Answer::new(200, CLUSTER))]);
    api.run(&["members", "--token-file", file.to_str().unwrap()]).exits(0);
    assert_eq!(api.got()[0].headers["authorization"], "Bearer secret");
    std::fs::write(&file, "\n").unwrap();
    api.run(&["members", "--token-file", file.to_str().unwrap()]).exits(78);
    api.run(&["members", "--token-file", "/nonexistent"]).exits(78);
}

#[test]
fn probes_exit_as_monitoring_systems_expect() {
    let lost = CLUSTER.replace("\"incarnation\":9,\"state\":\"live\"", "\"state\":\"lost\"");
    let behind = CLUSTER.replace("0.2,\"synced\":true", "0.2,\"synced\":false");
    let ready = ("GET /readyz", Answer::new(200, "ready"));
    for (cluster, node_exit, cluster_exit) in [(CLUSTER, 0, 0), (&behind, 1, 1), (&lost, 0, 2)] {
        let api = Api::new(&[ready.clone(), ("GET /v1/cluster", Answer::new(200, cluster))]);
        let ran = api.run(&["check", "node"]).exits(node_exit);
        assert_eq!(ran.stdout.lines().count(), 1);
        // Whoever is taken out of service for a member's sake takes all others along.
        api.run(&["check", "ready"]).exits(0);
        api.run(&["check", "cluster"]).exits(cluster_exit);
    }
    let api = Api::new(&[("GET /readyz", Answer::new(503, "draining"))]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for verb in ["node", "ready"] {
        let ran = api.run(&["check", verb, "--json"]).exits(2);
        assert_eq!(ran.json()["health"], "critical");
        run(&["check", verb, "--url", &format!("http://{free}")]).exits(2);
    }
    run(&["check", "cluster", "--url", &format!("http://{free}")]).exits(3);
}

#[test]
fn watch_says_why_there_are_no_events() {
    for (status, code, exit) in
        [(404, "unknown_cache", 3), (429, "overloaded", 1), (503, "not_ready", 4), (400, "invalid_query", 1)]
    {
        let api = Api::new(&[("GET /v1/caches/users/events", Answer::problem(status, code))]);
        let ran = api.run(&["watch", "users"]).exits(exit);
        assert!(ran.stderr.contains(code) && ran.stderr.contains("made up"), "{ran:?}");
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn nothing_that_a_node_says_controls_the_terminal() {
    let event = "event: deleted\ndata: {\"kind\":\"deleted\",\"target\":{\"key\":\"\\u001b[2J\\nFAKE\"}}\n\n";
    let cluster = CLUSTER.replace("\"rtt_ms\"", "\"version\":\"\\u001b[31m0\",\"rtt_ms\"");
    let cache = "{\"name\":\"users\",\"mode\":\"\\u001b]0;x\\u0007\"}";
    let api = Api::new(&[
        ("GET /v1/caches/users/events", Answer::new(200, event)),
        ("GET /v1/cluster", Answer::new(200, &cluster)),
        ("GET /v1/caches/users", Answer::new(200, cache)),
        ("GET /v1/caches", Answer::new(200, &format!("[{cache}]"))),
        ("GET /v1/caches/x", Answer::new(404, "{\"code\":\"unknown_cache\",\"detail\":\"\\u001b[2J\"}")),
    ]);
    let ran = api.run(&["watch", "users", "--limit", "1"]).exits(0);
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    assert!(ran.stdout.contains("\\u{1b}[2J\\nFAKE"), "{ran:?}");
    for arguments in
        [&["members"][..], &["cache", "info", "users"], &["cache", "ls"], &["cache", "info", "x"]]
    {
        let ran = api.run(arguments);
        assert!(!ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'), "{ran:?}");
        assert!(ran.stdout.contains("\\u{1b}") || ran.stderr.contains("\\u{1b}"), "{ran:?}");
    }
}

#[test]
fn a_success_of_something_else_is_not_taken_for_a_nodes() {
    let api = Api::new(&[("POST /v1/drain", Answer::new(200, "<html>"))]);
    let ran = api.run(&["drain"]).exits(1);
    assert!(ran.stderr.contains("makes no sense"), "{ran:?}");
}

#[test]
fn a_probe_that_is_called_wrongly_is_unknown_and_not_critical() {
    run(&["check", "nothing"]).exits(3);
    run(&["check", "certs", "--warning", "soon", "x"]).exits(3);
    run(&["--json", "check"]).exits(3);
    run(&["check", "--help"]).exits(0);
    run(&["members", "check", "nothing"]).exits(2);
}

#[test]
fn an_empty_url_variable_is_none() {
    let ran = crate::support::ran(
        crate::support::tidings().arg("members").env("TIDINGS_URL", "").output().unwrap(),
    );
    assert!(ran.code == 4 || ran.code == 0, "{ran:?}");
}

#[test]
fn a_token_in_clear_text_to_another_machine_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "secret\n").unwrap();
    let file = file.to_str().unwrap();
    let api = Api::new(&[("GET /v1/cluster", Answer::new(200, CLUSTER))]);
    assert_eq!(api.run(&["members", "--token-file", file]).exits(0).stderr, "");
    let ran = run(&["members", "--token-file", file, "--url", "http://nowhere.invalid:1"]).exits(4);
    assert!(ran.stderr.contains("in clear text"), "{ran:?}");
}

#[test]
fn where_a_key_is_held_is_a_row_for_each_node() {
    let node = |name: &str, holds: Json, reason: Json| {
        json!({ "node": name, "self": name == "n1", "holds": holds, "age_ms": null, "digest": null,
            "applied_ms": null, "reason": reason, "detail": reason })
    };
    let mut held = node("n1", json!(true), Json::Null);
    held["age_ms"] = json!(1_500.0);
    held["applied_ms"] = json!(20.5);
    held["digest"] = json!("00ff");
    let all = json!({ "cache": "users", "nodes": [held.clone(), node("n2", json!(false), Json::Null)] });
    let path = "GET /v1/caches/users/entries/a%2Fb/where";
    let api = Api::new(&[(path, Answer::new(200, &all.to_string()))]);
    let ran = api.run(&["cache", "where", "users", "a/b", "--wait", "500ms"]).exits(0);
    assert_eq!(api.got()[0].line, format!("{path}?wait=500ms"));
    let lines: Vec<Vec<&str>> =
        ran.stdout.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [vec!["n1", "yes", "1.500s", "00ff", "0.021s", "ago"], vec!["n2", "no", "-", "-", "-"]]
    );
    assert_eq!(api.run(&["cache", "where", "users", "a/b", "--json"]).exits(0).json(), all);

    let some = json!({ "cache": "users", "nodes": [held, node("n2", Json::Null, json!("late"))] });
    let ran = Api::new(&[(path, Answer::new(207, &some.to_string()))])
        .run(&["cache", "where", "users", "a/b"])
        .exits(7);
    assert!(ran.stdout.contains("unknown: late") && ran.stderr.contains("--wait"), "{ran:?}");
}
