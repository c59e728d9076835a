//! What a service that embeds a node notices, on real QUIC.

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{
    BroadcastError, Cache, Client, Conflict, Doubt, EventKind, Item, Node, NotReady, OpenError, Retention,
    State, WriteError,
};
use tidings_facts as facts;
use tokio::time::Instant;

#[path = "facade/common.rs"]
mod common;

use common::{BOUND, PATIENCE, fill, joiner, open, patient, quick, until};

#[tokio::test]
async fn a_change_on_one_node_evicts_the_copy_on_every_other() {
    let cluster = patient(3).await;
    let caches = open(&cluster);
    fill(&caches, "answer", 41).await;
    let key = "answer".to_owned();
    assert!(caches.iter().all(|cache| cache.get(&key) == Some(41)));
    caches[0].insert(key.clone(), 42).unwrap();
    assert_eq!(caches[0].get(&key), Some(42), "a writer reads its write");
    until("the others evict", || caches[1..].iter().all(|cache| !cache.contains(&key))).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn fills_are_silent() {
    let cluster = patient(2).await;
    let caches = open(&cluster);
    for n in 0..100 {
        fill(&caches, &n.to_string(), n).await;
    }
    let published: u64 = cluster.nodes().iter().map(|node| node.domain().events_published()).sum();
    assert_eq!(published, 0);
    assert!((0..100_u64).all(|n| caches.iter().all(|cache| cache.get(&n.to_string()) == Some(n))));
    let sum = |of: fn(&Cache<String, u64>) -> u64| caches.iter().map(of).sum::<u64>();
    let (loads, hits) = (sum(|cache| cache.counts().loads), sum(|cache| cache.counts().hits));
    assert_eq!((loads, hits), (200, 200), "each is loaded once by each node, and a hit from then on");
    facts::note(
        "G6",
        format!("{loads} loads on 2 nodes, {published} changes published, then {hits} of 200 reads hit"),
    );
    cluster.shutdown().await;
}

#[tokio::test]
async fn subscribers_on_other_nodes_hear_what_was_done() {
    let cluster = patient(2).await;
    let caches = open(&cluster);
    let mut heard = caches[1].subscribe().kinds([EventKind::Inserted]).start().unwrap();
    caches[0].write().metadata("cause", "test").insert("k".to_owned(), 1).unwrap();
    let item = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap();
    let Some(Item::Event(event)) = item else { panic!("{item:?}") };
    assert_eq!(event.key().map(String::as_str), Some("k"));
    assert_eq!(event.origin.node.as_str(), "n1");
    assert_eq!(event.metadata.first(), Some(&("cause".to_owned(), "test".to_owned())));
    cluster.shutdown().await;
}

#[tokio::test]
async fn clear_reaches_everybody_and_loads_under_way() {
    let cluster = patient(2).await;
    let caches = open(&cluster);
    fill(&caches, "a", 1).await;
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let slow = caches[1].clone();
    let load = tokio::task::JoinSet::from_iter([async move {
        let load = || async {
            released.await.ok();
            Ok::<_, ()>(1)
        };
        slow.get_or_load(&"b".to_owned(), load).await.unwrap()
    }]);
    until("the load is under way", || caches[1].counts().loads == 2).await;
    caches[0].clear().unwrap();
    until("the peer is cleared", || !caches[1].contains(&"a".to_owned())).await;
    release.send(()).unwrap();
    assert_eq!(load.join_all().await, [1], "who waited gets the result");
    assert!(!caches[1].contains(&"b".to_owned()), "what began before the clear is not stored");
    let keys = ["a".to_owned(), "b".to_owned()];
    let survivors = caches.iter().map(|cache| keys.iter().filter(|key| cache.contains(*key)).count());
    facts::note(
        "G7",
        format!("{} entries survive on 2 nodes, a load under way among them", survivors.sum::<usize>()),
    );
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_change_counts_once_per_follower_whatever_its_lanes() {
    let cluster = patient(3).await;
    let caches = open(&cluster);
    caches[0].clear().unwrap();
    caches[0].write().insert_many((0..100).map(|n: u64| (n.to_string(), n))).unwrap();
    caches[0].insert("one".to_owned(), 1).unwrap();
    assert_eq!(cluster.nodes()[0].domain().events_published(), 3);
    assert!(cluster[0].shutdown(PATIENCE).await, "everything is acknowledged");
    for node in &cluster.nodes()[1..] {
        let following = node.following();
        let applied: Vec<_> = following.iter().map(|it| (it.origin.node.as_str(), it.applied)).collect();
        assert!(applied.contains(&("n1", 3)), "{applied:?}");
        assert_eq!(applied.iter().map(|(_, changes)| changes).sum::<u64>(), 3, "{applied:?}");
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_goodbye_leaves_no_doubt() {
    let cluster = quick(2).await;
    let caches = open(&cluster);
    fill(&caches, "kept", 1).await;
    caches[0].insert("changed".to_owned(), 1).unwrap();
    assert!(cluster[0].shutdown(PATIENCE).await, "drained in time");
    until("the goodbye is heard", || {
        cluster[1].members().iter().any(|member| member.node.as_str() == "n1" && member.state == State::Left)
    })
    .await;
    // Longer than the bound: were the one that left still listened for, the entry would have aged out.
    let after = Instant::now() + Duration::from_millis(1_500);
    until("the bound has passed", || Instant::now() > after).await;
    assert!(cluster[1].doubts().is_empty(), "{:?}", cluster[1].doubts());
    assert_eq!(caches[1].get(&"kept".to_owned()), Some(1));
    assert!(matches!(caches[0].insert("late".to_owned(), 1), Err(WriteError::Closed | WriteError::Leaving)));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_member_that_vanishes_costs_the_bound_and_then_a_floor() {
    let build = |_, builder: tidings::NodeBuilder| {
        builder.max_staleness(Duration::from_millis(600)).lost_grace(Duration::from_secs(2))
    };
    let cluster = Cluster::start_with(2, build).await.unwrap();
    let caches = open(&cluster);
    fill(&caches, "old", 1).await;
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    // Denied on both sides, so that neither hears the other: as if the first had died.
    second.set_denied(&["n1".to_owned()]);
    first.set_denied(&["n2".to_owned()]);
    until("in doubt", || !second.doubts().is_empty()).await;
    until("the entry outlives the bound no more", || !caches[1].contains(&"old".to_owned())).await;
    loop {
        let loaded = Instant::now();
        caches[1].get_or_load(&"young".to_owned(), || async { Ok::<_, ()>(2) }).await.unwrap();
        let held = caches[1].get(&"young".to_owned());
        // On a busy machine the bound may be over before this looks.
        if held.is_some() || loaded.elapsed() < BOUND {
            assert_eq!(held, Some(2), "in doubt, entries live as long as the bound");
            break;
        }
    }
    until("the end of the lost member is certain", || second.doubts().is_empty()).await;
    assert!(!caches[1].contains(&"old".to_owned()), "leaving doubt brings nothing back");
    cluster.shutdown().await;
}

#[tokio::test]
async fn an_overrun_log_ends_in_a_counted_reset_and_a_fence() {
    let build = |_, builder: tidings::NodeBuilder| {
        builder.retention(Retention { events: 64, ..Retention::default() })
    };
    let cluster = Cluster::start_with(2, build).await.unwrap();
    let caches = open(&cluster);
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    for n in 0..100 {
        fill(&caches, &n.to_string(), n).await;
    }
    // Something in every lane, so that the peer has followed each.
    for n in 0..100 {
        caches[0].remove(&format!("before-{n}")).unwrap();
    }
    until("all is applied", || second.following().iter().map(|it| it.applied).sum::<u64>() == 100).await;
    first.set_denied(&["n2".to_owned()]);
    until("the link is down", || first.members().iter().all(|member| member.rtt.is_none())).await;
    for n in 0..10_000_u64 {
        caches[0].remove(&format!("other-{n}")).unwrap();
    }
    first.set_denied(&[]);
    let resets = || second.members().iter().map(|member| member.resets).sum::<u64>();
    until("every lane was reset", || resets() == 4).await;
    assert!(first.transport_stats().broadcast_errors(BroadcastError::Overrun) >= 4, "the writer knows, too");
    assert!(second.transport_stats().broadcast_errors(BroadcastError::Refused) > 0, "it was denied");
    assert!((0..100_u64).all(|n| !caches[1].contains(&n.to_string())), "what was in doubt is fenced");
    fill(&caches, "new", 1).await;
    caches[0].remove(&"new".to_owned()).unwrap();
    until("events flow again", || !caches[1].contains(&"new".to_owned())).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_newcomer_to_a_log_that_has_wrapped_did_not_fall_out_of_it() {
    let build = |_, builder: tidings::NodeBuilder| {
        builder.retention(Retention { events: 64, ..Retention::default() })
    };
    let cluster = Cluster::start_with(1, build).await.unwrap();
    let caches = open(&cluster);
    for n in 0..10_000_u64 {
        caches[0].remove(&format!("old-{n}")).unwrap();
    }
    let late = joiner(cluster[0].cluster(), "late", &[&cluster[0]]).start().await.unwrap();
    late.ready(PATIENCE).await.unwrap();
    let resets = || late.members().iter().map(|member| member.resets).sum::<u64>();
    until("every lane was reset", || resets() == 4).await;
    assert_eq!(cluster[0].transport_stats().broadcast_errors(BroadcastError::Overrun), 0);
    late.shutdown(Duration::from_secs(1)).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn repair_after_a_cut_is_exact_to_the_key() {
    let cluster = Cluster::start(2).await.unwrap();
    let caches = open(&cluster);
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    for n in 0..100 {
        fill(&caches, &n.to_string(), n).await;
    }
    first.set_denied(&["n2".to_owned()]);
    until("the link is down", || first.members().iter().all(|member| member.rtt.is_none())).await;
    caches[0].remove(&"50".to_owned()).unwrap();
    first.set_denied(&[]);
    // What is only doubted while the cut lasts comes back; what was evicted does not.
    let kept = || -> Vec<u64> { (0..100).filter(|n| caches[1].contains(&n.to_string())).collect() };
    let rest: Vec<u64> = (0..100).filter(|n| *n != 50).collect();
    until("the change arrives, and nothing else was evicted", || kept() == rest).await;
    assert!(second.members().iter().all(|member| member.resets == 0));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_live_holder_keeps_its_node_id() {
    let cluster = quick(2).await;
    let twin = Node::builder(cluster[0].cluster())
        .node_id("n2")
        .seeds([cluster[0].address().to_string()])
        .start()
        .await
        .unwrap();
    until("the twin is told", || twin.conflict().is_some()).await;
    assert!(matches!(twin.readiness(), Err(NotReady::Conflict(Conflict::DuplicateNode { .. }))));
    assert!(twin.conflict().unwrap().to_string().contains("n2"), "the message names the id");
    assert!(cluster[0].readiness().is_ok(), "the holder is still followed");
    let unclean = |doubt: &Doubt| matches!(doubt, Doubt::UncleanEnd(_));
    assert!(
        !cluster[0].doubts().iter().any(unclean),
        "nobody has ever followed it, so nothing of it is missed"
    );
    twin.shutdown(Duration::from_secs(1)).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_whose_clock_went_back_takes_the_next_incarnation() {
    let cluster = quick(1).await;
    let seed = cluster[0].address().to_string();
    let start = |node: &str| {
        Node::builder(cluster[0].cluster()).node_id(node).seeds([seed.clone()]).write_horizon(Duration::ZERO)
    };
    let first = start("x").start().await.unwrap();
    first.ready(PATIENCE).await.unwrap();
    let before = first.origin().incarnation;
    assert!(first.shutdown(PATIENCE).await);
    // The second life reads a wall clock that is an hour behind.
    let (started, hour) = (Instant::now(), Duration::from_secs(3_600));
    let now = Duration::from_millis(tidings::Clock::system().wall_ms()) - hour;
    let behind = tidings::Clock::from_fn(move || tidings::Tick(0).after(now + started.elapsed()));
    let second = start("x").clock(behind).unready_when_clock_off(false).start().await.unwrap();
    until("it is renumbered", || second.origin().incarnation > before).await;
    second.ready(PATIENCE).await.unwrap();
    let cache: Cache<String, u64> = second.cache("c").open().unwrap();
    let peer: Cache<String, u64> = cluster[0].cache("c").open().unwrap();
    fill(std::slice::from_ref(&peer), "k", 1).await;
    cache.remove(&"k".to_owned()).unwrap();
    until("its changes count", || !peer.contains(&"k".to_owned())).await;
    second.shutdown(Duration::from_secs(5)).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn caches_are_found_by_name_and_type() {
    let cluster = quick(1).await;
    let node = &cluster[0];
    let numbers: Cache<String, u64> = node.cache("numbers").open().unwrap();
    assert!(node.lookup::<String, u64>("numbers").is_some());
    assert!(node.lookup::<String, String>("numbers").is_none(), "of other types");
    assert!(node.lookup::<String, u64>("letters").is_none());
    assert!(matches!(node.cache::<String, u64>("numbers").open(), Err(OpenError::Open(_))));
    numbers.close();
    assert!(node.lookup::<String, u64>("numbers").is_none());
    assert!(node.cache::<String, u64>("numbers").open().is_ok(), "the name is free again");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_batch_job_invalidates_and_leaves_nothing_unsaid() {
    let cluster = patient(2).await;
    let caches = open(&cluster);
    for n in 0..1_000 {
        fill(&caches, &n.to_string(), n).await;
    }
    let seeds = cluster.nodes().iter().map(|node| node.address().to_string());
    let builder = Node::builder(cluster[0].cluster()).node_id("job").seeds(seeds);
    let client = Client::join(builder, PATIENCE).await.unwrap();
    let numbers = client.cache::<String>("numbers").unwrap();
    for n in 0..500_u64 {
        numbers.invalidate(&n.to_string()).unwrap();
    }
    numbers.invalidate_many((500..900_u64).map(|n| n.to_string())).unwrap();
    assert!(client.finish(PATIENCE).await, "everybody has applied everything");
    for cache in &caches {
        assert!((0..900_u64).all(|n| !cache.contains(&n.to_string())));
        assert!((900..1_000_u64).all(|n| cache.contains(&n.to_string())));
    }
    cluster.shutdown().await;
}
