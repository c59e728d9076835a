//! Changes that name no keys reach every node, and the loads under way there.

use futures_util::poll;
use tidings::testing::Cluster;
use tidings::{Cache, EventKind, Item, Node, Target};
use tidings_facts as facts;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::common::{PATIENCE, fill, patient, until};

type Users = Cache<String, u64>;

/// Entries per tag, and per prefix.
const ENTRIES: u64 = 400;

fn users(node: &Node) -> Users {
    node.cache("users").tags(|_: &String, tenant: &u64| [format!("tenant:{tenant}")]).open().unwrap()
}

async fn filled(count: usize) -> (Cluster, Vec<Users>) {
    let cluster = patient(count).await;
    let caches: Vec<_> = cluster.nodes().iter().map(users).collect();
    for n in 0..ENTRIES {
        fill(&caches, &format!("a:{n}"), n % 2).await;
        fill(&caches, &format!("b:{n}"), n % 2).await;
    }
    (cluster, caches)
}

fn held(cache: &Users, which: impl Fn(&str, u64) -> bool) -> usize {
    let names = (0..ENTRIES).flat_map(|n| [(format!("a:{n}"), n % 2), (format!("b:{n}"), n % 2)]);
    names.filter(|(name, tenant)| which(name, *tenant) && cache.contains(name)).count()
}

/// How many entries of that kind all nodes hold together.
fn everywhere(caches: &[Users], which: impl Fn(&str, u64) -> bool + Copy) -> usize {
    caches.iter().map(|cache| held(cache, which)).sum()
}

fn gone(before: usize, asked: Instant, left: usize) {
    let took = asked.elapsed();
    facts::note(
        "G7",
        format!("{before} entries on 3 nodes were named, {left} survive {took:.1?} after the call"),
    );
}

#[tokio::test]
async fn a_tag_survives_on_no_node_and_nothing_else_goes() {
    let (cluster, caches) = filled(3).await;
    let is_named = |_: &str, tenant| tenant == 1;
    let before = everywhere(&caches, is_named);
    caches[1].invalidate_tag("tenant:1").unwrap();
    let asked = Instant::now();
    assert_eq!(held(&caches[1], is_named), 0, "at once on the writer");
    until("no copy is left", || everywhere(&caches, is_named) == 0).await;
    gone(before, asked, everywhere(&caches, is_named));
    until("nothing else goes", || {
        caches.iter().all(|cache| held(cache, |_, tenant| tenant == 0) == ENTRIES as usize)
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_prefix_survives_on_no_node_and_nothing_else_goes() {
    let (cluster, caches) = filled(3).await;
    let is_named = |name: &str, _| name.starts_with("a:");
    let before = everywhere(&caches, is_named);
    caches[1].invalidate_prefix("a:").unwrap();
    let asked = Instant::now();
    assert_eq!(held(&caches[1], is_named), 0, "at once on the writer");
    until("no copy is left", || everywhere(&caches, is_named) == 0).await;
    gone(before, asked, everywhere(&caches, is_named));
    let others = |cache: &Users| held(cache, |name, _| name.starts_with("b:"));
    until("nothing else goes", || caches.iter().all(|cache| others(cache) == ENTRIES as usize)).await;
    // Their memory goes, too, and hits count as before.
    until("what is unreadable is reclaimed", || {
        caches.iter().all(|cache| cache.erased().entries() <= ENTRIES)
    })
    .await;
    assert!(caches.iter().all(|cache| held(cache, is_named) == 0 && others(cache) == ENTRIES as usize));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_load_under_way_on_another_node_is_not_kept() {
    type Invalidate = fn(&Users);
    let ways: [Invalidate; 2] = [
        |cache| drop(cache.invalidate_tag("tenant:1").unwrap()),
        |cache| drop(cache.invalidate_prefix("slow").unwrap()),
    ];
    let mut stored = 0;
    for invalidate in ways {
        let cluster = patient(2).await;
        let caches: Vec<_> = cluster.nodes().iter().map(users).collect();
        let (deliver, source) = oneshot::channel();
        let slow = "slow".to_owned();
        let mut load = std::pin::pin!(caches[1].get_or_load(&slow, || source));
        assert!(poll!(load.as_mut()).is_pending());
        invalidate(&caches[0]);
        until("it is applied", || caches[1].counts().applied() == 1).await;
        deliver.send(1).unwrap();
        assert_eq!((load.await.unwrap(), caches[1].get(&slow)), (1, None));
        stored += usize::from(caches[1].contains(&slow));
        fill(&caches[1..], "slow", 1).await;
        assert_eq!(caches[1].get(&slow), Some(1), "what begins afterwards is kept");
        cluster.shutdown().await;
    }
    facts::note(
        "G7",
        format!("{} loads under way were named by tag and by prefix, {stored} were stored", ways.len()),
    );
}

#[tokio::test]
async fn subscribers_on_every_node_are_told_of_a_tag_and_a_prefix_once() {
    let cluster = patient(2).await;
    let caches: Vec<_> = cluster.nodes().iter().map(users).collect();
    let mut heard: Vec<_> = caches.iter().map(|cache| cache.subscribe().start().unwrap()).collect();
    caches[0].invalidate_tag("tenant:1").unwrap();
    caches[0].invalidate_prefix("a:").unwrap();
    caches[0].clear().unwrap();
    for heard in &mut heard {
        let mut targets = Vec::new();
        while targets.last() != Some(&(EventKind::Cleared, Target::All)) {
            let item = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap();
            let Some(Item::Event(event)) = item else { panic!("{item:?}") };
            targets.push((event.kind, event.target().clone()));
        }
        let expected = [
            (EventKind::Deleted, Target::Tag("tenant:1".into())),
            (EventKind::Deleted, Target::Prefix("a:".into())),
            (EventKind::Cleared, Target::All),
        ];
        assert_eq!(targets, expected);
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_is_derived_from_a_change_goes_on_every_node() {
    let cluster = patient(3).await;
    let users: Vec<_> = cluster.nodes().iter().map(users).collect();
    let pages: Vec<Cache<String, u64>> =
        cluster.nodes().iter().map(|node| node.cache("pages").open().unwrap()).collect();
    users[0].derive(&pages[0], |user| [format!("profile:{user}")]).unwrap();
    fill(&pages, "profile:ann", 1).await;
    fill(&pages, "profile:bob", 1).await;
    users[0].insert("ann".to_owned(), 2).unwrap();
    let held = |name: &str| pages.iter().filter(|cache| cache.contains(&name.to_owned())).count();
    until("no profile of hers is left", || held("profile:ann") == 0).await;
    until("nobody else's goes", || held("profile:bob") == 3).await;
    // It is in the log before the call returns: a node that leaves at once has told of it.
    fill(&pages, "profile:ann", 2).await;
    users[0].remove(&"ann".to_owned()).unwrap();
    assert!(cluster[0].shutdown(PATIENCE).await, "drained in time");
    assert_eq!(pages[1..].iter().filter(|cache| cache.contains(&"profile:ann".to_owned())).count(), 0);
    cluster.shutdown().await;
}
