//! One loader for the cluster, as a cache sees it: whom it asks is played here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, poll};
use tidings_cache::{Cache, LeaseRequest, LeaseTurn, Lent, Mode, OpenError, ReadOrFill};
use tidings_proto::codec;
use tidings_proto::freshness::Published;
use tidings_proto::lease::SharedLoad;
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

use crate::common::Node;

type Result = std::result::Result<u64, String>;

/// Answers who asks for a lease, and keeps what is handed in.
#[derive(Clone, Default)]
struct Home {
    answers: Arc<Mutex<VecDeque<oneshot::Receiver<LeaseTurn>>>>,
    handed_in: Arc<Mutex<Vec<SharedLoad>>>,
    asked: Arc<AtomicUsize>,
    given_back: Arc<AtomicUsize>,
}

struct GivenBack(Option<Arc<AtomicUsize>>);

impl GivenBack {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for GivenBack {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Home {
    fn of(node: &Node) -> Self {
        let home = Self::default();
        let asked = home.clone();
        node.domain.set_leases(Arc::new(move |_: LeaseRequest| {
            asked.asked.fetch_add(1, Ordering::SeqCst);
            let answer = asked.answers.lock().unwrap().pop_front();
            async move {
                match answer {
                    Some(answer) => answer.await.unwrap_or(LeaseTurn::Alone),
                    None => LeaseTurn::Alone,
                }
            }
            .boxed()
        }));
        home
    }

    /// Answers the next one who asks, when the sender says.
    fn answers(&self) -> oneshot::Sender<LeaseTurn> {
        let (sender, receiver) = oneshot::channel();
        self.answers.lock().unwrap().push_back(receiver);
        sender
    }

    fn answers_at_once(&self, turn: LeaseTurn) {
        self.answers().send(turn).unwrap();
    }

    fn lease(&self) -> LeaseTurn {
        let handed_in = self.handed_in.clone();
        let given_back = GivenBack(Some(self.given_back.clone()));
        LeaseTurn::Load(Box::new(move |result: Bytes| {
            given_back.disarm();
            handed_in.lock().unwrap().push(SharedLoad::decode(&result).unwrap());
        }))
    }

    fn counts(&self) -> (usize, usize, usize) {
        let handed_in = self.handed_in.lock().unwrap().len();
        (self.asked.load(Ordering::SeqCst), handed_in, self.given_back.load(Ordering::SeqCst))
    }
}

fn value(value: u64) -> SharedLoad {
    SharedLoad::Value { bytes: codec::encode(&value).unwrap(), tags: Vec::new(), version: None }
}

fn brought(load: &SharedLoad, began: Tick) -> LeaseTurn {
    LeaseTurn::Brought(Lent { result: load.encode().unwrap(), began })
}

fn open(node: &Node) -> (Cache<String, u64>, Home) {
    (node.cache("users").one_loader_per_cluster().open().unwrap(), Home::of(node))
}

fn key() -> String {
    "k".to_owned()
}

async fn load(cache: &Cache<String, u64>, value: u64) -> std::result::Result<u64, String> {
    let loaded = cache.get_or_load(&key(), || async move { Ok::<_, String>(value) }).await;
    loaded.map_err(|error| error.to_string())
}

/// A node whose clock has gone on for long enough that loads of before have a time.
fn node() -> Node {
    let node = Node::new("n1");
    node.clock.advance(Duration::from_secs(60));
    node
}

#[tokio::test]
async fn what_another_node_brought_is_taken_and_dated_by_when_that_began() {
    let node = node();
    let (cache, home) = open(&node);
    home.answers_at_once(brought(&value(7), node.clock.now().before(Duration::from_secs(2))));
    assert_eq!(load(&cache, 1).await, Ok(7));
    let (stored, age) = cache.peek(&key()).unwrap();
    assert_eq!(stored, 7);
    assert!((Duration::from_secs(2)..Duration::from_millis(2_100)).contains(&age), "{age:?}");
    assert_eq!(load(&cache, 1).await, Ok(7));
    let counts = cache.counts();
    assert_eq!((counts.loads, counts.shared, counts.misses, counts.hits), (0, 1, 1, 1));
    assert_eq!(home.counts(), (1, 0, 0));
}

#[tokio::test]
async fn what_a_removal_has_ended_is_returned_to_who_waited_and_not_stored() {
    let node = node();
    let (cache, home) = open(&node);
    let answer = home.answers();
    let mut waiting = Box::pin(load(&cache, 1));
    assert!(poll!(&mut waiting).is_pending());
    cache.remove(&key()).unwrap();
    answer.send(brought(&value(7), node.clock.now().before(Duration::from_secs(1)))).unwrap();
    assert_eq!(waiting.await, Ok(7));
    assert!(!cache.contains(&key()));
    assert_eq!(load(&cache, 2).await, Ok(2), "later callers load anew");
}

#[tokio::test]
async fn what_began_before_the_floor_or_in_doubt_too_long_ago_is_loaded_here() {
    let node = node();
    let (cache, home) = open(&node);
    let now = node.clock.now();
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: now.before(Duration::from_secs(1)) });
    home.answers_at_once(brought(&value(7), now.before(Duration::from_secs(1))));
    assert_eq!(load(&cache, 1).await, Ok(1));
    cache.remove(&key()).unwrap();
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: Tick::NEVER });
    home.answers_at_once(brought(&value(7), now.before(Duration::from_secs(4))));
    assert_eq!(load(&cache, 2).await, Ok(2));
    let counts = cache.counts();
    assert_eq!((counts.loads, counts.shared, counts.shared_refused), (2, 0, 2));
}

#[tokio::test]
async fn what_began_before_a_tag_was_invalidated_is_loaded_here() {
    let node = node();
    let (cache, home) = open(&node);
    cache.write().tag("t").insert("other".to_owned(), 1).unwrap();
    let began = node.clock.now().before(Duration::from_secs(1));
    cache.invalidate_tag("t").unwrap();
    home.answers_at_once(brought(&value(7), began));
    assert_eq!(load(&cache, 1).await, Ok(1));
}

#[tokio::test]
async fn what_cannot_be_read_or_is_no_answer_is_loaded_here() {
    let node = node();
    let (cache, home) = open(&node);
    let began = node.clock.now().before(Duration::from_millis(100));
    let odd = SharedLoad::Value { bytes: b"no number".to_vec(), tags: Vec::new(), version: None };
    for load_of in [odd, SharedLoad::Absent] {
        home.answers_at_once(brought(&load_of, began));
        assert_eq!(load(&cache, 1).await, Ok(1), "{load_of:?}");
        cache.remove(&key()).unwrap();
    }
    home.answers_at_once(LeaseTurn::Brought(Lent { result: Bytes::from_static(b"\xff"), began }));
    assert_eq!(load(&cache, 1).await, Ok(1));
    cache.remove(&key()).unwrap();
    home.answers_at_once(brought(&SharedLoad::Absent, began));
    let absent = cache.get_or_load_optional(&key(), || async { Ok::<_, String>(Some(1)) }).await;
    assert_eq!(absent.unwrap(), None, "whoever takes an absence for an answer gets it");
    assert_eq!(cache.counts().shared_refused, 3);
}

#[tokio::test]
async fn who_has_the_lease_hands_in_what_it_loads_with_tags_and_version() {
    let node = node();
    let (cache, home) = open(&node);
    home.answers_at_once(home.lease());
    let loader = || async { Ok::<_, String>(tidings_cache::Loaded::new(5).tag("t")) };
    assert_eq!(cache.get_or_load_tagged(&key(), loader).await.unwrap(), 5);
    let bytes = codec::encode(&5_u64).unwrap();
    let expected = SharedLoad::Value { bytes, tags: vec!["t".to_owned()], version: None };
    assert_eq!(*home.handed_in.lock().unwrap(), [expected]);
    assert_eq!(home.counts(), (1, 1, 0));
    assert_eq!(cache.counts().loads, 1);
}

#[tokio::test]
async fn a_lease_is_given_back_by_who_fails_is_cancelled_panics_or_is_overtaken() {
    let node = node();
    let ((cache, home), k) = (open(&node), key());
    home.answers_at_once(home.lease());
    let failed: std::result::Result<u64, _> =
        cache.get_or_load(&k, || async { Result::Err("no".into()) }).await;
    assert!(failed.is_err());
    assert_eq!(home.counts(), (1, 0, 1));

    home.answers_at_once(home.lease());
    let mut cancelled = Box::pin(cache.get_or_load(&k, std::future::pending::<Result>));
    assert!(poll!(&mut cancelled).is_pending());
    drop(cancelled);
    assert_eq!(home.counts(), (2, 0, 2));

    home.answers_at_once(home.lease());
    let panicking = cache.get_or_load(&k, || async { if true { panic!("a loader") } else { Result::Ok(1) } });
    assert!(std::panic::AssertUnwindSafe(panicking).catch_unwind().await.is_err());
    assert_eq!(home.counts(), (3, 0, 3));

    home.answers_at_once(home.lease());
    let overtaken = cache.get_or_load(&k, || async {
        cache.remove(&key()).unwrap();
        Result::Ok(1)
    });
    assert_eq!(overtaken.await.unwrap(), 1);
    assert_eq!(home.counts(), (4, 0, 4), "what may be too old is handed in to nobody");

    // And by who got it after a removal, for what it brings is not for those who ask later.
    let answer = home.answers();
    let mut late = Box::pin(load(&cache, 2));
    assert!(poll!(&mut late).is_pending());
    cache.remove(&key()).unwrap();
    answer.send(home.lease()).unwrap();
    assert_eq!(late.await, Ok(2));
    assert_eq!(home.counts(), (5, 0, 5));
    assert_eq!(cache.counts().load_failures, 3);
}

#[tokio::test]
async fn who_waits_for_another_nodes_load_and_gives_up_has_failed_no_loader() {
    let node = node();
    let (cache, home) = open(&node);
    let answer = home.answers();
    let mut waiting = Box::pin(load(&cache, 1));
    assert!(poll!(&mut waiting).is_pending());
    drop(waiting);
    drop(answer);
    let counts = cache.counts();
    assert_eq!((counts.loads, counts.load_failures), (0, 0));
    assert_eq!(load(&cache, 2).await, Ok(2));
}

#[tokio::test]
async fn without_the_option_nobody_is_asked_and_where_nothing_travels_it_is_refused() {
    let node = node();
    let home = Home::of(&node);
    let cache = node.users();
    assert_eq!(load(&cache, 1).await, Ok(1));
    assert_eq!(home.counts().0, 0);
    let refused = node.cache::<String, u64>("local").mode(Mode::Local).one_loader_per_cluster().open();
    assert!(matches!(refused, Err(OpenError::Option { option: "one_loader", .. })), "{refused:?}");
    for time in [Duration::ZERO, Duration::from_secs(301)] {
        let refused = node.cache::<String, u64>("late").lease_time(time).open();
        assert!(matches!(refused, Err(OpenError::Option { option: "lease_time", .. })), "{refused:?}");
    }
    let second = Duration::from_secs(1);
    let longer = || node.cache::<String, u64>("longer").lease_time(second).hard_timeout(second);
    let refused = longer().one_loader_per_cluster().open();
    assert!(matches!(refused, Err(OpenError::Option { option: "lease_time", .. })), "{refused:?}");
    assert!(longer().open().is_ok(), "where nobody waits for a lease its time does not matter");
}

#[tokio::test(start_paused = true)]
async fn a_load_elsewhere_that_takes_longer_than_the_hard_timeout_fails_no_read() {
    let node = node();
    let home = Home::of(&node);
    let (lease, hard) = (Duration::from_secs(9), Duration::from_secs(10));
    let builder = node.cache("users").lease_time(lease).hard_timeout(hard).one_loader_per_cluster();
    let cache: Cache<String, u64> = builder.open().unwrap();
    let _never = home.answers();
    let k = key();
    let loaded = cache.fetch(&k, move || async move {
        tokio::time::sleep(hard / 4).await;
        Result::Ok(2)
    });
    assert_eq!(loaded.await.unwrap(), tidings_cache::Fetched { value: 2, stale: false });
    assert_eq!((cache.counts().loads, cache.counts().load_failures), (1, 0));
}

#[tokio::test]
async fn a_fill_token_stands_for_a_lease_until_it_is_used_or_over() {
    let node = node();
    let (cache, home) = open(&node);
    let time = Duration::from_secs(10);
    let token = |found| match found {
        ReadOrFill::Miss(token) => token,
        ReadOrFill::Hit(hit) => panic!("{hit:?}"),
    };
    home.answers_at_once(home.lease());
    let first = token(cache.get_marked_or_lease(&key(), time, time).await.unwrap());
    assert!(cache.fill(&key(), 3, first, None).unwrap());
    assert_eq!(*home.handed_in.lock().unwrap(), [value(3)]);

    cache.remove(&key()).unwrap();
    home.answers_at_once(home.lease());
    let ended = token(cache.get_marked_or_lease(&key(), time, time).await.unwrap());
    cache.remove(&key()).unwrap();
    assert!(!cache.fill(&key(), 4, ended, None).unwrap());
    assert_eq!(home.counts(), (2, 1, 1));

    home.answers_at_once(home.lease());
    let _forgotten = token(cache.get_marked_or_lease(&key(), time, time).await.unwrap());
    node.clock.advance(3 * time);
    cache.settle();
    assert_eq!(home.counts(), (3, 1, 2));
}

#[tokio::test]
async fn who_asks_for_a_token_gets_what_another_brings_or_a_plain_one() {
    let node = node();
    let ((cache, home), k) = (open(&node), key());
    let time = Duration::from_secs(10);
    let answer = home.answers();
    let mut asking = Box::pin(cache.get_marked_or_lease(&k, time, time));
    assert!(poll!(&mut asking).is_pending());
    answer.send(brought(&value(7), node.clock.now().before(Duration::from_millis(50)))).unwrap();
    let found = asking.await.unwrap();
    assert!(matches!(&found, ReadOrFill::Hit(hit) if hit.value == 7 && !hit.stale), "{found:?}");
    assert!(cache.contains(&key()));

    cache.remove(&key()).unwrap();
    home.answers_at_once(LeaseTurn::Alone);
    let found = cache.get_marked_or_lease(&k, time, time).await.unwrap();
    let ReadOrFill::Miss(plain) = found else { panic!("{found:?}") };
    assert!(cache.fill(&key(), 1, plain, None).unwrap());
    // One who goes away meanwhile leaves no flight behind.
    cache.remove(&key()).unwrap();
    let answer = home.answers();
    let mut asking = Box::pin(cache.get_marked_or_lease(&k, time, time));
    assert!(poll!(&mut asking).is_pending());
    drop(asking);
    drop(answer);
    assert_eq!(cache.erased().flights(), 0);
}
