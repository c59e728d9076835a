use std::time::Duration;

use tidings_proto::id::{FIRST, Incarnation, Lanes};
use tidings_proto::log::{ChangeLog, Retention};

use super::*;

const START: Tick = Tick(1 << 40);

fn name(node: &str) -> NodeId {
    node.parse().unwrap()
}

fn life(node: &str) -> Origin {
    Origin { node: name(node), incarnation: Incarnation(1) }
}

fn followed(node: &str) -> Arc<Followed> {
    Arc::new(Followed::new(life(node), Lanes::new(1).unwrap()))
}

fn lane() -> LaneId {
    Lanes::new(1).unwrap().lane(0).unwrap()
}

fn course(followed: &Arc<Followed>, sources: &[&str]) -> Course {
    Course { followed: followed.clone(), sources: sources.iter().map(|node| name(node)).collect(), hops: 2 }
}

fn on() -> Relaying {
    let relaying = Relaying::default();
    relaying.turn(true, || START);
    relaying
}

/// A batch of one change.
fn batch(sequence: Sequence) -> Batch {
    let log = ChangeLog::new(Lanes::new(1).unwrap(), Retention::default());
    super::super::tests::change(&log);
    let mut out = Vec::new();
    log.read(lane(), &mut Cursor { next: FIRST }, 1, &mut out);
    Batch { first: sequence, ..out.remove(0) }
}

/// Applies everything up to here.
fn apply(followed: &Followed, upto: Sequence) {
    let mut state = followed.state.lock();
    let (attempt, follow) = state.follow(lane());
    state.on_resume(lane(), attempt, follow.from).unwrap();
    state.applied(lane(), attempt, upto + 1);
}

#[test]
fn an_origin_is_asked_of_its_sources_in_turn_and_of_itself_once_it_has_no_path() {
    let (relaying, origin) = (on(), followed("o"));
    assert_eq!(origin.source(), name("o"));
    relaying.plan(vec![course(&origin, &["r", "s", "o"])], |_| false, START);
    assert_eq!(origin.source(), name("r"));
    assert_eq!(relaying.asked_of(&name("r")).len(), 1);
    assert!(!relaying.broken(&origin, &name("s"), START), "nobody asks that one");
    assert!(relaying.broken(&origin, &name("r"), START));
    assert_eq!((origin.source(), relaying.asked_of(&name("r")).len()), (name("s"), 0));
    assert!(relaying.unlinked(&name("s"), START) && origin.source() == name("o"));
    let nobody = |_: &NodeId| false;
    assert!(!relaying.pass(START, nobody) && relaying.pass(START.after(Duration::from_secs(5)), nobody));
    assert_eq!(origin.source(), name("r"), "the first one again");
    relaying.plan(Vec::new(), |origin| *origin == life("o"), START);
    assert_eq!(origin.source(), name("r"), "it is kept");
    relaying.plan(Vec::new(), |_| false, START);
    assert!(origin.source() == name("o") && !relaying.is_routed(&life("o")));
    assert_eq!(relaying.report().redirected, 5);
}

#[test]
fn a_life_is_never_asked_of_another_one_of_its_node() {
    let (relaying, origin, another) = (on(), followed("o"), followed("p"));
    relaying.plan(vec![course(&origin, &["o"]), course(&another, &["o"])], |_| false, START);
    let asked = relaying.asked_of(&name("o"));
    assert!(asked.len() == 1 && Arc::ptr_eq(&asked[0], &another), "{asked:?}");
    assert_eq!((origin.source(), relaying.sources()), (name("o"), vec![name("o")]));
}

#[test]
fn nothing_is_said_on_that_was_asked_before_everybody_could_know_of_it() {
    let (relaying, origin) = (Relaying::default(), followed("o"));
    apply(&origin, 3);
    origin.state.lock().redirected(true);
    let confirm = |at: Tick| origin.state.lock().on_relayed(vec![3], at).unwrap();
    confirm(START);
    assert!(relaying.say(&origin, START).is_none(), "it does not relay");
    let later = START.after(Duration::from_secs(1));
    relaying.turn(true, || later);
    assert!(relaying.say(&origin, later).is_none(), "whoever was asked then does not know");
    confirm(later);
    assert!(relaying.say(&origin, later).is_some());
    relaying.turn(false, || later);
    assert!(relaying.say(&origin, later).is_none());
}

#[test]
fn what_was_fenced_here_is_lacking_to_those_who_are_behind() {
    let (relaying, origin) = (on(), followed("o"));
    apply(&origin, 1);
    relaying.hold(origin.origin(), batch(1));
    let Position::Held(mut cursor) = relaying.position(&origin, lane(), 1) else { panic!("it is held") };
    let mut out = Vec::new();
    assert_eq!(relaying.read((&origin, lane()), &mut cursor, 1, &mut out), Read::Some);
    assert_eq!(relaying.read((&origin, lane()), &mut cursor, 1, &mut out), Read::Empty);
    // As by a fence: nothing of what lies between is held.
    apply(&origin, 9);
    assert_eq!(relaying.read((&origin, lane()), &mut cursor, 1, &mut out), Read::Overrun(10));
    assert_eq!(relaying.position(&origin, lane(), 2), Position::Gone(10));
    assert_eq!(relaying.position(&origin, lane(), 12), Position::Held(Cursor { next: 12 }), "it is ahead");
}

#[test]
fn what_followers_have_applied_is_passed_up_once_and_again_on_another_link() {
    let (relaying, origin, up) = (on(), followed("o"), Arc::<Upward>::default());
    let acked = || Acked { follower: life("f"), lane: lane(), applied: 7 };
    relaying.begins(&origin, &up);
    assert_eq!(up.take().len(), 1, "whatever is known");
    relaying.note(&origin, vec![acked()]);
    relaying.note(&origin, vec![acked()]);
    assert_eq!(up.take().len(), 1);
    apply(&origin, 9);
    let own = Acked { follower: life("me"), applied: 9, ..acked() };
    assert_eq!(relaying.take(&origin, Some(life("me")), 10), [acked(), own.clone()]);
    assert_eq!(relaying.take(&origin, Some(life("me")), 10), []);
    let next = Arc::<Upward>::default();
    relaying.begins(&origin, &next);
    assert_eq!((next.take().len(), up.take().len()), (1, 0));
    assert_eq!(relaying.take(&origin, None, 10), [acked(), own]);
}

#[test]
fn what_was_marked_on_a_link_that_is_gone_holds_up_nothing_on_the_next() {
    let (relaying, origin, gone) = (on(), followed("o"), Arc::<Upward>::default());
    relaying.begins(&origin, &gone);
    drop(gone);
    relaying.turn(false, || Tick(9));
    let next = Arc::<Upward>::default();
    relaying.begins(&origin, &next);
    assert_eq!(next.take().len(), 0, "it does not relay");
    relaying.turn(true, || Tick(9));
    relaying.note(&origin, vec![Acked { follower: life("f"), lane: lane(), applied: 7 }]);
    assert_eq!(next.take().len(), 1);
}
