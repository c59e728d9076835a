//! Nodes whose wall clocks differ.

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Clock, Node, NotReady, Tick};
use tokio::time::Instant;

use crate::common::{BOUND, PATIENCE, joiner, member, until};

const AHEAD: Duration = Duration::from_secs(600);

/// A clock that is ten minutes fast.
fn fast() -> Clock {
    let (started, wall) = (Instant::now(), Duration::from_millis(Clock::system().wall_ms()));
    Clock::from_fn(move || Tick(0).after(wall + AHEAD + started.elapsed()))
}

/// Whether a reason says that this node's clock is ten minutes ahead: what is measured is off by part of a round trip.
fn says_so(reason: &str) -> bool {
    let said = reason.split_once("wall clock here is ").and_then(|(_, said)| said.split_once(' '));
    said.and_then(|(seconds, _)| seconds.parse::<f64>().ok()).is_some_and(|ahead| (ahead - 600.0).abs() < 0.5)
}

fn reasons(node: &Node) -> Vec<String> {
    match node.readiness() {
        Err(NotReady::Waiting { reasons }) => reasons,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_that_starts_with_a_wrong_clock_is_not_ready_and_all_say_whose_it_is() {
    let cluster = Cluster::start_with(2, |_, builder| builder.max_staleness(BOUND)).await.unwrap();
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    let near = || member(first, "n2").and_then(|it| it.clock).expect("it is measured before it is ready");
    assert!(!near().exceeded, "{:?}", near());
    // What a slow round trip leaves uncertain, the next one tells.
    until("they agree", || near().ahead.abs() < 0.5 && near().uncertainty < 0.5).await;

    let strict = joiner(first.cluster(), "n3", &[first]).clock(fast()).start().await.unwrap();
    until("its own clock is all that is wrong", || {
        strict.members().len() == 3
            && strict.readiness().is_err_and(|error| {
                let NotReady::Waiting { reasons } = error else { return false };
                reasons.len() == 2 && reasons.iter().all(|reason| says_so(reason))
            })
    })
    .await;
    assert!(
        reasons(&strict).iter().all(|reason| reason.contains("ahead of that of n")),
        "{:?}",
        reasons(&strict)
    );
    tidings_facts::note("G17", format!("not ready: {}", reasons(&strict).join("; ")));
    for node in [first, second] {
        let off = || member(node, "n3").and_then(|it| it.clock);
        until("the others know which one it is, and by how much", || {
            off().is_some_and(|off| off.exceeded && (off.ahead - 600.0).abs() < 0.5)
        })
        .await;
        assert_eq!(node.clock_offsets_exceeded(), 1);
        node.ready(PATIENCE).await.expect("it is not their fault");
    }
    let lenient = joiner(first.cluster(), "n4", &[first]).clock(fast()).unready_when_clock_off(false);
    let lenient = lenient.start().await.unwrap();
    lenient.ready(PATIENCE).await.expect("a wrong clock makes no hit staler");
    for node in [&lenient, &strict] {
        node.shutdown(PATIENCE).await;
    }
    cluster.shutdown().await;
}
