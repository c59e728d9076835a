//! What a server may be and do: too old, without JetStream, closed to us, full, small, standing still. And what its
//! tools show.

use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::TryStreamExt;
use tidings_streams::nats::{Config, ConnectError, Nats};
use tidings_streams::{
    Action, Driver, Durability, GroupError, InvalidEvent, NewEvent, Order, Outcome, PAYLOAD_BYTES_MAX, Page,
    PublishError, Settlement, Start, StoreError, TopicSettings,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::server::Server;
use super::{PATIENCE, ack, connect, name, publish, request, settings, texts, topic};

/// What a call may take beyond its deadline where its process stands still.
const GRACE: Duration = Duration::from_secs(3);

/// Answers as a server does that is so old, on one connection after the other.
async fn pretend(listener: TcpListener, version: &str) {
    let info = format!(
        "INFO {{\"server_id\":\"old\",\"version\":\"{version}\",\"max_payload\":1048576,\"headers\":true,\
         \"jetstream\":true}}\r\n"
    );
    loop {
        let Ok((mut connection, _)) = listener.accept().await else { return };
        if connection.write_all(info.as_bytes()).await.is_err() {
            continue;
        }
        let mut heard = [0; 4_096];
        while let Ok(length @ 1..) = connection.read(&mut heard).await {
            let pings = String::from_utf8_lossy(&heard[..length]).matches("PING\r\n").count();
            if connection.write_all("PONG\r\n".repeat(pings).as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("nats://{}", listener.local_addr().expect("it has one"));
    let connecting = Nats::connect(&url, Config::default());
    let refused = tokio::select! {
        refused = connecting => refused.expect_err("2.8 is too old"),
        () = pretend(listener, "2.8.4") => panic!("it never ends"),
    };
    assert!(matches!(&refused, ConnectError::TooOld { found, .. } if found == "2.8.4"), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("2.8.4") && text.contains("2.9.0") && text.contains("upgrade"), "{text}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused_with_what_to_do() {
    let server = Server::start_with("").await;
    let refused = Nats::connect(&server.url(), Config::default()).await.expect_err("it keeps nothing");
    assert!(matches!(refused, ConnectError::NoJetStream { .. }), "{refused:?}");
    assert!(refused.to_string().contains("start it with -js"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be_missing() {
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("it has one");
    let config = Config { timeout: Duration::from_secs(1), ..Config::default() };
    let refused = Nats::connect(&format!("nats://{port}"), config).await.expect_err("nobody listens");
    assert!(matches!(refused, ConnectError::Unreachable { .. }), "{refused:?}");
    assert!(refused.to_string().contains(&port.to_string()), "{refused}");
}

#[tokio::test]
async fn a_server_that_wants_a_password_says_so() {
    let settings = "jetstream { store_dir: \"%\" }\nauthorization { user: me, password: \"s@cret\" }\n";
    let server = Server::start_with(settings).await;
    let refused = Nats::connect(&server.url(), Config::default()).await.expect_err("it has no password");
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused:?}");
    assert!(refused.to_string().contains("password in the URL"), "{refused}");
    let url = server.url().replace("nats://", "nats://me:s%40cret@");
    Nats::connect(&url, Config::default()).await.expect("it is let in").close().await.expect("it closes");
}

#[tokio::test]
async fn what_is_kept_is_what_the_server_keeps() {
    let server = Server::start().await;
    let store = connect(&server.url()).await;
    assert_eq!((store.name(), store.durability()), ("nats", Durability::Server));
    let said = store.server();
    assert!(said.has_jetstream && said.version.starts_with("2."), "{said:?}");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn tools_of_the_server_show_topics_and_groups() {
    let server = Server::start().await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    store.create_group(&topic, &name("g.1"), Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a", "b", "c"]).await;
    let context = server.jetstream().await;
    let mut streams: Vec<String> = context.stream_names().try_collect().await.expect("they can be listed");
    streams.sort();
    assert_eq!(streams, ["tidings+dead", "tidings+groups", "tidings+topic+orders"]);
    let events = context.get_stream("tidings+topic+orders").await.expect("it is there");
    let second = events.get_raw_message(2).await.expect("it is there");
    assert_eq!((second.subject.as_str(), second.payload.as_ref()), ("tidings.topic.orders", &b"b"[..]));
    let groups = context.get_stream("tidings+groups").await.expect("it is there");
    let made = groups.get_last_raw_message_by_subject("tidings.group.orders.g=1").await;
    assert_eq!(made.expect("it is there").payload.as_ref(), br#"[{"Made":{"next":1}}]"#);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn an_event_that_the_server_cannot_take_is_refused_before_any_is_stored() {
    // As servers are by default: a mebibyte with all that goes with it.
    let server = Server::start_with("jetstream { store_dir: \"%\" }\n").await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    let large = NewEvent::new(vec![0; PAYLOAD_BYTES_MAX]).key("k");
    let refused = store.publish(&topic, vec![NewEvent::new("small"), large]).await;
    assert!(
        matches!(&refused, Err(PublishError::Invalid(error @ InvalidEvent::Message { .. }))
            if error.to_string().contains("raise its max_payload")),
        "answered {refused:?}"
    );
    assert_eq!(store.topic(&topic).await.expect("it can be asked"), None);
    let fits = NewEvent::new(vec![0; PAYLOAD_BYTES_MAX - (16 << 10)]).key("k");
    store.publish(&topic, vec![fits]).await.expect("it fits");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn an_event_that_fits_fits_as_a_dead_letter_too() {
    let server = Server::start_with("jetstream { store_dir: \"%\" }\n").await;
    let store = connect(&server.url()).await;
    let longest = "я".repeat(40);
    let one = TopicSettings { max_deliveries: NonZeroU32::MIN, dead_letter: name(&longest), ..settings() };
    let topic = tidings_streams::Topic { name: name(&longest), ..topic(one) };
    let group = name(&".".repeat(80));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    // What is just within what is taken.
    let mut bytes = PAYLOAD_BYTES_MAX;
    let event = |bytes| NewEvent::new(vec![0; bytes]).key("k");
    while let Err(PublishError::Invalid(InvalidEvent::Message { bytes: all, most })) =
        store.publish(&topic, vec![event(bytes)]).await
    {
        bytes -= all - most;
    }
    let taken =
        store.receive(&topic, &group, request(&longest, 1, Duration::ZERO)).await.expect("it is there");
    let reason = "\0".repeat(tidings_streams::ERROR_BYTES_MAX);
    let action = Action::Fail { reason };
    let word = Settlement { id: taken[0].event.id, tag: None, action };
    let outcomes = store.settle(&topic, &group, vec![word]).await.expect("it is heard");
    let Outcome::Buried(letter) = outcomes[0] else { panic!("{outcomes:?}") };
    let new = store.retry(letter).await.expect("it is published again");
    let event = store.event(&topic, new).await.expect("it can be read").expect("it is there");
    assert_eq!(event.payload.len(), bytes);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn headers_that_a_dead_letter_could_not_have_are_refused_at_once() {
    let server = Server::start().await;
    let store = connect(&server.url()).await;
    let one = TopicSettings { max_deliveries: NonZeroU32::MIN, ..settings() };
    let (topic, group) = (topic(one), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    // Each takes six bytes as it is written.
    let event = |length| NewEvent::new("a").key("\0".repeat(4_096)).header("h", "\0".repeat(length));
    let mut length = (16 << 10) - 1;
    event(length).validate().expect("it is as large as it may be");
    while let Err(refused) = store.publish(&topic, vec![NewEvent::new("b"), event(length)]).await {
        let PublishError::Invalid(InvalidEvent::Written { bytes, most }) = refused else {
            panic!("answered {refused:?}")
        };
        length -= (bytes - most).div_ceil(6);
    }
    assert!(length > 4_096, "{length} bytes of a header are all that is taken");
    let taken = store.receive(&topic, &group, request("c1", 5, PATIENCE)).await.expect("it is there");
    assert_eq!(texts(&taken), ["b", "a"]);
    let action = Action::Fail { reason: "\0".repeat(tidings_streams::ERROR_BYTES_MAX) };
    let word = Settlement { id: taken[1].event.id, tag: None, action };
    let outcomes = store.settle(&topic, &group, vec![word]).await.expect("it is heard");
    let Outcome::Buried(letter) = outcomes[0] else { panic!("{outcomes:?}") };
    let new = store.retry(letter).await.expect("it is published again");
    let found = store.event(&topic, new).await.expect("it can be read").expect("it is there");
    assert_eq!(found.headers, event(length).headers);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_full_server_refuses_with_what_to_do() {
    let settings_of = "max_payload: 2MB\njetstream { store_dir: \"%\", max_file: 2MB, max_mem: 1MB }\n";
    let server = Server::start_with(settings_of).await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    let refused = loop {
        match store.publish(&topic, vec![NewEvent::new(vec![0; 500_000])]).await {
            Ok(_) => {}
            Err(refused) => break refused,
        }
    };
    let PublishError::Store(StoreError::Failed(error)) = &refused else { panic!("answered {refused:?}") };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("raise the limits of JetStream"), "{error}");
    let held = store.read(&topic, &Page { limit: 10, order: Order::Ascending, ..Page::default() }).await;
    assert!(!held.expect("it can be read").events.is_empty(), "what was there is gone");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_topic_whose_stream_somebody_deletes_is_made_again() {
    let server = Server::start().await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    publish(&store, &topic, &["a"]).await;
    server.jetstream().await.delete_stream("tidings+topic+orders").await.expect("it can be deleted");
    assert_eq!(store.topic(&topic).await.expect("it can be asked"), None);
    publish(&store, &topic, &["b"]).await;
    let info = store.topic(&topic).await.expect("it can be asked").expect("it is there");
    assert_eq!(info.events, 1);
    store.close().await.expect("it closes");
}

/// Has a stream take other subjects: to what was its own nobody listens, as while it has no leader.
async fn move_subjects(server: &Server, stream: &str, to: &[&str]) -> Vec<String> {
    let jetstream = server.jetstream().await;
    let info = jetstream.get_stream(stream).await.expect("it is there").cached_info().clone();
    let to = to.iter().map(|subject| (*subject).to_owned()).collect();
    let config = async_nats::jetstream::stream::Config { subjects: to, ..info.config.clone() };
    jetstream.update_stream(config).await.expect("it is changed");
    info.config.subjects
}

#[tokio::test]
async fn a_stream_that_takes_nothing_for_now_is_not_gone() {
    let server = Server::start().await;
    let store = connect(&server.url()).await;
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, PATIENCE)).await.expect("it is there");
    for stream in ["tidings+groups", "tidings+topic+orders"] {
        let subjects = move_subjects(&server, stream, &["elsewhere"]).await;
        if stream == "tidings+groups" {
            let refused = ack(&store, &topic, &taken[0]).await;
            assert!(
                matches!(refused, Err(GroupError::Store(StoreError::Unreachable(_)))),
                "answered {refused:?}"
            );
        } else {
            let refused = store.publish(&topic, vec![NewEvent::new("b")]).await;
            assert!(
                matches!(refused, Err(PublishError::Store(StoreError::Unreachable(_)))),
                "answered {refused:?}"
            );
        }
        let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
        move_subjects(&server, stream, &subjects).await;
    }
    assert_eq!(ack(&store, &topic, &taken[0]).await.expect("it is heard"), Outcome::Acked);
    publish(&store, &topic, &["c"]).await;
    server.jetstream().await.delete_stream("tidings+groups").await.expect("it can be deleted");
    let refused = store.set_paused(&topic, &group, true).await;
    assert!(
        matches!(refused, Err(GroupError::Unknown | GroupError::Store(StoreError::Failed(_)))),
        "{refused:?}"
    );
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn names_of_groups_that_were_never_there_are_not_kept() {
    let server = Server::start().await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    publish(&store, &topic, &["a"]).await;
    assert!(!store.remove_group(&topic, &name("stranger")).await.expect("it can be asked"));
    assert!(!format!("{store:?}").contains("stranger"), "{store:?}");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn no_call_outlasts_its_deadline_though_the_server_stands_still() {
    let server = Server::start().await;
    let deadline = Duration::from_millis(500);
    let config = Config { timeout: deadline, ..Config::default() };
    let store = Nats::connect(&server.url(), config).await.expect("the server is there");
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, Duration::ZERO)).await.expect("it is there");
    server.stand_still().await;
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
    server.go_on();
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

#[tokio::test]
async fn a_deadline_beyond_all_time_is_a_deadline() {
    let server = Server::start().await;
    let config = Config { timeout: Duration::MAX, ..Config::default() };
    let store = Nats::connect(&server.url(), config).await.expect("the server is there");
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, PATIENCE)).await.expect("it is there");
    assert_eq!(texts(&taken), ["a"]);
    let none = store.receive(&topic, &group, request("c1", 1, Duration::from_millis(50))).await;
    assert_eq!(texts(&none.expect("it waits")), [""; 0]);
    store.close().await.expect("it closes");
}
