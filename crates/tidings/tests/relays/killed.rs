//! A node of a large cluster that is killed, and the next process, which finds what it had written down.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tidings::{LogFileError, Node, NodeBuilder, StartError};

use crate::common::{PATIENCE, fill, member, open_on, until};
use crate::large::{Large, id};

/// So long that the former life is followed before its end costs a floor, however busy the machine is.
const BOUND: Duration = Duration::from_secs(8);

/// Starts a node with log files. Who was killed in this process lets go of them a moment later.
async fn start_in(directory: &Path, builder: NodeBuilder) -> Node {
    let builder = builder.node_id("files").log_dir(directory);
    for _ in 0.. {
        match builder.clone().start().await {
            Err(StartError::LogFiles(LogFileError::InUse(_))) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result.unwrap(),
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_life_is_followed_to_its_end_though_relays_stood_for_it() {
    let mut cluster = Large::start_bounded(6, BOUND).await;
    let caches = cluster.open();
    let directory = TempDir::new().unwrap();
    let builder = cluster.on_this_host();
    let killed = start_in(directory.path(), builder).await;
    let (former, changes) = (killed.origin(), open_on(&killed));
    cluster.nodes.push(killed);
    cluster.formed().await;
    changes.insert("before".to_owned(), 1).unwrap();
    let of = |index: usize| cluster.nodes[index].following().into_iter().find(|it| it.origin == former);
    until("it is everywhere", || (0..6).all(|index| of(index).is_some_and(|it| it.applied > 0))).await;
    let relayed = |node: &Node| member(node, "files").is_some_and(|it| it.via.is_some());
    until("relays stand for it", || cluster.nodes[..6].iter().any(relayed)).await;
    fill(&caches, "changed", 1).await;
    fill(&caches, "kept", 1).await;
    cluster.nodes[..6].iter().for_each(|node| node.set_denied(&["files".to_owned()]));
    let unlinked = |node: &Node| member(node, "files").is_none_or(|it| it.rtt.is_none());
    until("nobody hears it", || cluster.nodes[..6].iter().all(unlinked)).await;
    changes.insert("changed".to_owned(), 2).unwrap();
    drop((cluster.nodes.pop(), changes));
    cluster.nodes.iter().for_each(|node| node.set_denied(&[]));

    let builder = cluster.on_this_host();
    let next = start_in(directory.path(), builder).await;
    assert!(next.origin().incarnation > former.incarnation);
    cluster.nodes.push(next);
    cluster.formed().await;
    let held = |key: &str| -> Vec<String> {
        let holds = |index: &usize| caches[*index].get(&key.to_owned()) == Some(1);
        (0..6).filter(holds).map(id).collect()
    };
    assert_eq!(
        (held("changed").len(), held("kept").len()),
        (0, 6),
        "{:?} {:?}",
        held("changed"),
        held("kept")
    );
    let followed = || cluster.nodes[6].log_files().unwrap().followed;
    until("all have followed it to its end", || followed() == 6).await;
    assert!(cluster.nodes[6].shutdown(PATIENCE).await);
    cluster.shutdown().await;
}
