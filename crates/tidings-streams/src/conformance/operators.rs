//! What operators do and see, and what outlives the driver.

use std::time::Duration;

use super::Case;
use super::lab::{BACKOFF, IDLE, Lab, name, settings, texts, topic, topic_with};
use crate::call::{ClaimRequest, Outcome, PendingState, Report, Start};
use crate::error::{GroupError, StoreError};
use crate::event::NewEvent;
use crate::id::EventId;
use crate::settings::{Retention, TopicSettings};

pub(super) fn cases() -> [Case; 9] {
    facts![
        a_claim_takes_over_what_is_idle,
        a_claim_of_what_is_spent_gives_it_up,
        a_paused_group_takes_nothing,
        seeking_back_delivers_again,
        seeking_forward_skips,
        pending_events_are_listed_with_their_ages,
        lag_counts_what_is_not_settled,
        what_was_stored_outlives_the_driver,
        a_closed_store_says_so,
    ]
}

async fn a_claim_takes_over_what_is_idle(lab: &Lab<'_>) {
    let topic = topic_with(TopicSettings { min_idle_time: IDLE * 20, ..settings() });
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a", "b", "c"]).await;
    let first = lab.receive(&topic, &group, 2).await;
    lab.pass(IDLE).await;
    lab.receive(&topic, &group, 1).await;
    let claim = |max| ClaimRequest { consumer: name("c2"), min_idle: IDLE / 2, max };
    let claimed = lab.driver().claim(&topic, &group, claim(1)).await;
    if let Err(GroupError::Store(StoreError::Unsupported { .. })) = claimed {
        return;
    }
    let claimed = claimed.expect("the group is there");
    assert_eq!((texts(&claimed), claimed[0].tag.attempt), (vec!["a".to_owned()], 2));
    let claimed = lab.driver().claim(&topic, &group, claim(10)).await.expect("the group is there");
    assert_eq!(texts(&claimed), ["b"], "what is not idle is taken over");
    assert_eq!(lab.ack(&topic, &group, &first[1]).await, Outcome::Stale);
    assert_eq!(lab.ack(&topic, &group, &claimed[0]).await, Outcome::Acked);
}

async fn a_claim_of_what_is_spent_gives_it_up(lab: &Lab<'_>) {
    let topic = topic_with(TopicSettings { min_idle_time: IDLE * 20, ..settings() });
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a"]).await;
    lab.receive(&topic, &group, 1).await;
    for wanted in [1, 1, 0] {
        lab.pass(IDLE).await;
        let request = ClaimRequest { consumer: name("c2"), min_idle: IDLE / 2, max: 10 };
        let claimed = lab.driver().claim(&topic, &group, request).await;
        if let Err(GroupError::Store(StoreError::Unsupported { .. })) = claimed {
            return;
        }
        assert_eq!(claimed.expect("the group is there").len(), wanted);
    }
    assert_eq!(lab.all_dead().await.iter().map(|letter| letter.attempts).collect::<Vec<_>>(), [3]);
}

async fn a_paused_group_takes_nothing(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a", "b"]).await;
    let taken = lab.receive(&topic, &group, 1).await;
    lab.driver().set_paused(&topic, &group, true).await.expect("the group is there");
    assert_eq!(lab.receive(&topic, &group, 10).await.len(), 0);
    let claim = ClaimRequest { consumer: name("c2"), min_idle: Duration::ZERO, max: 10 };
    match lab.driver().claim(&topic, &group, claim).await {
        Err(GroupError::Store(StoreError::Unsupported { .. })) => {}
        claimed => assert_eq!(claimed.expect("the group is there").len(), 0, "by a claim"),
    }
    assert!(lab.driver().groups(&topic).await.expect("they can be listed")[0].paused);
    assert_eq!(
        lab.ack(&topic, &group, &taken[0]).await,
        Outcome::Acked,
        "what is under way cannot be settled"
    );
    lab.driver().set_paused(&topic, &group, false).await.expect("the group is there");
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["b"]);
}

async fn seeking_back_delivers_again(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let ids = lab.publish(&topic, &["a", "b", "c", "d"]).await;
    let taken = lab.receive(&topic, &group, 3).await;
    lab.ack(&topic, &group, &taken[0]).await;
    lab.ack(&topic, &group, &taken[1]).await;
    let told = lab.driver().seek(&topic, &group, Start::Id(ids[1]), true).await.expect("the group is there");
    assert_eq!((told.to, told.again, told.skipped), (ids[1], 2, 0));
    assert_eq!(lab.pending(&topic, &group).await.len(), 1, "a preview changes something");
    let done = lab.driver().seek(&topic, &group, Start::Id(ids[1]), false).await.expect("the group is there");
    assert_eq!(done, told);
    assert_eq!(lab.ack(&topic, &group, &taken[2]).await, Outcome::Unknown, "an old delivery counts");
    let again = lab.receive(&topic, &group, 10).await;
    assert_eq!(texts(&again), ["b", "c", "d"]);
    assert!(again.iter().all(|one| one.tag.attempt == 1), "attempts are not counted anew");
    assert_eq!(lab.ack(&topic, &group, &taken[2]).await, Outcome::Stale, "an old delivery counts");
}

async fn seeking_forward_skips(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    lab.publish(&topic, &["a", "b", "c"]).await;
    let taken = lab.receive(&topic, &group, 1).await;
    lab.fail(&topic, &group, &taken[0], "it fails").await;
    let done = lab.driver().seek(&topic, &group, Start::Latest, false).await.expect("the group is there");
    assert_eq!((done.again, done.skipped), (0, 3));
    lab.publish(&topic, &["d"]).await;
    lab.pass(BACKOFF * 4).await;
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["d"]);
}

async fn pending_events_are_listed_with_their_ages(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let ids = lab.publish(&topic, &["a", "b", "c"]).await;
    let taken = lab.receive(&topic, &group, 2).await;
    lab.fail(&topic, &group, &taken[0], "it fails").await;
    lab.pass(Duration::from_millis(100)).await;
    let pending = lab.pending(&topic, &group).await;
    assert_eq!(pending.iter().map(|one| one.id).collect::<Vec<_>>(), ids[..2]);
    assert_eq!(pending[0].error.as_deref(), Some("it fails"));
    assert!(matches!(pending[0].state, PendingState::Waiting(_)), "{:?}", pending[0]);
    assert!(matches!(pending[1].state, PendingState::Taken(_)), "{:?}", pending[1]);
    assert!(pending[1].idle >= Duration::from_millis(100), "{:?}", pending[1]);
    assert!(pending.iter().all(|one| one.consumer == Some(name("c1")) && one.attempts == 1));
    let page = lab.driver().pending(&topic, &group, Some(ids[0]), 10).await.expect("the group is there");
    assert_eq!(page.iter().map(|one| one.id).collect::<Vec<_>>(), ids[1..2]);
    let page = lab.driver().pending(&topic, &group, None, 1).await.expect("the group is there");
    assert_eq!(page.iter().map(|one| one.id).collect::<Vec<_>>(), ids[..1]);
}

async fn lag_counts_what_is_not_settled(lab: &Lab<'_>) {
    let topic = topic();
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let info = async || lab.driver().groups(&topic).await.expect("they can be listed").remove(0);
    assert_eq!((info().await.lag, info().await.lag_age), (0, Duration::ZERO));
    lab.publish(&topic, &["a", "b", "c"]).await;
    lab.pass(Duration::from_millis(100)).await;
    assert_eq!(info().await.lag, 3);
    assert!(info().await.lag_age >= Duration::from_millis(100), "{:?}", info().await);
    let taken = lab.receive(&topic, &group, 2).await;
    assert_eq!((info().await.lag, info().await.pending), (3, 2));
    lab.ack(&topic, &group, &taken[0]).await;
    assert_eq!((info().await.lag, info().await.pending), (2, 1));
    lab.ack(&topic, &group, &taken[1]).await;
    for one in &lab.receive(&topic, &group, 2).await {
        lab.ack(&topic, &group, one).await;
    }
    assert_eq!((info().await.lag, info().await.pending), (0, 0));
    assert_eq!(info().await.lag_age, Duration::ZERO);
}

async fn what_was_stored_outlives_the_driver(lab: &Lab<'_>) {
    let topic = topic_with(TopicSettings {
        retention: Retention { max_events: Some(4), ..Retention::default() },
        ..settings()
    });
    let group = lab.group(&topic, "g", Start::Earliest).await;
    let paused = lab.group(&topic, "paused", Start::Earliest).await;
    let once = || vec![NewEvent::new("once").idempotency_key("1")];
    let ids = lab.publish(&topic, &["dead", "failed", "acked", "taken"]).await;
    let keyed = lab.publish_events(&topic, once()).await;
    lab.driver().set_paused(&topic, &paused, true).await.expect("the group is there");
    lab.fail_for_good(&topic, &group).await;
    let taken = lab.receive(&topic, &group, 3).await;
    lab.fail(&topic, &group, &taken[0], "for now").await;
    lab.ack(&topic, &group, &taken[1]).await;
    let before = (lab.pending(&topic, &group).await, lab.all_dead().await);
    let groups = lab.driver().groups(&topic).await.expect("they can be listed");
    if !lab.reopen().await {
        return;
    }
    let after = (lab.pending(&topic, &group).await, lab.all_dead().await);
    assert_eq!(before.1, after.1);
    let states = |pending: &[crate::call::Pending]| -> Vec<(EventId, u32, PendingState)> {
        pending.iter().map(|one| (one.id, one.attempts, one.state)).collect()
    };
    assert_eq!(states(&before.0), states(&after.0));
    let now = lab.driver().groups(&topic).await.expect("they can be listed");
    let stands = |groups: &[crate::call::GroupInfo]| -> Vec<_> {
        groups.iter().map(|group| (group.name.clone(), group.paused, group.lag, group.next)).collect()
    };
    assert_eq!(stands(&groups), stands(&now));
    assert_eq!(lab.publish_events(&topic, once()).await, keyed, "an idempotency key is forgotten");
    assert_eq!(lab.ack(&topic, &group, &taken[2]).await, Outcome::Acked, "a delivery is forgotten");
    assert_eq!(texts(&lab.receive(&topic, &group, 10).await), ["once"]);
    lab.pass(BACKOFF * 4).await;
    let again = lab.receive(&topic, &group, 10).await;
    assert_eq!((again[0].event.id, again[0].tag.attempt), (ids[1], 2));
    let report = lab.driver().verify().await.expect("it can be verified");
    assert!(report.damage.is_empty(), "{report:?}");
    assert!(report == Report::default() || (report.dead_letters, report.events) == (1, 5), "{report:?}");
}

async fn a_closed_store_says_so(lab: &Lab<'_>) {
    let topic = topic();
    lab.publish(&topic, &["a"]).await;
    lab.driver().close().await.expect("it closes");
    let refused = lab.driver().publish(&topic, vec![NewEvent::new("b")]).await;
    assert!(matches!(refused, Err(crate::PublishError::Store(StoreError::Closed))), "answered {refused:?}");
    lab.driver().close().await.expect("it is closed");
}
