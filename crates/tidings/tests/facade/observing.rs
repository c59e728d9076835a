//! What an observer is told of its node.

use std::collections::VecDeque;
use std::time::Duration;

use tidings::{Clock, Node, Observation, Observed, Observer, Refusal, Retention, State, Tick};
use tokio::time::Instant;

use crate::common::{PATIENCE, joiner, member, open_on, quick, until};

/// What an observer was told, to be asked for in any order.
struct Told {
    observer: Observer,
    past: VecDeque<Observation>,
}

impl Told {
    fn by(node: &Node) -> Self {
        Self { observer: node.observe(), past: VecDeque::new() }
    }

    /// Waits until something was told, once.
    async fn of(&mut self, what: &str, is: impl Fn(&Observation) -> bool) {
        if let Some(index) = self.past.iter().position(&is) {
            self.past.remove(index);
            return;
        }
        let told = async {
            loop {
                match self.observer.next().await.expect("the node runs") {
                    Observed::Observation(observation) if is(&observation) => return,
                    Observed::Observation(observation) => self.past.push_back(observation),
                    Observed::Missed(missed) => panic!("{missed} missed"),
                }
            }
        };
        let timely = tokio::time::timeout(PATIENCE, told).await.is_ok();
        assert!(timely, "not told in time: {what}; but {:?}", self.past);
    }
}

fn is_member(observation: &Observation, id: &str, expected: State) -> bool {
    matches!(observation, Observation::Member { origin, state } if origin.node.as_str() == id && *state == expected)
}

#[tokio::test]
async fn an_observer_is_told_what_happens_to_its_node() {
    let few = Retention { events: 64, ..Retention::default() };
    let first = joiner("shop", "n1", &[]).retention(few).start().await.unwrap();
    let mut by_first = Told::by(&first);
    let second = joiner("shop", "n2", &[&first]).start().await.unwrap();
    let mut by_second = Told::by(&second);
    by_first.of("a member has come", |it| is_member(it, "n2", State::Live)).await;
    by_second
        .of("no doubt is left", |it| matches!(it, Observation::Doubt { reasons } if reasons.is_empty()))
        .await;

    first.set_denied(&["n2".to_owned()]);
    by_second.of("it is refused", |it| matches!(it, Observation::Refused { address, refusal: Refusal::Denied } if *address == first.address())).await;
    by_second
        .of("it is in doubt", |it| matches!(it, Observation::Doubt { reasons } if !reasons.is_empty()))
        .await;
    by_second.of("the member is lost", |it| is_member(it, "n1", State::Lost)).await;
    let cache = open_on(&first);
    for n in 0..10_000_u64 {
        cache.remove(&n.to_string()).unwrap();
    }
    first.set_denied(&[]);
    let reset =
        |it: &Observation| matches!(it, Observation::Reset { origin, .. } if *origin == first.origin());
    for lane in 0..4 {
        by_second.of(&format!("{lane} lanes were reset, and another"), reset).await;
    }
    by_second.of("the member is back", |it| is_member(it, "n1", State::Live)).await;
    by_second
        .of("doubt is over", |it| matches!(it, Observation::Doubt { reasons } if reasons.is_empty()))
        .await;

    until("it is followed", || member(&second, "n1").is_some_and(|it| it.synced())).await;
    assert!(first.shutdown(PATIENCE).await);
    by_second.of("a goodbye", |it| matches!(it, Observation::Left { node } if node.as_str() == "n1")).await;
    by_second.of("the member has left", |it| is_member(it, "n1", State::Left)).await;
    second.shutdown(PATIENCE).await;
    let ended = async { while by_second.observer.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("a node that was shut down tells no more");
    assert!(second.observe().next().await.is_none(), "nor to who comes later");
}

#[tokio::test]
async fn an_observer_is_told_of_a_new_incarnation() {
    let cluster = quick(1).await;
    let first = joiner(cluster[0].cluster(), "x", &[&cluster[0]]).start().await.unwrap();
    first.ready(PATIENCE).await.unwrap();
    let before = first.origin().incarnation;
    assert!(first.shutdown(PATIENCE).await);
    // The second life reads a wall clock that is an hour behind.
    let (started, hour) = (Instant::now(), Duration::from_secs(3_600));
    let now = Duration::from_millis(Clock::system().wall_ms()) - hour;
    let behind = Clock::from_fn(move || Tick(0).after(now + started.elapsed()));
    let second = joiner(cluster[0].cluster(), "x", &[&cluster[0]]).clock(behind).denied(["n1"]);
    let second = second.start().await.unwrap();
    let mut told = Told::by(&second);
    second.set_denied(&[]);
    told.of("it was renumbered", |it| {
        matches!(it, Observation::Renumbered { origin } if origin.node.as_str() == "x" && origin.incarnation > before)
    })
    .await;
    second.shutdown(PATIENCE).await;
    cluster.shutdown().await;
}

/// How many changes of `node` the peer has acknowledged with their age, and how old half of them were at most.
fn timed(node: &Node, peer: &str) -> (u64, Duration) {
    let times = node.invalidation_times(&peer.parse().expect("a good name")).expect("the peer is served");
    (times.count(), times.quantile(0.5).unwrap_or_default())
}

#[tokio::test]
async fn the_way_of_each_change_to_each_peer_is_timed_and_what_was_before_the_peer_is_not() {
    const CHANGES: u64 = 200;
    let cluster = quick(2).await;
    let numbers = open_on(&cluster[0]);
    let change = || (0..CHANGES).for_each(|n| drop(numbers.remove(&n.to_string()).expect("an open cache")));
    change();
    until("the changes are timed", || timed(&cluster[0], "n2").0 == CHANGES).await;
    let (_, half) = timed(&cluster[0], "n2");
    assert!(half > Duration::ZERO && half < PATIENCE, "{half:?}");

    let late = joiner(cluster[0].cluster(), "late", &[&cluster[0]]).start().await.unwrap();
    let followed = || member(&late, "n1").is_some_and(|member| member.applied >= CHANGES);
    until("the newcomer has read what was before it", followed).await;
    change();
    until("the newcomer is timed", || timed(&cluster[0], "late").0 == CHANGES).await;
    until("so is the other", || timed(&cluster[0], "n2").0 == 2 * CHANGES).await;
    late.shutdown(PATIENCE).await;
    cluster.shutdown().await;
}
