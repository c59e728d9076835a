//! Many who publish to a topic at once, and a server that does not answer.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use tidings_streams::redis::{Config, Redis};
use tidings_streams::{Driver, NewEvent, PublishError, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;

use super::server::{Keeping, Server};
use super::{PATIENCE, settings, topic};

async fn connect(server: &Server, timeout: Duration) -> Redis {
    let config = Config { timeout, ..Config::default() };
    Redis::connect(&server.url(), config).await.expect("the server is there")
}

fn is_unreachable<T>(answer: &Result<T, PublishError>) -> bool {
    matches!(answer, Err(PublishError::Store(StoreError::Unreachable(_))))
}

/// What this test has had of a processor: its runtime has one thread.
fn time_of_processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let part = |part: i64| u64::try_from(part).expect("it is not negative");
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

#[tokio::test]
async fn who_waits_for_a_server_that_stands_still_costs_next_to_nothing() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server, Duration::from_secs(1)).await;
    let topic = topic(settings());
    server.signal(Signal::STOP);
    let before = time_of_processor();
    let event = || vec![NewEvent::new("a")];
    let (one, other) = tokio::join!(store.publish(&topic, event()), store.publish(&topic, event()));
    let cost = time_of_processor() - before;
    assert!(is_unreachable(&one) && is_unreachable(&other), "answered {one:?} and {other:?}");
    assert!(cost < Duration::from_millis(100), "it costs {cost:?} of one second");
    server.signal(Signal::CONT);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn who_came_later_is_waited_for_by_a_deadline_of_its_own() {
    let server = Server::start(Keeping::Nothing).await;
    let deadline = Duration::from_secs(4);
    let store = connect(&server, deadline).await;
    let topic = topic(settings());
    let publish = async |wait: Duration, text: &str| {
        tokio::time::sleep(wait).await;
        store.publish(&topic, vec![NewEvent::new(text.to_owned())]).await
    };
    server.signal(Signal::STOP);
    // Two calls are under way, which those that come at once would share, and the third waits, the first of those that
    // go together then.
    let early = async {
        let (two, three) = (deadline / 16, deadline / 8);
        let early = tokio::join!(publish(Duration::ZERO, "a"), publish(two, "b"), publish(three, "c"));
        server.signal(Signal::CONT);
        [early.0, early.1, early.2]
    };
    // So late that a machine may stall when the server goes on, and early enough to come while it stands still.
    let late = publish(deadline * 3 / 4, "d");
    let (early, late) = timeout(PATIENCE, async { tokio::join!(early, late) }).await.expect("they end");
    assert!(early.iter().all(is_unreachable), "answered {early:?}");
    late.expect("its time is not over");
    store.close().await.expect("it closes");
}

/// Passes on what is said to a server. From where one of two texts is said nothing is, and the connection ends when
/// both were: once.
async fn lose(listener: TcpListener, socket: PathBuf, texts: [&str; 2]) {
    let mut is_lost = false;
    loop {
        let (mut here, _) = listener.accept().await.expect("it listens");
        let mut there = UnixStream::connect(&socket).await.expect("the server is there");
        let (mut said, mut answered, mut heard) = ([0; 65_536], [0; 65_536], Vec::new());
        let is_heard =
            |heard: &[u8], text: &str| heard.windows(text.len()).any(|part| part == text.as_bytes());
        loop {
            let passed = tokio::select! {
                Ok(length @ 1..) = here.read(&mut said) => {
                    heard.extend_from_slice(&said[..length]);
                    match texts.iter().filter(|text| is_heard(&heard, text)).count() {
                        2 if !is_lost => {
                            is_lost = true;
                            break;
                        }
                        1 if !is_lost => Ok(()),
                        _ => there.write_all(&said[..length]).await,
                    }
                }
                Ok(length @ 1..) = there.read(&mut answered) => here.write_all(&answered[..length]).await,
                else => break,
            };
            if passed.is_err() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn an_event_with_a_key_is_sent_again_though_one_without_came_at_once() {
    let server = Server::start(Keeping::Nothing).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let url = format!("redis://{}", listener.local_addr().expect("it is bound"));
    let way = lose(listener, server.socket(), ["with a key", "without one"]);
    let calls = async {
        let store = Redis::connect(&url, Config { timeout: PATIENCE, ..Config::default() }).await;
        let store = store.expect("the server is there");
        let topic = topic(tidings_streams::TopicSettings { idempotency_window: PATIENCE * 2, ..settings() });
        let (keyed, plain) = tokio::join!(
            store.publish(&topic, vec![NewEvent::new("with a key").idempotency_key("a")]),
            store.publish(&topic, vec![NewEvent::new("without one")]),
        );
        keyed.expect("it is sent again");
        assert!(is_unreachable(&plain), "answered {plain:?}");
        store.close().await.expect("it closes");
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE * 2, calls) => called.expect("they end"),
    }
}
