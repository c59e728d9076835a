//! A member that lies about third ones: what it may do, and what not.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

use std::time::Duration;

use tidings::{Doubt, Incarnation, Node, NodeId, Origin};
use tidings_proto::frame::{Control, MEMBERS_MAX, MemberSet, NamedMember};
use tidings_transport::ControlSender;

mod rogue;

use rogue::{Scene, until};

const BOUND: Duration = Duration::from_millis(600);

async fn scene() -> Scene {
    Scene::start_with(|builder| builder.max_staleness(BOUND).lost_grace(Duration::from_secs(1))).await
}

fn named(node: &str, incarnation: u64) -> NamedMember {
    let origin = Origin { node: NodeId::new(node).unwrap(), incarnation: Incarnation(incarnation) };
    NamedMember { origin, address: "127.0.0.1:2".parse().unwrap(), ended: false }
}

async fn say(control: &mut ControlSender, members: Vec<NamedMember>) {
    control.send(&Control::Members(MemberSet { version: 1, members })).await.unwrap();
}

#[tokio::test]
async fn a_member_set_that_lies_about_a_third_member_does_not_make_it_irrelevant() {
    let mut scene = scene().await;
    let truth = scene.nodes[1].origin();
    let link = scene.rogue.link().await;
    let (mut control, _receiver) = link.take_control().unwrap();
    let hour_ahead = truth.incarnation.0 + 3_600_000;
    say(&mut control, vec![named("n2", hour_ahead), named("n2", u64::MAX), named("n2", 1)]).await;
    let invented = named("n2", hour_ahead).origin;
    let victim = scene.victim().clone();
    until("the lie is heard", || victim.doubts().contains(&Doubt::NeverHeard(invented.clone()))).await;
    assert_eq!(victim.hearsay_refused(), 1, "nobody has a life of the far future");
    assert!(!victim.doubts().contains(&Doubt::UncleanEnd(truth.clone())), "it ends nobody");
    scene.works().await;
    scene.rogue.transport.close(Duration::from_secs(1)).await;
    until("a lie costs one unclean end", || victim.doubts().is_empty()).await;
    scene.fill(0, "cached").await;

    victim.set_denied(&["n2".to_owned()]);
    until("the true one is missed", || victim.doubts().contains(&Doubt::Unheard(truth.clone()))).await;
    let served = || scene.caches[0].contains(&"cached".to_owned());
    until("what it may have changed is not served", || !served()).await;
    scene.end().await;
}

#[tokio::test]
async fn member_sets_without_end_are_bounded() {
    let mut scene = scene().await;
    let link = scene.rogue.link().await;
    let (mut control, _receiver) = link.take_control().unwrap();
    let now = scene.victim().origin().incarnation.0;
    let frames = 20;
    for frame in 0..frames {
        say(&mut control, (0..MEMBERS_MAX).map(|n| named(&format!("f{frame}-{n}"), now)).collect()).await;
    }
    let victim = scene.victim().clone();
    let said = (frames * MEMBERS_MAX) as u64;
    until("all was heard", || victim.hearsay_refused() > said - MEMBERS_MAX as u64).await;
    assert!(victim.doubts().len() <= MEMBERS_MAX);
    assert!(scene.nodes[1].doubts().len() <= MEMBERS_MAX, "nor does it spread");
    scene.works().await;
    scene.rogue.transport.close(Duration::from_secs(1)).await;
    until("nothing of it is left", || scene.nodes.iter().all(|node| node.doubts().is_empty())).await;
    scene.end().await;
}

#[tokio::test]
async fn an_audit_goes_on_without_a_member_that_answers_no_questions_and_names_it() {
    // Nothing ages out though the rogue is never heard.
    let mut scene = Scene::start().await;
    let open = |node: &Node| node.cache::<String, u64>("audited").audited().open().unwrap();
    let caches = scene.nodes.each_ref().map(open);
    let link = scene.rogue.link().await;
    let (mut control, _receiver) = link.take_control().unwrap();
    control.send(&Control::Caches(vec!["audited".to_owned()])).await.unwrap();
    let victim = scene.victim().clone();
    let audited = |cache: &String| cache == "audited";
    let hosts = || victim.members().iter().filter(|member| member.caches.iter().any(audited)).count();
    until("both are said to host it", || hosts() == 3).await;
    for cache in &caches {
        cache.get_or_load(&"k".to_owned(), || async { Ok::<_, ()>(1) }).await.unwrap();
    }
    let report = victim.audit().await.unwrap();
    let gap =
        |node: &str| report.peers.iter().find(|peer| peer.node.as_str() == node).map(|it| it.gap.is_some());
    assert_eq!((gap("n2"), gap("rogue")), (Some(false), Some(true)), "{report:?}");
    assert_eq!((report.counts.compared, report.is_complete()), (1, false), "{report:?}");
    scene.end().await;
}
