//! Those who only cost: connections that say nothing, or slowly, or too much. Others do not notice.

use std::time::Duration;

use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tidings_http::limits::{CONNECTIONS_MAX, LOBBY_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use crate::guarded::Guarded;
use crate::support::{Api, Rig, answer};

/// Connections that strangers open: 600, times `TIDINGS_TEST_SCALE`.
fn many() -> usize {
    let scale =
        std::env::var("TIDINGS_TEST_SCALE").map_or(1.0, |text| text.parse::<f64>().expect("a number"));
    (600.0 * scale) as usize
}

/// Longest time that an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both ends of each connection are files of this process, of which a shell may allow it a thousand only.
fn take_all_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// A connection from another address of this machine.
async fn from(last: u8, guarded: &Guarded) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    socket.connect(guarded.address).await.unwrap()
}

#[tokio::test]
async fn many_silent_connections_keep_nobody_out() {
    take_all_files();
    let guarded = Guarded::start().await;
    let settled = guarded.client("operator");
    settled.open("c", &json!({})).await;
    let mut silent = Vec::new();
    for number in 0..many() {
        let mut stream = from(2, &guarded).await;
        // Some begin a handshake and do not go on.
        if number % 3 == 0 {
            let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01").await;
        }
        silent.push(stream);
        if number % 100 == 0 {
            // Who was there before, and who comes now.
            settled.put("c", "k", "v").await;
            let fresh =
                Api::secure(guarded.address, &guarded.certificate).with_token(guarded.token("viewer"));
            timeout(PATIENCE, fresh.get("/v1/cluster")).await.expect("there is room").is(200);
        }
    }
    let displaced = settled.metric("tidings_http_refused_total{room=\"lobby\"}").await.unwrap();
    // Those whose handshake took too long have gone by themselves.
    assert!(displaced > 0.0 && displaced <= many() as f64, "{displaced}");
    drop(silent);
    guarded.end().await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_costs_its_sender_alone() {
    let guarded = Guarded::start_with(|options| tidings_http::Options { tls: None, ..options }).await;
    let viewer = Api::new(guarded.address).with_token(guarded.token("viewer"));
    viewer.get("/v1/cluster").await.is(200);
    let mut slow = Vec::new();
    for _ in 0..LOBBY_MAX + 20 {
        let mut stream = from(3, &guarded).await;
        stream.write_all(b"GET /v1/cluster HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await.unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        for stream in &mut slow {
            // Those that had to give way cannot go on.
            let _ = stream.write_all(b"x").await;
        }
        Api::new(guarded.address).with_token(guarded.token("viewer")).get("/v1/cluster").await.is(200);
    }
    let mut first = [0; 1];
    let gone = timeout(PATIENCE, slow[0].read(&mut first)).await.expect("the oldest one had to give way");
    assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
    guarded.end().await;
}

#[tokio::test]
async fn who_is_let_in_has_a_place_of_its_own_and_there_are_so_many() {
    let rig = Rig::start(1).await;
    let address = rig.apis[0].address;
    let mut inside = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        inside.push(asked(address).await);
    }
    let mut refused = asked(address).await;
    assert!(refused.1.starts_with("HTTP/1.1 429"), "{}", refused.1);
    let mut rest = String::new();
    // Its connection is closed.
    timeout(PATIENCE, refused.0.read_to_string(&mut rest)).await.expect("it ends").unwrap();
    assert!(inside.iter().all(|(_, answered)| answered.starts_with("HTTP/1.1 200")));
    drop(inside);
    crate::support::until("there is room again", async || asked(address).await.1.starts_with("HTTP/1.1 200"))
        .await;
    rig.end().await;
}

/// A connection on which a request was answered, and the beginning of the answer.
pub(crate) async fn asked(address: std::net::SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    (stream, String::from_utf8_lossy(&status).into_owned())
}

#[tokio::test]
async fn oversized_and_malformed_bodies_are_refused_with_their_code() {
    let guarded = Guarded::start().await;
    let operator = guarded.client("operator");
    operator.open("c", &json!({})).await;
    let put = |bytes: usize| operator.entry(Method::PUT, "c", "k").body(vec![b'x'; bytes]);
    answer(put((1 << 20) + 1)).await.problem(413, "body_too_long");
    let long = "k".repeat(5_000);
    answer(operator.entry(Method::PUT, "c", &long).body("v")).await.problem(413, "key_too_long");
    for (body, status, code) in [
        (&b"{"[..], 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[]", 422, "invalid_document"),
        (b"{\"keys\":7}", 422, "invalid_document"),
        (b"{\"nothing\":7}", 422, "invalid_document"),
        (b"{}", 422, "invalid_target"),
    ] {
        let request = operator.request(Method::POST, "/v1/caches/c/invalidate").body(body);
        answer(request).await.problem(status, code);
    }
    let deep = "[".repeat(100_000);
    let request = operator.request(Method::POST, "/v1/caches/c/invalidate").body(deep);
    answer(request).await.problem(422, "invalid_document");
    // A stranger's body is not read.
    let stranger = guarded.stranger.entry(Method::PUT, "c", "k").body(vec![b'x'; 1 << 20]);
    answer(stranger).await.problem(401, "unauthenticated");
    guarded.end().await;
}

#[tokio::test]
async fn paths_that_climb_lead_nowhere() {
    let guarded = Guarded::start_with(|options| tidings_http::Options { tls: None, ..options }).await;
    let token = guarded.token("admin+").to_owned();
    for path in [
        "/../etc/passwd",
        "/v1/../../tokens",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/caches/..%2f..%2fetc%2fpasswd",
        "/v1/caches/c/../../audit",
        "//etc/passwd",
        "/login/../v1/audit",
        "/livez/../v1/audit",
        "/livez%2f..%2fv1%2faudit",
        "/v1/caches/%00",
        "/v1/caches/%ff",
    ] {
        for authorization in [String::new(), format!("authorization: Bearer {token}\r\n")] {
            let mut stream = TcpStream::connect(guarded.address).await.unwrap();
            let head =
                format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{authorization}\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut told = String::new();
            timeout(PATIENCE, stream.read_to_string(&mut told)).await.expect("it is answered").unwrap();
            let status = told.get(9..12).unwrap_or_default().to_owned();
            let expected: &[&str] = if authorization.is_empty() { &["401"] } else { &["400", "404"] };
            assert!(expected.contains(&status.as_str()), "{path}: {told}");
            assert!(!told.contains("root:") && !told.contains("sha256:"), "{path}: {told}");
        }
    }
    guarded.end().await;
}
