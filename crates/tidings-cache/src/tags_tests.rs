use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidings_proto::id::Slot;

use super::*;
use crate::key::Encoded;

const CACHE: CacheId = CacheId(7);

fn encoded(key: u16) -> Encoded {
    Encoded::new(CACHE, &key).expect("a short key")
}

fn tags(names: &[u8]) -> Tags {
    let mut tags = Tags::default();
    names.iter().for_each(|name| tags.add(CACHE, &format!("t{name}")).expect("a short tag"));
    tags
}

fn hash(name: u8) -> TagHash {
    TagHash::of(CACHE, &format!("t{name}"))
}

/// Everything with a tag in these slots, some keys at a time.
fn all_of(index: &TagIndex, tag: TagHash, slots: SlotSet) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    let mut from = Some(TagPlace::first());
    while let Some(at) = from {
        let (some, next) = index.keys_of(tag, at, slots, 3);
        from = next;
        for key in some {
            assert!(all.insert(key.borrowed().bytes.to_vec()), "handed out twice");
        }
    }
    all
}

#[derive(Clone, Debug)]
enum Step {
    /// A fill or an insert, which replaces.
    Store(u16, Vec<u8>),
    Remove(u16),
    /// The table lets a key go by itself: nobody tells the index.
    Displace(u16),
    Tag(u8),
    Probe,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..40_u16;
    prop_oneof![
        4 => (key.clone(), proptest::collection::vec(0..6_u8, 0..4)).prop_map(|(k, t)| Step::Store(k, t)),
        1 => key.clone().prop_map(Step::Remove),
        2 => key.prop_map(Step::Displace),
        1 => (0..6_u8).prop_map(Step::Tag),
        1 => Just(Step::Probe),
    ]
}

proptest! {
    #[test]
    fn index_names_exactly_what_a_naive_reference_names(steps in proptest::collection::vec(step(), 1..200)) {
        let mut index = TagIndex::default();
        // What the table holds, with tags.
        let mut truth: BTreeMap<u16, BTreeSet<u8>> = BTreeMap::new();
        let odd: SlotSet = Slot::all().filter(|slot| slot.index() % 2 == 1).collect();
        for step in steps {
            match step {
                Step::Store(key, names) => {
                    index.set(encoded(key).borrowed(), tags(&names));
                    truth.insert(key, names.into_iter().collect());
                }
                Step::Remove(key) => {
                    index.remove(encoded(key).borrowed());
                    truth.remove(&key);
                }
                Step::Displace(key) => drop(truth.remove(&key)),
                Step::Tag(name) => {
                    let (gone, more) = index.keys_of(hash(name), TagPlace::first(), SlotSet::ALL, 1_000);
                    prop_assert_eq!(more, None);
                    gone.iter().for_each(|key| index.remove(key.borrowed()));
                    truth.retain(|_, names| !names.contains(&name));
                }
                Step::Probe => index.probe_some(1_000, |key| {
                    truth.keys().any(|known| encoded(*known).borrowed() == key)
                }),
            }
            for name in 0..6 {
                let present = |key: &u16| truth.contains_key(key);
                for slots in [SlotSet::ALL, odd] {
                    let named: BTreeSet<_> = truth
                        .iter()
                        .filter(|(key, names)| {
                            names.contains(&name) && slots.contains(encoded(**key).borrowed().slot())
                        })
                        .map(|(key, _)| encoded(*key).borrowed().bytes.to_vec())
                        .collect();
                    let indexed = all_of(&index, hash(name), slots);
                    prop_assert!(named.is_subset(&indexed), "{:?} of {:?}", indexed, named);
                    // What else it names has gone by itself.
                    let there = (0..40).filter(present).map(|key| encoded(key).borrowed().bytes.to_vec());
                    let there: BTreeSet<_> = there.collect();
                    prop_assert!(indexed.difference(&named).all(|key| !there.contains(key)));
                }
            }
        }
        index.probe_some(1_000, |key| truth.keys().any(|known| encoded(*known).borrowed() == key));
        prop_assert_eq!(index.len(), truth.values().filter(|names| !names.is_empty()).count());
        prop_assert!(index.len() > 0 || index.places.capacity() == 0, "an empty index holds no memory");
    }
}

#[test]
fn index_stays_near_what_a_table_that_displaces_holds() {
    const HELD: u32 = 500;
    let mut index = TagIndex::default();
    let encode = |n: u32| Encoded::new(CACHE, &n).expect("a short key");
    let mut largest = 0;
    for n in 0..20_000_u32 {
        index.set(encode(n).borrowed(), tags(&[(n % 200) as u8, 250]));
        let held: Vec<_> = (n.saturating_sub(HELD)..=n).map(|n| encode(n).borrowed().hash).collect();
        if n % 97 == 0 {
            largest = largest.max(index.len());
        }
        index.probe(|key| held.contains(&key.hash));
    }
    assert!(largest < 2 * HELD as usize, "{largest} keys for a table of {HELD}");
    assert!(index.places.len() < 2 * HELD as usize + 1 && index.by_tag.len() < 4 * HELD as usize);
}

#[test]
fn keys_in_other_slots_cost_no_look() {
    let clock = crate::clock::Clock::system();
    let mut index = TagIndex::default();
    let only = Slot::of_hash(u64::MAX);
    let elsewhere = (0..u16::MAX).map(encoded).filter(|key| key.borrowed().slot() != only);
    elsewhere.for_each(|key| index.set(key.borrowed(), tags(&[1])));
    // Of several tries the fastest: the others had no processor.
    let fastest = |slots: SlotSet| {
        let tries = (0..10).map(|_| {
            let began = clock.now();
            let (keys, _) = index.keys_of(hash(1), TagPlace::first(), slots, usize::MAX);
            assert_eq!(keys.is_empty(), slots != SlotSet::ALL);
            clock.now().since(began)
        });
        tries.min().expect("some tries")
    };
    let (none, all) = (fastest([only].into_iter().collect()), fastest(SlotSet::ALL));
    assert!(none < all / 10, "{none:?} for none of them, {all:?} for all");
}

#[test]
fn tags_beyond_the_limits_are_refused() {
    let mut many = Tags::default();
    for n in 0..TAGS_PER_ENTRY_MAX {
        assert_eq!(many.add(CACHE, &n.to_string()), Ok(()));
        assert_eq!(many.add(CACHE, &n.to_string()), Ok(()), "one tag twice is one tag");
    }
    assert_eq!(many.add(CACHE, "one more"), Err(TagError::TooMany));
    let long = "x".repeat(TAG_BYTES_MAX + 1);
    assert_eq!(Tags::default().add(CACHE, &long), Err(TagError::TooLong(TAG_BYTES_MAX + 1)));
    assert_eq!(Tags::default().add(CACHE, ""), Err(TagError::Empty));
}
