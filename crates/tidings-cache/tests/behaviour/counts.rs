//! What is counted of other nodes' changes.

use crate::common::{Node, Wire, fill, key, many};

#[test]
fn a_clear_counts_as_one_change_at_every_follower() {
    let nodes = [Node::new("a"), Node::new("b"), Node::new("c")];
    let caches: Vec<_> = nodes.iter().map(Node::users).collect();
    let mut wire = Wire::new(&nodes);
    caches[0].clear().unwrap();
    wire.carry();
    assert_eq!((nodes[0].domain.events_published(), nodes[0].logged(), wire.changes), (1, 4, 2));
    assert_eq!([1, 2].map(|node| caches[node].counts().applied()), [1, 1]);
}

#[test]
fn a_change_of_many_keys_counts_as_one_at_every_follower_whatever_its_records() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    // Every third key is new, the others replace one: two kinds, four lanes, more than one record of each.
    let keys = many(6_000);
    keys.iter().filter(|key| !key.ends_with(['1', '4', '7'])).for_each(|key| fill(&on_a, key, 1));
    on_a.write().insert_many(keys.iter().map(|key| (key.clone(), 2))).unwrap();
    assert!(a.logged() > 24, "{} records", a.logged());
    on_a.write().remove_many(keys).unwrap();
    on_a.write().remove_many([key("one"), key("other")]).unwrap();
    wire.carry();
    assert_eq!((a.domain.events_published(), wire.changes, on_b.counts().applied()), (3, 3, 3));
}

#[test]
fn what_came_of_a_peers_changes_is_counted_by_what_they_named() {
    for subscribed in [false, true] {
        let (a, b) = (Node::new("a"), Node::new("b"));
        let (on_a, on_b) = (a.users(), b.users());
        let _heard = subscribed.then(|| on_b.subscribe().start().unwrap());
        ["k", "m1", "m2", "other"].iter().for_each(|key| fill(&on_b, key, 1));
        on_a.remove(&key("k")).unwrap();
        on_a.remove(&key("absent")).unwrap();
        on_a.remove(&key("absent")).unwrap();
        on_a.write().remove_many(["m1", "m2", "n1", "n2", "n3"].map(key)).unwrap();
        on_a.clear().unwrap();
        Wire::new([&a, &b]).carry();
        let counts = on_b.counts();
        let keys = (counts.keys_evicted, counts.keys_absent);
        assert_eq!((counts.key_evicted, counts.key_absent, keys), (1, 2, (2, 3)), "subscribed: {subscribed}");
        assert_eq!((counts.many_applied, counts.all_fenced, counts.only_told), (1, 1, 0));
        assert_eq!((counts.applied(), counts.invalidated()), (5, 3));
    }
}

#[test]
fn changes_of_caches_that_are_not_open_here_are_counted_all_the_same() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let mut wire = Wire::new([&a, &b]);
    let on_a = a.users();
    on_a.clear().unwrap();
    on_a.insert(key("k"), 1).unwrap();
    wire.carry();
    assert_eq!((a.domain.events_published(), wire.changes), (2, 2));
}
