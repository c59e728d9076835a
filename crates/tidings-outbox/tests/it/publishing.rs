//! What a transaction leaves behind.

use sqlx::{Connection, Postgres, Sqlite};
use tidings_outbox::{Outbox, OutboxError};
use tidings_streams::{NewEvent, PAYLOAD_BYTES_MAX, Timestamp};

use crate::databases::{Lab, in_both};
use crate::world::World;

in_both! {
    all_of_a_committed_event_arrives
    what_is_rolled_back_never_arrives_nor_does_what_a_savepoint_took_back
    an_idempotency_key_is_taken_once_while_it_waits_and_after_it_went_out
    what_no_topic_takes_is_refused_and_spoils_no_transaction
    a_table_can_be_made_by_several_at_once
    what_the_schema_says_makes_the_table
}

async fn all_of_a_committed_event_arrives<DB: Lab>() {
    let world = World::<DB>::new().await;
    let full = NewEvent::new(vec![0, 159, 146, 150, 255])
        .key("customer\0 \u{1f600} \"3\"")
        .header("traceparent", "00-\0-01")
        .header("empty", "")
        .content_type("application/octet-stream")
        .idempotency_key("order\0 7")
        .not_before(Timestamp(1_700_000_000_123));
    assert!(world.commit("orders", full.clone()).await);
    assert!(world.commit("orders", NewEvent::new("")).await);
    let large = NewEvent::new(vec![7; PAYLOAD_BYTES_MAX]);
    assert!(world.commit("orders", large.clone()).await);
    let relay = world.relay();
    world.relayed().await;
    let events = world.events("orders").await;
    let back: Vec<NewEvent> = events
        .into_iter()
        .map(|event| NewEvent {
            payload: event.payload,
            key: event.key,
            headers: event.headers,
            content_type: event.content_type,
            idempotency_key: event.idempotency_key,
            not_before: event.not_before,
        })
        .collect();
    assert_eq!(back.len(), 3);
    assert_eq!(back[0], full);
    assert_eq!(NewEvent { idempotency_key: None, ..back[1].clone() }, NewEvent::new(""));
    assert!(back[2].payload == large.payload, "a large payload is another one");
    relay.stop().await;
}

async fn what_is_rolled_back_never_arrives_nor_does_what_a_savepoint_took_back<DB: Lab>() {
    let world = World::<DB>::new().await;
    let publish = async |connection: &mut DB::Connection, payload: &'static str| {
        world.outbox.publish(connection, "orders", NewEvent::new(payload)).await.expect("it is written");
    };
    let mut transaction = world.begin().await;
    publish(&mut transaction, "never, rolled back").await;
    transaction.rollback().await.unwrap();
    let mut transaction = world.begin().await;
    publish(&mut transaction, "never, dropped").await;
    drop(transaction);

    let mut transaction = world.begin().await;
    publish(&mut transaction, "1").await;
    let mut savepoint = Connection::begin(&mut *transaction).await.unwrap();
    publish(&mut savepoint, "never, to the savepoint").await;
    savepoint.rollback().await.unwrap();
    let mut savepoint = Connection::begin(&mut *transaction).await.unwrap();
    publish(&mut savepoint, "2").await;
    let mut inner = Connection::begin(&mut *savepoint).await.unwrap();
    publish(&mut inner, "never, to the inner one").await;
    drop(inner);
    savepoint.commit().await.unwrap();
    publish(&mut transaction, "3").await;
    transaction.commit().await.unwrap();
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1", "2", "3"]);
    let status = relay.stop().await;
    assert_eq!((status.published, status.failed), (3, 0));
}

async fn an_idempotency_key_is_taken_once_while_it_waits_and_after_it_went_out<DB: Lab>() {
    let world = World::<DB>::new().await;
    let event = |payload: &'static str| NewEvent::new(payload).idempotency_key("order 7");
    let mut transaction = world.begin().await;
    world.outbox.publish(&mut transaction, "orders", event("never")).await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(world.commit("orders", event("1")).await, "what was rolled back has taken no key");
    assert!(!world.commit("orders", event("never, one waits")).await);
    assert!(world.commit("mails", event("2")).await, "a key is a topic's");
    let relay = world.relay();
    world.relayed().await;
    assert!(!world.commit("orders", event("never, one went out")).await);
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1"]);
    assert_eq!(world.payloads("mails").await, ["2"]);
    relay.stop().await;
}

async fn what_no_topic_takes_is_refused_and_spoils_no_transaction<DB: Lab>() {
    let world = World::<DB>::new().await;
    let mut transaction = world.begin().await;
    let refused = world.outbox.publish(&mut transaction, "no topic", NewEvent::new("")).await;
    assert!(matches!(refused, Err(OutboxError::Topic(..))), "{refused:?}");
    let large = NewEvent::new(vec![0; PAYLOAD_BYTES_MAX + 1]);
    let refused = world.outbox.publish(&mut transaction, "orders", large).await;
    assert!(matches!(refused, Err(OutboxError::Invalid(_))), "{refused:?}");
    world.outbox.publish(&mut transaction, "orders", NewEvent::new("1")).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(world.backlog().await.waiting, 1);
}

async fn a_table_can_be_made_by_several_at_once<DB: Lab>() {
    let world = World::<DB>::new().await;
    let other = Outbox::<DB>::new("other_").unwrap();
    let mut makers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (other, pool) = (other.clone(), world.pool.clone());
        makers.spawn(async move {
            let mut connection = pool.acquire().await.unwrap();
            other.create_table(&mut connection).await
        });
    }
    while let Some(made) = makers.join_next().await {
        made.unwrap().unwrap();
    }
    // They are apart.
    assert!(world.commit("orders", NewEvent::new("1")).await);
    assert_eq!(other.backlog(&mut *world.connection().await).await.unwrap().waiting, 0);
    assert_eq!(other.table_name(), "other_outbox");
}

async fn what_the_schema_says_makes_the_table<DB: Lab>() {
    let world = World::<DB>::new().await;
    let other = Outbox::<DB>::without_notify("other_").unwrap();
    let mut connection = world.connection().await;
    for statement in other.schema() {
        DB::say(&mut connection, &statement).await;
    }
    other.publish(&mut connection, "orders", NewEvent::new("1")).await.unwrap();
    assert_eq!(other.backlog(&mut connection).await.unwrap().waiting, 1);
}

#[test]
fn a_prefix_that_is_no_name_is_refused() {
    for prefix in ["", "shop_", "_9", &"x".repeat(40)] {
        assert!(Outbox::<Postgres>::new(prefix).is_ok(), "{prefix:?}");
    }
    for prefix in ["9", "Shop", "a-b", "a\"b", "a b", "é", "x; DROP TABLE orders; --", &"x".repeat(41)] {
        assert!(Outbox::<Sqlite>::new(prefix).is_err(), "{prefix:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_open_transactions_with_one_key_the_second_waits_for_the_first() {
    let world = World::<Postgres>::new().await;
    let event = |payload: &'static str| NewEvent::new(payload).idempotency_key("k");
    for first_commits in [false, true] {
        let topic = if first_commits { "orders" } else { "mails" };
        let mut first = world.begin().await;
        world.outbox.publish(&mut first, topic, event("first")).await.unwrap();
        let mut second = world.begin().await;
        let waiting = world.outbox.publish(&mut second, topic, event("second"));
        let ending = async { if first_commits { first.commit().await } else { first.rollback().await } };
        let (enqueued, ended) = tokio::join!(waiting, ending);
        ended.unwrap();
        assert_eq!(enqueued.unwrap().duplicate, first_commits);
        second.commit().await.unwrap();
    }
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["first"]);
    assert_eq!(world.payloads("mails").await, ["second"]);
    relay.stop().await;
}
