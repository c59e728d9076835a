//! Nodes that were apart: what they missed of each other, and of others that have come and gone meanwhile.

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Doubt, Node, Observation, Observed, Observer};

use crate::common::{BOUND, PATIENCE, fill, for_a_while, joiner, member, open, open_on, until};

async fn cluster(count: usize, lost_grace: Duration) -> Cluster {
    let build = |_, builder: tidings::NodeBuilder| builder.max_staleness(BOUND).lost_grace(lost_grace);
    Cluster::start_with(count, build).await.unwrap()
}

/// Cuts a node off from others, or heals that.
fn part(one: &Node, others: &[&Node], cut: bool) {
    let id = |node: &Node| node.origin().node.to_string();
    let denied = |nodes: &[&Node]| nodes.iter().filter(|_| cut).map(|node| id(node)).collect::<Vec<_>>();
    one.set_denied(&denied(others));
    others.iter().for_each(|other| other.set_denied(&denied(&[one])));
}

#[tokio::test]
async fn what_a_life_changed_that_came_and_ended_during_a_cut_is_not_served_after_it() {
    let cluster = cluster(2, Duration::from_secs(30)).await;
    let caches = open(&cluster);
    let [witness, cut_off] = cluster.nodes() else { unreachable!("two were started") };
    fill(&caches[1..], "k", 1).await;
    part(cut_off, &[witness], true);
    cut_off.set_denied(&["n1".to_owned(), "brief".to_owned()]);
    let brief = joiner(witness.cluster(), "brief", &[witness]).start().await.unwrap();
    until("it counts", || member(witness, "brief").is_some_and(|it| it.synced())).await;
    open_on(&brief).insert("k".to_owned(), 2).unwrap();
    for_a_while(BOUND).await;
    let origin = brief.origin();
    // No goodbye: it is just gone.
    drop(brief);
    until("it is over for the one who knew it", || witness.forget(&origin.node)).await;
    part(cut_off, &[witness], false);
    let ended = Doubt::UncleanEnd(origin);
    until("it is doubted by the one who did not", || cut_off.doubts().contains(&ended)).await;
    until("doubt is over", || {
        assert_eq!(caches[1].get(&"k".to_owned()), None, "it has changed");
        cut_off.doubts().is_empty()
    })
    .await;
    assert_eq!(caches[1].get(&"k".to_owned()), None, "it has changed");
    assert_eq!(member(cut_off, "n1").unwrap().resets, 0);
    cluster.shutdown().await;
}

async fn is_told(observer: &mut Observer, expected: bool) {
    let told = async {
        loop {
            let told = observer.next().await.expect("the node runs");
            if let Observed::Observation(Observation::Expelled { expelled }) = told {
                assert_eq!(expelled, expected);
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("told in time");
}

#[tokio::test]
async fn a_cut_longer_than_the_grace_leaves_nothing_stale_once_it_heals() {
    let start = async |id: &str, seeds: &[&Node]| {
        joiner("shop", id, seeds).lost_grace(Duration::from_secs(4)).start().await.unwrap()
    };
    let first = &start("n1", &[]).await;
    // Both know the first one alone from their start: after the cut they have to find each other again.
    let (second, apart) = (&start("n2", &[first]).await, &start("n3", &[first]).await);
    let nodes = [first, second, apart];
    let in_step = || {
        nodes.iter().all(|node| {
            let members = node.members();
            members.len() == 3 && members.iter().all(|it| it.synced()) && node.doubts().is_empty()
        })
    };
    until("all are in step", in_step).await;
    let caches = nodes.map(open_on);
    let mut observer = apart.observe();
    part(apart, &[first, second], true);
    until("each side has given the other up", || {
        let gone = |node: &Node, other: &str| {
            node.doubts().is_empty() && member(node, other).is_none_or(|other| other.rtt.is_none())
        };
        apart.expelled().is_some() && gone(first, "n3") && gone(second, "n3") && gone(apart, "n1")
    })
    .await;
    is_told(&mut observer, true).await;
    assert!(first.expelled().is_none() && second.expelled().is_none(), "they have each other");
    // Both sides go on for themselves.
    fill(&caches, "by the others", 1).await;
    fill(&caches, "by the one", 1).await;
    caches[0].insert("by the others".to_owned(), 2).unwrap();
    caches[2].insert("by the one".to_owned(), 2).unwrap();
    let (by_others, by_one) = ("by the others".to_owned(), "by the one".to_owned());
    // What only doubt hides comes back.
    until("nobody is told", || caches[1].get(&by_one) == Some(1) && caches[2].get(&by_others) == Some(1))
        .await;

    part(apart, &[first, second], false);
    let heard = |node: &Node, other: &str| member(node, other).is_some_and(|other| other.synced());
    until("they are together again", || {
        for (node, cache) in [(first, &caches[0]), (second, &caches[1])] {
            assert!(!heard(node, "n3") || cache.get(&by_one) != Some(1), "{:?}", node.doubts());
        }
        assert!(!heard(apart, "n1") || caches[2].get(&by_others) != Some(1), "{:?}", apart.doubts());
        in_step()
    })
    .await;
    is_told(&mut observer, false).await;
    assert!(nodes.iter().all(|node| node.expelled().is_none() && node.readiness().is_ok()));
    for cache in &caches {
        assert!(cache.get(&by_one) != Some(1) && cache.get(&by_others) != Some(1));
    }
    fill(&caches, "after", 1).await;
    caches[2].remove(&"after".to_owned()).unwrap();
    until("changes travel again", || caches[..2].iter().all(|cache| !cache.contains(&"after".to_owned())))
        .await;
    for node in nodes {
        node.shutdown(PATIENCE).await;
    }
}
