//! What a server may be and do: too old, closed to us, forgetful, full, standing still. And what its tools show.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tidings_streams::redis::{Config, ConnectError, Redis, Version};
use tidings_streams::{
    ConsumeOptions, Driver, Durability, Failed, GroupError, NewEvent, Outcome, PublishError, Settings, Start,
    StoreError, Streams, TopicSettings,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::server::{Keeping, Server};
use super::{PATIENCE, ack, connect, name, publish, request, settings, texts, topic};

/// What a call may take beyond its deadline where its process stands still.
const GRACE: Duration = Duration::from_secs(3);

/// Answers as a server does that is so old, on one connection after the other.
async fn pretend(listener: TcpListener, version: &str) {
    let info = format!("redis_version:{version}\r\nrole:master\r\n");
    loop {
        let Ok((mut connection, _)) = listener.accept().await else { return };
        let mut heard = [0; 4_096];
        while let Ok(length @ 1..) = connection.read(&mut heard).await {
            let words = String::from_utf8_lossy(&heard[..length]).into_owned();
            let answer = match words.contains("INFO") && !words.contains("SETINFO") {
                true => format!("${}\r\n{info}\r\n", info.len()),
                false => "+OK\r\n".repeat(words.matches('*').count()),
            };
            if connection.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("it has one"));
    let connecting = Redis::connect(&url, Config::default());
    let refused = tokio::select! {
        refused = connecting => refused.expect_err("6.0 is too old"),
        () = pretend(listener, "6.0.16") => panic!("it never ends"),
    };
    assert!(matches!(&refused, ConnectError::TooOld { found: Version(6, 0, 16), .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("6.0.16") && text.contains("6.2.0") && text.contains("upgrade"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be_missing() {
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("it has one");
    let config = Config { timeout: Duration::from_secs(1), ..Config::default() };
    let refused = Redis::connect(&format!("redis://{port}"), config).await.expect_err("nobody listens");
    assert!(matches!(refused, ConnectError::Unreachable { .. }), "{refused:?}");
    assert!(refused.to_string().contains(&port.to_string()), "{refused}");
}

#[tokio::test]
async fn a_server_that_wants_a_password_says_so() {
    let server = Server::start(Keeping::Nothing).await;
    let () = server.say(&["CONFIG", "SET", "requirepass", "secret"]).await;
    let refused = Redis::connect(&server.url(), Config::default()).await.expect_err("it has no password");
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused:?}");
    assert!(refused.to_string().contains("password in the URL"), "{refused}");
    let url = format!("{}?pass=secret", server.url());
    Redis::connect(&url, Config::default()).await.expect("it is let in").close().await.expect("it closes");
}

#[tokio::test]
async fn what_is_kept_is_what_the_server_keeps() {
    let server = Server::start(Keeping::Everything).await;
    let store = connect(&server.url()).await;
    assert_eq!((store.name(), store.durability()), ("redis", Durability::Server));
    assert!(store.server().appends && !store.server().evicts, "{:?}", store.server());
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn tools_of_the_server_show_topics_and_groups() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    store.create_group(&topic, &name("g"), Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a", "b", "c"]).await;
    store.receive(&topic, &name("g"), request("c1", 2, Duration::ZERO)).await.expect("it is there");
    let length: usize = server.say(&["XLEN", "{tidings}/stream/orders"]).await;
    let pending: Vec<(String, String, u64, u64)> =
        server.say(&["XPENDING", "{tidings}/stream/orders", "g", "-", "+", "10"]).await;
    assert_eq!(length, 3);
    assert!(pending.len() == 2 && pending.iter().all(|one| one.1 == "c1" && one.3 == 1), "{pending:?}");
    let keys: Vec<String> = server.say(&["KEYS", "*"]).await;
    assert!(keys.iter().all(|key| key.starts_with("{tidings}/")), "in another slot: {keys:?}");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_server_that_has_forgotten_the_scripts_is_told_them_again() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    store.create_group(&topic, &name("g"), Start::Earliest).await.expect("it is made");
    let () = server.say(&["SCRIPT", "FLUSH"]).await;
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &name("g"), request("c1", 1, Duration::ZERO)).await;
    assert_eq!(texts(&taken.expect("it is there")), ["a"]);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_full_server_refuses_with_what_to_do() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    publish(&store, &topic, &["a"]).await;
    let () = server.say(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = store.publish(&topic, vec![NewEvent::new("b")]).await;
    let Err(PublishError::Store(StoreError::Failed(error))) = &refused else {
        panic!("answered {refused:?}")
    };
    assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("raise its maxmemory"), "{error}");
    let () = server.say(&["CONFIG", "SET", "maxmemory", "0"]).await;
    publish(&store, &topic, &["c"]).await;
    let info = store.topic(&topic).await.expect("it can be asked").expect("it is there");
    assert_eq!(info.events, 2, "what was refused is there");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn consumers_go_on_once_the_server_takes_writes_again() {
    let server = Server::start(Keeping::Nothing).await;
    let config = Config { timeout: Duration::from_millis(200), ..Config::default() };
    let store = Redis::connect(&server.url(), config).await.expect("the server is there");
    let settings = Settings { strict: false, defaults: settings(), ..Settings::default() };
    let streams = Streams::start(Arc::new(store), settings).expect("the settings are sound");
    let orders = streams.stream("orders").expect("it is a topic");
    let group = orders.group("g", Start::Earliest).await.expect("it is made");
    // It has no replica.
    let () = server.say(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let options = ConsumeOptions { max: Some(1), ..ConsumeOptions::new(name("c1")) };
    let consumer = group.consume(options, |_| async { Ok::<(), std::io::Error>(()) });
    let received = group.receive(&name("c2"), 1, Duration::ZERO).await;
    assert!(matches!(received, Err(GroupError::Store(StoreError::Unreachable(_)))), "answered {received:?}");
    let refused = orders.publish(NewEvent::new("a")).await;
    assert!(
        matches!(&refused, Err(PublishError::Store(StoreError::Unreachable(why))) if why.contains("NOREPLICAS")),
        "answered {refused:?}"
    );
    let () = server.say(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    orders.publish(NewEvent::new("b")).await.expect("it takes writes again");
    let consumed = timeout(PATIENCE, consumer.ended()).await.expect("it takes nothing").expect("it goes on");
    assert_eq!(consumed.acked, 1);
    let info = orders.info().await.expect("it can be asked").expect("it is there");
    assert_eq!(info.events, 1, "what was refused is there");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn an_event_is_not_sent_again_where_its_key_may_be_forgotten_by_then() {
    let mut server = Server::start(Keeping::Nothing).await;
    let config = Config { timeout: PATIENCE * 2, ..Config::default() };
    let store = Redis::connect(&server.url(), config).await.expect("the server is there");
    let topic = topic(TopicSettings { idempotency_window: PATIENCE, ..settings() });
    let keyed = || vec![NewEvent::new("a").idempotency_key("a")];
    store.publish(&topic, keyed()).await.expect("it is published");
    server.kill();
    let refused = timeout(PATIENCE, store.publish(&topic, keyed())).await.expect("it is sent again");
    assert!(matches!(refused, Err(PublishError::Store(StoreError::Unreachable(_)))), "answered {refused:?}");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_deadline_beyond_all_time_is_a_deadline() {
    let server = Server::start(Keeping::Nothing).await;
    let config = Config { timeout: Duration::MAX, ..Config::default() };
    let store = Redis::connect(&server.url(), config).await.expect("the server is there");
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, PATIENCE)).await.expect("it is there");
    assert_eq!(texts(&taken), ["a"]);
    let none = store.receive(&topic, &group, request("c1", 1, Duration::from_millis(50))).await;
    assert_eq!(texts(&none.expect("it waits")), [""; 0]);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn no_call_outlasts_its_deadline_though_the_server_stands_still() {
    let server = Server::start(Keeping::Nothing).await;
    let deadline = Duration::from_millis(300);
    let config = Config { timeout: deadline, ..Config::default() };
    let store = Redis::connect(&server.url(), config).await.expect("the server is there");
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, Duration::ZERO)).await.expect("it is there");
    server.signal(Signal::STOP);
    // The first ones find a connection, the others none.
    for _ in 0..3 {
        let began = Instant::now();
        let refused = store.publish(&topic, vec![NewEvent::new("b")]).await;
        assert!(
            matches!(refused, Err(PublishError::Store(StoreError::Unreachable(_)))),
            "answered {refused:?}"
        );
        assert!(began.elapsed() < deadline + GRACE, "after {:?}", began.elapsed());
        let began = Instant::now();
        let refused = ack(&store, &topic, &taken[0]).await;
        assert!(
            matches!(refused, Err(GroupError::Store(StoreError::Unreachable(_)))),
            "answered {refused:?}"
        );
        assert!(began.elapsed() < deadline + GRACE, "after {:?}", began.elapsed());
    }
    server.signal(Signal::CONT);
    let settled = async {
        loop {
            match ack(&store, &topic, &taken[0]).await {
                Ok(outcome) => return outcome,
                Err(GroupError::Store(StoreError::Unreachable(_))) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let outcome = timeout(PATIENCE, settled).await.expect("the store does not come back");
    // What was said while it stood still it may have heard afterwards.
    assert!(matches!(outcome, Outcome::Acked | Outcome::Unknown), "{outcome:?}");
    store.close().await.expect("it closes");
}

/// Passes on what is said to a server, late by `pause` each time. A connection ends when `cut` says so.
async fn delay(listener: TcpListener, socket: PathBuf, pause: watch::Receiver<Duration>, cut: Arc<Notify>) {
    loop {
        let Ok((mut here, _)) = listener.accept().await else { return };
        let Ok(mut there) = UnixStream::connect(&socket).await else { return };
        let (mut said, mut answered) = ([0; 65_536], [0; 65_536]);
        loop {
            let passed = tokio::select! {
                () = cut.notified() => break,
                Ok(length @ 1..) = here.read(&mut said) => {
                    let pause = *pause.borrow();
                    tokio::time::sleep(pause).await;
                    there.write_all(&said[..length]).await
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
async fn a_connection_that_takes_longer_than_a_call_may_is_made_all_the_same() {
    let server = Server::start(Keeping::Nothing).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let url = format!("redis://{}", listener.local_addr().expect("it is bound"));
    let (pause, paused) = watch::channel(Duration::ZERO);
    let cut = Arc::<Notify>::default();
    let way = delay(listener, server.socket(), paused, cut.clone());
    let calls = async {
        let config = Config { timeout: Duration::from_millis(200), ..Config::default() };
        let store = Redis::connect(&url, config).await.expect("the server is there");
        // Ten and more things are said before a connection is one, each in less than the time of a call.
        pause.send_replace(Duration::from_millis(60));
        cut.notify_one();
        while store.topic(&topic(settings())).await.is_err() {
            tokio::task::yield_now().await;
        }
        store.close().await.expect("it closes");
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE, calls) => called.expect("it is never connected"),
    }
}

#[tokio::test]
async fn an_acknowledgement_is_said_again_until_the_server_hears_it() {
    let mut server = Server::start(Keeping::Everything).await;
    // What is heard and not answered by then is said again, and of a failure is stale then.
    let config = Config { timeout: Duration::from_secs(1), ..Config::default() };
    let store = Redis::connect(&server.url(), config).await.expect("the server is there");
    let defaults = TopicSettings { min_idle_time: PATIENCE, ..settings() };
    let settings = Settings { strict: false, defaults, ..Settings::default() };
    let streams = Streams::start(Arc::new(store), settings).expect("the settings are sound");
    let orders = streams.stream("orders").expect("it is a topic");
    let group = orders.group("g", Start::Earliest).await.expect("it is made");
    orders.publish_batch(vec![NewEvent::new("a"), NewEvent::new("b")]).await.expect("it is published");
    let taken = group.receive(&name("c1"), 2, Duration::ZERO).await.expect("it is there");
    server.kill();
    let saying = async { tokio::join!(taken[0].ack(), taken[1].fail("not now")) };
    let starting = async {
        // Longer than one call takes.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        server.start_again().await;
    };
    let ((acked, failed), ()) = tokio::join!(saying, starting);
    acked.expect("it is heard in the end");
    assert!(matches!(failed, Ok(Failed::RetryAt(_))), "{failed:?}");
    let info = group.info().await.expect("it can be asked").expect("it is there");
    assert_eq!((info.pending, info.lag), (1, 1), "{info:?}");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn who_waits_is_woken_by_what_other_processes_do() {
    let server = Server::start(Keeping::Nothing).await;
    let (here, there) = (connect(&server.url()).await, connect(&server.url()).await);
    let topic = topic(TopicSettings { ordered: true, ..settings() });
    let group = name("g");
    here.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    let waits = || here.receive(&topic, &group, request("c1", 1, PATIENCE * 2));
    // What is new.
    let publishing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        publish(&there, &topic, &["a", "b", "c"]).await;
    };
    let (first, ()) = timeout(PATIENCE, async { tokio::join!(waits(), publishing) }).await.expect("it waits");
    let first = first.expect("it is there");
    assert_eq!(texts(&first), ["a"]);
    // What was there, and waited for another of its key.
    let settling = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        ack(&there, &topic, &first[0]).await.expect("it is heard")
    };
    let (second, outcome) =
        timeout(PATIENCE, async { tokio::join!(waits(), settling) }).await.expect("it waits");
    let second = second.expect("it is there");
    assert_eq!((texts(&second), outcome), (vec!["b".to_owned()], Outcome::Acked));
    ack(&here, &topic, &second[0]).await.expect("it is heard");
    // What a pause held back.
    here.set_paused(&topic, &group, true).await.expect("it is there");
    let resuming = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        there.set_paused(&topic, &group, false).await.expect("it is there");
    };
    let (third, ()) = timeout(PATIENCE, async { tokio::join!(waits(), resuming) }).await.expect("it waits");
    assert_eq!(texts(&third.expect("it is there")), ["c"]);
    for store in [here, there] {
        store.close().await.expect("it closes");
    }
}

#[tokio::test]
async fn who_waits_learns_that_the_group_is_gone() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    let removing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        store.remove_group(&topic, &group).await.expect("it can be removed")
    };
    let waiting = store.receive(&topic, &group, request("c1", 1, PATIENCE * 2));
    let (received, removed) =
        timeout(PATIENCE, async { tokio::join!(waiting, removing) }).await.expect("it waits");
    assert!(removed && matches!(received, Err(GroupError::Unknown)), "answered {received:?}");
    store.close().await.expect("it closes");
}
