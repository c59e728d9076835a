//! What comes of a write of the future where it is undone: whom it still has, and what stays as it is.

use std::time::Duration;

use tidings_proto::hlc::Stamp;
use tidings_proto::id::SlotSet;
use tidings_proto::replicate::WriteStamp;
use tidings_proto::replicate::copy::{Answer, Question};

use crate::common::{Node, Wire, key};
use crate::replicate::{Users, insert};
use crate::replicate_future::{AHEAD, look_again, others, pass, three, values};
use crate::replicate_repair::{look, repair, tell};

/// As [`three`], with the third as far ahead as the first: it accepts what the first one writes.
fn two_ahead() -> ([Node; 3], [Users; 3]) {
    let (nodes, caches) = three();
    nodes[2].clock.advance(AHEAD);
    (nodes, caches)
}

fn tell_all(by: &Node, author: &Users) {
    let refusals = by.domain.take_refusals();
    assert!(!refusals.is_empty());
    refusals.iter().for_each(|refusal| tell(author, refusal));
}

#[test]
fn a_member_that_has_accepted_a_refused_write_gives_it_back() {
    let (nodes, caches) = two_ahead();
    let mut wire = Wire::new(&nodes);
    insert(&caches[1], "gone", 1);
    wire.carry();
    insert(&caches[0], "k", 1);
    caches[0].remove(&key("gone")).unwrap();
    wire.carry();
    tell_all(&nodes[1], &caches[0]);
    assert_eq!(values(&caches, "k"), [None, None, Some(1)]);
    nodes.iter().for_each(|node| node.clock.advance(AHEAD));
    assert_eq!(repair(&caches[0], &others(&caches, 0)), Some(1));
    assert_eq!(values(&caches, "k"), [Some(1), None, Some(1)]);
    // It is the clock of who has refused it that is behind.
    nodes[1].clock.advance(AHEAD);
    for other in others(&caches, 1) {
        look(&caches[1], other);
    }
    assert_eq!((values(&caches, "k"), values(&caches, "gone")), (vec![Some(1); 3], vec![None; 3]));
}

#[test]
fn a_look_at_what_is_of_the_future_takes_nothing_away() {
    let (nodes, caches) = two_ahead();
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    wire.carry();
    assert_eq!(nodes[1].domain.take_refusals().len(), 1, "its author is never told");
    insert(&caches[1], "k", 2);
    wire.carry();
    for other in others(&caches, 1) {
        assert_eq!(look(&caches[1], other), 0);
    }
    assert_eq!(values(&caches, "k"), [Some(1), Some(2), Some(1)]);
    nodes.iter().for_each(|node| node.clock.advance(AHEAD));
    for other in others(&caches, 1) {
        look(&caches[1], other);
    }
    assert_eq!(values(&caches, "k"), [Some(1); 3], "the later one counts once its time has come");
}

#[test]
fn a_clear_that_a_member_has_accepted_counts_everywhere_once_its_time_has_come() {
    let (nodes, caches) = two_ahead();
    let mut wire = Wire::new(&nodes);
    insert(&caches[1], "k", 1);
    wire.carry();
    pass(&nodes);
    caches[0].clear().unwrap();
    wire.carry();
    pass(&nodes);
    tell_all(&nodes[1], &caches[0]);
    nodes.iter().for_each(|node| node.clock.advance(AHEAD));
    for at in 0..3 {
        repair(&caches[at], &others(&caches, at));
    }
    assert_eq!(values(&caches, "k"), [None; 3], "of the two the clear is later");
    nodes[1].clock.advance(AHEAD);
    look_again(&nodes, &caches);
    assert_eq!(values(&caches, "k"), [None; 3]);
    insert(&caches[1], "k", 2);
    wire.carry();
    assert_eq!(values(&caches, "k"), [Some(2); 3]);
}

#[test]
fn of_what_was_undone_nothing_is_of_the_future_at_its_author() {
    let (nodes, caches) = three();
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    caches[0].remove(&key("l")).unwrap();
    caches[0].invalidate_prefix("k").unwrap();
    caches[0].clear().unwrap();
    caches[0].invalidate_prefix("l").unwrap();
    caches[0].clear().unwrap();
    insert(&caches[0], "k", 2);
    wire.carry();
    tell_all(&nodes[1], &caches[0]);
    let author = caches[0].erased().replicating().unwrap();
    let digests = author.answer(&Question::Digests);
    let Ok(Answer::Digests(digests)) = Answer::decode(&digests) else { panic!("other than digests") };
    assert!(digests.floors.iter().all(|floor| *floor == WriteStamp::NEVER), "{:?}", digests.floors);
    assert_eq!((caches[0].erased().tombstones(), digests.sums.iter().sum::<u64>()), (0, 0));
}

#[test]
fn a_refusal_of_another_life_or_of_what_has_been_replaced_undoes_nothing() {
    let (nodes, caches) = three();
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    wire.carry();
    let mut refusal = nodes[1].domain.take_refusals().remove(0);
    refusal.stamp.author += 1;
    tell(&caches[0], &refusal);
    nodes[0].clock.advance(AHEAD);
    assert!(repair(&caches[0], &others(&caches, 0)).is_none(), "nothing is looked at");
    refusal.stamp.author -= 1;
    refusal.stamp.at = Stamp(refusal.stamp.at.0 - 1);
    tell(&caches[0], &refusal);
    nodes[0].clock.advance(Duration::from_secs(1));
    assert!(repair(&caches[0], &others(&caches, 0)).is_some(), "others may have let go of more");
    assert_eq!((caches[0].get(&key("k")), caches[0].counts().undone), (Some(1), 0));
    assert_eq!(caches[0].erased().doubted(), SlotSet::default());
}
