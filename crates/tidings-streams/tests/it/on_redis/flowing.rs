//! Groups that have nothing but new events, and many who publish at once: what goes another way than by one script for
//! each call.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tidings_streams::redis::Redis;
use tidings_streams::{
    Action, ClaimRequest, Delivered, Driver, EventId, Name, NewEvent, Outcome, Pending, PendingState,
    Settlement, Start, Timestamp, Topic, TopicSettings,
};

use super::server::{Keeping, Server};
use super::{PATIENCE, connect, name, publish, request, settings, texts, topic};

/// Events of a request: enough to be read by the server's own command.
const MANY: usize = 20;

/// A group of a topic with so many events, the first of which were taken: it flows.
async fn flowing(server: &Server, events: usize) -> (Redis, Topic, Name) {
    let store = connect(&server.url()).await;
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &vec!["a"; events]).await;
    assert_eq!(take(&store, &topic).await.len(), MANY);
    assert_eq!(transactions(server).await, 0);
    (store, topic, group)
}

async fn take(store: &Redis, topic: &Topic) -> Vec<Delivered> {
    store.receive(topic, &name("g"), request("c1", MANY, Duration::ZERO)).await.expect("it is there")
}

async fn transactions(server: &Server) -> u64 {
    let said: String = server.say(&["INFO", "commandstats"]).await;
    let calls = said.lines().find_map(|line| line.strip_prefix("cmdstat_exec:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("it is a number"))
}

async fn settle(store: &Redis, topic: &Topic, one: &Delivered, action: Action) -> Outcome {
    let word = Settlement { id: one.event.id, tag: Some(one.tag), action };
    store.settle(topic, &name("g"), vec![word]).await.expect("it is heard")[0]
}

#[tokio::test]
async fn new_events_are_read_in_order_and_once_each() {
    let server = Server::start(Keeping::Nothing).await;
    let (store, topic, group) = flowing(&server, MANY * 3 + 1).await;
    let mut ids = Vec::new();
    for (taken, transacted) in [(MANY, 1), (MANY, 2), (1, 3), (0, 3)] {
        let some = take(&store, &topic).await;
        assert_eq!((some.len(), transactions(&server).await), (taken, transacted));
        assert!(some.iter().all(|one| one.tag.attempt == 1 && one.until > one.event.time));
        let words =
            some.iter().map(|one| Settlement { id: one.event.id, tag: Some(one.tag), action: Action::Ack });
        let outcomes = store.settle(&topic, &group, words.collect()).await.expect("they are heard");
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Acked), "{outcomes:?}");
        ids.extend(some.iter().map(|one| one.event.id));
    }
    assert!(ids.is_sorted() && ids.iter().collect::<BTreeSet<_>>().len() == MANY * 2 + 1, "{ids:?}");
    let groups = store.groups(&topic).await.expect("they are there");
    assert_eq!(
        (groups[0].lag, groups[0].pending),
        (MANY as u64, MANY as u64),
        "the first ones are taken still"
    );
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_paused_group_takes_nothing_though_it_flows_and_loses_no_delivery() {
    let server = Server::start(Keeping::Nothing).await;
    let (store, topic, group) = flowing(&server, MANY * 2).await;
    store.set_paused(&topic, &group, true).await.expect("it is there");
    assert_eq!(texts(&take(&store, &topic).await), [""; 0]);
    let pending = store.pending(&topic, &group, None, 1_000).await.expect("it is there");
    let waiting = pending.iter().filter(|one| matches!(one.state, PendingState::Waiting(_)));
    assert!(waiting.clone().all(|one| one.attempts == 0 && one.consumer.is_none()), "{pending:?}");
    assert_eq!((waiting.count(), transactions(&server).await), (MANY, 1));
    store.set_paused(&topic, &group, false).await.expect("it is there");
    let taken = take(&store, &topic).await;
    assert_eq!(taken.iter().map(|one| one.tag.attempt).collect::<Vec<_>>(), [1; MANY]);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn what_is_due_again_comes_before_what_is_new_though_the_group_flows() {
    let server = Server::start(Keeping::Nothing).await;
    let (store, topic, _) = flowing(&server, MANY * 3).await;
    let taken = take(&store, &topic).await;
    assert_eq!(transactions(&server).await, 1);
    let failed = settle(&store, &topic, &taken[0], Action::Fail { reason: "no".to_owned() }).await;
    let Outcome::RetryAt(due) = failed else { panic!("answered {failed:?}") };
    let past = async {
        while Timestamp::now() <= due {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, past).await.expect("its moment comes");
    let next = take(&store, &topic).await;
    assert_eq!((next[0].event.id, next[0].tag.attempt), (taken[0].event.id, 2));
    assert!(next[1..].iter().all(|one| one.tag.attempt == 1) && next.len() == MANY, "{next:?}");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn an_event_is_not_handed_out_before_its_moment_though_the_group_flows() {
    let server = Server::start(Keeping::Nothing).await;
    let (store, topic, group) = flowing(&server, MANY).await;
    let later = NewEvent::new("later").not_before(Timestamp::now().after(Duration::from_secs(3_600)));
    let events = (1..MANY).map(|_| NewEvent::new("now")).chain([later]);
    store.publish(&topic, events.collect()).await.expect("it is published");
    assert_eq!(texts(&take(&store, &topic).await), ["now"; MANY - 1]);
    assert_eq!(transactions(&server).await, 1);
    let pending = store.pending(&topic, &group, None, 1_000).await.expect("it is there");
    let last = pending.last().expect("it is open");
    assert!(matches!(last.state, PendingState::Waiting(_)) && last.attempts == 0, "{last:?}");
    assert_eq!(texts(&take(&store, &topic).await), [""; 0]);
    store.close().await.expect("it closes");
}

/// What the driver does to give events back.
const GIVE_BACK: &str = concat!(
    include_str!("../../../src/redis/lua/base.lua"),
    include_str!("../../../src/redis/lua/server_clock.lua"),
    include_str!("../../../src/redis/lua/open.lua"),
    include_str!("../../../src/redis/lua/give_back.lua"),
);

/// Has a consumer read what is new by the server's own command, as the driver does, whose process ends then.
async fn read_natively(server: &Server, consumer: &str) {
    let _: redis::Value =
        server.say(&["XREADGROUP", "GROUP", "g", consumer, "STREAMS", "{tidings}/stream/orders", ">"]).await;
    let () = server.say(&["ZADD", "{tidings}/due/orders/g", "1", "*"]).await;
}

#[tokio::test]
async fn what_is_given_back_late_is_taken_from_nobody() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a", "b"]).await;
    read_natively(&server, "c1").await;
    let idle = |max| ClaimRequest { consumer: name("c2"), max, min_idle: Duration::ZERO };
    let claimed = store.claim(&topic, &group, idle(1)).await.expect("it is there");
    assert_eq!(texts(&claimed), ["a"]);
    let pending = store.pending(&topic, &group, None, 10).await.expect("it is there");
    let ids: Vec<String> =
        pending.iter().map(|one| format!("{}-{}", one.id.major(), one.id.minor())).collect();
    let epoch: String = server.say(&["HGET", "{tidings}/group/orders/g", "epoch"]).await;
    let give_back = async |epoch: &str| {
        let words = ["EVAL", GIVE_BACK, "1", "{tidings}/topics", "{tidings}/", "orders", "g"];
        let of_whom = ["604800000", "c1", epoch, &ids[0], &ids[1]];
        let _: redis::Value = server.say(&[&words[..], &of_whom[..]].concat()).await;
        let pending = store.pending(&topic, &group, None, 10).await.expect("it is there");
        pending.into_iter().map(|one| (one.consumer, one.attempts)).collect::<Vec<_>>()
    };
    let (one, other) = (Some(name("c1")), Some(name("c2")));
    let before = vec![(other.clone(), 2), (one, 1)];
    assert_eq!(give_back("7").await, before, "of another epoch");
    let after = give_back(&epoch).await;
    assert_eq!(after, [(other.clone(), 2), (None, 0)]);
    let taken = store.receive(&topic, &group, request("c2", 1, PATIENCE)).await.expect("it is there");
    assert_eq!((texts(&taken), taken[0].tag.attempt), (vec!["b".to_owned()], 1));
    assert_eq!(give_back(&epoch).await, [(other.clone(), 2), (other, 1)], "said twice");
    for one in [&claimed[0], &taken[0]] {
        assert_eq!(settle(&store, &topic, one, Action::Ack).await, Outcome::Acked);
    }
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn what_nobody_was_given_is_not_given_up_though_each_is_delivered_once_only() {
    for call in ["receive", "claim", "maintain"] {
        let server = Server::start(Keeping::Nothing).await;
        let store = connect(&server.url()).await;
        let once =
            TopicSettings { max_deliveries: NonZeroU32::MIN, min_idle_time: Duration::ZERO, ..settings() };
        let (topic, group, another) = (topic(once), name("g"), name("h"));
        for group in [&group, &another] {
            store.create_group(&topic, group, Start::Latest).await.expect("it is made");
        }
        publish(&store, &topic, &["failed"]).await;
        for (group, action) in [(&group, Action::Ack), (&another, Action::Fail { reason: "no".to_owned() })] {
            let taken = store.receive(&topic, group, request("c1", 1, PATIENCE)).await.expect("it is there");
            let word = Settlement { id: taken[0].event.id, tag: Some(taken[0].tag), action };
            let outcome = store.settle(&topic, group, vec![word]).await.expect("it is heard")[0];
            if let Outcome::Buried(letter) = outcome {
                store.retry(letter).await.expect("it is published again");
            }
        }
        let later = NewEvent::new("later").not_before(Timestamp::now().after(Duration::from_secs(3_600)));
        store.publish(&topic, vec![later]).await.expect("it is published");
        read_natively(&server, "c1").await;
        match call {
            "receive" => {
                let taken = store.receive(&topic, &group, request("c2", 5, Duration::ZERO)).await;
                assert_eq!(texts(&taken.expect("it is there")), [""; 0]);
            }
            "claim" => {
                let request = ClaimRequest { consumer: name("c2"), max: 5, min_idle: Duration::ZERO };
                let taken = store.claim(&topic, &group, request).await;
                assert_eq!(texts(&taken.expect("it is there")), [""; 0]);
            }
            _ => drop(store.maintain(&topic).await.expect("it is done")),
        }
        assert_eq!(store.dead_letter_count().await.expect("they can be counted"), 0, "by {call}");
        let pending = store.pending(&topic, &group, None, 10).await.expect("it is there");
        let waits = |one: &Pending| matches!(one.state, PendingState::Waiting(_)) && one.attempts == 0;
        assert!(pending.len() == 1 && waits(&pending[0]), "by {call}: {pending:?}");
        store.close().await.expect("it closes");
    }
}

#[tokio::test]
async fn who_publishes_at_once_is_answered_each_for_its_own() {
    let server = Server::start(Keeping::Nothing).await;
    let store = connect(&server.url()).await;
    let topic = topic(settings());
    let one = |number: usize| {
        let events = (0..=number % 3).map(|part| NewEvent::new(format!("{number}.{part}")));
        let events = events.map(|event| if number.is_multiple_of(4) { event.key("k") } else { event });
        store.publish(&topic, events.collect())
    };
    // One that is given up takes no other along.
    assert!(join_all((0..100).map(one)).now_or_never().is_none());
    let published = join_all((100..200).map(one)).await;
    for (number, published) in (100..).zip(published) {
        for (part, one) in published.expect("it is published").into_iter().enumerate() {
            let event = store.event(&topic, one.id).await.expect("it can be read").expect("it is there");
            assert_eq!(event.payload, format!("{number}.{part}"));
        }
    }
    let info = store.topic(&topic).await.expect("it can be asked").expect("it is there");
    let most = (0..200).map(|number: u64| number % 3 + 1).sum::<u64>();
    assert!(info.events <= most && info.first > Some(EventId::ZERO), "{info:?}");
    store.close().await.expect("it closes");
}
