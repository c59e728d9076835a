//! Events that nobody takes: they are kept, shown, and hold up no others.

use tidings_streams::{NewEvent, Streams};

use crate::databases::{Lab, in_both};
use crate::wayward::Way;
use crate::world::{World, config, settings, status};

in_both! {
    an_event_of_a_topic_that_is_not_configured_is_set_aside_until_it_is_retried
    a_row_that_is_no_event_is_set_aside
    an_event_that_is_none_to_the_store_is_set_aside_alone
    an_event_that_the_store_refuses_is_set_aside_when_it_takes_those_behind_it
    a_topic_without_room_waits_and_loses_nothing
    a_topic_with_trouble_holds_up_no_other
    many_events_in_a_row_that_the_store_refuses_hold_up_those_behind_them_for_a_while_only
    events_for_which_a_full_store_has_no_room_are_not_overtaken
}

async fn an_event_of_a_topic_that_is_not_configured_is_set_aside_until_it_is_retried<DB: Lab>() {
    let world = World::<DB>::new().await;
    let relay = world.relay();
    for (topic, payload) in [("orders", "1"), ("nobodys", "3"), ("orders", "4")] {
        world.commit(topic, NewEvent::new(payload)).await;
    }
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1", "4"]);
    status(&relay, |status| status.failed == 1).await;
    let mut connection = world.connection().await;
    let failed = world.outbox.failed(&mut connection, 0, 10).await.unwrap();
    assert_eq!((failed.len(), failed[0].topic.as_str()), (1, "nobodys"));
    assert!(failed[0].error.contains("not configured"), "{failed:?}");
    assert!(failed[0].failed >= failed[0].created);
    assert_eq!(world.outbox.failed(&mut connection, failed[0].id, 10).await.unwrap(), []);
    relay.stop().await;

    let mut settings = settings(std::time::Duration::from_secs(120));
    settings.strict = false;
    let lenient = Streams::start(world.store.clone(), settings).unwrap();
    let relay = world.outbox.relay(&world.pool, lenient, config());
    assert!(!world.outbox.retry(&mut connection, -1).await.unwrap(), "it is no id");
    assert!(!world.outbox.retry(&mut connection, failed[0].id + 1_000).await.unwrap());
    assert!(world.outbox.retry(&mut connection, failed[0].id).await.unwrap());
    drop(connection);
    world.relayed().await;
    assert_eq!(world.payloads("nobodys").await, ["3"]);
    assert_eq!(world.backlog().await.failed, 0);
    relay.stop().await;
}

async fn a_row_that_is_no_event_is_set_aside<DB: Lab>() {
    let world = World::<DB>::new().await;
    for payload in ["0", "1", "2", "3"] {
        world.commit("orders", NewEvent::new(payload)).await;
    }
    let mut connection = world.connection().await;
    let broken = "UPDATE shop_outbox SET attributes = 'none' WHERE id = 2";
    assert_eq!(DB::say(&mut connection, broken).await, 1);
    // More than anybody takes into memory.
    let large = format!("UPDATE shop_outbox SET attributes = '{}' WHERE id = 3", " ".repeat(3 << 20));
    assert_eq!(DB::say(&mut connection, &large).await, 1);
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["0", "3"]);
    let errors = world.outbox.failed(&mut connection, 0, 10).await.unwrap();
    let errors: Vec<&str> = errors.iter().map(|failed| failed.error.as_str()).collect();
    assert!(
        errors.len() == 2 && errors[0].contains("attributes") && errors[1].contains("bytes"),
        "{errors:?}"
    );
    assert!(world.outbox.discard(&mut connection, 2).await.unwrap());
    assert!(!world.outbox.discard(&mut connection, 2).await.unwrap());
    assert_eq!(world.outbox.backlog(&mut connection).await.unwrap().failed, 1);
    assert_eq!(world.outbox.retry_all(&mut connection).await.unwrap(), 1);
    status(&relay, |status| status.failed == 3).await;
    relay.stop().await;
}

async fn an_event_that_is_none_to_the_store_is_set_aside_alone<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Judging);
    for payload in ["1", "poison", "2"] {
        world.commit("orders", NewEvent::new(payload)).await;
    }
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1", "2"]);
    assert_eq!(world.backlog().await.failed, 1);
    // Nothing was stored: nobody has to look for it.
    let noted = "SELECT COALESCE(after_id, 'nothing') FROM shop_outbox";
    assert_eq!(DB::texts(&mut *world.connection().await, noted).await, ["nothing"]);
    relay.stop().await;
}

async fn an_event_that_the_store_refuses_is_set_aside_when_it_takes_those_behind_it<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Refusing);
    world.commit("orders", NewEvent::new("poison 1")).await;
    let relay = world.relay();
    // As long as it is alone it may be the topic's fault.
    status(&relay, |status| status.setbacks >= 7).await;
    assert_eq!(world.backlog().await.failed, 0);
    for payload in ["poison 2", "1", "2", "poison 3"] {
        world.commit("orders", NewEvent::new(payload)).await;
    }
    status(&relay, |status| (status.failed, status.published) == (2, 2)).await;
    assert_eq!(world.payloads("orders").await, ["1", "2"]);
    let mut connection = world.connection().await;
    let failed = world.outbox.failed(&mut connection, 0, 10).await.unwrap();
    assert!(failed.iter().all(|failed| failed.error.contains("too large for the server")), "{failed:?}");
    world.store.goes(Way::Good);
    assert_eq!(world.outbox.retry_all(&mut connection).await.unwrap(), 2);
    drop(connection);
    world.relayed().await;
    let mut all = world.payloads("orders").await;
    all.sort();
    assert_eq!(all, ["1", "2", "poison 1", "poison 2", "poison 3"]);
    relay.stop().await;
}

async fn a_topic_without_room_waits_and_loses_nothing<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Full);
    for payload in ["1", "2"] {
        world.commit("orders", NewEvent::new(payload)).await;
    }
    let relay = world.relay();
    let waits = status(&relay, |status| status.setbacks >= 8).await;
    assert!(waits.error.is_some_and(|error| error.starts_with("orders: too many idempotency keys")));
    assert_eq!((world.backlog().await.waiting, waits.failed), (2, 0));
    world.store.goes(Way::Good);
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1", "2"]);
    status(&relay, |status| status.error.is_none()).await;
    relay.stop().await;
}

async fn a_topic_with_trouble_holds_up_no_other<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Refusing);
    let mut transaction = world.begin().await;
    // More than a batch, in front of all others.
    for _ in 0..=tidings_outbox::BATCH_EVENTS {
        world.outbox.publish(&mut transaction, "mails", NewEvent::new("poison")).await.unwrap();
    }
    world.outbox.publish(&mut transaction, "orders", NewEvent::new("1")).await.unwrap();
    transaction.commit().await.unwrap();
    let relay = world.relay();
    status(&relay, |status| status.published == 1).await;
    assert_eq!(world.payloads("orders").await, ["1"]);
    // The relay ends though there is trouble.
    relay.stop().await;
}

async fn many_events_in_a_row_that_the_store_refuses_hold_up_those_behind_them_for_a_while_only<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Refusing);
    let mut transaction = world.begin().await;
    for payload in std::iter::repeat_n("poison", 40).chain(["1"]) {
        world.outbox.publish(&mut transaction, "orders", NewEvent::new(payload)).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let relay = world.relay();
    status(&relay, |status| (status.failed, status.published) == (40, 1)).await;
    assert_eq!(world.payloads("orders").await, ["1"]);
    relay.stop().await;
}

async fn events_for_which_a_full_store_has_no_room_are_not_overtaken<DB: Lab>() {
    let world = World::<DB>::new().await;
    world.store.goes(Way::Crammed);
    for payload in ["0", "poison", "1"] {
        world.commit("orders", NewEvent::new(payload)).await;
    }
    let relay = world.relay();
    // It was asked event by event meanwhile.
    let waits = status(&relay, |status| status.published == 1 && status.setbacks >= 12).await;
    assert_eq!((world.backlog().await.waiting, waits.failed), (2, 0));
    world.store.goes(Way::Good);
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["0", "poison", "1"]);
    relay.stop().await;
}
