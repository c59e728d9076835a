//! Publishing and reading.

use std::time::Duration;

use super::Case;
use super::lab::{Lab, PATIENCE, name, settings, text, topic, topic_with};
use crate::call::{Order, Page, Start};
use crate::error::PublishError;
use crate::event::{NewEvent, PAYLOAD_BYTES_MAX};
use crate::id::EventId;
use crate::settings::TopicSettings;

pub(super) fn cases() -> [Case; 9] {
    facts![
        ids_grow_and_are_answered_in_order,
        events_come_back_as_they_were_published,
        a_batch_with_an_invalid_event_stores_nothing,
        an_idempotency_key_stores_an_event_once,
        an_idempotency_key_counts_as_long_as_its_window,
        pages_go_both_ways,
        pages_are_bounded_by_ids_and_moments,
        topics_are_listed_with_what_they_hold,
        large_payloads_are_whole,
    ]
}

async fn ids_grow_and_are_answered_in_order(lab: &Lab<'_>) {
    let topic = topic();
    let mut ids = lab.publish(&topic, &["a", "b", "c"]).await;
    ids.extend(lab.publish(&topic, &["d"]).await);
    assert!(ids.windows(2).all(|two| two[0] < two[1]), "ids do not grow: {ids:?}");
    let held = lab.held(&topic, Order::Ascending, 10).await;
    assert_eq!(held.iter().map(|event| event.id).collect::<Vec<_>>(), ids);
    assert_eq!(held.iter().map(text).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    assert!(held.windows(2).all(|two| two[0].time <= two[1].time), "moments go back");
}

async fn events_come_back_as_they_were_published(lab: &Lab<'_>) {
    let topic = topic();
    let due = lab.now();
    let events = vec![
        NewEvent::new(""),
        NewEvent::new("__int:5"),
        NewEvent::new("__null").key("__json:{"),
        NewEvent::new((0..=255).collect::<Vec<u8>>()).content_type("application/octet-stream"),
        NewEvent::new("9223372036854775808.000000000000000001").header("größe", "ünïcödé\n\0"),
        NewEvent::new("all")
            .key("k")
            .header("a", "")
            .header("b", "2")
            .idempotency_key("once")
            .not_before(due),
    ];
    lab.publish_events(&topic, events.clone()).await;
    let held = lab.held(&topic, Order::Ascending, 10).await;
    assert_eq!(held.len(), events.len());
    for (event, new) in held.into_iter().zip(events) {
        let one = lab.driver().event(&topic, event.id).await.expect("it can be read");
        assert_eq!(one.as_ref(), Some(&event), "a single event differs from the page's");
        let back = NewEvent {
            payload: event.payload,
            key: event.key,
            headers: event.headers,
            content_type: event.content_type,
            idempotency_key: event.idempotency_key,
            not_before: event.not_before,
        };
        assert_eq!(back, new);
        assert_eq!(event.retried, None);
    }
}

async fn a_batch_with_an_invalid_event_stores_nothing(lab: &Lab<'_>) {
    let topic = topic();
    let batch = vec![NewEvent::new("fine"), NewEvent::new(vec![0; PAYLOAD_BYTES_MAX + 1])];
    let refused = lab.driver().publish(&topic, batch).await;
    assert!(matches!(refused, Err(PublishError::Invalid(_))), "answered {refused:?}");
    assert_eq!(lab.held_texts(&topic).await, [""; 0]);
}

async fn an_idempotency_key_stores_an_event_once(lab: &Lab<'_>) {
    let topic = topic();
    let once = |text: &'static str, key: &str| NewEvent::new(text).idempotency_key(key);
    let batch = vec![once("a", "1"), once("again", "1"), once("b", "2")];
    let first = lab.driver().publish(&topic, batch).await.expect("it is published");
    assert_eq!(first.iter().map(|one| one.duplicate).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(first[0].id, first[1].id);
    let second = lab.driver().publish(&topic, vec![once("late", "2"), once("c", "3")]).await;
    let second = second.expect("it is published");
    assert_eq!((second[0].id, second[0].duplicate, second[1].duplicate), (first[2].id, true, false));
    assert_eq!(lab.held_texts(&topic).await, ["a", "b", "c"]);
}

async fn an_idempotency_key_counts_as_long_as_its_window(lab: &Lab<'_>) {
    let window = Duration::from_millis(500);
    let topic = topic_with(TopicSettings { idempotency_window: window, ..settings() });
    let once = || vec![NewEvent::new("a").idempotency_key("1")];
    let first = lab.publish_events(&topic, once()).await;
    lab.pass(window + Duration::from_millis(100)).await;
    let second = lab.publish_events(&topic, once()).await;
    assert_ne!(first, second, "the key counts beyond its window");
}

async fn pages_go_both_ways(lab: &Lab<'_>) {
    let topic = topic();
    let all: Vec<String> = (0..105).map(|number| number.to_string()).collect();
    lab.publish(&topic, &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for limit in [1, 7, 50, 105, 1_000] {
        let up: Vec<String> = lab.held(&topic, Order::Ascending, limit).await.iter().map(text).collect();
        assert_eq!(up, all, "upwards by {limit}");
        let mut down: Vec<String> =
            lab.held(&topic, Order::Descending, limit).await.iter().map(text).collect();
        down.reverse();
        assert_eq!(down, all, "downwards by {limit}");
    }
}

async fn pages_are_bounded_by_ids_and_moments(lab: &Lab<'_>) {
    let topic = topic();
    lab.publish(&topic, &["a", "b"]).await;
    lab.pass(Duration::from_millis(50)).await;
    let ids = lab.publish(&topic, &["c"]).await;
    lab.pass(Duration::from_millis(50)).await;
    lab.publish(&topic, &["d"]).await;
    let held = lab.held(&topic, Order::Ascending, 10).await;
    let read = async |page: Page| {
        let found = lab.driver().read(&topic, &Page { limit: 10, ..page }).await.expect("it can be read");
        found.events.iter().map(text).collect::<String>()
    };
    let (from, until) = (Some(held[2].time), Some(held[3].time));
    assert_eq!(read(Page { from, ..Page::default() }).await, "cd");
    assert_eq!(read(Page { until, ..Page::default() }).await, "abc");
    assert_eq!(read(Page { from, until, order: Order::Descending, ..Page::default() }).await, "c");
    assert_eq!(read(Page { after: Some(ids[0]), ..Page::default() }).await, "d");
    assert_eq!(read(Page { after: Some(ids[0]), order: Order::Descending, ..Page::default() }).await, "ba");
    assert_eq!(read(Page { after: Some(EventId::MAX), ..Page::default() }).await, "");
    assert_eq!(
        read(Page { after: Some(EventId::ZERO), order: Order::Descending, ..Page::default() }).await,
        ""
    );
}

async fn topics_are_listed_with_what_they_hold(lab: &Lab<'_>) {
    let mut wanted = Vec::new();
    for text in ["orders.created", "orders", "заказы", "Orders", "a-b_c:d"] {
        let topic = crate::settings::Topic { name: name(text), ..topic() };
        let nothing = lab.driver().topic(&topic).await.expect("it can be asked");
        assert_eq!(nothing, None, "{text} is there before it was made");
        let ids = lab.publish(&topic, &["1", "2"]).await;
        lab.group(&topic, "g", Start::Latest).await;
        let info = lab.driver().topic(&topic).await.expect("it can be asked").expect("it is there");
        assert_eq!((info.events, info.first, info.last), (2, Some(ids[0]), Some(ids[1])), "{text}");
        assert_eq!((info.groups, info.name), (1, name(text)));
        assert!(info.bytes > 0 && info.last_time.is_some());
        wanted.push(name(text));
    }
    wanted.sort();
    assert_eq!(lab.driver().topics().await.expect("they can be listed"), wanted);
}

async fn large_payloads_are_whole(lab: &Lab<'_>) {
    let topic = topic();
    let payload = |seed: u8| (0..PAYLOAD_BYTES_MAX).map(|at| seed ^ (at % 251) as u8).collect::<Vec<u8>>();
    for seed in 0..4 {
        lab.publish_events(&topic, vec![NewEvent::new(payload(seed))]).await;
    }
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let mut seed = 0;
    let until = tokio::time::Instant::now() + PATIENCE;
    while seed < 4 && tokio::time::Instant::now() < until {
        for one in lab.receive(&topic, &group, 4).await {
            assert!(one.event.payload == payload(seed), "payload {seed} differs");
            seed += 1;
        }
    }
    assert_eq!(seed, 4, "not all came");
    let down = lab.held(&topic, Order::Descending, 3).await;
    assert_eq!(down.len(), 4);
    assert!(down[0].payload == payload(3) && down[3].payload == payload(0));
}
