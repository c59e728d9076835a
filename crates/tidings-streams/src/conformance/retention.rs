//! Retention: what goes, and what stays for groups.

use std::time::Duration;

use super::Case;
use super::lab::{BACKOFF, IDLE, Lab, name, settings, texts, topic, topic_with};
use crate::call::{Outcome, Start, TrimMode, Trimmed};
use crate::settings::{Retention, Topic, TopicSettings};

pub(super) fn cases() -> [Case; 8] {
    facts![
        publishing_keeps_the_newest_events,
        maintenance_removes_what_is_old,
        bytes_are_bounded,
        what_was_not_delivered_is_kept,
        what_is_pending_is_kept,
        a_dry_run_changes_nothing,
        force_takes_events_from_groups,
        ids_are_not_used_again,
    ]
}

fn newest(events: u64) -> Retention {
    Retention { max_events: Some(events), ..Retention::default() }
}

fn keeping(retention: Retention) -> Topic {
    topic_with(TopicSettings { retention, ..settings() })
}

const TRIM: TrimMode = TrimMode { dry_run: false, force: false };

async fn publishing_keeps_the_newest_events(lab: &Lab<'_>) {
    let topic = keeping(newest(5));
    for number in 0..10 {
        lab.publish(&topic, &[number.to_string().as_str()]).await;
    }
    lab.driver().maintain(&topic).await.expect("it is maintained");
    assert_eq!(lab.held_texts(&topic).await, ["5", "6", "7", "8", "9"]);
    let info = lab.driver().topic(&topic).await.expect("it can be asked").expect("it is there");
    assert_eq!(info.events, 5);
    let group = lab.group(&topic, "g", Start::Earliest).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["5", "6", "7", "8", "9"]);
}

async fn maintenance_removes_what_is_old(lab: &Lab<'_>) {
    let age = Duration::from_millis(500);
    let topic = keeping(Retention { max_age: Some(age), ..Retention::default() });
    lab.publish(&topic, &["a", "b"]).await;
    lab.pass(age / 2).await;
    lab.publish(&topic, &["c"]).await;
    lab.driver().maintain(&topic).await.expect("it is maintained");
    assert_eq!(lab.held_texts(&topic).await, ["a", "b", "c"], "too early");
    lab.pass(age / 2 + age / 4).await;
    let trimmed = lab.driver().maintain(&topic).await.expect("it is maintained").trimmed;
    assert_eq!((trimmed.removed, lab.held_texts(&topic).await), (2, vec!["c".to_owned()]));
    lab.pass(age).await;
    lab.driver().maintain(&topic).await.expect("it is maintained");
    assert_eq!(lab.held_texts(&topic).await, [""; 0]);
}

async fn bytes_are_bounded(lab: &Lab<'_>) {
    let topic = topic();
    let payload = "x".repeat(1_000);
    for _ in 0..20 {
        lab.publish(&topic, &[payload.as_str()]).await;
    }
    let info = async || lab.driver().topic(&topic).await.expect("it can be asked").expect("it is there");
    let before = info().await;
    assert!(before.bytes >= 20_000, "{before:?}");
    let limits = Retention { max_bytes: Some(before.bytes / 2), ..Retention::default() };
    let trimmed = lab.driver().trim(&topic, &limits, TRIM).await.expect("it can be trimmed");
    let after = info().await;
    assert!(after.bytes <= before.bytes / 2 && after.events >= 9, "{after:?}");
    assert_eq!((trimmed.removed, trimmed.bytes), (before.events - after.events, before.bytes - after.bytes));
}

async fn what_was_not_delivered_is_kept(lab: &Lab<'_>) {
    let topic = keeping(newest(1));
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a", "b", "c"]).await;
    let trimmed = lab.driver().trim(&topic, &newest(1), TRIM).await.expect("it can be trimmed");
    assert_eq!(trimmed, Trimmed { removed: 0, bytes: 0, kept_for_groups: 2 });
    let taken = lab.receive(&topic, &group, 10).await;
    assert_eq!(texts(&taken), ["a", "b", "c"]);
    for one in &taken {
        lab.ack(&topic, &group, one).await;
    }
    lab.driver().maintain(&topic).await.expect("it is maintained");
    assert_eq!(lab.held_texts(&topic).await, ["c"], "what was settled is kept");
}

async fn what_is_pending_is_kept(lab: &Lab<'_>) {
    let topic = keeping(newest(1));
    let slow = lab.group(&topic, "slow", Start::Earliest).await;
    let fast = lab.group(&topic, "fast", Start::Earliest).await;
    lab.publish(&topic, &["a", "b", "c", "d"]).await;
    for one in &lab.receive(&topic, &fast, 10).await {
        lab.ack(&topic, &fast, one).await;
    }
    let taken = lab.receive(&topic, &slow, 10).await;
    // The second stays open: the first is no longer needed by anybody, the third was settled behind it.
    for place in [0, 2, 3] {
        lab.ack(&topic, &slow, &taken[place]).await;
    }
    lab.driver().maintain(&topic).await.expect("it is maintained");
    let trimmed = lab.driver().trim(&topic, &newest(0), TRIM).await.expect("it can be trimmed");
    assert_eq!((trimmed.removed, trimmed.kept_for_groups), (0, 3));
    assert_eq!(lab.held_texts(&topic).await, ["b", "c", "d"]);
    lab.fail(&topic, &slow, &taken[1], "not now").await;
    lab.pass(IDLE + BACKOFF).await;
    lab.driver().trim(&topic, &newest(0), TRIM).await.expect("it can be trimmed");
    let again = lab.receive(&topic, &slow, 10).await;
    assert_eq!(texts(&again), ["b"], "a retry has lost its event");
    assert_eq!(lab.ack(&topic, &slow, &again[0]).await, Outcome::Acked);
    lab.driver().trim(&topic, &newest(0), TRIM).await.expect("it can be trimmed");
    assert_eq!(lab.held_texts(&topic).await, [""; 0]);
}

async fn a_dry_run_changes_nothing(lab: &Lab<'_>) {
    let topic = topic();
    lab.publish(&topic, &["a", "b", "c", "d"]).await;
    lab.group(&topic, "g", Start::Id(lab.publish(&topic, &["e"]).await[0])).await;
    let dry = TrimMode { dry_run: true, force: false };
    let told = lab.driver().trim(&topic, &newest(0), dry).await.expect("it can be asked");
    assert_eq!((told.removed, told.kept_for_groups), (4, 1));
    assert_eq!(lab.held_texts(&topic).await.len(), 5);
    let done = lab.driver().trim(&topic, &newest(0), TRIM).await.expect("it can be trimmed");
    assert_eq!(done, told, "what is done differs from what was told");
    assert_eq!(lab.held_texts(&topic).await, ["e"]);
}

async fn force_takes_events_from_groups(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a", "b", "c"]).await;
    let taken = lab.receive(&topic, &group, 1).await;
    let force = TrimMode { dry_run: false, force: true };
    let trimmed = lab.driver().trim(&topic, &newest(1), force).await.expect("it can be trimmed");
    assert_eq!((trimmed.removed, trimmed.kept_for_groups), (2, 0));
    assert_eq!(lab.ack(&topic, &group, &taken[0]).await, Outcome::Unknown);
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["c"]);
    lab.pass(IDLE * 2).await;
    let again = lab.receive(&topic, &group, 10).await;
    assert_eq!(texts(&again), ["c"], "what is gone is pending");
    assert!(lab.all_dead().await.is_empty());
}

async fn ids_are_not_used_again(lab: &Lab<'_>) {
    let topic = topic();
    let old = lab.publish(&topic, &["a", "b", "c"]).await;
    lab.driver().trim(&topic, &newest(0), TRIM).await.expect("it can be trimmed");
    lab.reopen().await;
    let new = lab.publish(&topic, &["d"]).await;
    assert!(new[0] > old[2], "{} comes after {}", new[0], old[2]);
    let group = lab.group(&topic, "g", Start::Earliest).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["d"]);
    assert_eq!(lab.driver().topics().await.expect("they can be listed"), [name("orders")]);
}
