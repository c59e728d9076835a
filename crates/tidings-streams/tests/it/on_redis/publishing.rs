//! Many who publish to a topic at once, and a server that does not answer.

use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use tidings_streams::redis::{Config, Redis};
use tidings_streams::{Driver, NewEvent, PublishError, StoreError};
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
    let deadline = Duration::from_secs(2);
    let store = connect(&server, deadline).await;
    let topic = topic(settings());
    let publish = |text: &str| store.publish(&topic, vec![NewEvent::new(text.to_owned())]);
    server.signal(Signal::STOP);
    // Two calls are under way, and the third waits, the first of those that go together then.
    let early = async {
        let (one, other, waiting) = tokio::join!(publish("a"), publish("b"), async {
            tokio::time::sleep(deadline / 8).await;
            publish("c").await
        });
        server.signal(Signal::CONT);
        [one, other, waiting]
    };
    let late = async {
        tokio::time::sleep(deadline / 2).await;
        publish("d").await
    };
    let (early, late) = timeout(PATIENCE, async { tokio::join!(early, late) }).await.expect("they end");
    assert!(early.iter().all(is_unreachable), "answered {early:?}");
    late.expect("its time is not over");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn an_event_with_a_key_is_sent_again_though_one_without_came_at_once() {
    let mut server = Server::start(Keeping::Nothing).await;
    let store = connect(&server, PATIENCE).await;
    let topic = topic(tidings_streams::TopicSettings { idempotency_window: PATIENCE * 2, ..settings() });
    server.signal(Signal::STOP);
    let (keyed, plain, ()) = tokio::join!(
        store.publish(&topic, vec![NewEvent::new("a").idempotency_key("a")]),
        store.publish(&topic, vec![NewEvent::new("b")]),
        async {
            // Both were sent by then.
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.kill();
            server.start_again().await;
        }
    );
    keyed.expect("it is sent again");
    assert!(is_unreachable(&plain), "answered {plain:?}");
    store.close().await.expect("it closes");
}
