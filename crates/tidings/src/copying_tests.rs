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
    let (stamp, instead) = (WriteStamp::NEVER, WriteStamp::NEVER.at);
    Refusal { origin: Arc::new(origin), cache, of, stamp, instead }
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
