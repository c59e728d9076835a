//! TLS: what is served, what is refused, and certificates and tokens that change while requests go on.

use std::net::SocketAddr;

use reqwest::Method;
use serde_json::json;
use tidings::Node;
use tidings_http::limits::HANDSHAKE_TIME;
use tidings_http::{BindError, NewToken, Options, ReloadError, Role, Server, TlsFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout};

use crate::guarded::{Guarded, certificate, orders, write};
use crate::sessions::{session, with};
use crate::support::{Api, answer, loopback, until};

#[tokio::test]
async fn an_address_that_others_can_reach_is_bound_with_tls_and_tokens_alone() {
    let node = Node::builder("test").node_id("n1").start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (cert, key) = certificate();
    write(&path("cert.pem"), &cert);
    write(&path("key.pem"), &key);
    let token = NewToken::new("ops", Role::Admin, true, [1; 32]).unwrap();
    write(&path("tokens"), token.line());
    let tls = Some(TlsFiles { cert: path("cert.pem"), key: path("key.pem") });
    let token_file = Some(path("tokens"));
    let bind = async |options| Server::bind(node.clone(), options).await;
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7480"] {
        let open = Options::new(listen.parse().unwrap());
        for options in [
            Options { ..open.clone() },
            Options { tls: tls.clone(), ..open.clone() },
            Options { token_file: token_file.clone(), ..open.clone() },
        ] {
            let refused = bind(options).await;
            assert!(matches!(refused, Err(BindError::Unprotected(_))), "{refused:?}");
        }
    }
    let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let whole = Options { tls, token_file, ..Options::new(everywhere) };
    bind(whole.clone()).await.unwrap();

    write(&path("tokens"), "# none\n");
    assert!(matches!(bind(whole.clone()).await, Err(BindError::Tokens(_))));
    write(&path("tokens"), token.line());
    std::fs::set_permissions(path("tokens"), std::os::unix::fs::PermissionsExt::from_mode(0o622)).unwrap();
    let Err(BindError::Tokens(exposed)) = bind(whole.clone()).await else { panic!("others can add tokens") };
    assert!(exposed.to_string().contains("others than its owner can write"), "{exposed}");
    write(&path("tokens"), token.line());
    write(&path("key.pem"), &certificate().1);
    assert!(matches!(bind(whole.clone()).await, Err(BindError::Certificate(_))));
    write(&path("key.pem"), &key);
    let nowhere = Options { audit_file: Some(path("none/audit")), ..whole };
    assert!(matches!(bind(nowhere).await, Err(BindError::AuditFile { .. })));
    node.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_node_on_all_addresses_is_asked_by_the_one_that_was_meant() {
    let everywhere = |options| Options { listen: "0.0.0.0:0".parse().unwrap(), ..options };
    let guarded = Guarded::start_with(everywhere).await;
    let viewer = guarded.client("viewer");
    viewer.get("/v1/cluster").await.is(200);
    for host in ["10.1.2.3", "evil.example", "0.0.0.0"] {
        let request = viewer.request(Method::GET, "/v1/cluster").header("host", host);
        answer(request).await.problem(421, "foreign_host");
    }
    guarded.end().await;
}

#[tokio::test]
async fn a_certificate_that_changes_is_for_new_connections_and_ends_none() {
    let guarded = Guarded::start().await;
    let viewer = guarded.client("viewer");
    let operator = guarded.client("operator");
    operator.open("c", &json!({})).await;
    let mut events = viewer.request(Method::GET, "/v1/caches/c/events").send().await.unwrap();

    let (cert, key) = certificate();
    write(&guarded.file("cert.pem"), &cert);
    // The key comes a moment later: until then the old pair is used.
    let Err(failed) = guarded.reloader.reload() else { panic!("certificate and key do not belong together") };
    assert!(matches!(failed[..], [ReloadError::Certificate(_)]), "{failed:?}");
    Api::secure(guarded.address, &guarded.certificate).get("/livez").await.is(200);
    write(&guarded.file("key.pem"), &key);
    // Nobody has to be told.
    until("new connections get the new certificate", async || {
        let fresh = Api::secure(guarded.address, &cert);
        fresh.request(Method::GET, "/livez").send().await.is_ok()
    })
    .await;
    let old = Api::secure(guarded.address, &guarded.certificate);
    assert!(old.request(Method::GET, "/livez").send().await.is_err());

    // What was connected before goes on.
    Api::secure(guarded.address, &cert).with_token(guarded.token("operator")).put("c", "k", "v").await;
    let mut heard = String::new();
    while !heard.contains("\"key\":\"k\"") {
        let chunk = timeout(Duration::from_secs(60), events.chunk()).await.expect("events go on").unwrap();
        heard.push_str(std::str::from_utf8(&chunk.expect("events do not end")).unwrap());
    }
    guarded.end().await;
}

#[tokio::test]
async fn tokens_that_change_count_at_once_and_a_file_that_is_none_changes_nothing() {
    let guarded = Guarded::start().await;
    let viewer = guarded.client("viewer");
    let new = NewToken::new("newcomer", Role::Viewer, false, [99; 32]).unwrap();
    let newcomer = guarded.stranger.with_token(new.text());
    newcomer.get("/v1/cluster").await.problem(401, "invalid_token");
    write(&guarded.file("tokens"), &format!("{}{}\n", guarded.lines(), new.line()));
    until("the new token counts", async || newcomer.get("/v1/cluster").await.status == 200).await;
    for broken in ["", "nonsense\n", "ops root sha256:00\n"] {
        write(&guarded.file("tokens"), broken);
        let Err(failed) = guarded.reloader.reload() else { panic!("{broken:?} is no token file") };
        assert!(matches!(failed[..], [ReloadError::Tokens(_)]), "{failed:?}");
        newcomer.get("/v1/cluster").await.is(200);
    }
    write(&guarded.file("tokens"), new.line());
    guarded.reloader.reload().unwrap();
    // On a slow machine the newcomer was refused so often that this address is limited.
    let refused = viewer.get("/v1/cluster").await.status;
    assert!(matches!(refused, 401 | 429), "{refused}");
    newcomer.get("/v1/cluster").await.is(200);
    guarded.end().await;
}

/// Reads an answer to its end: whether it ended as it should.
async fn rest(response: &mut reqwest::Response) -> bool {
    loop {
        match timeout(Duration::from_secs(60), response.chunk()).await.expect("it ends") {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

#[tokio::test]
async fn events_and_exports_end_with_the_token_that_they_were_opened_with() {
    let guarded = Guarded::start_built(orders, |options| options).await;
    let (operator, admin) = (guarded.client("operator+"), guarded.client("admin"));
    operator.open("c", &json!({})).await;
    // More than is read at once, and than anybody on the way holds.
    let large = json!({ "payload": "x".repeat(1_000_000) });
    for _ in 0..24 {
        operator.json(Method::POST, "/v1/streams/orders/events", &large).await.is(201);
    }
    let opened = async |api: &Api, path: &str| {
        let response = api.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        response
    };
    let mut events = opened(&operator, "/v1/caches/c/events").await;
    let mut others = opened(&admin, "/v1/caches/c/events").await;
    let mut export = opened(&operator, "/v1/streams/orders/export").await;
    export.chunk().await.unwrap().unwrap();

    let without: Vec<&str> = guarded.lines().lines().filter(|line| !line.starts_with("operator.")).collect();
    write(&guarded.file("tokens"), &without.join("\n"));
    guarded.reloader.reload().unwrap();
    assert!(rest(&mut events).await);
    assert!(!rest(&mut export).await, "what is not whole does not look so");
    // Those of others go on.
    admin.open("d", &json!({})).await;
    guarded.client("operator").put("c", "k", "v").await;
    timeout(Duration::from_secs(60), others.chunk()).await.expect("an event comes").unwrap().unwrap();
    guarded.end().await;
}

#[tokio::test]
async fn events_end_with_the_session_that_they_were_opened_in() {
    let guarded = Guarded::start().await;
    let api = &guarded.stranger;
    guarded.client("operator").open("c", &json!({})).await;
    let cookie = session(api, guarded.token("viewer")).await;
    let request = with(api, Method::GET, "/v1/caches/c/events", &cookie);
    let mut events = request.send().await.unwrap();
    assert_eq!(events.status().as_u16(), 200);
    answer(with(api, Method::POST, "/logout", &cookie)).await.is(303);
    assert!(rest(&mut events).await);
    guarded.end().await;
}

#[tokio::test]
async fn who_does_not_speak_tls_gets_nothing_and_a_handshake_ends() {
    let guarded = Guarded::start().await;
    for said in
        [&b"GET /v1/cluster HTTP/1.1\r\nhost: localhost\r\n\r\n"[..], b"\x16\x03\x01\xff\xff", &[0; 4096]]
    {
        let mut stream = TcpStream::connect(guarded.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answered = Vec::new();
        // It may be reset.
        let _ = timeout(Duration::from_secs(60), stream.read_to_end(&mut answered)).await.expect("it ends");
        assert!(!answered.starts_with(b"HTTP"), "{answered:?}");
    }
    let (start, mut silent) = (Instant::now(), TcpStream::connect(guarded.address).await.unwrap());
    let _ = timeout(HANDSHAKE_TIME + Duration::from_secs(60), silent.read(&mut [0])).await.expect("it ends");
    assert!(start.elapsed() >= HANDSHAKE_TIME - Duration::from_millis(100), "{:?}", start.elapsed());
    guarded.client("viewer").get("/v1/cluster").await.is(200);
    guarded.end().await;
}

#[tokio::test]
async fn with_tokens_but_without_tls_loopback_asks_for_them() {
    let guarded = Guarded::start_with(|options| Options { tls: None, listen: loopback(), ..options }).await;
    let stranger = Api::new(guarded.address);
    stranger.get("/v1/cluster").await.problem(401, "unauthenticated");
    stranger.with_token(guarded.token("viewer")).get("/v1/cluster").await.is(200);
    guarded.end().await;
}
