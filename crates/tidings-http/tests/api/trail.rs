//! Who did what: in memory, over HTTP and in the file.

use std::os::unix::fs::PermissionsExt;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidings_http::Options;
use tidings_http::limits::TRAIL_MAX;
use tokio::task::JoinSet;

use crate::guarded::{Guarded, orders, under_way};
use crate::sessions::{login, session, with};
use crate::support::{Api, answer, until};

async fn entries(api: &Api, query: &str) -> Vec<Json> {
    let listed = api.get(&format!("/v1/audit{query}")).await.is(200).document();
    listed["entries"].as_array().unwrap().clone()
}

#[tokio::test]
async fn whatever_somebody_does_or_tries_is_noted_with_its_outcome_and_no_payload() {
    let guarded = Guarded::start().await;
    let (operator, admin) = (guarded.client("operator"), guarded.client("admin+"));
    operator.open("c", &json!({})).await;
    let put = operator
        .entry(Method::PUT, "c", "secret/key")
        .header("x-request-id", "my-request")
        .body("payload-of-it");
    answer(put).await.is(204);
    operator.json(Method::POST, "/v1/caches/c/invalidate", &json!({ "prefix": "a\u{202e}b" })).await.is(200);
    operator.send(Method::DELETE, "/v1/caches/c").await.problem(403, "forbidden");
    operator
        .json(Method::POST, "/v1/cluster/forget", &json!({ "node": "n9" }))
        .await
        .problem(403, "forbidden");
    admin
        .json(Method::POST, "/v1/cluster/forget", &json!({ "node": "n9" }))
        .await
        .problem(404, "unknown_node");
    // Neither what strangers try nor what only looks.
    guarded.stranger.send(Method::POST, "/v1/drain").await.problem(401, "unauthenticated");
    admin.get("/v1/cluster").await.is(200);

    let all = entries(&admin, "?order=asc").await;
    let told: Vec<_> = all
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            (text("who"), text("action"), text("target"), text("outcome"), text("code"))
        })
        .collect();
    let entry = |who: &str, action: &str, target: &str, outcome: &str, code: &str| {
        (who.to_owned(), action.to_owned(), target.to_owned(), outcome.to_owned(), code.to_owned())
    };
    assert_eq!(
        told,
        [
            entry("operator", "PUT /v1/caches/{cache}", "/v1/caches/c", "done", ""),
            entry(
                "operator",
                "PUT /v1/caches/{cache}/entries/{key}",
                "/v1/caches/c/entries/secret%2Fkey",
                "done",
                ""
            ),
            entry("operator", "POST /v1/caches/{cache}/invalidate", "/v1/caches/c/invalidate", "done", ""),
            entry("operator", "DELETE /v1/caches/{cache}", "/v1/caches/c", "refused", "forbidden"),
            entry("operator", "POST /v1/cluster/forget", "/v1/cluster/forget", "refused", "forbidden"),
            entry(
                "admin.payloads",
                "POST /v1/cluster/forget",
                "/v1/cluster/forget",
                "failed",
                "unknown_node"
            ),
        ]
    );
    assert_eq!((&all[1]["request_id"], &all[1]["status"]), (&json!("my-request"), &json!(204)));
    assert_eq!((&all[1]["by"], &all[1]["address"]), (&json!("token"), &json!("127.0.0.1")));
    let detail = all[2]["detail"].as_str().unwrap();
    assert!(detail.contains("a\\u{202e}b") && !detail.contains('\u{202e}'), "{detail}");

    // The file says the same, and its owner alone may read it.
    let file = std::fs::read_to_string(guarded.file("audit")).unwrap();
    let lines: Vec<Json> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, all);
    assert_eq!(std::fs::metadata(guarded.file("audit")).unwrap().permissions().mode() & 0o777, 0o600);
    for secret in ["payload-of-it", guarded.token("operator"), guarded.token("admin+"), "sha256"] {
        assert!(!file.contains(secret), "{secret}");
    }
    guarded.end().await;
}

#[tokio::test]
async fn the_audit_log_is_read_page_by_page_in_either_order_by_admins_alone() {
    let guarded = Guarded::start().await;
    let (operator, admin) = (guarded.client("operator"), guarded.client("admin"));
    operator.open("c", &json!({})).await;
    for number in 0..6 {
        operator.put("c", &format!("k{number}"), "v").await;
    }
    for order in ["asc", "desc"] {
        let (mut after, mut ids) = (String::new(), Vec::new());
        loop {
            let listed =
                admin.get(&format!("/v1/audit?order={order}&limit=3&after={after}")).await.is(200).document();
            ids.extend(listed["entries"].as_array().unwrap().iter().map(|entry| entry["id"].clone()));
            match &listed["next"] {
                Json::String(next) => after.clone_from(next),
                _ => break,
            }
        }
        let mut expected: Vec<Json> = (1..=7).map(|id: u32| id.to_string().into()).collect();
        if order == "desc" {
            expected.reverse();
        }
        assert_eq!(ids, expected, "{order}");
    }
    for query in ["?limit=0", "?order=up", "?after=x", "?page=2"] {
        admin.get(&format!("/v1/audit{query}")).await.problem(400, "invalid_query");
    }
    operator.get("/v1/audit").await.problem(403, "forbidden");
    guarded.end().await;
}

#[tokio::test]
async fn a_change_whose_caller_goes_away_is_noted_as_unfinished() {
    let guarded = Guarded::start_built(orders, |options| Options { tls: None, ..options }).await;
    let admin = Api::new(guarded.address).with_token(guarded.token("admin"));
    admin.json(Method::PUT, "/v1/streams/orders/groups/g", &json!({})).await.is(201);
    let head = format!(
        "POST /v1/streams/orders/groups/g/receive HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         x-request-id: cut\r\n",
        guarded.token("operator+"),
    );
    // There is nothing to receive, so that it waits.
    let stream = under_way(guarded.address, &head, &json!({ "wait": "60s" })).await;
    drop(stream);
    let noted = async || {
        let all = entries(&admin, "").await;
        all.iter().find(|entry| entry["request_id"] == "cut").cloned()
    };
    until("it is noted", async || noted().await.is_some()).await;
    let noted = noted().await.unwrap();
    assert_eq!((&noted["outcome"], &noted["status"]), (&json!("unknown"), &Json::Null), "{noted}");
    assert_eq!(noted["who"], "operator.payloads");
    guarded.end().await;
}

#[tokio::test]
async fn logins_are_noted_by_the_name_of_their_token() {
    let guarded = Guarded::start().await;
    let form = |token: &str| {
        let request = guarded.stranger.request(Method::POST, "/login");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        answer(request.body(format!("token={token}")))
    };
    form("wrong").await.is(401);
    form(guarded.token("viewer")).await.is(303);
    let all = entries(&guarded.client("admin"), "").await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((&all[0]["who"], &all[0]["by"]), (&json!("viewer"), &json!("session")));
    assert_eq!((&all[0]["action"], &all[0]["outcome"]), (&json!("POST /login"), &json!("done")));
    guarded.end().await;
}

#[tokio::test]
async fn a_login_is_noted_as_that_of_its_token_whoever_the_browser_was_before() {
    let guarded = Guarded::start().await;
    let api = &guarded.stranger;
    let before = session(api, guarded.token("viewer")).await;
    let with_cookie = login(api, guarded.token("operator"), "/").header("cookie", &before);
    answer(with_cookie).await.is(303);
    let with_token = login(api, guarded.token("operator"), "/").bearer_auth(guarded.token("viewer"));
    answer(with_token).await.is(303);
    let all = entries(&guarded.client("admin"), "?order=asc").await;
    let who: Vec<_> = all.iter().map(|entry| entry["who"].as_str().unwrap()).collect();
    assert_eq!(who, ["viewer", "operator", "operator"]);
    assert!(all.iter().all(|entry| entry["by"] == "session"), "{all:?}");
    // The session that the browser had is over.
    answer(with(api, Method::GET, "/v1/cluster", &before)).await.problem(401, "unauthenticated");
    guarded.end().await;
}

#[tokio::test]
async fn what_any_token_may_do_without_end_pushes_out_nothing_that_people_did() {
    let guarded = Guarded::start_with(|options| Options { tls: None, ..options }).await;
    let api = Api::new(guarded.address);
    api.with_token(guarded.token("operator")).open("c", &json!({})).await;
    let token = guarded.token("viewer").to_owned();
    let viewer = api.with_token(&token);
    let mut all = JoinSet::new();
    for number in 0..TRAIL_MAX + 4 {
        let (api, viewer, token) = (api.clone(), viewer.clone(), token.clone());
        all.spawn(async move {
            match number % 4 {
                // No session ends.
                0 => viewer.send(Method::POST, "/logout").await.is(303),
                1 => viewer.send(Method::POST, "/login").await.problem(415, "unsupported_media_type"),
                2 => answer(login(&api, &token, "/")).await.is(303),
                // One begins and ends.
                _ => {
                    let cookie = session(&api, &token).await;
                    answer(with(&api, Method::POST, "/logout", &cookie)).await.is(303)
                }
            }
        });
        if all.len() == 16 {
            all.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let first = entries(&api.with_token(guarded.token("admin")), "?order=asc&limit=2").await;
    let told: Vec<_> = first.iter().map(|entry| (&entry["who"], &entry["target"])).collect();
    assert_eq!(told[0], (&json!("operator"), &json!("/v1/caches/c")));
    // What any token may do is told of all the same, the newest of it.
    assert_eq!(told[1].0, "viewer");
    guarded.end().await;
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_followed_by_a_new_one() {
    let guarded = Guarded::start().await;
    let operator = guarded.client("operator");
    operator.open("c", &json!({})).await;
    std::fs::rename(guarded.file("audit"), guarded.file("audit.1")).unwrap();
    guarded.reloader.reload().unwrap();
    operator.open("d", &json!({})).await;
    let lines = |name: &str| std::fs::read_to_string(guarded.file(name)).unwrap().lines().count();
    assert_eq!((lines("audit.1"), lines("audit")), (1, 1));
    assert_eq!(guarded.stranger.metric("tidings_http_audit_lost_total").await, Some(0.0));
    guarded.end().await;
}
