use tidings_cache::Refused;
use tidings_proto::id::Incarnation;
use tidings_proto::replicate::WriteStamp;
use tracing::Level;

use super::*;
use crate::logged;
use crate::testing::Cluster;

fn refusal(node: &str, key: u64) -> Refusal {
    let origin = Origin { node: NodeId::new(node).unwrap(), incarnation: Incarnation(1) };
    let (cache, of) = (CacheId(1), Refused::Key(Bytes::from(key.to_string())));
    Refusal { origin: Arc::new(origin), cache, of, stamp: WriteStamp::NEVER }
}

#[test]
fn refused_writes_are_logged_once_for_each_author_and_then_ever_less_often() {
    let (lines, _guard) = logged::events("tidings::copying", Level::WARN);
    let (quiet, now) = (Quiet::default(), Instant::now());
    let refusals: Vec<_> = (0..1_000).map(|key| refusal(["a", "b"][key as usize % 2], key)).collect();
    let logged = |after| {
        let before = lines.load(std::sync::atomic::Ordering::SeqCst);
        say_refusals(&refusals, &quiet, now + after);
        lines.load(std::sync::atomic::Ordering::SeqCst) - before
    };
    let [none, first] = [Duration::ZERO, Duration::from_secs(1)];
    assert_eq!((logged(none), logged(LOOK), logged(first), logged(first + LOOK)), (2, 0, 2, 0));
}

#[test]
fn every_refused_write_is_told_once_again_where_that_has_failed_and_not_for_ever() {
    let at = |time| WriteStamp { at: tidings_proto::hlc::Stamp(time), author: 7 };
    let of =
        |name: &str, time| Refusal { of: Refused::Prefix(name.into()), stamp: at(time), ..refusal("a", 1) };
    // Two prefixes in one go, each from two lanes.
    let mut all = to_be_told(Vec::new(), vec![of("x", 1), of("x", 2), of("x", 1), of("y", 2)]);
    assert_eq!(all.len(), 3);
    all[0].failed = TELLS_MAX;
    all[1].failed = 1;
    let again = to_be_told(all, vec![of("x", 1)]);
    let failed: Vec<_> = again.iter().map(|one| (one.refusal.stamp, one.failed)).collect();
    assert_eq!(failed, [(at(2), 1), (at(2), 0), (at(1), 0)], "one is refused anew");
    let many = (0..2 * UNTOLD_MAX as u64).map(|time| of("x", time)).collect();
    let all = to_be_told(Vec::new(), many);
    assert_eq!((all.len(), all[0].refusal.stamp), (UNTOLD_MAX, at(UNTOLD_MAX as u64)));
}

#[test]
fn who_holds_what_is_of_the_future_is_asked_ever_less_often() {
    let (now, mut known) = (
        Tick(1),
        Known { with: BTreeSet::new(), last: (Tick(1), None), paused: Tick(1), future_pause: RETRY_PAUSE },
    );
    let mut pause = |repaired| {
        known.paused = now;
        known.repaired(repaired, BTreeSet::new(), now);
        known.paused.since(now).as_secs()
    };
    let pauses: Vec<_> = (0..8).map(|_| pause(Repaired::Future)).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!((pause(Repaired::All), pause(Repaired::Future), pause(Repaired::Not)), (0, 1, 1));
}

#[test]
fn it_is_said_once_a_minute_that_writes_are_undone() {
    let (mut said, start) = (None, Instant::now());
    let lines = (0..180).filter(|second| is_to_be_said(&mut said, start + Duration::from_secs(*second)));
    assert_eq!(lines.collect::<Vec<_>>(), [0, 60, 120]);
}

#[tokio::test]
async fn a_question_that_cannot_be_read_is_not_said_to_be_of_an_unknown_kind() {
    let cluster = Cluster::start(2).await.unwrap();
    let asked = cluster[1].origin().node;
    let question = [99, 1, 0, 0, 0, 0];
    let answer = cluster[0].bus().ask(&asked, Topic::Copy, &question, ANSWER_TIME).await;
    // Who is told that they are unknown takes it that nothing is held there, and ends its doubt.
    assert!(matches!(answer, Err(AskError::Declined(Declined::Failed))), "{answer:?}");
    cluster.shutdown().await;
}
