//! What browsers may be tricked into, and what they are shown.

use reqwest::Method;
use serde_json::json;
use tidings_http::Options;

use crate::streams::Scene;
use crate::support::{Rig, answer, until};

#[tokio::test]
async fn foreign_hosts_are_refused_before_anything_is_done() {
    let allowed = |options| Options { allowed_hosts: vec!["tidings.internal".to_owned()], ..options };
    let rig = Rig::start_with(1, |_, builder| builder, allowed).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    let named = |host: &str| api.request(Method::GET, "/livez").header("host", host);
    for host in ["localhost", "tidings.internal", "Tidings.Internal:80", &api.address.to_string()] {
        answer(named(host)).await.is(200);
    }
    for host in ["evil.example", "localhost.evil.example", "tidings.internal.evil.example", "10.0.0.1"] {
        answer(named(host)).await.problem(421, "foreign_host");
        let write = api.entry(Method::PUT, "c", "k").header("host", host).body("v");
        answer(write).await.problem(421, "foreign_host");
    }
    api.read("c", "k").await.is(404);
    rig.end().await;
}

#[tokio::test]
async fn writes_from_other_sites_are_refused() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    let own = format!("http://{}", api.address);
    let (mut asked, mut done) = (0, 0);
    for (name, text, refused) in [
        ("origin", "https://evil.example", true),
        ("origin", "null", true),
        ("origin", "http://localhost:3000", true),
        ("origin", &own, false),
        ("sec-fetch-site", "cross-site", true),
        ("sec-fetch-site", "same-site", true),
        ("sec-fetch-site", "same-origin", false),
        ("sec-fetch-site", "none", false),
        ("cookie", "a=b", true),
    ] {
        let put = answer(api.entry(Method::PUT, "c", "k").header(name, text).body("v")).await;
        let clear = api.request(Method::POST, "/v1/caches/c/invalidate").header(name, text);
        let clear = answer(clear.body("{\"all\":true}")).await;
        if refused {
            put.problem(403, "cross_site");
            clear.problem(403, "cross_site");
            asked += 2;
            done += usize::from(api.read("c", "k").await.status != 404);
        } else {
            put.is(204);
            clear.is(200);
        }
        let look = answer(api.request(Method::GET, "/v1/cluster").header(name, text)).await;
        if refused && name == "sec-fetch-site" {
            look.problem(403, "cross_site");
        } else {
            look.is(200);
        }
    }
    assert_eq!(done, 0, "what is refused is done all the same");
    tidings_facts::note("G15", format!("{asked} writes from other sites refused, {done} done"));
    rig.end().await;
}

#[tokio::test]
async fn browsers_are_told_to_make_nothing_of_answers() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    api.put("c", "k", "<script>alert(1)</script>").await;
    for path in ["/v1/caches/c/entries/k", "/v1/cluster", "/nothing", "/metrics"] {
        let answer = api.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"), "{path}");
        assert!(
            answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"),
            "{path}"
        );
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
    }
    rig.end().await;
}

#[tokio::test]
async fn the_status_page_shows_hostile_text_as_text() {
    let hostile = "<script>alert('z')</script>\"&";
    let rig = Rig::start_with(2, |_, builder| builder.zone(hostile), |options| options).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    let mut page = api.get("/").await.is(200);
    until("the other is shown as live", async || {
        page = api.get("/").await.is(200);
        page.text().contains("<td>n2<td>live")
    })
    .await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let html = page.text();
    assert!(!html.contains("<script"), "{html}");
    let shown = "&lt;script&gt;alert(&#39;z&#39;)&lt;/script&gt;&quot;&amp;";
    assert_eq!(html.matches(shown).count(), 2, "{html}");
    assert!(html.contains("<td>c<td>0"), "{html}");
    assert!(html.contains("class=\"good\">ready"), "{html}");
    rig.end().await;
}

#[tokio::test]
async fn the_status_page_shows_how_streams_stand() {
    let scene = Scene::start().await;
    let api = &scene.rig.apis[0];
    let html = api.get("/").await.is(200).text();
    assert!(html.contains("content=\"5; url=?reload\""), "it asks as one that nobody uses: {html}");
    assert!(html.contains("<p>embedded store of n1, sync: 0 topics, 0 events, 0 dead letters</p>"), "{html}");
    for payload in ["<b>", "x"] {
        let event = json!({ "payload": payload });
        api.json(Method::POST, "/v1/streams/orders/events", &event).await.is(201);
    }
    let group = "/v1/streams/orders/groups/g";
    api.json(Method::PUT, group, &json!({ "start": "earliest" })).await.is(201);
    let one = json!({ "max": 1, "consumer": "c" });
    api.json(Method::POST, &format!("{group}/receive"), &one).await.is(200);
    let html = api.get("/").await.is(200).text();
    assert!(html.contains("sync: 1 topics, 2 events, 0 dead letters"), "{html}");
    assert!(html.contains("<tr><td>orders<td>2<td>"), "{html}");
    assert!(
        html.contains("<tr><td>orders<td>g<td>2<td>") && html.contains("<td>1<td>0<td>no</tr>"),
        "{html}"
    );
    assert!(html.contains("href=\"v1/streams\"") && !html.contains("<b>"), "{html}");
    let listed = api.get("/v1/streams").await.is(200).document();
    let orders =
        listed["streams"].as_array().unwrap().iter().find(|topic| topic["name"] == "orders").unwrap();
    assert_eq!((&orders["lag"], &orders["pending"]), (&json!(2), &json!(1)));
    scene.rig.end().await;
}
