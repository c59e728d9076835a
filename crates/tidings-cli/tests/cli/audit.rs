//! `audit` against an API with answers made up by the test.

use serde_json::{Value as Json, json};

use crate::support::{Answer, Api};

fn report(inconsistent: u64, gap: Option<&str>) -> Json {
    let found =
        json!({ "cache": "users", "key": "a\u{1b}b", "peer": "n2", "age_ms": 1_500.0, "peer_age_ms": 700.0 });
    let found = if inconsistent > 0 { vec![found] } else { Vec::new() };
    json!({
        "began_ms": 7,
        "duration_ms": 3_200.0,
        "complete": gap.is_none(),
        "counts": { "entries": 100, "compared": 90, "held": 80, "inconsistent": inconsistent, "lag": 2 },
        "peers": [{ "node": "n2", "compared": 90, "gap": gap }],
        "inconsistencies": found,
    })
}

fn api(report: &Json) -> Api {
    let coherence = json!({ "audit": { "progress": null, "requested": report } });
    Api::new(&[
        ("POST /v1/coherence/audit", Answer::new(202, r#"{"former_began_ms":6}"#)),
        ("GET /v1/coherence", Answer::new(200, &coherence.to_string())),
    ])
}

#[test]
fn an_audit_ends_with_what_it_found() {
    let ran = api(&report(0, None)).run(&["audit"]).exits(0);
    assert!(ran.stdout.contains("100 entries looked at in 3.2 s, 80 times a peer held one too"), "{ran:?}");
    assert!(ran.stdout.contains("0 inconsistent, 2 differed while a change was under way"), "{ran:?}");
    let ran = api(&report(1, None)).run(&["audit"]).exits(1);
    assert!(
        ran.stdout.contains("users") && ran.stdout.contains(r"a\u{1b}b"),
        "no escape reaches the terminal: {ran:?}"
    );
    assert!(ran.stderr.contains("1 entries have another value on another node"), "{ran:?}");
    let ran = api(&report(0, Some("no link to that node"))).run(&["audit"]).exits(7);
    assert!(ran.stdout.contains("n2: asked about 90; not all of them: no link to that node"), "{ran:?}");
}

#[test]
fn an_audit_that_compared_nothing_says_so_and_does_not_end_well() {
    let mut alone = report(0, None);
    alone["complete"] = json!(false);
    alone["of"] = json!(11);
    alone["counts"] = json!({ "entries": 0, "compared": 0, "held": 0, "inconsistent": 0, "lag": 0 });
    alone["peers"] = json!([]);
    let ran = api(&alone).run(&["audit"]).exits(7);
    assert!(ran.stdout.contains("0 of 11 entries looked at"), "{ran:?}");
    assert!(ran.stderr.contains("nothing was compared"), "{ran:?}");
}

#[test]
fn json_is_the_report_alone() {
    let report = report(1, None);
    let ran = api(&report).run(&["audit", "--json"]).exits(1);
    assert_eq!(ran.json(), report);
}

#[test]
fn a_report_of_an_earlier_audit_is_not_taken_for_this_one() {
    let earlier = json!({ "audit": { "progress": null, "requested": report(0, None) } });
    let api = Api::new(&[
        ("POST /v1/coherence/audit", Answer::new(202, r#"{"former_began_ms":7}"#)),
        ("GET /v1/coherence", Answer::new(200, &earlier.to_string())),
    ]);
    let mut waiting = crate::support::tidings();
    let mut child = waiting.arg("audit").env("TIDINGS_URL", &api.url).spawn().unwrap();
    crate::support::until("it looks again", crate::support::DEADLINE, || (api.got().len() > 3).then_some(()));
    assert_eq!(child.try_wait().unwrap(), None, "it still waits");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_audit_under_way_is_a_conflict() {
    let busy = Answer::problem(409, "audit_under_way");
    let ran = Api::new(&[("POST /v1/coherence/audit", busy)]).run(&["audit"]).exits(6);
    assert!(ran.stderr.contains("made up"), "{ran:?}");
}
