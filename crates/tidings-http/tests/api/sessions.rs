//! Browsers: logging in, what a session may do, and what other sites' pages may not.

use reqwest::{Method, RequestBuilder};
use serde_json::json;
use tidings_http::Options;

use crate::guarded::{Guarded, write};
use crate::support::{Answer, Api, Rig, answer, until};

/// A form as the login page sends it.
pub(crate) fn login(api: &Api, token: &str, next: &str) -> RequestBuilder {
    let form: String = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("token", token), ("next", next)])
        .finish();
    from_own_page(api, api.request(Method::POST, "/login"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form)
}

/// What a browser says of a request that this server's own page makes.
fn from_own_page(api: &Api, request: RequestBuilder) -> RequestBuilder {
    request.header("origin", &api.base).header("sec-fetch-site", "same-origin")
}

pub(crate) async fn session(api: &Api, token: &str) -> String {
    let answered = answer(login(api, token, "/")).await.is(303);
    assert_eq!(answered.header("location"), Some("/"));
    let cookie = answered.header("set-cookie").unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert!(pair.starts_with("__Host-tidings="), "{pair}");
    assert_eq!(attributes, "Path=/; Secure; HttpOnly; SameSite=Strict");
    pair.to_owned()
}

pub(crate) fn with(api: &Api, method: Method, path: &str, cookie: &str) -> RequestBuilder {
    from_own_page(api, api.request(method, path)).header("cookie", cookie)
}

async fn page(api: &Api, path: &str, cookie: Option<&str>) -> Answer {
    let request = api.request(Method::GET, path).header("accept", "text/html,*/*");
    answer(match cookie {
        Some(cookie) => request.header("cookie", cookie),
        None => request,
    })
    .await
}

#[tokio::test]
async fn a_browser_logs_in_looks_and_logs_out() {
    let guarded = Guarded::start().await;
    let api = &guarded.stranger;
    assert_eq!(page(api, "/", None).await.is(303).header("location"), Some("/login"));
    let deep = page(api, "/caches/users", None).await.is(303);
    assert_eq!(deep.header("location"), Some("/login?next=%2Fcaches%2Fusers"));
    let form = page(api, "/login?next=%2Fcaches%2Fusers", None).await.is(200);
    assert!(form.text().contains("name=\"next\" value=\"/caches/users\""), "{}", form.text());
    let policy = form.header("content-security-policy").unwrap();
    assert!(policy.contains("form-action 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");

    let token = guarded.token("viewer");
    let onward = answer(login(api, token, "/caches/users")).await.is(303);
    assert_eq!(onward.header("location"), Some("/caches/users"));
    let elsewhere = answer(login(api, token, "//evil.example")).await.is(303);
    assert_eq!(elsewhere.header("location"), Some("/"));

    let cookie = session(api, token).await;
    let status = page(api, "/", Some(&cookie)).await.is(200).text();
    assert!(status.contains("viewer (viewer)") && status.contains("<h2>Members</h2>"), "{status}");
    assert!(!status.contains(token), "{status}");
    answer(with(api, Method::POST, "/v1/drain", &cookie)).await.problem(403, "forbidden");
    let left = answer(with(api, Method::POST, "/logout", &cookie)).await.is(303);
    assert!(left.header("set-cookie").unwrap().contains("Max-Age=0"), "{left:?}");
    assert_eq!(page(api, "/", Some(&cookie)).await.is(303).header("location"), Some("/login"));
    guarded.end().await;
}

#[tokio::test]
async fn a_login_with_anything_but_a_token_shows_the_form_again() {
    let guarded = Guarded::start().await;
    let api = &guarded.stranger;
    for token in ["", "wrong", "<script>alert(1)</script>"] {
        let again = answer(login(api, token, "/")).await.is(401);
        assert_eq!(again.header("content-type"), Some("text/html; charset=utf-8"));
        let html = again.text();
        assert!(html.contains("does not know that token") && !html.contains("<script"), "{html}");
        assert_eq!(again.header("set-cookie"), None);
    }
    let json = api.request(Method::POST, "/login").body("{}");
    answer(json).await.problem(415, "unsupported_media_type");
    let long = "x".repeat(tidings_http::limits::LOGIN_BYTES_MAX + 1);
    answer(login(api, &long, "/")).await.problem(413, "body_too_long");
    let mut last = 0;
    for _ in 0..tidings_http::limits::FAILURES_MAX {
        last = answer(login(api, "wrong", "/")).await.status;
    }
    assert_eq!(last, 429);
    session(api, guarded.token("viewer")).await;
    guarded.end().await;
}

#[tokio::test]
async fn a_session_ends_with_its_token_and_follows_its_role() {
    let guarded = Guarded::start().await;
    let api = &guarded.stranger;
    let cookie = session(api, guarded.token("operator")).await;
    answer(with(api, Method::PUT, "/v1/caches/c", &cookie).body("{}")).await.is(201);
    let demoted = guarded.lines().replace("operator operator sha256", "operator viewer sha256");
    assert_ne!(demoted, guarded.lines());
    write(&guarded.file("tokens"), &demoted);
    guarded.reloader.reload().unwrap();
    answer(with(api, Method::PUT, "/v1/caches/d", &cookie).body("{}")).await.problem(403, "forbidden");
    let without: String = guarded
        .lines()
        .lines()
        .filter(|line| !line.starts_with("operator "))
        .map(|line| line.to_owned() + "\n")
        .collect();
    // Nobody has to be told.
    write(&guarded.file("tokens"), &without);
    until("the session is over", async || {
        answer(with(api, Method::GET, "/v1/cluster", &cookie)).await.status == 401
    })
    .await;
    guarded.end().await;
}

#[tokio::test]
async fn a_session_does_nothing_that_cannot_be_undone_unless_that_is_set() {
    for allowed in [false, true] {
        let options = |options| Options { allow_destructive_actions: allowed, ..options };
        let guarded = Guarded::start_with(options).await;
        let api = &guarded.stranger;
        guarded.client("admin").open("c", &json!({})).await;
        let cookie = session(api, guarded.token("admin")).await;
        let clear = with(api, Method::POST, "/v1/caches/c/invalidate", &cookie).body("{\"all\":true}");
        let close = with(api, Method::DELETE, "/v1/caches/c", &cookie);
        if allowed {
            answer(clear).await.is(200);
            answer(close).await.is(204);
        } else {
            answer(clear).await.problem(403, "destructive_forbidden");
            answer(close).await.problem(403, "destructive_forbidden");
            guarded.client("admin").send(Method::DELETE, "/v1/caches/c").await.is(204);
        }
        guarded.end().await;
    }
}

#[tokio::test]
async fn pages_of_other_sites_change_nothing_whatever_they_send() {
    let guarded = Guarded::start().await;
    let api = &guarded.stranger;
    let cookie = session(api, guarded.token("operator")).await;
    let own = api.base.clone();
    let plain = own.replace("https", "http");
    // What a form, a fetch, an old browser and a program send.
    let cases: &[(&[(&str, &str)], bool)] = &[
        (&[("origin", &own), ("sec-fetch-site", "same-origin")], true),
        (&[("sec-fetch-site", "same-origin")], true),
        (&[("origin", &own)], true),
        (&[("sec-fetch-site", "none")], true),
        (&[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")], false),
        (&[("origin", &own), ("sec-fetch-site", "cross-site")], false),
        (&[("origin", "https://evil.example"), ("sec-fetch-site", "same-site")], false),
        (&[("origin", "null"), ("sec-fetch-mode", "navigate")], false),
        (&[("origin", &plain)], false),
        (&[("origin", "https://evil.example")], false),
        (&[("referer", "https://evil.example/")], false),
        (&[], false),
    ];
    for (index, (headers, done)) in cases.iter().enumerate() {
        for (content_type, method, path) in [
            ("application/json", Method::PUT, format!("/v1/caches/c{index}")),
            ("text/plain", Method::PUT, format!("/v1/caches/d{index}")),
            ("application/x-www-form-urlencoded", Method::PUT, format!("/v1/caches/e{index}")),
        ] {
            let mut request = api.request(method, &path).header("cookie", &cookie).body("{}");
            for (name, value) in *headers {
                request = request.header(*name, *value);
            }
            let answered = answer(request.header("content-type", content_type)).await;
            if *done {
                answered.is(201);
            } else {
                answered.problem(403, "cross_site");
            }
        }
        if !done {
            let forged = api.request(Method::POST, "/logout").header("cookie", &cookie);
            let forged = headers.iter().fold(forged, |request, (name, value)| request.header(*name, *value));
            answer(forged).await.problem(403, "cross_site");
        }
    }
    // The session is still there.
    answer(with(api, Method::GET, "/v1/cluster", &cookie)).await.is(200);
    guarded.end().await;
}

#[tokio::test]
async fn pages_of_other_sites_can_link_here_and_look_at_nothing() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    let fetched = async |path: &str, named: [&str; 3]| {
        let names = ["sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"];
        let request = api.request(Method::GET, path);
        let named = names.into_iter().zip(named);
        let response = named.fold(request, |request, (name, value)| request.header(name, value)).send().await;
        response.unwrap().status().as_u16()
    };
    for path in ["/v1/caches/c/entries/k", "/v1/caches/c/events", "/v1/cluster", "/"] {
        for foreign in [
            ["cross-site", "no-cors", "image"],
            ["cross-site", "cors", "empty"],
            ["same-site", "cors", "empty"],
            ["cross-site", "navigate", "iframe"],
        ] {
            assert_eq!(fetched(path, foreign).await, 403, "{path} {foreign:?}");
        }
    }
    for own in [
        ["cross-site", "navigate", "document"],
        ["same-origin", "cors", "empty"],
        ["none", "navigate", "document"],
    ] {
        assert_eq!(fetched("/v1/caches/c/events", own).await, 200, "{own:?}");
    }
    rig.end().await;
}

#[tokio::test]
async fn no_page_may_be_framed_or_read_by_another_site() {
    let guarded = Guarded::start().await;
    let viewer = guarded.client("viewer");
    for path in ["/", "/login", "/v1/cluster", "/nothing"] {
        for api in [&guarded.stranger, &viewer] {
            let answered = api.get(path).await;
            assert_eq!(answered.header("x-frame-options"), Some("DENY"), "{path}");
            let policy = answered.header("content-security-policy").unwrap();
            assert!(
                policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
                "{path}: {policy}"
            );
            assert_eq!(answered.header("cross-origin-opener-policy"), Some("same-origin"), "{path}");
            assert_eq!(answered.header("cross-origin-resource-policy"), Some("same-origin"), "{path}");
            assert_eq!(answered.header("cache-control"), Some("no-store"), "{path}");
            assert_eq!(answered.header("access-control-allow-origin"), None, "{path}");
        }
    }
    let preflight = guarded.stranger.request(Method::OPTIONS, "/v1/caches/c");
    let preflight =
        preflight.header("origin", "https://evil.example").header("access-control-request-method", "PUT");
    let answered = answer(preflight).await;
    assert!(
        answered.status == 401 && answered.header("access-control-allow-methods").is_none(),
        "{answered:?}"
    );
    guarded.end().await;
}
