//! What nodes whose values travel do when they may have missed writes: they compare what they hold.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tidings_cache::{
    Cache, CompareError, Comparison, Key, ReadOrFill, Refusal, Replicating, TOKEN_TIME, compare_with,
};
use tidings_proto::freshness::Published;
use tidings_proto::hash::{CacheId, key_hash};
use tidings_proto::id::{Lanes, SlotSet};
use tidings_proto::log::Retention;
use tidings_proto::replicate::copy::{Answer, Question};

use crate::common::{MAX_STALENESS, Node, Wire, fill, key, many};
use crate::replicate::{Users, alone, builder, insert, users};

fn id() -> CacheId {
    CacheId::of_name("users")
}

fn face<K: Key>(users: &Cache<K, u64>) -> std::sync::Arc<dyn Replicating> {
    users.erased().replicating().unwrap()
}

fn answer<K: Key>(users: &Cache<K, u64>, question: &[u8]) -> Bytes {
    let (cache, question) = Question::decode(question).unwrap();
    assert_eq!(cache, id());
    face(users).answer(&question)
}

/// Tells the author of a write that it was refused.
pub(crate) fn tell(author: &Users, refusal: &Refusal) {
    let told = answer(author, &refusal.question().encode(refusal.cache));
    assert_eq!(Answer::decode(&told), Ok(Answer::Noted));
}

/// Compares with these members after writes may have been missed. Returns how many values were taken, or `None` if none may
/// have been.
pub(crate) fn repair<K: Key>(users: &Cache<K, u64>, members: &[&Cache<K, u64>]) -> Option<usize> {
    repaired(users, members).map(|(taken, _)| taken)
}

/// As [`repair`], and whether nothing of the future was met.
pub(crate) fn repaired<K: Key>(users: &Cache<K, u64>, members: &[&Cache<K, u64>]) -> Option<(usize, bool)> {
    let comparison = face(users).begin()?;
    let taken = members.iter().map(|member| compare(users, member, Some(&comparison)).unwrap());
    let taken = taken.sum();
    Some((taken, face(users).end(&comparison)))
}

/// Compares where nothing was missed.
pub(crate) fn look(users: &Users, member: &Users) -> usize {
    compare(users, member, None).unwrap()
}

fn compare<K: Key>(
    users: &Cache<K, u64>,
    member: &Cache<K, u64>,
    comparison: Option<&Comparison>,
) -> Result<usize, CompareError<Infallible>> {
    let ask = |question: Bytes| std::future::ready(Ok(answer(member, &question)));
    compare_with(&*face(users), id(), comparison, ask).now_or_never().unwrap()
}

fn pass(nodes: &[Node]) {
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
}

#[test]
fn a_joiner_copies_everything_from_a_member() {
    let nodes = ["a", "b"].map(Node::new);
    let on_a = users(&nodes[0]);
    let names = many(10_000);
    names.iter().enumerate().for_each(|(n, name)| insert(&on_a, name, n as u64));
    on_a.remove(&names[3]).unwrap();
    let on_b = builder(&nodes[1]).open().unwrap();
    assert_eq!(on_b.erased().doubted(), SlotSet::ALL, "others may hold what it has never heard of");
    assert_eq!(repair(&on_b, &[&on_a]), Some(9_999));
    assert_eq!(on_b.erased().doubted(), SlotSet::default());
    for (n, name) in names.iter().enumerate() {
        assert_eq!(on_b.get(name), (n != 3).then_some(n as u64), "{name}");
    }
    assert_eq!(on_b.erased().tombstones(), 1);
    assert_eq!((repair(&on_b, &[&on_a]), look(&on_b, &on_a), look(&on_a, &on_b)), (None, 0, 0));
    assert_eq!(on_b.counts().copied, 9_999);
}

#[test]
fn what_may_have_been_missed_is_a_miss_until_it_was_compared() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    let mut wire = Wire::new(&nodes);
    let names = many(200);
    names.iter().for_each(|name| insert(&on_a, name, 1));
    wire.carry();
    repair(&on_b, &[&on_a]);
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    assert!(names.iter().all(|name| on_b.get(name).is_none()));
    nodes[1].domain.housekeep();
    assert_eq!(repair(&on_b, &[&on_a]), Some(0), "they are still here, and need not be fetched");
    assert!(names.iter().all(|name| on_b.get(name) == Some(1)));
}

#[test]
fn changes_that_the_log_has_forgotten_are_found_by_comparing() {
    let small = Retention { events: 16, bytes: 0 };
    let nodes = ["a", "b"].map(|name| Node::with(name, Lanes::default(), small));
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    let mut wire = Wire::new(&nodes);
    let names = many(400);
    for name in &names {
        insert(&on_a, name, 1);
        wire.carry();
    }
    repair(&on_b, &[&on_a]);
    pass(&nodes);
    for (n, name) in names.iter().enumerate() {
        match n % 4 {
            0 => insert(&on_a, name, 2),
            1 => drop(on_a.remove(name).unwrap()),
            _ => {}
        }
    }
    wire.carry();
    assert!(wire.resets > 0, "the log reached back that far");
    repair(&on_b, &[&on_a]).expect("writes were missed");
    let expected: Vec<_> = (0..400).map(|n| [Some(2), None, Some(1), Some(1)][n % 4]).collect();
    assert_eq!(on_a.get_many(&names), expected);
    assert_eq!(on_b.get_many(&names), expected);
}

#[test]
fn a_removal_that_was_missed_and_is_forgotten_takes_the_entry_with_it() {
    let nodes = ["a", "b"].map(Node::new);
    let ttl = Duration::from_secs(1);
    let on_a = builder(&nodes[0]).tombstone_ttl(ttl).open().unwrap();
    let on_b = users(&nodes[1]);
    let mut wire = Wire::new(&nodes);
    ["gone", "kept"].into_iter().for_each(|name| insert(&on_a, name, 1));
    wire.carry();
    repair(&on_b, &[&on_a]);
    on_a.remove(&key("gone")).unwrap();
    nodes[0].clock.advance(ttl);
    nodes[0].domain.housekeep();
    assert_eq!(on_a.erased().tombstones(), 0);
    // What was logged of it is lost.
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    repair(&on_b, &[&on_a]);
    assert_eq!((on_b.get(&key("gone")), on_b.get(&key("kept"))), (None, Some(1)));
    assert_eq!(on_b.counts().let_go, 1);
}

#[test]
fn keys_of_one_hash_are_compared_and_told_apart() {
    let nodes = ["a", "b"].map(Node::new);
    let ttl = Duration::from_secs(1);
    let open = |node: &Node| alone(node.cache::<[u8; 9], u64>("users").replicate().tombstone_ttl(ttl));
    let (on_a, on_b) = (open(&nodes[0]), open(&nodes[1]));
    // Made to have one hash.
    let [kept, gone] = [*b"\x01twin-one", *b"\x02\x2b\xf3\x1e\x20-one"];
    assert_eq!(key_hash(id(), &kept), key_hash(id(), &gone));
    on_a.insert(kept, 1).unwrap();
    on_a.insert(gone, 2).unwrap();
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    assert_eq!(repair(&on_b, &[&on_a]), Some(2), "both stand in one list");
    assert_eq!((on_b.get(&kept), on_b.get(&gone)), (Some(1), Some(2)));
    // The removal is missed, and forgotten where it was made.
    on_a.remove(&gone).unwrap();
    nodes[0].clock.advance(ttl);
    nodes[0].domain.housekeep();
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    repair(&on_b, &[&on_a]);
    assert_eq!(
        (on_b.get(&kept), on_b.get(&gone)),
        (Some(1), None),
        "that the other one is listed says nothing of it"
    );
}

#[test]
fn a_value_that_comes_to_a_doubted_slot_is_a_miss_until_every_member_was_compared() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1, 2].map(|at| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    pass(&nodes);
    insert(&caches[2], "k", 2);
    // What C logged is lost, and what A did comes late.
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    wire.carry_between(0, 1);
    assert_eq!(caches[1].get(&key("k")), None, "there is a later one");
    let comparison = face(&caches[1]).begin().unwrap();
    compare(&caches[1], &caches[0], Some(&comparison)).unwrap();
    assert_eq!(caches[1].get(&key("k")), None, "not every member was asked");
    compare(&caches[1], &caches[2], Some(&comparison)).unwrap();
    face(&caches[1]).end(&comparison);
    assert_eq!(caches[1].get(&key("k")), Some(2));
}

#[test]
fn a_load_does_not_replace_a_value_that_is_doubted() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    insert(&on_a, "k", 1);
    Wire::new(&nodes).carry();
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    nodes[1].clock.advance(Duration::from_secs(60));
    let Ok(ReadOrFill::Miss(token)) = on_b.get_or_token(&key("k"), TOKEN_TIME) else { panic!("a miss") };
    assert!(!on_b.fill(&key("k"), 0, token, None).unwrap());
    repair(&on_b, &[&on_a]);
    assert_eq!(on_b.get(&key("k")), Some(1));
}

#[test]
fn a_later_write_that_is_listed_and_not_handed_out_leaves_no_older_value() {
    let nodes = ["a", "b", "c", "d"].map(Node::new);
    let caches = [0, 1, 2, 3].map(|at| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    wire.carry();
    pass(&nodes);
    insert(&caches[2], "k", 2);
    wire.carry_between(2, 3);
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    let comparison = face(&caches[1]).begin().unwrap();
    // C lists the write, and has nothing left of it when it is asked for its value.
    let none = Answer::Fetch { schema: 0, values: Vec::new() }.encode();
    let lacking = |question: Bytes| {
        let is_fetch = matches!(Question::decode(&question), Ok((_, Question::Fetch(_))));
        let answer = if is_fetch { none.clone() } else { answer(&caches[2], &question) };
        std::future::ready(Ok::<_, Infallible>(answer))
    };
    let on_b = face(&caches[1]);
    let compared = compare_with(&*on_b, id(), Some(&comparison), lacking);
    assert_eq!(compared.now_or_never().unwrap().unwrap(), 0);
    compare(&caches[1], &caches[0], Some(&comparison)).unwrap();
    face(&caches[1]).end(&comparison);
    assert_eq!(caches[1].get(&key("k")), None, "what A has is older");
    look(&caches[1], &caches[0]);
    assert_eq!(caches[1].get(&key("k")), None);
    wire.carry_between(2, 1);
    assert_eq!(caches[1].get(&key("k")), Some(2), "the write itself is not taken for a removal");
}

#[test]
fn a_write_that_comes_too_late_takes_what_was_loaded_with_it() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    // A's clock is a little behind: what it writes after B's clear has an older stamp.
    nodes[1].clock.advance(Duration::from_millis(100));
    on_b.clear().unwrap();
    fill(&on_b, "k", 1);
    insert(&on_a, "k", 2);
    Wire::new(&nodes).carry_between(0, 1);
    assert_eq!(on_b.get(&key("k")), None, "nothing says which of the two is later");
}

#[test]
fn a_member_that_stops_answering_was_not_compared_with() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), builder(&nodes[1]).open().unwrap());
    insert(&on_a, "k", 1);
    let comparison = face(&on_b).begin().unwrap();
    for answers in 0..3 {
        let mut asked = 0;
        let ask = |question: Bytes| {
            asked += 1;
            let answer = if asked > answers { Err(()) } else { Ok(answer(&on_a, &question)) };
            std::future::ready(answer)
        };
        let compared = compare_with(&*face(&on_b), id(), Some(&comparison), ask).now_or_never().unwrap();
        let first = matches!(compared, Err(CompareError::First(())));
        assert!(compared.is_err() && first == (answers == 0), "{compared:?}");
    }
    let absent = |_| std::future::ready(Ok::<_, ()>(Answer::Absent.encode()));
    let compared = compare_with(&*face(&on_b), id(), Some(&comparison), absent).now_or_never().unwrap();
    assert_eq!(compared.unwrap(), 0, "who has no such cache holds nothing");
}

#[test]
fn a_clear_leaves_nothing_to_compare() {
    let node = Node::new("a");
    let users = users(&node);
    insert(&users, "k", 1);
    users.clear().unwrap();
    assert_eq!(users.erased().doubted(), SlotSet::default());
}

#[test]
fn a_fence_that_comes_while_nodes_compare_is_not_taken_for_settled() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    insert(&on_a, "k", 1);
    Wire::new(&nodes).carry();
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    let comparison = face(&on_b).begin().unwrap();
    let slot = SlotSet::from_bits(u64::from(u32::MAX));
    nodes[1].domain.fence_uncertain(slot);
    face(&on_b).end(&comparison);
    assert_eq!(on_b.erased().doubted(), slot);
    repair(&on_b, &[&on_a]);
    assert_eq!((on_b.get(&key("k")), on_b.erased().doubted()), (Some(1), SlotSet::default()));
}

#[test]
fn entries_behind_the_floor_count_again_once_they_were_compared() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    insert(&on_a, "k", 1);
    fill(&on_b, "filled", 7);
    Wire::new(&nodes).carry();
    repair(&on_b, &[&on_a]);
    pass(&nodes);
    let floor = nodes[1].clock.now().after(Duration::from_millis(1));
    nodes[1].domain.publish(Published { fresh_until: tidings_proto::time::Tick::FOREVER, floor });
    nodes[1].domain.housekeep();
    assert_eq!(on_b.get(&key("k")), None, "a member ended, and what it wrote last may be lost");
    assert_eq!(repair(&on_b, &[&on_a]), None, "what begins now is behind the floor as well");
    pass(&nodes);
    repair(&on_b, &[&on_a]).expect("the floor has risen");
    assert_eq!(on_b.get(&key("k")), Some(1));
    assert_eq!(on_b.get(&key("filled")), None, "what was loaded is loaded anew");
}

#[test]
fn in_doubt_a_value_that_came_late_counts_from_when_it_was_written() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    insert(&on_a, "old", 1);
    nodes.iter().for_each(|node| node.clock.advance(MAX_STALENESS - Duration::from_secs(1)));
    nodes[1].fresh_until_now();
    insert(&on_a, "new", 2);
    Wire::new(&nodes).carry();
    let read = || (on_b.get(&key("old")), on_b.get(&key("new")));
    assert_eq!(read(), (Some(1), Some(2)));
    nodes[1].clock.advance(Duration::from_secs(2));
    assert_eq!(read(), (None, Some(2)), "a third node may have written in the meantime");
    nodes[1].fresh_forever();
    assert_eq!(read(), (Some(1), Some(2)));
}

#[test]
fn nodes_that_were_cut_off_come_to_the_same_by_comparing() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1, 2].map(|at| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    let names = many(300);
    names.iter().for_each(|name| insert(&caches[0], name, 0));
    wire.carry();
    pass(&nodes);
    for (n, name) in names.iter().enumerate() {
        insert(&caches[n % 3], name, 1 + n as u64);
        nodes[(n + 1) % 3].clock.advance(Duration::from_micros(100));
        if n % 2 == 0 {
            insert(&caches[(n + 1) % 3], name, 10_000 + n as u64);
        }
        if n % 5 == 0 {
            caches[(n + 1) % 3].remove(name).unwrap();
        }
    }
    // Their logs are lost.
    nodes.iter().for_each(|node| node.domain.fence_uncertain(SlotSet::ALL));
    for at in 0..3 {
        repair(&caches[at], &[&caches[(at + 1) % 3], &caches[(at + 2) % 3]]);
    }
    let found = caches[0].get_many(&names);
    assert!(found.iter().any(Option::is_some) && found.iter().any(Option::is_none));
    assert_eq!(caches[1].get_many(&names), found);
    assert_eq!(caches[2].get_many(&names), found);
}
