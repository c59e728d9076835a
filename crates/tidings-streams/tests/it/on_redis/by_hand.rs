//! What the server's own tools show and do: groups that somebody makes and removes by hand, consumers that it lists.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use tidings_streams::redis::{Config, Redis};
use tidings_streams::{
    Action, BATCH_EVENTS_MAX, ClaimRequest, DeadLetterError, Driver, EventId, GroupError, NewEvent, Outcome,
    Retention, Settlement, Start, StoreError, TopicSettings, TrimMode,
};
use tokio::time::timeout;

use super::server::{Keeping, Server};
use super::{PATIENCE, ack, connect, name, publish, request, settings, texts, topic};

const STREAM: &str = "{tidings}/stream/orders";

#[tokio::test]
async fn a_group_that_somebody_else_made_is_refused_and_nothing_is_left_of_the_try() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let (topic, group) = (topic(settings()), name("g"));
    let () = server.say(&["XGROUP", "CREATE", STREAM, "g", "$", "MKSTREAM"]).await;
    let refused = store.create_group(&topic, &group, Start::Earliest).await;
    let Err(StoreError::Failed(error)) = &refused else { panic!("answered {refused:?}") };
    assert!(error.to_string().contains("BUSYGROUP"), "{error}");
    let keys: Vec<String> = server.say(&["KEYS", "*"]).await;
    assert_eq!(keys, [STREAM]);
    let _: u64 = server.say(&["XGROUP", "DESTROY", STREAM, "g"]).await;
    assert!(store.create_group(&topic, &group, Start::Earliest).await.expect("it can be made"));
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, PATIENCE)).await.expect("it is there");
    assert_eq!(texts(&taken), ["a"]);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_group_that_was_destroyed_by_hand_can_be_made_again_and_removed() {
    let destroyed: [(&[&str], &[&str]); 2] =
        [(&["XGROUP", "DESTROY", STREAM, "g"], &["a", "b", "c"]), (&["DEL", STREAM], &["c"])];
    for (words, left) in destroyed {
        let server = Server::start(Keeping::Nothing).await;
        let store = connect(&server.url()).await;
        let (topic, group) = (topic(TopicSettings { ordered: true, ..settings() }), name("g"));
        let take = async || store.receive(&topic, &group, request("c1", 10, Duration::ZERO)).await;
        store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
        publish(&store, &topic, &["a", "b"]).await;
        assert_eq!(texts(&take().await.expect("it is there")), ["a"]);
        let _: u64 = server.say(words).await;
        assert!(matches!(take().await, Err(GroupError::Unknown)));
        let sought = store.seek(&topic, &group, Start::Earliest, false).await;
        assert!(matches!(sought, Err(GroupError::Unknown)), "answered {sought:?}");
        assert!(store.create_group(&topic, &group, Start::Earliest).await.expect("it can be made"));
        assert!(!store.create_group(&topic, &group, Start::Earliest).await.expect("it is there"));
        publish(&store, &topic, &["c"]).await;
        for text in left {
            let taken = take().await.expect("it is there");
            assert_eq!(
                (texts(&taken), taken[0].tag.attempt),
                (vec![(*text).to_owned()], 1),
                "after {words:?}"
            );
            assert_eq!(ack(&store, &topic, &taken[0]).await.expect("it is heard"), Outcome::Acked);
        }
        let _: u64 = server.say(words).await;
        assert!(store.remove_group(&topic, &group).await.expect("it can be removed"), "after {words:?}");
        assert!(!store.remove_group(&topic, &group).await.expect("it can be asked"));
        let keys: Vec<String> = server.say(&["KEYS", "{tidings}/*/orders/g"]).await;
        assert!(keys.is_empty(), "left after {words:?}: {keys:?}");
        store.close().await.expect("it closes");
    }
}

#[tokio::test]
async fn ids_never_go_back_though_the_stream_was_removed_by_hand() {
    for makes_the_group_first in [true, false] {
        let server = Server::start(Keeping::Nothing).await;
        // All within one millisecond, where a stream that knows nothing of the last one would begin again at its start.
        let () = server.say(&["SET", "clock", "1700000000000"]).await;
        let store =
            Redis::connect_by_given_clock(&server.url(), Config::default()).await.expect("it is there");
        let (topic, group) = (topic(settings()), name("g"));
        let event = || vec![NewEvent::new("a".to_owned())];
        let mut last = EventId::ZERO;
        for _ in 0..3 {
            last = store.publish(&topic, event()).await.expect("it is published")[0].id;
        }
        let _: u64 = server.say(&["DEL", STREAM]).await;
        if makes_the_group_first {
            assert!(store.create_group(&topic, &group, Start::Earliest).await.expect("it can be made"));
        }
        let next = store.publish(&topic, event()).await.expect("it is published")[0].id;
        assert!(next > last, "{next} comes after {last}");
        if !makes_the_group_first {
            assert!(store.create_group(&topic, &group, Start::Earliest).await.expect("it can be made"));
        }
        let taken =
            store.receive(&topic, &group, request("c1", 10, Duration::ZERO)).await.expect("it is there");
        assert_eq!(taken.iter().map(|one| one.event.id).collect::<Vec<_>>(), [next]);
        store.close().await.expect("it closes");
    }
}

#[tokio::test]
async fn what_a_removed_stream_held_is_not_counted_any_more() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    let info = async || store.topic(&topic).await.expect("it can be asked").expect("it is there");
    publish(&store, &topic, &["a"]).await;
    let one = info().await.bytes;
    publish(&store, &topic, &["b", "c"]).await;
    for makes_a_group in [true, false] {
        let _: u64 = server.say(&["DEL", STREAM]).await;
        assert_eq!((info().await.events, info().await.bytes), (0, 0));
        if makes_a_group {
            assert!(store.create_group(&topic, &name("g"), Start::Earliest).await.expect("it can be made"));
            assert_eq!((info().await.events, info().await.bytes), (0, 0));
        }
        publish(&store, &topic, &["d"]).await;
        assert_eq!((info().await.events, info().await.bytes), (1, one));
    }
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_dead_letter_is_kept_where_its_group_was_destroyed_by_hand() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let topic = topic(TopicSettings { max_deliveries: NonZeroU32::MIN, ..settings() });
    let group = name("g");
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, PATIENCE)).await.expect("it is there");
    let action = Action::Fail { reason: "never".to_owned() };
    let word = Settlement { id: taken[0].event.id, tag: Some(taken[0].tag), action };
    let outcome = store.settle(&topic, &group, vec![word]).await.expect("it is heard")[0];
    let Outcome::Buried(letter) = outcome else { panic!("it is {outcome:?}") };
    let _: u64 = server.say(&["XGROUP", "DESTROY", STREAM, "g"]).await;
    let retried = store.retry(letter).await;
    assert!(matches!(retried, Err(DeadLetterError::NoGroup)), "answered {retried:?}");
    assert_eq!(store.dead_letter_count().await.expect("it can be asked"), 1);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_claim_makes_no_more_dead_letters_than_others_can_wait_for_and_tells_of_them() {
    const EVENTS: usize = 250;
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let (topic, group) = (topic(TopicSettings { max_deliveries: NonZeroU32::MIN, ..settings() }), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a"; EVENTS]).await;
    let taken = store.receive(&topic, &group, request("c1", EVENTS, PATIENCE)).await.expect("it is there");
    assert_eq!(taken.len(), EVENTS);
    let bell = async || server.say::<u64>(&["EXISTS", "{tidings}/bell/orders"]).await;
    assert_eq!(bell().await, 0);
    for buried in [100, 200, 250, 250] {
        let request = ClaimRequest { consumer: name("c2"), min_idle: Duration::ZERO, max: EVENTS };
        let claimed = store.claim(&topic, &group, request).await.expect("it is there");
        assert!(claimed.is_empty());
        assert_eq!(store.dead_letter_count().await.expect("it can be asked"), buried);
        assert_eq!(bell().await, 1);
    }
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn consumers_that_have_nothing_and_do_nothing_are_forgotten() {
    let server = Server::start(Keeping::Nothing).await;
    let () = server.say(&["SET", "clock", "1000"]).await;
    // By this clock nobody was ever idle for less than is asked for.
    let store = Redis::connect_by_given_clock(&server.url(), Config::default()).await.expect("it is there");
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a", "b"]).await;
    let take = async |consumer| store.receive(&topic, &group, request(consumer, 1, Duration::ZERO)).await;
    assert_eq!(texts(&take("has").await.expect("it is there")), ["a"]);
    let had = take("had").await.expect("it is there");
    assert_eq!(ack(&store, &topic, &had[0]).await.expect("it is heard"), Outcome::Acked);
    let listed = async || {
        let consumers: Vec<BTreeMap<String, redis::Value>> =
            server.say(&["XINFO", "CONSUMERS", STREAM, "g"]).await;
        let name =
            |one: &BTreeMap<String, redis::Value>| redis::from_redis_value_ref(&one["name"]).expect("text");
        let mut names: Vec<String> = consumers.iter().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(listed().await, ["had", "has"]);
    let forgotten = async {
        while listed().await != ["has"] {
            store.maintain(&topic).await.expect("it is done");
        }
    };
    timeout(PATIENCE, forgotten).await.expect("it is never forgotten");
    publish(&store, &topic, &["c"]).await;
    assert_eq!(texts(&take("had").await.expect("it is there")), ["c"]);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn of_many_events_of_one_moment_the_server_reads_few_to_trim_them() {
    const BATCHES: usize = 20;
    let server = Server::start(Keeping::Nothing).await;
    let () = server.say(&["SET", "clock", "1000"]).await;
    let store = Redis::connect_by_given_clock(&server.url(), Config::default()).await.expect("it is there");
    let topic = topic(settings());
    for _ in 0..BATCHES {
        publish(&store, &topic, &["a"; BATCH_EVENTS_MAX]).await;
    }
    let half = (BATCHES * BATCH_EVENTS_MAX / 2) as u64;
    let () = server.say(&["CONFIG", "RESETSTAT"]).await;
    let limits = Retention { max_events: Some(half), ..Retention::default() };
    let trimmed = store.trim(&topic, &limits, TrimMode::default()).await.expect("it is trimmed");
    assert_eq!(trimmed.removed, half);
    let said: String = server.say(&["INFO", "commandstats"]).await;
    let calls = said.lines().find_map(|line| line.strip_prefix("cmdstat_xrange:calls=")?.split(',').next());
    let calls: u64 = calls.expect("it has read some").parse().expect("it is a number");
    assert!(calls < 100, "it has read {calls} of {half}");
    store.close().await.expect("it closes");
}
