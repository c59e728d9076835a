//! What relays do, in which order, and what they outlive.

use std::time::Duration;

use sqlx::{Postgres, Sqlite};
use tidings_outbox::{BATCH_EVENTS, Outbox, RelayConfig, RelayState};
use tidings_streams::{NewEvent, PAYLOAD_BYTES_MAX, Retention, Streams, TrimMode};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::databases::{Lab, in_both};
use crate::postgres_server::Server;
use crate::wayward::Way;
use crate::world::{PATIENCE, World, config, open, settings, status};

in_both! {
    transactions_that_exclude_each_other_are_relayed_in_the_order_of_their_commits
    one_relay_of_several_relays_and_another_takes_over
    an_event_whose_answer_was_lost_is_found_though_the_topic_forgot_its_key
    an_event_that_may_be_there_twice_is_counted
    a_store_that_was_away_gets_everything_once
    a_relay_that_cannot_reach_its_store_lets_another_one_try
    batches_are_bounded_in_events_and_in_bytes
    a_table_that_is_made_later_is_relayed_from_then_on
    a_key_that_went_out_long_ago_can_be_used_again
    the_backlog_is_what_it_says
    a_relay_whose_streams_are_closed_ends_and_leaves_what_waits
    a_relay_whose_driver_panics_says_that_it_ended
}

/// Writers, each with transactions one after the other.
const WRITERS: usize = 4;
const TRANSACTIONS: usize = 25;

async fn transactions_that_exclude_each_other_are_relayed_in_the_order_of_their_commits<DB: Lab>() {
    let world = World::<DB>::new().await;
    let mut connection = world.connection().await;
    DB::say(&mut connection, "CREATE TABLE counters (name TEXT PRIMARY KEY, count BIGINT)").await;
    DB::say(&mut connection, "INSERT INTO counters VALUES ('a', 0), ('b', 0)").await;
    drop(connection);
    let relay = world.relay();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (pool, outbox) = (world.pool.clone(), world.outbox.clone());
        writers.spawn(async move {
            for number in 0..TRANSACTIONS {
                let name = if (writer + number) % 2 == 0 { "a" } else { "b" };
                let mut transaction = pool.begin().await.unwrap();
                let count = format!("UPDATE counters SET count = count + 1 WHERE name = '{name}'");
                DB::say(&mut transaction, &count).await;
                let count = format!("SELECT CAST(count AS TEXT) FROM counters WHERE name = '{name}'");
                let count = DB::texts(&mut transaction, &count).await.remove(0);
                for part in ["first", "second"] {
                    let event = NewEvent::new(format!("{count} {part}")).key(name);
                    outbox.publish(&mut transaction, "orders", event).await.unwrap();
                }
                transaction.commit().await.unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    world.relayed().await;
    let events = world.events("orders").await;
    for name in ["a", "b"] {
        let seen = events.iter().filter(|event| event.key.as_deref() == Some(name)).map(crate::world::text);
        let parts = |count| ["first", "second"].map(|part| format!("{count} {part}"));
        let wanted: Vec<String> = (1..=WRITERS * TRANSACTIONS / 2).flat_map(parts).collect();
        assert_eq!(seen.collect::<Vec<_>>(), wanted, "of {name}");
    }
    relay.stop().await;
}

/// Rows are numbered before they are committed: who goes by numbers alone misses the one that commits late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_commits_after_a_later_one_is_not_missed() {
    let world = World::<Postgres>::new().await;
    let relay = world.relay();
    let mut early = world.begin().await;
    world.outbox.publish(&mut early, "orders", NewEvent::new("numbered first")).await.unwrap();
    assert!(world.commit("orders", NewEvent::new("committed first")).await);
    status(&relay, |status| status.published == 1).await;
    early.commit().await.unwrap();
    status(&relay, |status| status.published == 2).await;
    assert_eq!(world.payloads("orders").await, ["committed first", "numbered first"]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_wakes_a_relay_in_another_process() {
    let world = World::<Postgres>::new().await;
    // Another outbox of the same table: what is committed with it wakes nobody in this process.
    let elsewhere = Outbox::<Postgres>::new("shop_").unwrap();
    let relay = world.outbox.relay(
        &world.pool,
        world.streams.clone(),
        RelayConfig { poll: Duration::from_secs(3_600), ..config() },
    );
    // It listens when this is relayed, or looks once more when it does.
    status(&relay, |status| status.state == RelayState::Relaying).await;
    for number in 1..=5 {
        let mut transaction = world.begin().await;
        elsewhere.publish(&mut transaction, "orders", NewEvent::new("x")).await.unwrap();
        transaction.commit().await.unwrap();
        status(&relay, |status| status.published == number).await;
    }
    relay.stop().await;
}

async fn one_relay_of_several_relays_and_another_takes_over<DB: Lab>() {
    let world = World::<DB>::new().await;
    let first = world.relay();
    status(&first, |status| status.state == RelayState::Relaying).await;
    // As in a process of its own.
    let second = Outbox::<DB>::new("shop_").unwrap().relay(&world.pool, world.streams.clone(), config());
    status(&second, |status| status.state == RelayState::Standby).await;
    for number in 0..20 {
        assert!(world.commit("orders", NewEvent::new(number.to_string())).await);
    }
    world.relayed().await;
    let status_of_first = first.stop().await;
    assert_eq!((status_of_first.published, status_of_first.state), (20, RelayState::Ended));
    assert_eq!(second.status().published, 0);
    for number in 20..40 {
        assert!(world.commit("orders", NewEvent::new(number.to_string())).await);
    }
    world.relayed().await;
    let wanted: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    assert_eq!(world.payloads("orders").await, wanted);
    assert_eq!(second.stop().await.published, 20);
}

async fn an_event_whose_answer_was_lost_is_found_though_the_topic_forgot_its_key<DB: Lab>() {
    let world = World::<DB>::with(settings(Duration::ZERO)).await;
    assert!(world.commit("orders", NewEvent::new("before")).await);
    let relay = world.relay();
    world.relayed().await;
    world.store.goes(Way::Unheard);
    for payload in ["1", "2"] {
        assert!(world.commit("orders", NewEvent::new(payload)).await);
    }
    let lost = status(&relay, |status| status.error.is_some()).await;
    assert!(lost.error.is_some_and(|error| error.contains("it is away")));
    world.store.goes(Way::Good);
    assert!(world.commit("orders", NewEvent::new("3")).await);
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["before", "1", "2", "3"]);
    let status = status(&relay, |status| status.error.is_none()).await;
    assert!(status.found >= 1 && status.unsure == 0, "{status:?}");
    relay.stop().await;
}

async fn an_event_that_may_be_there_twice_is_counted<DB: Lab>() {
    let world = World::<DB>::with(settings(Duration::ZERO)).await;
    assert!(world.commit("orders", NewEvent::new("before")).await);
    let relay = world.relay();
    world.relayed().await;
    world.store.goes(Way::Unheard);
    assert!(world.commit("orders", NewEvent::new("1")).await);
    status(&relay, |status| status.error.is_some()).await;
    relay.stop().await;
    // Somebody may have seen it meanwhile.
    let everything = Retention { max_events: Some(0), ..Retention::default() };
    let trimmed = world.streams.stream("orders").unwrap().trim(&everything, TrimMode::default()).await;
    assert_eq!(trimmed.unwrap().removed, 2);
    world.store.goes(Way::Good);
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1"]);
    let status = relay.stop().await;
    assert_eq!((status.unsure, status.published), (1, 1));
}

async fn a_relay_that_cannot_reach_its_store_lets_another_one_try<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Away);
    assert!(world.commit("orders", NewEvent::new("1")).await);
    let cut_off = world.relay();
    status(&cut_off, |status| status.setbacks > 0).await;
    let home = tempfile::tempdir().unwrap();
    let reached = Streams::start(open(home.path()).await, settings(Duration::ZERO)).unwrap();
    // As in a process of its own, from which the store can be reached.
    let other = Outbox::<DB>::new("shop_").unwrap().relay(&world.pool, reached.clone(), config());
    status(&other, |status| status.published == 1).await;
    world.relayed().await;
    other.stop().await;
    cut_off.stop().await;
    reached.shutdown().await.unwrap();
}

async fn a_store_that_was_away_gets_everything_once<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Away);
    for number in 0..10 {
        assert!(world.commit("orders", NewEvent::new(number.to_string())).await);
    }
    let relay = world.relay();
    status(&relay, |status| status.setbacks >= 3).await;
    // Who cannot reach the store keeps nobody from trying.
    assert_eq!(world.backlog().await.waiting, 10);
    world.store.goes(Way::Good);
    world.relayed().await;
    let wanted: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(world.payloads("orders").await, wanted);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_under_a_relay_is_relayed_again() {
    let mut server = Server::start().await;
    let pool = sqlx::PgPool::connect_lazy_with(server.options());
    let outbox = Outbox::<Postgres>::new("").unwrap();
    let world = World::<Sqlite>::new().await;
    outbox.create_table(&mut *pool.acquire().await.unwrap()).await.unwrap();
    let relay = outbox.relay(&pool, world.streams.clone(), config());
    let mut transaction = pool.begin().await.unwrap();
    outbox.publish(&mut transaction, "orders", NewEvent::new("1")).await.unwrap();
    transaction.commit().await.unwrap();
    status(&relay, |status| status.published == 1).await;
    server.crash();
    status(&relay, |status| status.state == RelayState::BackingOff).await;
    server.start_again().await;
    let pool = sqlx::PgPool::connect_lazy_with(server.options());
    outbox.publish(&mut *pool.acquire().await.unwrap(), "orders", NewEvent::new("2")).await.unwrap();
    status(&relay, |status| status.published == 2 && status.error.is_none()).await;
    assert_eq!(world.payloads("orders").await, ["1", "2"]);
    relay.stop().await;
}

async fn batches_are_bounded_in_events_and_in_bytes<DB: Lab>() {
    let world = World::<DB>::new().await;
    let count = 2 * BATCH_EVENTS + 1;
    let mut transaction = world.begin().await;
    for number in 0..count {
        let event = NewEvent::new(number.to_string());
        world.outbox.publish(&mut transaction, "orders", event).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.store.batches(), 3);
    let wanted: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    assert_eq!(world.payloads("orders").await, wanted);
    relay.stop().await;
    let mut transaction = world.begin().await;
    for _ in 0..12 {
        let event = NewEvent::new(vec![1; PAYLOAD_BYTES_MAX]);
        world.outbox.publish(&mut transaction, "mails", event).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let relay = world.relay();
    world.relayed().await;
    // Four mebibytes and less than one event more each time: four events.
    assert_eq!(world.store.batches(), 3 + 3);
    assert_eq!(relay.stop().await.published, 12);
}

async fn a_table_that_is_made_later_is_relayed_from_then_on<DB: Lab>() {
    let world = World::<DB>::new().await;
    let later = Outbox::<DB>::new("later_").unwrap();
    let relay = later.relay(&world.pool, world.streams.clone(), config());
    status(&relay, |status| status.setbacks > 0).await;
    let mut connection = world.connection().await;
    later.create_table(&mut connection).await.unwrap();
    later.publish(&mut connection, "orders", NewEvent::new("1")).await.unwrap();
    drop(connection);
    status(&relay, |status| status.published == 1 && status.error.is_none()).await;
    relay.stop().await;
}

async fn a_key_that_went_out_long_ago_can_be_used_again<DB: Lab>() {
    let world = World::<DB>::with(settings(Duration::ZERO)).await;
    let event = |payload: &'static str| NewEvent::new(payload).idempotency_key("k");
    assert!(world.commit("orders", event("1")).await);
    let relay = world.relay();
    world.relayed().await;
    relay.stop().await;
    assert!(!world.commit("orders", event("never")).await);
    // As if a day and more had passed.
    let long_ago = "UPDATE shop_outbox SET published_at = published_at - 90000000";
    assert_eq!(DB::say(&mut *world.connection().await, long_ago).await, 1);
    let relay = world.relay();
    let begun = tokio::time::Instant::now();
    while !world.commit("orders", event("2")).await {
        assert!(begun.elapsed() < PATIENCE, "it is remembered for ever");
    }
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1", "2"]);
    relay.stop().await;
}

async fn the_backlog_is_what_it_says<DB: Lab>() {
    let world = World::<DB>::new().await;
    assert_eq!(world.backlog().await, Default::default());
    for _ in 0..3 {
        world.commit("orders", NewEvent::new("x")).await;
    }
    let mut connection = world.connection().await;
    DB::say(&mut connection, "UPDATE shop_outbox SET created_at = created_at - 60000 WHERE id = 2").await;
    drop(connection);
    let backlog = world.backlog().await;
    assert_eq!((backlog.waiting, backlog.failed), (3, 0));
    let oldest = backlog.oldest.expect("something waits");
    assert!((Duration::from_secs(60)..Duration::from_secs(60) + PATIENCE).contains(&oldest), "{oldest:?}");
}

async fn a_relay_whose_streams_are_closed_ends_and_leaves_what_waits<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.streams.shutdown().await.unwrap();
    assert!(world.commit("orders", NewEvent::new("1")).await);
    let relay = world.relay();
    let ended = status(&relay, |status| status.state == RelayState::Ended).await;
    assert!(ended.error.is_some_and(|error| error.contains("closed")));
    assert_eq!(world.backlog().await.waiting, 1);
}

async fn a_relay_whose_driver_panics_says_that_it_ended<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Panicking);
    assert!(world.commit("orders", NewEvent::new("1")).await);
    let relay = world.relay();
    status(&relay, |status| status.state == RelayState::Ended).await;
    let stopped = TaskTracker::new().spawn(relay.stop()).await;
    assert!(stopped.is_err_and(|error| error.is_panic()), "whoever stops it hears of it");
    world.store.goes(Way::Good);
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1"]);
    relay.stop().await;
}
