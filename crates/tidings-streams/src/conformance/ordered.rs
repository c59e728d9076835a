//! Ordered topics: who fails holds up its own key and no other.

use super::Case;
use super::lab::{BACKOFF, IDLE, Lab, ordered, texts};
use crate::call::{Outcome, Start};
use crate::event::NewEvent;
use crate::settings::Topic;

pub(super) fn cases() -> [Case; 6] {
    facts![
        events_without_a_key_come_one_after_the_other,
        only_the_key_that_fails_is_parked,
        no_two_consumers_have_one_key,
        a_burial_lets_the_next_of_its_key_go_on,
        an_event_that_waits_for_its_moment_holds_up_its_key,
        a_delivery_that_nobody_settles_holds_up_its_key,
    ]
}

fn keyed(text: &'static str) -> NewEvent {
    NewEvent::new(text).key(text[..1].to_owned())
}

async fn publish(lab: &Lab<'_>, topic: &Topic, texts: &[&'static str]) {
    lab.publish_events(topic, texts.iter().map(|text| keyed(text)).collect()).await;
}

async fn events_without_a_key_come_one_after_the_other(lab: &Lab<'_>) {
    let topic = ordered();
    lab.publish(&topic, &["1", "2", "3"]).await;
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let taken = lab.receive(&topic, &group, 10).await;
        assert!(taken.len() <= 1, "several at a time: {:?}", texts(&taken));
        let Some(one) = taken.first() else {
            lab.pass(BACKOFF * 2).await;
            continue;
        };
        seen.extend(texts(&taken));
        if seen.last().is_some_and(|text| text == "2") && one.tag.attempt < 3 {
            lab.fail(&topic, &group, one, "not yet").await;
        } else {
            assert_eq!(lab.ack(&topic, &group, one).await, Outcome::Acked);
        }
    }
    assert_eq!(seen, ["1", "2", "2", "2", "3"]);
}

async fn only_the_key_that_fails_is_parked(lab: &Lab<'_>) {
    let topic = ordered();
    publish(lab, &topic, &["a1", "b1", "a2", "c1", "b2"]).await;
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let first = lab.receive(&topic, &group, 10).await;
    assert_eq!(texts(&first), ["a1", "b1", "c1"]);
    lab.fail(&topic, &group, &first[0], "it fails").await;
    lab.ack(&topic, &group, &first[1]).await;
    lab.ack(&topic, &group, &first[2]).await;
    publish(lab, &topic, &["a3", "d1"]).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["b2", "d1"]);
    lab.pass(BACKOFF + BACKOFF / 2).await;
    for wanted in ["a1", "a2", "a3"] {
        let taken = lab.receive(&topic, &group, 10).await;
        let ours: Vec<_> = taken.iter().filter(|one| one.event.key.as_deref() == Some("a")).collect();
        assert_eq!(ours.len(), 1, "key a yields {:?}", texts(&taken));
        assert_eq!(texts(&taken)[0], wanted);
        lab.ack(&topic, &group, ours[0]).await;
    }
}

async fn no_two_consumers_have_one_key(lab: &Lab<'_>) {
    let topic = ordered();
    publish(lab, &topic, &["a1", "a2", "a3"]).await;
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let one = lab.try_receive(&topic, &group, "c1", 10).await.expect("the group is there");
    let two = lab.try_receive(&topic, &group, "c2", 10).await.expect("the group is there");
    assert_eq!((texts(&one), texts(&two)), (vec!["a1".to_owned()], vec![]));
    lab.ack(&topic, &group, &one[0]).await;
    let two = lab.try_receive(&topic, &group, "c2", 10).await.expect("the group is there");
    assert_eq!(texts(&two), ["a2"]);
}

async fn a_burial_lets_the_next_of_its_key_go_on(lab: &Lab<'_>) {
    let topic = ordered();
    publish(lab, &topic, &["a1", "a2"]).await;
    let group = lab.group(&topic, "g", Start::Earliest).await;
    assert_eq!(lab.fail_for_good(&topic, &group).await, [1, 2, 3]);
    let next = lab.receive(&topic, &group, 10).await;
    assert_eq!((texts(&next), next[0].tag.attempt), (vec!["a2".to_owned()], 1));
    assert_eq!(lab.all_dead().await.len(), 1);
}

async fn an_event_that_waits_for_its_moment_holds_up_its_key(lab: &Lab<'_>) {
    let topic = ordered();
    let due = lab.now().after(IDLE);
    let events = vec![keyed("a1").not_before(due), keyed("a2"), keyed("b1")];
    lab.publish_events(&topic, events).await;
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let first = lab.receive(&topic, &group, 10).await;
    assert_eq!(texts(&first), ["b1"]);
    lab.ack(&topic, &group, &first[0]).await;
    lab.pass(IDLE + BACKOFF).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["a1"]);
}

async fn a_delivery_that_nobody_settles_holds_up_its_key(lab: &Lab<'_>) {
    let topic = ordered();
    publish(lab, &topic, &["a1", "a2"]).await;
    let group = lab.group(&topic, "g", Start::Earliest).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["a1"]);
    lab.pass(IDLE + BACKOFF).await;
    let again = lab.receive(&topic, &group, 10).await;
    assert_eq!((texts(&again), again[0].tag.attempt), (vec!["a1".to_owned()], 2));
}
