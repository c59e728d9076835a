//! What an auditor is told of a cache.

use std::time::Duration;

use tidings_cache::{AnyCache, Cache, Invalidator, Mode};
use tidings_proto::audit::Held;
use tidings_proto::codec;
use tidings_proto::hash::key_hash;
use tidings_proto::id::SlotSet;

use crate::common::Node;

fn encoded(key: &str) -> Vec<u8> {
    codec::encode(key).unwrap()
}

fn held(cache: &Cache<String, String>, key: &str) -> Option<Held> {
    let (cache, key) = (cache.erased(), encoded(key));
    let by_key = cache.held(&key);
    assert_eq!(cache.held_by_hash(key_hash(cache.id(), &key)), by_key, "the same by the key's hash");
    by_key
}

fn audited(node: &Node) -> Cache<String, String> {
    node.cache("bytes").time_to_live(Duration::from_secs(60)).audited().open().unwrap()
}

async fn load(cache: &Cache<String, String>, key: &str, value: &str) {
    let load = || async { Ok::<_, ()>(value.to_owned()) };
    cache.get_or_load(&key.to_owned(), load).await.unwrap();
}

#[tokio::test]
async fn equal_values_have_equal_digests_on_every_node_and_entries_are_told_apart() {
    let nodes = [Node::new("a"), Node::new("b")];
    let caches = nodes.each_ref().map(audited);
    nodes[1].clock.advance(Duration::from_secs(7));
    for cache in &caches {
        load(cache, "same", "1").await;
    }
    load(&caches[0], "other", "1").await;
    load(&caches[1], "other", "2").await;
    let of = |key| caches.each_ref().map(|cache| held(cache, key).unwrap());
    let [first, second] = of("same");
    assert_eq!((first.value, first.age_ms), (second.value, 0));
    let [first, second] = of("other");
    assert_ne!(first.value, second.value);
    nodes[0].clock.advance(Duration::from_secs(5));
    let later = held(&caches[0], "other").unwrap();
    assert!(later.is(&first) && later.age() >= Duration::from_secs(5), "{later:?}");
    caches[0].insert("other".to_owned(), "1".to_owned()).unwrap();
    let again = held(&caches[0], "other").unwrap();
    assert!(again.value == first.value && !again.is(&first), "the same value, and another entry: {again:?}");
}

/// Ends the entry `k`.
type Go = fn(&Node, &Cache<String, String>);

#[tokio::test]
async fn only_what_a_read_would_be_answered_with_is_held() {
    let node = Node::new("a");
    let cache = audited(&node);
    let gone: [(&str, Go); 5] = [
        ("removed", |_, cache| drop(cache.remove(&"k".to_owned()).unwrap())),
        ("cleared", |_, cache| drop(cache.clear().unwrap())),
        ("fenced", |node, _| node.domain.fence(SlotSet::ALL)),
        ("of a prefix", |_, cache| drop(cache.invalidate_prefix("k").unwrap())),
        ("expired", |node, _| node.clock.advance(Duration::from_secs(61))),
    ];
    for (what, go) in gone {
        load(&cache, "k", "1").await;
        assert!(held(&cache, "k").is_some(), "{what}");
        go(&node, &cache);
        assert_eq!(cache.erased().held(&encoded("k")), None, "{what}");
    }
    load(&cache, "k", "1").await;
    node.fresh_until_now();
    node.clock.advance(Duration::from_secs(5));
    assert_eq!(held(&cache, "k"), None, "too old in doubt");
}

#[tokio::test]
async fn that_a_key_has_no_value_differs_from_every_value() {
    let node = Node::new("a");
    let cache = node.cache::<String, String>("bytes").negative_ttl(Duration::from_secs(60)).audited();
    let cache = cache.open().unwrap();
    let none = || async { Ok::<_, ()>(None) };
    cache.get_or_load_optional(&"none".to_owned(), none).await.unwrap();
    load(&cache, "empty", "").await;
    assert_ne!(held(&cache, "none").unwrap().value, held(&cache, "empty").unwrap().value);
}

#[tokio::test]
async fn looking_is_no_read() {
    let node = Node::new("a");
    let cache = audited(&node);
    load(&cache, "k", "1").await;
    let before = cache.counts();
    held(&cache, "k").unwrap();
    held(&cache, "missing");
    assert_eq!(cache.erased().slice(0).len(), 1);
    assert_eq!(cache.counts(), before);
}

#[tokio::test]
async fn a_digest_that_panics_is_counted_and_what_has_none_is_not_compared() {
    let node = Node::new("a");
    let digest = |value: &String| value.bytes().next().map(|digit| u64::from(100 / (digit - 48)));
    let cache = node.cache::<String, String>("bytes").audited_by(digest).open().unwrap();
    load(&cache, "5", "5").await;
    load(&cache, "none", "").await;
    load(&cache, "panics", "0").await;
    assert_eq!(held(&cache, "5").unwrap().value, 20);
    assert_eq!(held(&cache, "none"), None);
    assert_eq!(cache.erased().held(&encoded("panics")), None);
    assert_eq!(cache.counts().panics, 1);
}

#[test]
fn only_caches_that_should_agree_and_say_so_are_audited() {
    let node = Node::new("a");
    let is_audited = |cache: &dyn AnyCache| cache.is_audited();
    let open = |name: &str| node.cache::<String, String>(name);
    assert!(is_audited(&*open("a").audited().open().unwrap().erased()));
    assert!(!is_audited(&*open("b").open().unwrap().erased()));
    assert!(!is_audited(&*open("c").audited().mode(Mode::Local).open().unwrap().erased()));
    for invalidator in [Invalidator::Off, Invalidator::Local] {
        let name = format!("{invalidator:?}");
        let cache = open(&name).audited().invalidator(invalidator).open().unwrap();
        assert!(!is_audited(&*cache.erased()), "{invalidator:?}: other nodes' changes evict nothing");
    }
    let silent = open("d").open().unwrap();
    silent.insert("k".to_owned(), String::new()).unwrap();
    assert_eq!(silent.erased().held(&encoded("k")), None);
}
