//! Events that somebody may have published: they are looked for, whatever that takes, and not published twice. Topics
//! remember no keys here.

use std::time::Duration;

use tidings_outbox::{BATCH_EVENTS, RelayState};
use tidings_streams::NewEvent;

use crate::databases::{Lab, in_both};
use crate::wayward::Way;
use crate::world::{PATIENCE, World, settings, status};

in_both! {
    what_cannot_be_looked_for_is_not_published
    a_batch_of_which_a_store_that_published_it_says_that_it_failed_is_looked_for_first
    a_look_that_does_not_end_holds_up_neither_other_topics_nor_the_end
    an_event_is_found_however_much_came_before_it
}

/// One event is in the topic, and nobody has heard that it is.
async fn in_doubt<DB: Lab>() -> World<DB> {
    let world = World::<DB>::with(settings(Duration::ZERO)).await;
    world.store.goes(Way::Unheard);
    assert!(world.commit("orders", NewEvent::new("1")).await);
    let relay = world.relay();
    status(&relay, |status| status.error.is_some()).await;
    relay.stop().await;
    world
}

async fn what_cannot_be_looked_for_is_not_published<DB: Lab>() {
    let world = in_doubt::<DB>().await;
    world.store.goes(Way::Unreadable);
    assert!(world.commit("orders", NewEvent::new("2")).await);
    let relay = world.relay();
    let waits = status(&relay, |status| status.setbacks >= 12).await;
    assert_eq!((waits.published, world.backlog().await.waiting), (0, 2), "{waits:?}");
    world.store.goes(Way::Good);
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1", "2"]);
    relay.stop().await;
}

async fn a_batch_of_which_a_store_that_published_it_says_that_it_failed_is_looked_for_first<DB: Lab>() {
    let world = World::<DB>::with(settings(Duration::ZERO)).await;
    world.store.goes(Way::Fitful);
    assert!(world.commit("orders", NewEvent::new("1")).await);
    let relay = world.relay();
    world.relayed().await;
    assert_eq!(world.payloads("orders").await, ["1"]);
    relay.stop().await;
}

async fn a_look_that_does_not_end_holds_up_neither_other_topics_nor_the_end<DB: Lab>() {
    let world = in_doubt::<DB>().await;
    world.store.goes(Way::Endless);
    let mut transaction = world.begin().await;
    // More than a batch, in front of all others.
    for _ in 0..=BATCH_EVENTS {
        world.outbox.publish(&mut transaction, "orders", NewEvent::new("2")).await.unwrap();
    }
    world.outbox.publish(&mut transaction, "mails", NewEvent::new("3")).await.unwrap();
    transaction.commit().await.unwrap();
    let relay = world.relay();
    let looks = status(&relay, |status| status.published == 1).await;
    assert_eq!((looks.state, looks.error), (RelayState::Relaying, None));
    let ended = tokio::time::timeout(PATIENCE, relay.stop()).await.expect("it ends");
    assert_eq!((ended.state, ended.error), (RelayState::Ended, None));
    world.store.goes(Way::Good);
    assert_eq!(world.payloads("mails").await, ["3"]);
}

async fn an_event_is_found_however_much_came_before_it<DB: Lab>() {
    let world = World::<DB>::with(settings(Duration::ZERO)).await;
    world.store.goes(Way::Refusing);
    let event = NewEvent::new("poison").idempotency_key("k");
    assert!(world.commit("orders", event.clone()).await);
    let relay = world.relay();
    status(&relay, |status| status.error.is_some()).await;
    relay.stop().await;
    world.store.goes(Way::Good);
    let stream = world.streams.stream("orders").unwrap();
    for _ in 0..12 {
        stream.publish_batch(vec![NewEvent::new("other"); 500]).await.unwrap();
    }
    // It was under way all the time.
    stream.publish(event).await.unwrap();
    let relay = world.relay();
    world.relayed().await;
    let status = relay.stop().await;
    assert_eq!((status.published, status.found, status.unsure), (0, 1, 0));
    assert!(world.store.reads() > 50, "more than is read before others have their turn");
    assert_eq!(world.payloads("orders").await.iter().filter(|payload| *payload == "poison").count(), 1);
}
