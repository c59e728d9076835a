//! `moka::sync::Cache` as it is: what the cache of tidings is built on.

use std::hint::black_box;

use bytes::Bytes;
use moka::sync::Cache;
use tidings_benches::interleave::{Case, timed};

use crate::keys::{Keys, OPERATIONS, value};

pub(crate) const GET: &str = "moka get";
pub(crate) const INSERT: &str = "moka insert";
pub(crate) const INVALIDATE_RESIDENT: &str = "moka invalidate resident";
pub(crate) const INVALIDATE_ABSENT: &str = "moka invalidate absent";

/// Never reached, so that nothing is evicted.
const CAPACITY: u64 = 1_000_000;

/// Housekeeping that the writes of a sample leave behind is part of their cost.
pub(crate) fn cases(keys: &Keys) -> Vec<Case<'static>> {
    let cache: Cache<String, Bytes> = Cache::new(CAPACITY);
    let value = value();
    for key in keys.resident.iter() {
        cache.insert(key.clone(), value.clone());
    }
    cache.run_pending_tasks();

    let get = {
        let (cache, keys) = (cache.clone(), keys.clone());
        move || {
            timed(OPERATIONS as u64, || {
                keys.visit(&keys.resident).for_each(|key| drop(black_box(cache.get(key))))
            })
        }
    };
    let insert = {
        let (cache, keys, value) = (cache.clone(), keys.clone(), value.clone());
        move || {
            timed(OPERATIONS as u64, || {
                keys.written().for_each(|key| cache.insert(key.clone(), value.clone()));
                cache.run_pending_tasks();
            })
        }
    };
    let invalidate_absent = {
        let (cache, keys) = (cache.clone(), keys.clone());
        move || {
            timed(OPERATIONS as u64, || {
                keys.visit(&keys.absent).for_each(|key| cache.invalidate(key));
                cache.run_pending_tasks();
            })
        }
    };
    let keys = keys.clone();
    let invalidate_resident = move || {
        let sample = timed(keys.removed().len() as u64, || {
            keys.removed().iter().for_each(|key| cache.invalidate(key));
            cache.run_pending_tasks();
        });
        keys.removed().iter().for_each(|key| cache.insert(key.clone(), value.clone()));
        cache.run_pending_tasks();
        sample
    };
    vec![
        Case { name: GET, sample: Box::new(get) },
        Case { name: INSERT, sample: Box::new(insert) },
        Case { name: INVALIDATE_ABSENT, sample: Box::new(invalidate_absent) },
        Case { name: INVALIDATE_RESIDENT, sample: Box::new(invalidate_resident) },
    ]
}
