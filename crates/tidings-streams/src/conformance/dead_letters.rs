//! Dead letters: one for each event that a group gives up, with all that is known of why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Case;
use super::lab::{BACKOFF, IDLE, Lab, name, settings, text, texts, topic, topic_with};
use crate::call::{ClaimRequest, DeadLetterFilter, Outcome, Start, TrimMode};
use crate::error::{DeadLetterError, GroupError, StoreError};
use crate::event::NewEvent;
use crate::id::{DeadLetterId, EventId};
use crate::name::Name;
use crate::settings::{Retention, Topic, TopicSettings};

pub(super) fn cases() -> [Case; 10] {
    facts![
        the_last_failure_makes_one_dead_letter_with_its_story,
        what_nobody_settles_in_time_is_given_up_too,
        maintenance_gives_up_what_nobody_receives,
        what_is_given_up_as_somebody_takes_events_is_told,
        each_group_gives_up_for_itself,
        dead_letters_are_listed_newest_first_and_by_filter,
        dead_letters_are_no_topic_and_not_trimmed_with_one,
        a_retry_goes_to_its_group_alone_and_begins_anew,
        a_retry_without_a_group_keeps_the_letter,
        purged_letters_are_gone,
    ]
}

/// A group that has given up one event.
async fn given_up(lab: &Lab<'_>, topic: &Topic, group: &str, text: &str) -> Name {
    let group = lab.group(topic, group, Start::Latest).await;
    lab.publish_events(topic, vec![NewEvent::new(text.to_owned()).key("k").header("h", "v")]).await;
    lab.fail_for_good(topic, &group).await;
    group
}

async fn the_last_failure_makes_one_dead_letter_with_its_story(lab: &Lab<'_>) {
    let topic = topic_with(TopicSettings { dead_letter: name("orders_dlq"), ..settings() });
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let event = NewEvent::new(vec![0, 159, 146, 150]).key("k").header("h", "v").content_type("x/y");
    let ids = lab.publish_events(&topic, vec![event]).await;
    let began = lab.now();
    let mut outcomes = Vec::new();
    for attempt in 1..=3 {
        let taken = lab.try_receive(&topic, &group, &format!("c{attempt}"), 1).await;
        let taken = taken.expect("the group is there");
        assert_eq!(taken.len(), 1, "delivery {attempt} does not come");
        outcomes.push(lab.fail(&topic, &group, &taken[0], &format!("failure {attempt}")).await);
        lab.pass(BACKOFF * 4).await;
    }
    assert!(
        matches!(outcomes[..], [Outcome::RetryAt(_), Outcome::RetryAt(_), Outcome::Buried(_)]),
        "{outcomes:?}"
    );
    lab.pass(IDLE).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), [""; 0], "it is delivered once more");
    assert!(lab.pending(&topic, &group).await.is_empty(), "it is pending still");
    let letters = lab.all_dead().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_eq!(outcomes[2], Outcome::Buried(letter.id));
    assert_eq!((letter.stream.as_str(), letter.topic.as_str()), ("orders_dlq", "orders"));
    assert_eq!((&letter.group, letter.consumer.as_str()), (&group, "c3"));
    assert_eq!((letter.event.id, letter.attempts, letter.error.as_str()), (ids[0], 3, "failure 3"));
    assert!(began <= letter.first_failed, "failed before it was published");
    assert!(
        letter.last_failed.since(letter.first_failed) >= BACKOFF,
        "one failure is not told from the other"
    );
    let held = lab.driver().event(&topic, ids[0]).await.expect("it can be read").expect("the topic keeps it");
    assert_eq!(letter.event, held);
    let one = lab.driver().dead_letter(letter.id).await.expect("it can be read");
    assert_eq!(one.as_ref(), Some(letter));
    assert_eq!(lab.driver().dead_letter_count().await.expect("they can be counted"), 1);
}

async fn what_nobody_settles_in_time_is_given_up_too(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    for attempt in 1..=3 {
        let taken = lab.receive(&topic, &group, 1).await;
        assert_eq!(taken.iter().map(|one| one.tag.attempt).collect::<Vec<_>>(), [attempt]);
        assert!(lab.all_dead().await.is_empty(), "given up after {attempt} deliveries");
        lab.pass(IDLE + BACKOFF).await;
    }
    assert_eq!(texts(&lab.receive(&topic, &group, 1).await), [""; 0]);
    let letters = lab.all_dead().await;
    assert_eq!(letters.iter().map(|letter| letter.attempts).collect::<Vec<_>>(), [3]);
    assert!(letters[0].first_failed < letters[0].last_failed, "one failure is not told from the other");
    assert!(!letters[0].error.is_empty(), "no reason is given");
}

async fn maintenance_gives_up_what_nobody_receives(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    for _ in 0..3 {
        assert_eq!(lab.receive(&topic, &group, 1).await.len(), 1);
        lab.pass(IDLE + BACKOFF).await;
    }
    let buried = lab.driver().maintain(&topic).await.expect("it is maintained").buried;
    assert_eq!((buried, lab.all_dead().await.len()), (1, 1));
    let buried = lab.driver().maintain(&topic).await.expect("it is maintained").buried;
    assert_eq!((buried, lab.all_dead().await.len()), (0, 1), "it is given up twice");
}

async fn what_is_given_up_as_somebody_takes_events_is_told(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let (told, at) = (Arc::new(AtomicU64::new(0)), (topic.name.clone(), group.clone()));
    let hear = Arc::clone(&told);
    lab.driver().watch_burials(Arc::new(move |topic, group, events| {
        assert_eq!((topic, group), (&at.0, &at.1));
        hear.fetch_add(events, Ordering::Relaxed);
    }));
    let told = || told.load(Ordering::Relaxed);
    lab.publish(&topic, &["a", "b", "c"]).await;
    for _ in 0..2 {
        assert_eq!(lab.receive(&topic, &group, 3).await.len(), 3);
        lab.pass(IDLE + BACKOFF).await;
    }
    // The last delivery of the third one is younger than those of the others.
    assert_eq!(lab.receive(&topic, &group, 2).await.len(), 2);
    lab.pass(IDLE * 3 / 4).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 2).await), ["c"]);
    lab.pass(IDLE * 3 / 4).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 1).await), [""; 0]);
    let received = lab.all_dead().await.len() as u64;
    assert!(received >= 2 && told() == received, "of {received} it told of {}", told());
    let claim = ClaimRequest { consumer: name("c2"), min_idle: IDLE / 4, max: 10 };
    match lab.driver().claim(&topic, &group, claim).await {
        Err(GroupError::Store(StoreError::Unsupported { .. })) => {}
        claimed => {
            assert_eq!(texts(&claimed.expect("the group is there")), [""; 0]);
            assert_eq!((told(), lab.all_dead().await.len()), (3, 3), "by a claim");
        }
    }
    lab.pass(IDLE).await;
    let looked_after = lab.driver().maintain(&topic).await.expect("it is maintained").buried;
    assert_eq!((told() + looked_after, lab.all_dead().await.len()), (3, 3), "each is said once");
}

async fn each_group_gives_up_for_itself(lab: &Lab<'_>) {
    let topic = topic();
    let one = lab.group(&topic, "one", Start::Earliest).await;
    let two = lab.group(&topic, "two", Start::Earliest).await;
    let three = lab.group(&topic, "three", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    lab.fail_for_good(&topic, &one).await;
    lab.fail_for_good(&topic, &two).await;
    let mut groups: Vec<Name> = lab.all_dead().await.into_iter().map(|letter| letter.group).collect();
    groups.sort();
    assert_eq!(groups, [one, two]);
    assert_eq!(texts(&lab.receive(&topic, &three, 1).await), ["a"], "another group has lost it");
}

async fn dead_letters_are_listed_newest_first_and_by_filter(lab: &Lab<'_>) {
    let other =
        Topic { name: name("other"), ..topic_with(TopicSettings { dead_letter: name("odd"), ..settings() }) };
    for number in 0..3 {
        given_up(lab, &topic(), "g", &format!("orders {number}")).await;
        given_up(lab, &other, "h", &format!("other {number}")).await;
    }
    for limit in [1, 2, 4, 100] {
        let listed = lab.dead(DeadLetterFilter::default(), limit).await;
        assert!(listed.windows(2).all(|two| two[0].id > two[1].id), "not newest first by {limit}");
        let listed: Vec<String> = listed.iter().map(|letter| text(&letter.event)).collect();
        let wanted = ["other 2", "orders 2", "other 1", "orders 1", "other 0", "orders 0"];
        assert_eq!(listed, wanted, "by {limit}");
    }
    let filters = [
        DeadLetterFilter { topic: Some(name("other")), ..DeadLetterFilter::default() },
        DeadLetterFilter { stream: Some(name("odd")), ..DeadLetterFilter::default() },
        DeadLetterFilter { group: Some(name("h")), ..DeadLetterFilter::default() },
    ];
    for filter in filters {
        let found = lab.dead(filter.clone(), 2).await;
        let found: Vec<String> = found.iter().map(|letter| text(&letter.event)).collect();
        assert_eq!(found, ["other 2", "other 1", "other 0"], "{filter:?}");
    }
}

async fn dead_letters_are_no_topic_and_not_trimmed_with_one(lab: &Lab<'_>) {
    let topic = topic();
    given_up(lab, &topic, "g", "a").await;
    assert_eq!(lab.driver().topics().await.expect("they can be listed"), [name("orders")]);
    let all = Retention { max_events: Some(0), ..Retention::default() };
    let force = TrimMode { force: true, dry_run: false };
    lab.driver().trim(&topic, &all, force).await.expect("it can be trimmed");
    let dead = Topic { name: topic.settings.dead_letter.clone(), ..topic };
    lab.driver().trim(&dead, &all, force).await.expect("it can be trimmed");
    assert_eq!(lab.all_dead().await.len(), 1, "the dead letter is trimmed");
    let id = lab.all_dead().await[0].id;
    lab.driver().retry(id).await.expect("it can be retried though its event is trimmed");
    let again = lab.receive(&topic_of(lab).await, &name("g"), 1).await;
    assert_eq!(texts(&again), ["a"]);
}

async fn topic_of(lab: &Lab<'_>) -> Topic {
    let names = lab.driver().topics().await.expect("they can be listed");
    Topic { name: names[0].clone(), ..topic() }
}

async fn a_retry_goes_to_its_group_alone_and_begins_anew(lab: &Lab<'_>) {
    let topic = topic();
    let other = lab.group(&topic, "other", Start::Earliest).await;
    let group = given_up(lab, &topic, "g", "a").await;
    let seen = lab.receive(&topic, &other, 10).await;
    lab.ack(&topic, &other, &seen[0]).await;
    let letter = lab.all_dead().await.remove(0);
    let new = lab.driver().retry(letter.id).await.expect("it can be retried");
    assert!(new > letter.event.id);
    assert!(lab.all_dead().await.is_empty(), "it is a dead letter still");
    let twice = lab.driver().retry(letter.id).await;
    assert!(matches!(twice, Err(DeadLetterError::Unknown)), "answered {twice:?}");
    assert_eq!(texts(&lab.receive(&topic, &other, 10).await), [""; 0], "another group gets it");
    let taken = lab.receive(&topic, &group, 10).await;
    assert_eq!((texts(&taken), taken[0].tag.attempt, taken[0].event.id), (vec!["a".to_owned()], 1, new));
    let event = &taken[0].event;
    assert_eq!((event.key.as_deref(), event.headers.get("h").map(String::as_str)), (Some("k"), Some("v")));
    let retried = event.retried.as_ref().expect("it says that it is a retry");
    assert_eq!((retried.dead_letter, retried.original, &retried.group), (letter.id, letter.event.id, &group));
    lab.fail(&topic, &group, &taken[0], "again").await;
    lab.pass(BACKOFF * 4).await;
    for _ in 0..2 {
        let taken = lab.receive(&topic, &group, 1).await;
        lab.fail(&topic, &group, &taken[0], "again").await;
        lab.pass(BACKOFF * 4).await;
    }
    let letters = lab.all_dead().await;
    assert_eq!(letters.len(), 1, "it cannot be given up once more");
    assert_eq!(letters[0].event.retried.as_ref().map(|retried| retried.original), Some(letter.event.id));
}

async fn a_retry_without_a_group_keeps_the_letter(lab: &Lab<'_>) {
    let topic = topic();
    let group = given_up(lab, &topic, "g", "a").await;
    assert!(lab.driver().remove_group(&topic, &group).await.expect("it can be removed"));
    let letter = lab.all_dead().await.remove(0);
    let refused = lab.driver().retry(letter.id).await;
    assert!(matches!(refused, Err(DeadLetterError::NoGroup)), "answered {refused:?}");
    assert_eq!(lab.all_dead().await.len(), 1);
    let unknown = lab.driver().retry(DeadLetterId(EventId::MAX)).await;
    assert!(matches!(unknown, Err(DeadLetterError::Unknown)), "answered {unknown:?}");
}

async fn purged_letters_are_gone(lab: &Lab<'_>) {
    let topic = topic();
    for number in 0..3 {
        given_up(lab, &topic, "g", &number.to_string()).await;
    }
    let letters = lab.all_dead().await;
    let ids = [letters[1].id, letters[1].id, DeadLetterId(EventId::MAX)];
    assert_eq!(lab.driver().purge(&ids).await.expect("they can be purged"), 1);
    let left: Vec<String> = lab.all_dead().await.iter().map(|letter| text(&letter.event)).collect();
    assert_eq!(left, ["2", "0"]);
    assert_eq!(lab.driver().dead_letter(letters[1].id).await.expect("it can be asked"), None);
    assert_eq!(lab.driver().dead_letter_count().await.expect("they can be counted"), 2);
}
