//! Groups: who gets which event, how often, and what a word about a delivery does.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Case;
use super::lab::{BACKOFF, IDLE, Lab, PATIENCE, name, ordered, settings, text, texts, topic, topic_with};
use crate::call::{Action, Outcome, PendingState, ReceiveRequest, Settlement, Start, TrimMode};
use crate::error::{GroupError, StoreError};
use crate::event::NewEvent;
use crate::id::{EventId, Timestamp};
use crate::settings::{Retention, TopicSettings, WAIT_MAX};

pub(super) fn cases() -> [Case; 21] {
    facts![
        every_group_gets_every_event_in_order,
        a_group_begins_where_it_is_told_to,
        a_group_that_is_there_stays_where_it_is,
        what_is_not_there_is_said_to_be_unknown,
        no_more_events_come_than_asked_for,
        consumers_of_a_group_share_no_event,
        what_nobody_settles_goes_to_another_consumer,
        attempts_are_counted_from_one,
        what_was_acknowledged_is_not_delivered_again,
        a_word_about_an_earlier_delivery_is_stale,
        an_event_that_failed_comes_back_after_its_wait,
        a_failure_holds_up_no_other_event,
        an_extended_delivery_stays_where_it_is,
        nothing_is_extended_by_more_than_a_week,
        an_event_is_not_delivered_before_its_moment,
        a_wait_ends_with_what_is_published,
        a_wait_ends_when_it_is_stopped,
        nothing_is_delivered_more_often_than_it_may_be,
        a_wait_ends_when_the_store_is_closed,
        a_forced_trim_lets_those_go_on_who_wait,
        no_event_waits_for_more_than_a_week,
    ]
}

async fn every_group_gets_every_event_in_order(lab: &Lab<'_>) {
    let topic = topic();
    let one = lab.group(&topic, "one", Start::Earliest).await;
    let two = lab.group(&topic, "two", Start::Earliest).await;
    lab.publish(&topic, &["a", "b", "c", "d", "e"]).await;
    for group in [&one, &two] {
        let taken = lab.receive(&topic, group, 100).await;
        assert_eq!(texts(&taken), ["a", "b", "c", "d", "e"], "group {group}");
        for delivery in &taken {
            assert_eq!(lab.ack(&topic, group, delivery).await, Outcome::Acked);
        }
    }
}

async fn a_group_begins_where_it_is_told_to(lab: &Lab<'_>) {
    let topic = topic();
    let mut ids = lab.publish(&topic, &["a", "b"]).await;
    lab.pass(Duration::from_millis(50)).await;
    ids.extend(lab.publish(&topic, &["c"]).await);
    let c = lab.driver().event(&topic, ids[2]).await.expect("it can be read").expect("it is there");
    let starts = [
        ("earliest", Start::Earliest, "abcd"),
        ("latest", Start::Latest, "d"),
        ("id", Start::Id(ids[1]), "bcd"),
        ("zero", Start::Id(EventId::ZERO), "abcd"),
        ("beyond", Start::Id(EventId::MAX), "d"),
        ("time", Start::Time(c.time), "cd"),
        ("future", Start::Time(lab.now().after(PATIENCE * 100)), "d"),
    ];
    for (group, start, _) in starts {
        lab.group(&topic, group, start).await;
    }
    lab.publish(&topic, &["d"]).await;
    for (group, start, wanted) in starts {
        let taken = lab.receive(&topic, &name(group), 10).await;
        assert_eq!(texts(&taken).concat(), wanted, "{start:?}");
    }
}

async fn a_group_that_is_there_stays_where_it_is(lab: &Lab<'_>) {
    let topic = topic();
    lab.publish(&topic, &["a", "b"]).await;
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let taken = lab.receive(&topic, &group, 1).await;
    lab.ack(&topic, &group, &taken[0]).await;
    let made = lab.driver().create_group(&topic, &group, Start::Earliest).await.expect("it can be asked");
    assert!(!made, "it is said to be new");
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["b"]);
}

async fn what_is_not_there_is_said_to_be_unknown(lab: &Lab<'_>) {
    let topic = topic();
    let group = name("nobody");
    let unknown = |error: GroupError| assert!(matches!(error, GroupError::Unknown), "answered {error}");
    unknown(lab.try_receive(&topic, &group, "c1", 1).await.expect_err("no topic"));
    lab.publish(&topic, &["a"]).await;
    unknown(lab.try_receive(&topic, &group, "c1", 1).await.expect_err("no group"));
    unknown(lab.driver().pending(&topic, &group, None, 1).await.expect_err("no group"));
    unknown(lab.driver().set_paused(&topic, &group, true).await.expect_err("no group"));
    unknown(lab.driver().seek(&topic, &group, Start::Latest, false).await.expect_err("no group"));
    unknown(lab.driver().settle(&topic, &group, Vec::new()).await.err().unwrap_or(GroupError::Unknown));
    assert!(!lab.driver().remove_group(&topic, &group).await.expect("it can be asked"));
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let never = |id| Settlement { id, tag: None, action: Action::Ack };
    let words = vec![never(EventId::new(u64::MAX / 2)), never(EventId::ZERO), never(EventId::pair(1, 1))];
    let outcomes = lab.driver().settle(&topic, &group, words).await.expect("the group is there");
    assert_eq!(outcomes, [Outcome::Unknown; 3]);
    let absent = lab.driver().event(&topic, EventId::MAX).await.expect("it can be asked");
    assert_eq!(absent, None);
}

async fn no_more_events_come_than_asked_for(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let all: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    lab.publish(&topic, &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(lab.receive(&topic, &group, 0).await.len(), 0);
    let mut seen = Vec::new();
    for max in [1, 5, 7, 30] {
        let taken = lab.receive(&topic, &group, max).await;
        assert_eq!(taken.len(), max, "asked for {max}");
        seen.extend(texts(&taken));
    }
    assert_eq!(seen, all[..43]);
    assert_eq!(lab.receive(&topic, &group, 100).await.len(), 7);
}

async fn consumers_of_a_group_share_no_event(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a", "b", "c", "d", "e", "f"]).await;
    let mut seen = BTreeSet::new();
    for consumer in ["c1", "c2", "c3", "c1"] {
        for one in lab.try_receive(&topic, &group, consumer, 2).await.expect("the group is there") {
            assert!(seen.insert(text(&one.event)), "{} comes twice", text(&one.event));
        }
    }
    assert_eq!(seen.len(), 6);
}

async fn what_nobody_settles_goes_to_another_consumer(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a", "b"]).await;
    let first = lab.try_receive(&topic, &group, "dies", 1).await.expect("the group is there");
    assert_eq!(texts(&first), ["a"]);
    lab.pass(IDLE / 4).await;
    let early = lab.try_receive(&topic, &group, "lives", 10).await.expect("the group is there");
    assert_eq!(texts(&early), ["b"], "before its time is over it is nobody else's");
    lab.pass(IDLE).await;
    let late = lab.try_receive(&topic, &group, "lives", 1).await.expect("the group is there");
    assert_eq!(texts(&late), ["a"]);
    let pending = lab.pending(&topic, &group).await;
    let holder = pending.iter().find(|one| one.id == late[0].event.id).and_then(|one| one.consumer.clone());
    assert_eq!(holder, Some(name("lives")));
}

async fn attempts_are_counted_from_one(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["fails", "times out"]).await;
    for attempt in 1..=3 {
        let taken = lab.receive(&topic, &group, 10).await;
        let found: Vec<(String, u32)> = taken.iter().map(|one| (text(&one.event), one.tag.attempt)).collect();
        assert_eq!(found.len(), 2, "delivery {attempt}: {found:?}");
        assert!(found.iter().all(|(_, counted)| *counted == attempt), "delivery {attempt}: {found:?}");
        let pending = lab.pending(&topic, &group).await;
        assert!(pending.iter().all(|one| one.attempts == attempt), "delivery {attempt}: {pending:?}");
        let fails = taken.iter().find(|one| text(&one.event) == "fails").expect("it came");
        lab.fail(&topic, &group, fails, "it fails").await;
        lab.pass(IDLE + BACKOFF * 4).await;
    }
}

async fn what_was_acknowledged_is_not_delivered_again(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let ids = lab.publish(&topic, &["a", "b"]).await;
    let taken = lab.receive(&topic, &group, 10).await;
    assert_eq!(lab.ack(&topic, &group, &taken[0]).await, Outcome::Acked);
    assert_eq!(lab.ack(&topic, &group, &taken[0]).await, Outcome::Unknown, "twice");
    let by_id = vec![Settlement { id: ids[1], tag: None, action: Action::Ack }];
    let outcomes = lab.driver().settle(&topic, &group, by_id).await.expect("the group is there");
    assert_eq!(outcomes, [Outcome::Acked]);
    lab.pass(IDLE * 2).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), [""; 0]);
    assert!(lab.pending(&topic, &group).await.is_empty());
    assert_eq!(lab.held_texts(&topic).await, ["a", "b"], "the topic keeps them");
}

async fn a_word_about_an_earlier_delivery_is_stale(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    let first = lab.receive(&topic, &group, 1).await;
    lab.pass(IDLE + BACKOFF).await;
    let second = lab.receive(&topic, &group, 1).await;
    assert_eq!(second.len(), 1, "it does not come again");
    assert_eq!(lab.ack(&topic, &group, &first[0]).await, Outcome::Stale);
    assert_eq!(lab.fail(&topic, &group, &first[0], "late").await, Outcome::Stale);
    let extend = Action::Extend { by: IDLE };
    assert_eq!(lab.settle(&topic, &group, &first[0], extend).await, Outcome::Stale);
    assert!(matches!(lab.fail(&topic, &group, &second[0], "now").await, Outcome::RetryAt(_)));
    assert_eq!(lab.ack(&topic, &group, &second[0]).await, Outcome::Stale, "it has failed");
    lab.pass(BACKOFF * 4).await;
    let third = lab.receive(&topic, &group, 1).await;
    assert_eq!(lab.ack(&topic, &group, &third[0]).await, Outcome::Acked);
}

async fn an_event_that_failed_comes_back_after_its_wait(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    for (attempt, wait) in [(1, BACKOFF), (2, BACKOFF * 2)] {
        let taken = lab.receive(&topic, &group, 1).await;
        assert_eq!(taken.len(), 1, "delivery {attempt} does not come");
        let Outcome::RetryAt(due) = lab.fail(&topic, &group, &taken[0], "not now").await else {
            panic!("failure {attempt} is not followed by a retry")
        };
        let told = due.since(lab.now());
        assert!(told <= wait && told + BACKOFF / 2 >= wait, "a wait of {told:?}, not {wait:?}");
        lab.pass(wait / 4).await;
        assert_eq!(texts(&lab.receive(&topic, &group, 1).await), [""; 0], "it comes too early");
        lab.pass(wait).await;
    }
    let pending = lab.pending(&topic, &group).await;
    assert_eq!(pending[0].error.as_deref(), Some("not now"));
    assert_eq!(lab.receive(&topic, &group, 1).await.len(), 1);
}

async fn a_failure_holds_up_no_other_event(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["bad", "a", "b"]).await;
    let bad = lab.receive(&topic, &group, 1).await;
    lab.fail(&topic, &group, &bad[0], "it fails").await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["a", "b"]);
}

async fn an_extended_delivery_stays_where_it_is(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    let taken = lab.receive(&topic, &group, 1).await;
    lab.pass(IDLE / 2).await;
    let extended = lab.settle(&topic, &group, &taken[0], Action::Extend { by: IDLE * 3 }).await;
    assert!(matches!(extended, Outcome::Extended(_)), "answered {extended:?}");
    lab.pass(IDLE * 2).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 1).await), [""; 0], "somebody else gets it");
    assert_eq!(lab.ack(&topic, &group, &taken[0]).await, Outcome::Acked);
}

async fn nothing_is_extended_by_more_than_a_week(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    let taken = lab.receive(&topic, &group, 1).await;
    let extended = lab.settle(&topic, &group, &taken[0], Action::Extend { by: Duration::MAX }).await;
    let latest = lab.now().after(WAIT_MAX);
    let is_bounded = matches!(extended, Outcome::Extended(until) if until <= latest);
    assert!(is_bounded, "answered {extended:?}, later than {latest:?}");
}

async fn an_event_is_not_delivered_before_its_moment(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let due = lab.now().after(IDLE);
    let events = vec![NewEvent::new("later").not_before(due), NewEvent::new("now")];
    lab.publish_events(&topic, events).await;
    let taken = lab.receive(&topic, &group, 10).await;
    assert_eq!(texts(&taken), ["now"]);
    lab.ack(&topic, &group, &taken[0]).await;
    lab.pass(IDLE + BACKOFF).await;
    let taken = lab.receive(&topic, &group, 10).await;
    assert_eq!(texts(&taken), ["later"]);
    assert_eq!(taken[0].tag.attempt, 1);
}

async fn a_wait_ends_with_what_is_published(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let driver = lab.driver();
    let request =
        ReceiveRequest { consumer: name("c1"), max: 5, wait: PATIENCE * 3, stop: CancellationToken::new() };
    let waiting = driver.receive(&topic, &group, request);
    let publishing = async {
        // The wait has most likely begun by then. If it has not, it finds the event at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
        lab.publish(&topic, &["a"]).await
    };
    let both = async { tokio::join!(waiting, publishing).0.expect("the group is there") };
    let taken = tokio::time::timeout(PATIENCE, both).await.expect("the wait goes on");
    assert_eq!(texts(&taken), ["a"]);
}

async fn a_wait_ends_when_it_is_stopped(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let driver = lab.driver();
    let stop = CancellationToken::new();
    let request = ReceiveRequest { consumer: name("c1"), max: 5, wait: Duration::MAX, stop: stop.clone() };
    let waiting = driver.receive(&topic, &group, request);
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stop.cancel();
    };
    let both = async { tokio::join!(waiting, stopping).0.expect("the group is there") };
    let taken = tokio::time::timeout(PATIENCE, both).await.expect("the wait goes on");
    assert_eq!(texts(&taken), [""; 0]);
    lab.publish(&topic, &["a"]).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 1).await), ["a"], "who was stopped has taken it");
}

async fn nothing_is_delivered_more_often_than_it_may_be(lab: &Lab<'_>) {
    let topic = topic_with(TopicSettings { max_deliveries: NonZeroU32::MIN, ..settings() });
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let texts = ["a"; 12];
    lab.publish(&topic, &texts).await;
    // Their times end at moments of their own, so that one of them ends amid a call if any can.
    for _ in texts {
        assert_eq!(lab.receive(&topic, &group, 1).await.len(), 1);
        lab.pass(Duration::from_millis(1)).await;
    }
    lab.pass(IDLE / 2).await;
    let mut passed = 0;
    while lab.all_dead().await.len() < texts.len() {
        let again = lab.receive(&topic, &group, 1).await;
        assert!(again.is_empty(), "delivery {} of one", again[0].tag.attempt);
        assert!(passed < 5_000, "what nobody settled is no dead letter");
        passed += 1;
        lab.pass(Duration::from_millis(1)).await;
    }
}

async fn a_wait_ends_when_the_store_is_closed(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let driver = lab.driver();
    let request =
        ReceiveRequest { consumer: name("c1"), max: 5, wait: PATIENCE * 3, stop: CancellationToken::new() };
    let waiting = driver.receive(&topic, &group, request);
    let closing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        driver.close().await
    };
    let both = async { tokio::join!(waiting, closing) };
    let (received, closed) = tokio::time::timeout(PATIENCE, both).await.expect("the wait goes on");
    closed.expect("a store closes");
    let is_told = matches!(received, Err(GroupError::Store(StoreError::Closed)));
    assert!(is_told, "answered {received:?}");
}

async fn a_forced_trim_lets_those_go_on_who_wait(lab: &Lab<'_>) {
    let topic = ordered();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let events = ["first", "second"].map(|text| NewEvent::new(text).key("k"));
    lab.publish_events(&topic, events.into()).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 5).await), ["first"]);
    let driver = lab.driver();
    let request =
        ReceiveRequest { consumer: name("c2"), max: 5, wait: PATIENCE * 3, stop: CancellationToken::new() };
    let waiting = driver.receive(&topic, &group, request);
    let trimming = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let limits = Retention { max_events: Some(1), ..Retention::default() };
        driver.trim(&topic, &limits, TrimMode { force: true, dry_run: false }).await
    };
    let both = async { tokio::join!(waiting, trimming) };
    let (received, trimmed) = tokio::time::timeout(PATIENCE, both).await.expect("the wait goes on");
    assert_eq!(trimmed.expect("it is trimmed").removed, 1);
    assert_eq!(texts(&received.expect("the group is there")), ["second"]);
}

async fn no_event_waits_for_more_than_a_week(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish_events(&topic, vec![NewEvent::new("a").not_before(Timestamp(u64::MAX))]).await;
    assert!(lab.receive(&topic, &group, 1).await.is_empty(), "it comes at once");
    let pending = lab.pending(&topic, &group).await;
    let latest = lab.now().after(WAIT_MAX);
    let is_bounded = matches!(pending[0].state, PendingState::Waiting(due) if due <= latest);
    assert!(is_bounded, "{:?}, later than {latest:?}", pending[0].state);
}
