//! Clusters that are too large for everybody to follow everybody, on real QUIC: relays stand for most of the others.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

#[path = "../facade/common.rs"]
mod common;
mod killed;
mod large;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidings::{Doubt, Node, Observation, Observed, Observer};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::{PATIENCE, fill, member, open_on, until};
use crate::large::{ABOVE, Large, id};

/// The key that is written.
fn key() -> String {
    "k".to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_evicts_everywhere_over_fewer_links_than_a_mesh_has() {
    let cluster = Large::start(9).await;
    let caches = cluster.open();
    let links = || -> Vec<usize> { cluster.nodes.iter().map(large::links).collect() };
    until("links that nobody needs are gone", || cluster.in_shape()).await;
    // In a mesh each has eight.
    assert!(links().iter().sum::<usize>() < 9 * 7, "{:?}", links());
    for (writer, cache) in caches.iter().enumerate() {
        let key = format!("of {}", id(writer));
        fill(&caches, &key, 1).await;
        cache.insert(key.clone(), 2).unwrap();
        let others = || caches.iter().enumerate().filter(|(index, _)| *index != writer);
        until("everybody else evicts", || others().all(|(_, cache)| !cache.contains(&key))).await;
        assert_eq!(cache.get(&key), Some(2), "a writer reads its write");
    }
    let gaps: u64 = cluster.nodes.iter().flat_map(Node::following).map(|it| it.gaps + it.rejected).sum();
    assert_eq!(gaps, 0, "nothing was missed on the way");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_names_members_behind_relays() {
    let cluster = Large::start(9).await;
    let caches = cluster.open();
    let behind = || cluster.nodes[0].members().iter().filter(|member| member.rtt.is_none()).count();
    until("some have no link to the writer", || behind() > 1).await;
    fill(&caches, &key(), 1).await;
    let receipt = caches[0].remove(&key()).unwrap().acked(PATIENCE).await.unwrap();
    let applied: Vec<_> = receipt.applied.iter().map(ToString::to_string).collect();
    assert_eq!(applied, (1..9).map(id).collect::<Vec<_>>(), "{receipt:?}");
    assert!(caches.iter().all(|cache| !cache.contains(&key())), "who has acknowledged has applied");
    assert!(cluster.nodes[0].shutdown(PATIENCE).await, "all of them have acknowledged everything");
    // Its goodbye reaches those who have no link to it.
    let doubts = || cluster.nodes[1..].iter().any(|node| !node.doubts().is_empty());
    let left = |node: &Node| member(node, "n1").is_none_or(|it| it.state == tidings::State::Left);
    until("it has left", || cluster.nodes[1..].iter().all(left) && !doubts()).await;
    cluster.shutdown().await;
}

/// Writes on one node and reads on others, and says of every read how far it was behind at most.
struct Load {
    truth: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    tasks: JoinSet<Duration>,
}

/// How late a test may notice that a write has returned: it is another task that says so.
const SLACK: Duration = Duration::from_millis(500);

impl Load {
    fn start(writer: &Node, readers: &[&Node]) -> Self {
        let (truth, over) = (Arc::new(AtomicU64::new(0)), Arc::<AtomicBool>::default());
        let written = Arc::new(std::sync::Mutex::new(vec![Instant::now()]));
        let mut tasks = JoinSet::new();
        let cache = writer.lookup("numbers").unwrap_or_else(|| open_on(writer));
        let (value, ends, log) = (truth.clone(), over.clone(), written.clone());
        tasks.spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                value.fetch_add(1, Ordering::SeqCst);
                cache.remove(&key()).unwrap();
                log.lock().unwrap().push(Instant::now());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Duration::ZERO
        });
        for reader in readers {
            let cache = reader.lookup("numbers").unwrap_or_else(|| open_on(reader));
            let (value, ends, log) = (truth.clone(), over.clone(), written.clone());
            tasks.spawn(async move {
                let mut oldest = Duration::ZERO;
                while !ends.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let load = || async { Ok::<_, ()>(value.load(Ordering::SeqCst)) };
                    let read = cache.get_or_load(&key(), load).await.unwrap();
                    // The write after the one that it saw, if that had returned.
                    let missed = log.lock().unwrap().get(read as usize + 1).copied();
                    oldest =
                        oldest.max(missed.map_or(Duration::ZERO, |at| begun.saturating_duration_since(at)));
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                oldest
            });
        }
        Self { truth, over, tasks }
    }

    /// Ends it, and returns how far behind the oldest read was.
    async fn end(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        let oldest = self.tasks.join_all().await.into_iter().max().unwrap_or_default();
        assert!(self.truth.load(Ordering::SeqCst) > 10, "something was written");
        oldest
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_makes_nobody_stale_and_the_paths_heal() {
    let cluster = Large::start(9).await;
    let _caches = cluster.open();
    let (follower, origin, relay) = cluster.relayed();
    let load = Load::start(&cluster.nodes[origin], &[&cluster.nodes[follower]]);
    cluster.wires.kill(cluster.nodes[relay].address());
    let elsewhere = || {
        let via = member(&cluster.nodes[follower], &id(origin)).map(|member| member.via);
        via.is_some_and(|via| via.is_none_or(|via| via.as_str() != id(relay)))
    };
    until("the follower asks elsewhere", elsewhere).await;
    // Whatever else is doubted, the origin is heard again.
    until("the origin is heard", || cluster.hears(follower, origin)).await;
    let oldest = load.end().await;
    assert!(oldest <= cluster.bound + SLACK, "{oldest:?}");
    let others: Vec<usize> = (0..9).filter(|index| *index != relay).collect();
    let heard = |of: usize| others.iter().all(|index| *index == of || cluster.hears(*index, of));
    until("everybody hears all others", || others.iter().all(|of| heard(*of))).await;
    cluster.abandon(relay).shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_way_around_a_link_that_breaks() {
    let cluster = Large::start(9).await;
    let caches = cluster.open();
    let (follower, origin, relay) = cluster.relayed();
    let address = |index: usize| cluster.nodes[index].address();
    cluster.wires.cut(address(follower), address(relay));
    let via = || member(&cluster.nodes[follower], &id(origin)).and_then(|member| member.via);
    until("another way is found", || via().is_none_or(|via| via.as_str() != id(relay))).await;
    // The two that lost their link hear each other by way of others, and nobody is in doubt.
    let calm = || cluster.nodes.iter().all(|node| node.doubts().is_empty());
    until("nobody doubts", || calm() && cluster.hears(follower, relay) && cluster.hears(relay, follower))
        .await;
    for writer in [relay, origin, follower] {
        fill(&caches, &key(), 1).await;
        caches[writer].insert(key(), 2).unwrap();
        let others = || caches.iter().enumerate().filter(|(index, _)| *index != writer);
        until("everybody else evicts", || others().all(|(_, cache)| !cache.contains(&key()))).await;
    }
    cluster.wires.mend();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_links_are_those_of_the_overlay_again_once_nothing_is_cut() {
    let cluster = Large::start(9).await;
    until("everybody asks whom the overlay means", || cluster.in_shape()).await;
    let (follower, origin, relay) = cluster.relayed();
    let address = |index: usize| cluster.nodes[index].address();
    cluster.wires.cut(address(follower), address(relay));
    let other = (0..9).find(|index| ![follower, origin, relay].contains(index)).unwrap();
    cluster.wires.kill(address(other));
    let via =
        |of: usize, origin: usize| member(&cluster.nodes[of], &id(origin)).and_then(|member| member.via);
    until("others are asked", || via(follower, origin).is_none_or(|via| via.as_str() != id(relay))).await;
    until("one hears nobody", || (0..9).all(|of| of == other || !cluster.hears(other, of))).await;
    assert!(!cluster.in_shape());
    cluster.wires.mend();
    // Nobody comes or goes for it: everybody was there all the time.
    until("everybody asks whom the overlay means again", || cluster.in_shape()).await;
    let calm = || cluster.nodes.iter().all(|node| node.doubts().is_empty());
    until("nobody doubts", calm).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_for_the_sake_of_a_question_goes_when_its_other_end_does_not_need_it() {
    let cluster = Large::start(9).await;
    until("only needed links are left", || cluster.in_shape()).await;
    let cache = cluster.nodes[0].cache::<String, u64>("audited").audited().open().unwrap();
    let links = || large::links(&cluster.nodes[0]);
    let needed = links();
    assert!(needed < 8, "it has a link to each");
    let unlinked = |it: &&tidings::MemberInfo| !it.this_node && it.rtt.is_none();
    assert_eq!(cluster.nodes[0].members().iter().filter(unlinked).count(), 8 - needed);
    // Who has no link is named as one that cannot be reached, and is dialled.
    let holders = cluster.nodes[0].holders(&cache, &key(), PATIENCE).await.unwrap();
    until("all can be asked", || links() == 8).await;
    until("the links are gone", || links() == needed).await;
    // One that is dialled anew is there within half a second.
    let gone = Instant::now();
    until("they stay away", || {
        assert_eq!(links(), needed, "after {:?}: {holders:?}", gone.elapsed());
        gone.elapsed() > Duration::from_secs(2)
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_does_not_hear_an_origin_makes_nobody_fresh_by_it() {
    let cluster = Large::start_bounded(7, Duration::from_millis(1_500)).await;
    let (follower, origin, _) = cluster.relayed();
    // Everybody answers everybody but the origin, which is still up.
    cluster.wires.kill(cluster.nodes[origin].address());
    let cut = Instant::now();
    let of = |doubt: &Doubt| match doubt {
        Doubt::Unheard(of) | Doubt::NeverHeard(of) | Doubt::UncleanEnd(of) => Some(of.node.to_string()),
        _ => None,
    };
    let unheard = |doubt: &Doubt| of(doubt) == Some(id(origin));
    until("the origin is doubted", || cluster.nodes[follower].doubts().iter().any(unheard)).await;
    // While nobody hears it, no relay's answer makes its age smaller.
    let age = || member(&cluster.nodes[follower], &id(origin)).and_then(|member| member.confirmed);
    let since = cut.elapsed();
    assert!(age().is_none_or(|age| age + SLACK >= since.min(cluster.bound)), "{:?} after {since:?}", age());
    until("a bound has passed", || cut.elapsed() > 2 * cluster.bound).await;
    assert!(age().is_none_or(|age| age > cluster.bound), "{:?}", age());
    cluster.wires.mend();
    let calm = || cluster.nodes.iter().all(|node| node.doubts().is_empty());
    until("it is heard again", || calm() && cluster.hears(follower, origin)).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_a_large_cluster_and_is_relayed_to() {
    let mut cluster = Large::start(8).await;
    let mut caches = cluster.open();
    caches[0].insert("before".to_owned(), 1).unwrap();
    cluster.join(1).await;
    let joined = &cluster.nodes[8];
    caches.push(open_on(joined));
    until("relays stand for some", || joined.members().iter().any(|member| member.via.is_some())).await;
    until("it needs no link to each", || large::links(joined) < 8).await;
    for writer in [8, 0, 3] {
        fill(&caches, &key(), 1).await;
        let receipt = caches[writer].remove(&key()).unwrap().acked(PATIENCE).await.unwrap();
        assert_eq!((receipt.applied.len(), receipt.missing.len()), (8, 0), "{receipt:?}");
        assert!(caches.iter().all(|cache| !cache.contains(&key())));
    }
    cluster.shutdown().await;
}

/// Waits until so many others were followed to their goodbye: nothing else is told so.
async fn heard_to_the_end(observer: &mut Observer, mut others: usize) {
    let heard = async {
        while others > 0 {
            let told = observer.next().await.unwrap();
            others -= usize::from(matches!(told, Observed::Observation(Observation::Left { .. })));
        }
    };
    tokio::time::timeout(PATIENCE / 2, heard).await.expect("those who left are heard to their end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_shrinks_to_a_mesh_and_grows_out_of_it_under_load() {
    let mut cluster = Large::start(6).await;
    // Whoever joins hears by gossip of those who have left, and waits for them so long.
    cluster.lost_grace = Duration::from_secs(2);
    let _caches = cluster.open();
    let readers: Vec<&Node> = [1, 2].map(|index| &cluster.nodes[index]).into();
    let load = Load::start(&cluster.nodes[0], &readers);
    let mut observers: Vec<_> = cluster.nodes[..ABOVE].iter().map(Node::observe).collect();
    while cluster.nodes.len() > ABOVE {
        let node = cluster.nodes.pop().unwrap();
        assert!(node.shutdown(PATIENCE).await, "{} leaves cleanly", node.origin());
    }
    let direct = |node: &Node| {
        let live = |member: &tidings::MemberInfo| !member.this_node && member.state == tidings::State::Live;
        let members = node.members();
        let mut live = members.iter().filter(|member| live(member));
        live.all(|member| member.via.is_none() && member.rtt.is_some())
    };
    until("a mesh", || cluster.nodes.iter().all(direct)).await;
    for observer in &mut observers {
        heard_to_the_end(observer, 3).await;
    }
    cluster.join(3).await;
    let relays = || cluster.nodes.iter().any(|node| node.members().iter().any(|member| member.via.is_some()));
    until("relays", relays).await;
    let calm = || cluster.nodes.iter().all(|node| node.doubts().is_empty());
    until("nobody doubts", calm).await;
    let oldest = load.end().await;
    assert!(oldest <= cluster.bound + SLACK, "{oldest:?}");
    let resets: u64 = cluster.nodes[..ABOVE].iter().flat_map(Node::following).map(|it| it.resets).sum();
    assert_eq!(resets, 0, "nobody who stayed has lost anything on the way from shape to shape");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_cluster_knows_nothing_of_relays() {
    let cluster = Large::start_with(3, |_, builder| builder).await;
    let caches = cluster.open();
    fill(&caches, &key(), 1).await;
    caches[0].insert(key(), 2).unwrap();
    until("the others evict", || caches[1..].iter().all(|cache| !cache.contains(&key()))).await;
    for node in &cluster.nodes {
        let vias: BTreeSet<_> = node.members().into_iter().filter_map(|member| member.via).collect();
        assert!(vias.is_empty() && large::links(node) == 2, "{vias:?}");
        assert_eq!(node.relayed(), tidings::RelayReport::default());
    }
    cluster.shutdown().await;
}
