//! Before a node is ready, a record of its own was applied by every live member and one of each was applied here.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

use std::time::Duration;

use tidings::{Lanes, Node, NotReady, RefusedReason, Retention};
use tidings_facts as facts;
use tidings_proto::frame::{Control, Follow, FrameType, Heartbeat};
use tidings_proto::id::{FIRST, LaneId};
use tidings_proto::log::{ChangeLog, Cursor};
use tidings_proto::record::{Batch, Draft};
use tidings_transport::{Authority, ControlReceiver, ControlSender};
use tokio::task::JoinSet;
use tokio::time::Instant;

mod rogue;

use rogue::{CLUSTER, PATIENCE, Rogue, Stream, all_followed, events, identity, until};

fn reasons(node: &Node) -> Vec<String> {
    match node.readiness() {
        Ok(()) => Vec::new(),
        Err(NotReady::Waiting { reasons }) => reasons,
        Err(other) => panic!("{other}"),
    }
}

/// A log that holds one canary a lane.
fn sung(lane: LaneId) -> Batch {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let _ = log.append_to_all(1, &Draft::canary(), || {}).unwrap();
    let mut batches = Vec::new();
    log.read(lane, &mut Cursor { next: FIRST }, 1 << 20, &mut batches);
    batches.remove(0)
}

/// Answers probes for ever, as a node whose log has one record a lane.
async fn answer_probes((mut sender, mut receiver): (ControlSender, ControlReceiver)) {
    while let Ok(frame) = receiver.recv().await {
        if let Control::Probe(echo) = frame {
            let heads = vec![1; usize::from(Lanes::default().count())];
            let _ = sender.send(&Control::Heartbeat(Heartbeat { echo, members: 0, heads })).await;
        }
    }
}

#[tokio::test]
async fn readiness_names_the_member_that_does_not_apply_and_the_one_that_is_not_heard() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let victim =
        Node::builder(CLUSTER).node_id("n1").identity(identity(&authority, "n1")).start().await.unwrap();
    let mut rogue = Rogue::start(&authority, victim.address());
    let link = rogue.link().await;
    let mut tasks = JoinSet::new();
    tasks.spawn(answer_probes(link.take_control().unwrap()));
    let (unheard, unapplied) =
        ("no canary of rogue was applied here".to_owned(), "rogue has not applied our canary".to_owned());
    until("both ways are missing", || {
        let reasons = reasons(&victim);
        reasons.contains(&unheard) && reasons.contains(&unapplied)
    })
    .await;

    // Its records come, but for one lane's, whose place a fence takes.
    let mut lanes = all_followed(&link).await;
    for (lane, (stream, follow)) in &mut lanes {
        assert_eq!(follow.from, FIRST);
        if *lane == 2 {
            stream.say(&Control::Reset(2)).await;
        } else {
            stream.say(&Control::Resume(FIRST)).await;
            stream.write(&events(&sung(follow.lane))).await;
        }
    }
    until("it is followed", || !reasons(&victim).iter().any(|reason| reason.contains("not followed"))).await;
    assert!(reasons(&victim).contains(&unheard), "a fence is no record: {:?}", reasons(&victim));
    let (stream, follow) = lanes.get_mut(&2).unwrap();
    stream.write(&events(&Batch { first: 2, ..sung(follow.lane) })).await;
    until("all lanes are heard", || reasons(&victim) == [unapplied.clone()]).await;
    facts::note(
        "G17",
        format!("not ready while {unheard}, then while {unapplied}; ready once the round was made"),
    );

    // It reads the victim's canaries, and says so lane by lane.
    let mut streams = Vec::new();
    for lane in Lanes::default().ids() {
        assert_eq!(reasons(&victim), std::slice::from_ref(&unapplied), "before lane {lane:?}");
        let mut stream = Stream::open(&link).await;
        stream
            .say(&Control::Follow(Follow { incarnation: victim.origin().incarnation, lane, from: FIRST }))
            .await;
        assert_eq!(stream.control().await, Control::Resume(FIRST));
        let frame = stream.frame().await.unwrap();
        assert_eq!(frame.kind, FrameType::Events, "the canary comes without being asked for");
        stream.say(&Control::Ack(FIRST)).await;
        streams.push(stream);
    }
    until("the round is made", || victim.readiness().is_ok()).await;
    tasks.abort_all();
    rogue.transport.close(Duration::from_secs(1)).await;
    victim.shutdown(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_newcomer_to_an_idle_node_whose_log_has_wrapped_hears_a_canary_of_its_own() {
    let retention = Retention { events: 64, ..Retention::default() };
    let first = Node::builder(CLUSTER).node_id("n1").retention(retention).start().await.unwrap();
    let cache = first.cache::<String, u64>("numbers").open().unwrap();
    for n in 0..20_000_u64 {
        cache.remove(&n.to_string()).unwrap();
    }
    let seed = first.address().to_string();
    let second = Node::builder(CLUSTER).node_id("n2").seeds([seed]).start().await.unwrap();
    second.ready(PATIENCE).await.unwrap();
    let following = second.following();
    let first_life = following.iter().find(|following| following.origin == first.origin()).unwrap();
    assert_eq!((first_life.resets, first_life.applied), (4, 0), "nothing else was there to be heard");
    first.ready(PATIENCE).await.unwrap();
    second.shutdown(PATIENCE).await;
    first.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_newcomer_waits_for_whom_its_seed_names_and_not_for_ever() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let start = async |name: &str, seeds: Vec<String>| {
        let builder = Node::builder(CLUSTER).node_id(name).identity(identity(&authority, name)).seeds(seeds);
        builder.start().await.unwrap()
    };
    let first = start("n1", vec![]).await;
    // Nobody can be reached at the address that it claims.
    let mut rogue = Rogue::start(&authority, first.address());
    let _link = rogue.link().await;
    let newcomer = start("n2", vec![first.address().to_string()]).await;
    let named = "rogue is named by a peer and was not heard yet".to_owned();
    until("it is waited for", || reasons(&newcomer) == std::slice::from_ref(&named)).await;
    facts::note("G17", format!("not ready: {named}"));
    newcomer.ready(PATIENCE).await.unwrap();
    rogue.transport.close(Duration::from_secs(1)).await;
    for node in [newcomer, first] {
        node.shutdown(Duration::from_secs(1)).await;
    }
}

/// How long a node that has logged only canaries took to say goodbye once it was told to end, and whether it ended
/// cleanly, beside a peer that never acknowledges anything.
async fn left_by(deadline: Duration) -> (Duration, bool) {
    let authority = Authority::generate(CLUSTER).unwrap();
    let builder = Node::builder(CLUSTER).node_id("n1").identity(identity(&authority, "n1"));
    let victim = builder.start().await.unwrap();
    let mut rogue = Rogue::start(&authority, victim.address());
    let link = rogue.link().await;
    let (_sender, mut receiver) = link.take_control().unwrap();
    until("it is a member", || victim.members().len() == 2).await;
    let began = Instant::now();
    let goodbye = async {
        // If it is too late for a goodbye, the link just ends.
        while let Ok(frame) = receiver.recv().await {
            if let Control::Goodbye(heads) = frame {
                assert!(heads.iter().all(|head| *head == 1), "{heads:?}");
                break;
            }
        }
        began.elapsed()
    };
    let (waited, clean) = tokio::join!(goodbye, victim.shutdown(deadline));
    rogue.transport.close(Duration::from_secs(1)).await;
    (waited, clean)
}

#[tokio::test]
async fn a_node_that_never_changed_anything_waits_a_moment_for_acknowledgements_before_it_leaves() {
    let (waited, clean) = left_by(PATIENCE).await;
    assert!(clean, "there is nothing that it could miss");
    assert!(waited >= Duration::from_millis(900), "who is slow to apply would doubt: {waited:?}");
    assert!(waited < PATIENCE / 2, "{waited:?}");
}

#[tokio::test]
async fn a_node_that_never_changed_anything_leaves_cleanly_within_a_short_deadline() {
    // On a busy machine the deadline may be over before anything is done.
    for attempt in 1.. {
        let (waited, clean) = left_by(Duration::from_millis(800)).await;
        assert!(waited >= Duration::from_millis(300), "{waited:?}");
        if clean {
            break;
        }
        assert!(attempt < 10, "never in time");
    }
}

#[tokio::test]
async fn a_member_that_is_refused_is_named_with_what_can_be_done() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let start = async |name: &str, seeds: Vec<String>| {
        let builder = Node::builder(CLUSTER).node_id(name).identity(identity(&authority, name)).seeds(seeds);
        builder.start().await.unwrap()
    };
    let first = start("n1", vec![]).await;
    let other = Authority::generate("other").unwrap();
    let stranger =
        Node::builder("other").node_id("x1").identity(identity(&other, "x1")).start().await.unwrap();
    first.set_denied(&["n3".to_owned()]);
    let second = start("n2", vec![first.address().to_string(), stranger.address().to_string()]).await;
    let third = start("n3", vec![second.address().to_string(), first.address().to_string()]).await;
    // It follows the second one, and still says who refuses it while anything is missing.
    let mut said = Vec::new();
    until("it says who refuses it, and what to do", || {
        said = reasons(&third);
        said.iter().any(|reason| reason.contains(&first.address().to_string()) && reason.contains("denied"))
    })
    .await;
    facts::note("G17", format!("not ready: {}", said.join("; ")));
    until("the refusal is known to both", || {
        let by = |node: &Node, by_peer| {
            node.refusals().iter().any(|it| it.reason == RefusedReason::Denied && it.by_peer == by_peer)
        };
        by(&first, false) && by(&third, true)
    })
    .await;
    let refused = first.refusals().into_iter().find(|it| it.reason == RefusedReason::Denied).unwrap();
    assert_eq!(refused.node.as_ref().map(|node| node.as_str()), Some("n3"), "{refused:?}");
    assert_eq!(refused.address, third.address());
    until("the other cluster's node is named by its address", || {
        second.refusals().iter().any(|it| it.address == stranger.address() && it.node.is_none())
    })
    .await;
    for node in [third, second, stranger, first] {
        node.shutdown(Duration::from_secs(1)).await;
    }
}
