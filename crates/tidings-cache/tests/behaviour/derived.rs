//! Changes that follow from changes of another cache.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{FutureExt, poll};
use tidings_cache::{
    Cache, Computed, DERIVED_KEYS_MAX, DeriveError, EventKind, Mode, Operation, RULES_MAX, Target,
};

use crate::common::{Node, Wire, fill, key, many, one, told};

type Numbers = Cache<String, u64>;

fn open(node: &Node, name: &str) -> Numbers {
    node.cache(name).explicit_tags().open().unwrap()
}

/// What is made of a user.
fn pages(user: &str) -> [String; 2] {
    [format!("profile:{user}"), format!("card:{user}")]
}

/// The caches `users` and `pages`, the second derived from the first.
fn derived(node: &Node) -> (Numbers, Numbers) {
    let (from, to) = (open(node, "users"), open(node, "pages"));
    from.derive(&to, |user| pages(user)).unwrap();
    (from, to)
}

fn held(cache: &Numbers, names: &[String]) -> usize {
    names.iter().filter(|name| cache.contains(name)).count()
}

#[tokio::test]
async fn every_change_of_a_key_invalidates_what_is_made_of_it_everywhere() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (users, on_a) = derived(&a);
    let on_b = open(&b, "pages");
    let mut wire = Wire::new([&a, &b]);
    type Change = fn(&Numbers);
    let ann = || key("ann");
    let changes: [(&str, Change); 11] = [
        ("insert", |users| drop(users.insert(key("ann"), 1).unwrap())),
        ("update", |users| drop(users.write().metadata("cause", "test").insert(key("ann"), 2).unwrap())),
        ("replace", |users| assert!(users.replace(key("ann"), 3).unwrap())),
        ("increment", |users| assert_eq!(users.increment(&key("ann"), 1).unwrap(), 4)),
        ("compute", |users| assert_eq!(users.compute(&key("ann"), |_| Computed::Put(5)).unwrap(), Some(5))),
        ("take", |users| assert_eq!(users.take(&key("ann")).unwrap(), Some(5))),
        ("insert_if_absent", |users| assert!(users.insert_if_absent(key("ann"), 1).unwrap())),
        ("insert_many", |users| drop(users.write().insert_many([(key("ann"), 1), (key("bob"), 1)]).unwrap())),
        ("remove_many", |users| drop(users.write().remove_many([key("bob"), key("ann")]).unwrap())),
        ("remove", |users| drop(users.remove(&key("ann")).unwrap())),
        ("invalidate", |users| drop(users.write().invalidate(&key("ann")).unwrap())),
    ];
    let names = pages("ann");
    for (name, change) in changes {
        for cache in [&on_a, &on_b] {
            names.iter().for_each(|page| fill(cache, page, 1));
            if !cache.contains(&key("other")) {
                fill(cache, "other", 1);
            }
        }
        change(&users);
        assert_eq!((held(&on_a, &names), held(&on_b, &names)), (0, 2), "{name}: here before it returns");
        wire.carry();
        assert_eq!((held(&on_b, &names), on_b.contains(&key("other"))), (0, true), "{name}");
    }
    for outcome in ["stored", "failed", "given up"] {
        [&on_a, &on_b].iter().for_each(|cache| names.iter().for_each(|page| fill(cache, page, 1)));
        let ann = ann();
        match outcome {
            "stored" => drop(users.write_through(&ann, || async { Ok::<_, ()>(1) }).await.unwrap()),
            "failed" => drop(users.write_through(&ann, || async { Err::<u64, _>("no") }).await.unwrap_err()),
            _ => {
                let mut write = Box::pin(users.write_through(&ann, std::future::pending::<Result<u64, ()>>));
                assert!(poll!(write.as_mut()).is_pending());
            }
        }
        wire.carry();
        assert_eq!((held(&on_a, &names), held(&on_b, &names)), (0, 0), "write-through that is {outcome}");
        // What failed may still land for a while.
        [&a, &b].iter().for_each(|node| node.clock.advance(Duration::from_secs(6)));
    }
    assert_eq!((b.logged(), on_a.contains(&key("other"))), (0, true));
}

#[test]
fn a_change_that_names_no_keys_clears_what_is_derived() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (users, on_a) = derived(&a);
    let on_b = open(&b, "pages");
    let mut wire = Wire::new([&a, &b]);
    type Change = fn(&Numbers);
    let changes: [Change; 3] = [
        |users| drop(users.clear().unwrap()),
        |users| drop(users.invalidate_tag("red").unwrap()),
        |users| drop(users.invalidate_prefix("an").unwrap()),
    ];
    for change in changes {
        [&on_a, &on_b].iter().for_each(|cache| fill(cache, "page", 1));
        change(&users);
        wire.carry();
        assert_eq!((on_a.get(&key("page")), on_b.get(&key("page"))), (None, None));
    }
}

#[test]
fn what_changes_nothing_derives_nothing() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (users, on_a) = derived(&a);
    let (others, _) = derived(&b);
    users.insert(key("ann"), 1).unwrap();
    pages("ann").iter().for_each(|page| fill(&on_a, page, 1));
    let logged = a.logged();
    assert!(!users.insert_if_absent(key("ann"), 2).unwrap());
    assert!(users.take(&key("bob")).unwrap().is_none());
    users.compute(&key("ann"), |_| Computed::Keep).unwrap();
    users.get_or_load(&key("cid"), || async { Ok::<_, ()>(1) }).now_or_never().unwrap().unwrap();
    // Nor does a peer's change: that peer has derived.
    others.insert(key("ann"), 3).unwrap();
    let derived = b.logged();
    assert!(derived > 1, "the derived changes are in the log of who made the change");
    assert_eq!((a.logged(), held(&on_a, &pages("ann"))), (logged, 2));
    Wire::new([&a, &b]).carry();
    assert_eq!((a.logged(), b.logged(), held(&on_a, &pages("ann"))), (logged, derived, 0));
}

#[test]
fn rules_follow_from_one_another_and_circles_are_refused() {
    let node = Node::new("a");
    let (users, pages) = derived(&node);
    let sites = open(&node, "sites");
    pages.derive(&sites, |page| [page.len().to_string()]).unwrap();
    fill(&sites, "11", 1);
    fill(&sites, "12", 1);
    users.insert(key("ann"), 1).unwrap();
    assert_eq!((sites.contains(&key("11")), sites.contains(&key("12"))), (false, true));
    let circle = Err(DeriveError::Circle("sites".into()));
    assert_eq!(sites.derive(&users, |site| [site.clone()]), circle);
    assert_eq!(sites.derive(&pages, |site| [site.clone()]), circle);
    assert_eq!(sites.derive(&sites, |site| [site.clone()]), circle);
    // Not even where the one in the middle was closed meanwhile, as long as the rule is there.
    users.close();
    let users = open(&node, "users");
    assert_eq!(sites.derive(&users, |site| [site.clone()]), Ok(()), "the rules of a closed cache are gone");
    assert_eq!(users.derive(&pages, |user| [user.clone()]), Err(DeriveError::Circle("users".into())));
}

#[test]
fn a_mapping_that_panics_is_counted_and_clears_what_it_would_have_named() {
    let node = Node::new("a");
    let (users, pages) = (open(&node, "users"), open(&node, "pages"));
    users
        .derive(&pages, |user: &String| {
            assert!(user != "bad", "broken on purpose");
            [user.clone()]
        })
        .unwrap();
    ["bad", "ann", "page"].iter().for_each(|page| fill(&pages, page, 1));
    users.write().insert_many([(key("ann"), 1), (key("bad"), 1)]).unwrap();
    assert_eq!((pages.iter().count(), users.counts().panics), (0, 1));
    ["ann", "page"].iter().for_each(|page| fill(&pages, page, 1));
    users.insert(key("ann"), 2).unwrap();
    assert_eq!((pages.contains(&key("ann")), pages.contains(&key("page"))), (false, true), "it still works");
}

#[test]
fn more_keys_than_one_may_derive_or_such_as_cannot_be_used_clear_the_target() {
    let node = Node::new("a");
    let (users, pages) = (open(&node, "users"), open(&node, "pages"));
    let make = |user: &String| -> Box<dyn Iterator<Item = String>> {
        match user.as_str() {
            "endless" => Box::new((0..u64::MAX).map(|n| n.to_string())),
            "long" => Box::new(std::iter::once("x".repeat(5_000))),
            _ => Box::new((0..DERIVED_KEYS_MAX).map(|n| n.to_string())),
        }
    };
    users.derive(&pages, make).unwrap();
    for (user, left) in [("most", 1), ("endless", 0), ("long", 0)] {
        for page in ["0", "other"] {
            if !pages.contains(&key(page)) {
                fill(&pages, page, 1);
            }
        }
        users.insert(key(user), 1).unwrap();
        assert_eq!(pages.iter().count(), left, "{user}");
    }
}

#[test]
fn many_changed_keys_derive_many() {
    let node = Node::new("a");
    let (users, pages) = (open(&node, "users"), open(&node, "pages"));
    users.derive(&pages, |user: &String| (0..10).map(|n| format!("{user}/{n}")).collect::<Vec<_>>()).unwrap();
    for user in many(500) {
        (0..10).for_each(|n| fill(&pages, &format!("{user}/{n}"), 1));
    }
    fill(&pages, "other", 1);
    users.write().insert_many(many(500).into_iter().map(|user| (user, 1))).unwrap();
    assert_eq!(pages.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["other"]);
}

#[test]
fn a_target_that_is_closed_is_still_told_to_peers_and_one_opened_again_is_found() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (users, on_a) = derived(&a);
    let on_b = open(&b, "pages");
    let mut wire = Wire::new([&a, &b]);
    let page = &pages("ann")[0];
    on_a.close();
    fill(&on_b, page, 1);
    fill(&on_b, "other", 1);
    users.insert(key("ann"), 1).unwrap();
    wire.carry();
    assert_eq!((on_b.contains(page), on_b.contains(&key("other"))), (false, true));
    users.clear().unwrap();
    wire.carry();
    assert!(!on_b.contains(&key("other")));
    assert_eq!(wire.changes, a.domain.events_published(), "each is counted once");
    let again = open(&a, "pages");
    fill(&again, page, 1);
    users.insert(key("ann"), 2).unwrap();
    assert!(!again.contains(page));
    again.close();
    // Of other types now: nobody knows what the keys are.
    let other: Cache<u64, String> = a.cache("pages").open().unwrap();
    other.insert(1, key("page")).unwrap();
    users.insert(key("ann"), 3).unwrap();
    assert!(!other.contains(&1));
}

#[test]
fn a_node_that_leaves_meanwhile_still_logs_what_is_derived() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (users, pages) = (open(&a, "users"), open(&a, "pages"));
    let on_b = open(&b, "pages");
    let (domain, waited) = (a.domain.clone(), Arc::new(AtomicBool::new(false)));
    let has_waited = waited.clone();
    users
        .derive(&pages, move |user: &String| {
            domain.leave();
            waited.store(domain.writes_settled().now_or_never().is_none(), Ordering::SeqCst);
            [user.clone()]
        })
        .unwrap();
    fill(&on_b, "ann", 1);
    users.insert(key("ann"), 1).unwrap();
    assert!(has_waited.load(Ordering::SeqCst), "who leaves waits for it");
    assert!(a.domain.writes_settled().now_or_never().is_some());
    Wire::new([&a, &b]).carry();
    assert!(!on_b.contains(&key("ann")));
}

#[test]
fn a_mapping_may_use_the_caches_for_no_lock_is_held() {
    let node = Node::new("a");
    let (users, pages) = (open(&node, "users"), open(&node, "pages"));
    let (handle, runs) = (Arc::new(OnceLock::<Numbers>::new()), Arc::new(AtomicUsize::new(0)));
    let (source, counter) = (handle.clone(), runs.clone());
    let target = pages.clone();
    users
        .derive(&pages, move |user: &String| {
            counter.fetch_add(1, Ordering::SeqCst);
            let users = source.get().unwrap();
            target.insert(user.clone(), 7).unwrap();
            // What changes in there derives, too; once, for it ends.
            if users.insert_if_absent(key("inner"), 1).unwrap() {
                users.remove(user).unwrap();
            }
            [user.clone()]
        })
        .unwrap();
    handle.set(users.clone()).ok();
    users.insert(key("ann"), 1).unwrap();
    assert_eq!((runs.load(Ordering::SeqCst), pages.iter().count()), (3, 0));
}

#[test]
fn what_is_derived_is_told_as_an_invalidation_of_the_target() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (users, on_a) = (open(&a, "users"), open(&a, "pages"));
    let on_b = open(&b, "pages");
    users.derive(&on_a, |user: &String| [user.clone()]).unwrap();
    let mut heard = [on_a.subscribe().start().unwrap(), on_b.subscribe().start().unwrap()];
    users.insert(key("ann"), 1).unwrap();
    Wire::new([&a, &b]).carry();
    for heard in &mut heard {
        let Target::Key(name) = one("ann") else { unreachable!() };
        assert_eq!(told(heard), [(EventKind::Deleted, Operation::Invalidate, Target::Keys(vec![name]))]);
    }
}

#[test]
fn rules_are_bounded_and_within_one_node() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (users, other) = (open(&a, "users"), open(&b, "pages"));
    let pages: Cache<String, u64> = a.cache("pages").mode(Mode::Local).open().unwrap();
    assert_eq!(users.derive(&other, |user| [user.clone()]), Err(DeriveError::OtherNode));
    for n in 0..=RULES_MAX {
        let made = users.derive(&pages, |user| [user.clone()]);
        assert_eq!(made.is_ok(), n < RULES_MAX, "{made:?}");
    }
    fill(&pages, "ann", 1);
    users.insert(key("ann"), 1).unwrap();
    assert_eq!((pages.get(&key("ann")), a.logged()), (None, 1), "a local target is not broadcast");
}
