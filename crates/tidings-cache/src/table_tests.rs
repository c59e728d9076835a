//! What the table keeps, hands back and lets go of.

use std::sync::Weak;

use tidings_proto::hash::CacheId;

use super::*;
use crate::key::Encoded;

fn table<V: Send + Sync + 'static>(capacity: u64) -> Table<V> {
    let entries = moka::sync::Cache::builder().max_capacity(capacity);
    Table {
        entries: entries.build_with_hasher(CarriedHash::default()),
        half: capacity / 2,
        idles: false,
        tells: false,
        weigher: None,
        sampled: Striped::default(),
    }
}

/// Its entries weigh what their values say.
fn weighed(capacity: u64) -> Table<u64> {
    let entries = moka::sync::Cache::builder().max_capacity(capacity);
    let entries = entries.weigher(|_: &Stored<u64>, kept: &Kept<u64>| kept.read().weight);
    Table {
        entries: entries.build_with_hasher(CarriedHash::default()),
        tells: true,
        weigher: Some(Arc::new(|_, value| *value as u32)),
        ..table(capacity)
    }
}

fn put(table: &Table<u64>, key: &Encoded, value: u64) -> Option<u64> {
    let entry = Entry::new(Some(value), Tick(1), Tick::FOREVER, 1);
    let (was, entry) = table.put(key.borrowed(), entry, |entry| entry.value().copied());
    assert!(entry.is_none_or(|entry| entry.value().copied() == was.flatten()), "another one came back");
    was.flatten()
}

fn get(table: &Table<u64>, key: &Encoded) -> Option<u64> {
    table.read(&key.borrowed(), |entry| entry.value().copied()).flatten()
}

fn keys(count: u64) -> Vec<Encoded> {
    (0..count).map(|number| Encoded::new(CacheId(1), &number).expect("a short key")).collect()
}

#[test]
fn an_entry_is_exchanged_in_its_place_and_the_old_one_handed_back() {
    let table = table(10_000);
    let keys = keys(1_000);
    for value in 0..3 {
        for key in &keys {
            let before = (value > 0).then(|| value - 1);
            assert_eq!(
                (get(&table, key), put(&table, key, value), get(&table, key)),
                (before, before, Some(value))
            );
        }
    }
    table.run_pending_tasks();
    assert_eq!(table.entry_count(), 1_000);
}

#[test]
fn a_key_that_was_removed_is_stored_anew() {
    let table = table(10_000);
    for key in &keys(1_000) {
        for value in 0..3 {
            assert_eq!((put(&table, key, value), get(&table, key)), (None, Some(value)));
            let removed = table.remove(&key.borrowed(), |entry| entry.value().copied());
            assert_eq!((removed, get(&table, key)), (Some(Some(value)), None));
            assert_eq!(table.remove(&key.borrowed(), |_| ()), None, "it is there no more");
        }
    }
}

#[test]
fn a_key_that_was_evicted_is_stored_anew_and_not_in_what_moka_has_let_go_of() {
    let table = table(100);
    let keys = keys(1_000);
    for round in 0..5 {
        for key in &keys {
            let value = round;
            put(&table, key, value);
            assert!(get(&table, key).is_none_or(|read| read == value), "an older value came back");
        }
        table.run_pending_tasks();
        assert!((50..=100).contains(&table.entry_count()), "{} of 100", table.entry_count());
    }
}

#[test]
fn values_of_what_was_removed_or_evicted_are_let_go_of() {
    let table: Table<Arc<u64>> = table(100);
    let mut values: Vec<Weak<u64>> = Vec::new();
    for (number, key) in keys(1_000).iter().enumerate() {
        let value = Arc::new(number as u64);
        values.push(Arc::downgrade(&value));
        table.put(key.borrowed(), Entry::new(Some(value), Tick(1), Tick::FOREVER, 1), |_| ());
        if number % 2 == 0 {
            table.remove(&key.borrowed(), |_| ());
        }
        table.run_pending_tasks();
    }
    // moka frees in rounds, which threads of other tests may hold up; what it keeps is no more than a few rounds' worth.
    let kept = || values.iter().filter(|value| value.strong_count() > 0).count();
    let other = Encoded::new(CacheId(1), "other").expect("a short key");
    let mut rounds = 0;
    while kept() > 300 {
        assert!(rounds < 1_000_000, "{} of 1,000 values are kept, 100 of them for their keys", kept());
        assert!(!table.contains_key(&other.borrowed()));
        std::thread::yield_now();
        rounds += 1;
    }
}

#[test]
fn what_is_stored_over_a_weighed_entry_counts_with_its_own_weight() {
    let table = weighed(1_000);
    for round in 1..=3 {
        for key in &keys(10) {
            assert_eq!(put(&table, key, round), (round > 1).then(|| round - 1));
        }
        table.run_pending_tasks();
        assert_eq!(table.weighted_size(), 10 * round);
    }
    for key in &keys(10) {
        put(&table, key, 300);
        table.run_pending_tasks();
        assert!(table.weighted_size() <= 1_000, "{} of 1,000", table.weighted_size());
    }
}

/// Has one thread change a key and another read it, until the first has done.
fn contend(table: &Table<u64>, key: &Encoded, change: impl FnOnce(), check: impl Fn(Option<u64>) + Sync) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                check(get(table, key));
            }
        });
        change();
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_key_that_is_stored_over_is_there_all_the_time() {
    for table in [table(1_000_000), weighed(1_000_000)] {
        let key = &keys(1)[0];
        put(&table, key, 1);
        let change = || (2..20_000).for_each(|value| assert_eq!(put(&table, key, value), Some(value - 1)));
        contend(&table, key, change, |read| assert!(read.is_some(), "it was gone for a moment"));
    }
}

#[test]
fn what_is_stored_where_something_was_just_removed_and_is_still_read_is_there() {
    let table = table(10_000);
    let key = &keys(1)[0];
    let change = || {
        for value in 0..50_000 {
            assert_eq!((put(&table, key, value), get(&table, key)), (None, Some(value)));
            assert_eq!(table.remove(&key.borrowed(), |entry| entry.value().copied()), Some(Some(value)));
            assert_eq!(get(&table, key), None);
        }
    };
    contend(&table, key, change, |_| ());
}

#[test]
fn who_panics_at_what_was_removed_has_removed_it() {
    let table = table(100);
    let key = &keys(1)[0];
    put(&table, key, 1);
    let removing =
        std::panic::AssertUnwindSafe(|| table.remove(&key.borrowed(), |_| panic!("as a clone may")));
    assert!(std::panic::catch_unwind(removing).is_err());
    assert_eq!(get(&table, key), None);
}

#[test]
fn a_full_table_hits_about_as_often_as_moka_does() {
    const CAPACITY: u64 = 1_000;
    let keys = keys(100_000);
    let table = table(CAPACITY);
    let moka = moka::sync::Cache::<u64, ()>::new(CAPACITY);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut hits, mut of_moka) = (0_i32, 0_i32);
    for _ in 0..300_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // The more popular the fewer, as requests are.
        let number = (keys.len() as f64).powf((random >> 11) as f64 / (1_u64 << 53) as f64) as u64 - 1;
        let key = &keys[number as usize];
        if get(&table, key).is_some() {
            hits += 1;
        } else {
            put(&table, key, number);
        }
        if moka.get(&number).is_some() {
            of_moka += 1;
        } else {
            moka.insert(number, ());
        }
    }
    assert!((hits - of_moka).abs() < 1_500, "{hits} and {of_moka} of 300,000");
}
