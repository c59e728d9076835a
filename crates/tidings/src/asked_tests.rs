use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use tidings_proto::ask::{ANSWER_BYTES_MAX, QUESTION_BYTES_MAX, question, read_answer};
use tidings_proto::frame::take;
use tidings_transport::limits::{ANSWERS_HELD_BYTES, QUESTIONS_MAX};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::*;
use crate::testing::Cluster;

const PATIENCE: Duration = Duration::from_secs(60);

/// How long an answer is waited for that does not come.
const SHORT: Duration = Duration::from_millis(200);

/// Answers with as many bytes as the question says, or never.
#[derive(Default)]
struct Bytewise {
    /// Answers that nobody was given yet.
    open: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

const NEVER: &[u8] = b"never";

impl Answering for Bytewise {
    fn answer(&self, peer: Origin, question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
        assert_eq!(peer.node.as_str(), "n1");
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(self.open.clone());
        async move {
            let _open = open;
            if question == NEVER {
                return std::future::pending().await;
            }
            let length = std::str::from_utf8(&question).ok().and_then(|text| text.parse().ok());
            length.map(|length| vec![7; length].into()).ok_or(Declined::Failed)
        }
        .boxed()
    }
}

/// Two nodes of which the second answers questions about entries.
async fn scene() -> (Cluster, Arc<AtomicUsize>) {
    let cluster = Cluster::start(2).await.unwrap();
    let answering = Bytewise::default();
    let open = answering.open.clone();
    cluster[1].bus().asked.serve(Topic::Copy, Arc::new(answering));
    (cluster, open)
}

async fn ask(cluster: &Cluster, topic: Topic, question: &[u8], within: Duration) -> Result<Bytes, AskError> {
    cluster[0].bus().ask(&cluster[1].origin().node, topic, question, within).await
}

/// The answer to a question that the asker does not count.
async fn one_more(cluster: &Cluster, question: Bytes) -> Result<Bytes, Declined> {
    let link = cluster[0].bus().transport().unwrap().link(&cluster[1].origin().node).unwrap();
    let (mut send, mut receive) = link.open_lane().await.unwrap();
    send.write_chunk(question).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, receive.read_to_end(ANSWER_BYTES_MAX)).await;
    let frame = take(&mut BytesMut::from(&answer.unwrap().unwrap()[..])).unwrap().unwrap();
    read_answer(frame).unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_member_answers_what_another_asks() {
    let (cluster, open) = scene().await;
    for length in [0, 1, 70_000, ANSWER_BYTES_MAX] {
        let answer = ask(&cluster, Topic::Copy, length.to_string().as_bytes(), PATIENCE).await.unwrap();
        assert_eq!((answer.len(), answer.iter().all(|byte| *byte == 7)), (length, true));
    }
    assert_eq!(open.load(Ordering::SeqCst), 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_gets_no_answer_says_why() {
    let (cluster, _) = scene().await;
    let failed = ask(&cluster, Topic::Copy, b"?", PATIENCE).await;
    assert!(matches!(failed, Err(AskError::Declined(Declined::Failed))), "{failed:?}");
    let long = (ANSWER_BYTES_MAX + 1).to_string();
    let failed = ask(&cluster, Topic::Copy, long.as_bytes(), PATIENCE).await;
    assert!(
        matches!(failed, Err(AskError::Declined(Declined::Failed))),
        "its answer is too long: {failed:?}"
    );
    let later = Bytes::from_static(&[1, 131, 2, 0, 0, 0, 99, 7]);
    assert_eq!(one_more(&cluster, later).await, Err(Declined::Unknown), "a topic of a later release");
    let long = ask(&cluster, Topic::Copy, &[b'1'; QUESTION_BYTES_MAX + 1], PATIENCE).await;
    assert!(matches!(long, Err(AskError::TooLong(_))), "{long:?}");
    let nobody = cluster[0].bus().ask(&NodeId::new("n9").unwrap(), Topic::Copy, b"1", PATIENCE).await;
    assert!(matches!(nobody, Err(AskError::Unlinked)), "{nobody:?}");
    assert_eq!(ask(&cluster, Topic::Copy, b"3", PATIENCE).await.unwrap().len(), 3, "the link goes on");
    cluster.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_dropped() {
    let (cluster, open) = scene().await;
    let late = ask(&cluster, Topic::Copy, NEVER, Duration::from_millis(20)).await;
    assert!(matches!(late, Err(AskError::Late(_))), "{late:?}");
    until("the answer is dropped", || open.load(Ordering::SeqCst) == 0).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn as_many_questions_as_may_be_open_hold_up_neither_changes_nor_the_next_one() {
    let (cluster, open) = scene().await;
    let caches = [0, 1].map(|index: usize| cluster[index].cache::<String, u64>("numbers").open().unwrap());
    let mut asking = JoinSet::new();
    let (bus, node) = (cluster[0].bus().clone(), cluster[1].origin().node);
    for _ in 0..QUESTIONS_MAX {
        let (bus, node) = (bus.clone(), node.clone());
        asking.spawn(async move {
            loop {
                match bus.ask(&node, Topic::Copy, NEVER, PATIENCE).await {
                    // One of those beyond the bound has its place for now.
                    Err(AskError::Busy | AskError::Declined(Declined::Busy)) => {
                        sleep(Duration::from_millis(5)).await;
                    }
                    answer => return answer,
                }
            }
        });
    }
    let deadline = Instant::now() + PATIENCE;
    // Until all are open there, it waits as they do; and then it leaves its place to one of them.
    while !matches!(ask(&cluster, Topic::Copy, b"1", SHORT).await, Err(AskError::Busy)) {
        assert!(Instant::now() < deadline, "one more is asked than may be");
        sleep(SHORT).await;
    }
    let of_one_that_does_not_count = async || {
        let told = tokio::time::timeout(SHORT, one_more(&cluster, question(Topic::Copy, b"1"))).await;
        matches!(told, Ok(Err(Declined::Busy)))
    };
    while !of_one_that_does_not_count().await {
        assert!(Instant::now() < deadline, "one more is taken than may be open");
        sleep(SHORT).await;
    }
    let key = "k".to_owned();
    caches[1].get_or_load(&key, || async { Ok::<_, ()>(1) }).await.unwrap();
    caches[0].remove(&key).unwrap();
    until("the change arrives", || !caches[1].contains(&key)).await;
    asking.shutdown().await;
    until("all are given up", || open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(ask(&cluster, Topic::Copy, b"1", PATIENCE).await.unwrap().len(), 1);
    cluster.shutdown().await;
}

/// Answers with the longest, and counts how often it was asked to.
struct Long(Arc<AtomicUsize>);

impl Answering for Long {
    fn answer(&self, _peer: Origin, _question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(vec![7; ANSWER_BYTES_MAX].into())).boxed()
    }
}

#[tokio::test]
async fn no_more_answers_are_made_for_who_does_not_read_them_than_may_be_held() {
    let (cluster, _) = scene().await;
    let made = Arc::<AtomicUsize>::default();
    cluster[1].bus().asked.serve(Topic::Audit, Arc::new(Long(made.clone())));
    let link = cluster[0].bus().transport().unwrap().link(&cluster[1].origin().node).unwrap();
    let mut unread = Vec::new();
    for _ in 0..QUESTIONS_MAX - 1 {
        let (mut send, receive) = link.open_lane().await.unwrap();
        send.write_chunk(question(Topic::Audit, b"")).await.unwrap();
        unread.push((send, receive));
    }
    let held = ANSWERS_HELD_BYTES as usize / ANSWER_BYTES_MAX;
    until("as many are made as may be held", || made.load(Ordering::SeqCst) >= held).await;
    // What comes later has been seen.
    let waits = ask(&cluster, Topic::Copy, b"1", SHORT).await;
    assert!(matches!(waits, Err(AskError::Late(_))), "{waits:?}");
    assert_eq!(made.load(Ordering::SeqCst), held);
    drop(unread);
    assert_eq!(ask(&cluster, Topic::Copy, b"1", PATIENCE).await.unwrap().len(), 1, "there is room again");
    cluster.shutdown().await;
}

#[tokio::test]
async fn many_long_answers_at_once_all_arrive_and_changes_pass_them() {
    let (cluster, _) = scene().await;
    let caches = [0, 1].map(|index: usize| cluster[index].cache::<String, u64>("numbers").open().unwrap());
    let mut asking = JoinSet::new();
    let (bus, node) = (cluster[0].bus().clone(), cluster[1].origin().node);
    for _ in 0..QUESTIONS_MAX {
        let (bus, node) = (bus.clone(), node.clone());
        let question = ANSWER_BYTES_MAX.to_string();
        asking.spawn(async move { bus.ask(&node, Topic::Copy, question.as_bytes(), PATIENCE).await });
    }
    let key = "k".to_owned();
    caches[0].get_or_load(&key, || async { Ok::<_, ()>(1) }).await.unwrap();
    caches[1].remove(&key).unwrap();
    until("the change passes the answers", || !caches[0].contains(&key)).await;
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.unwrap().unwrap().len(), ANSWER_BYTES_MAX);
    }
    cluster.shutdown().await;
}
