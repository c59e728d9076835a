//! Nodes whose values of one cache differ.

use tidings_cache::Cache;

use crate::common::{Node, Wire, fill, key, read};

/// A change by the other node.
type Change<'a> = &'a dyn Fn(&Cache<String, u64>);

fn users(node: &Node, schema: u32) -> Cache<String, u64> {
    node.cache("users").schema(schema).open().unwrap()
}

#[tokio::test]
async fn a_version_of_another_schema_keeps_nothing() {
    for (writer, reader) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (u32::MAX, u32::MAX)] {
        let (a, b) = (Node::new("a"), Node::new("b"));
        let (on_a, on_b) = (users(&a, writer), users(&b, reader));
        let newest = || async { Ok::<_, ()>((9, 9)) };
        on_b.get_or_load_versioned(&key("k"), newest).await.unwrap();
        on_a.remove_versioned(&key("k"), 5).unwrap();
        Wire::new([&a, &b]).carry();
        let same = writer == reader;
        assert_eq!(on_b.get(&key("k")), same.then_some(9), "{writer} {reader}");
        let counts = on_b.counts();
        assert_eq!((counts.other_schema, counts.key_kept), (u64::from(!same), u64::from(same)));
        assert_eq!(counts.applied(), 1);
    }
}

#[tokio::test]
async fn changes_of_another_schema_evict_whatever_they_name() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (users(&a, 1), users(&b, 2));
    let mut wire = Wire::new([&a, &b]);
    let changes: [(&str, Change<'_>); 6] = [
        ("insert", &|on_a| drop(on_a.insert(key("k"), 1).unwrap())),
        ("remove", &|on_a| drop(on_a.remove(&key("k")).unwrap())),
        ("many", &|on_a| drop(on_a.write().insert_many([(key("k"), 1)]).unwrap())),
        ("tag", &|on_a| drop(on_a.invalidate_tag("t").unwrap())),
        ("prefix", &|on_a| drop(on_a.invalidate_prefix("k").unwrap())),
        ("clear", &|on_a| drop(on_a.clear().unwrap())),
    ];
    for (what, change) in changes {
        fill(&on_b, "k", 1);
        change(&on_a);
        wire.carry();
        assert_eq!(on_b.get(&key("k")), None, "{what}");
        assert_eq!(b.domain.remote_stats().opaque.get(), 0, "{what} could not be understood");
    }
    assert_eq!(on_b.counts().other_schema, 0, "none of them has a version");
}

#[test]
fn a_change_without_a_version_is_no_longer_for_a_schema() {
    let bytes = |schema| {
        let node = Node::new("a");
        users(&node, schema).remove(&key("k")).unwrap();
        let log = node.domain.log();
        let lane = log.lanes().ids().find(|lane| log.heads()[lane.index()] == 1).unwrap();
        read(log, lane).records.len()
    };
    assert_eq!(bytes(0), bytes(7));
}
