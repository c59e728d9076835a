//! The cache of tidings without peers: reads and writes as an application makes them, and the invalidator as a peer's
//! batch reaches it, decoding included.

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidings::{Cache, CacheBuilder, Domain, Origin};
use tidings_benches::interleave::{Case, timed};
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hash::{CacheId, slot_of};
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{FIRST, Incarnation, Lanes};
use tidings_proto::record::{Batch, BatchRef, Draft, DraftTarget, Parts};
use tokio::runtime::Builder;

use crate::keys::{Keys, OPERATIONS, value};

pub(crate) const GET: &str = "tidings get";
pub(crate) const INSERT: &str = "tidings insert";
pub(crate) const INVALIDATE_RESIDENT: &str = "tidings invalidate resident";
pub(crate) const INVALIDATE_ABSENT: &str = "tidings invalidate absent";

const NAME: &str = "bench";

/// Never reached, so that nothing is evicted.
const CAPACITY: u64 = 1_000_000;

/// Records of a batch.
const BATCH: usize = 64;

type Values = Cache<String, Bytes>;

pub(crate) fn cases(keys: &Keys) -> Vec<Case<'static>> {
    let domain = Domain::standalone();
    let cache: Values = CacheBuilder::new(&domain, NAME).max_capacity(CAPACITY).open().expect("a new domain");
    let value = value();
    fill(&cache, &keys.resident, &value);

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
                for key in keys.written() {
                    cache.insert(key.clone(), value.clone()).expect("an open cache");
                }
                cache.settle();
            })
        }
    };
    let invalidate_absent = {
        let (cache, domain) = (cache.clone(), domain.clone());
        let batches = batches(keys.visit(&keys.absent));
        move || {
            timed(OPERATIONS as u64, || {
                apply(&domain, &batches);
                cache.settle();
            })
        }
    };
    let keys = keys.clone();
    let removals = batches(keys.removed().iter());
    let invalidate_resident = move || {
        let sample = timed(keys.removed().len() as u64, || {
            apply(&domain, &removals);
            cache.settle();
        });
        fill(&cache, keys.removed(), &value);
        sample
    };
    vec![
        Case { name: GET, sample: Box::new(get) },
        Case { name: INSERT, sample: Box::new(insert) },
        Case { name: INVALIDATE_ABSENT, sample: Box::new(invalidate_absent) },
        Case { name: INVALIDATE_RESIDENT, sample: Box::new(invalidate_resident) },
    ]
}

/// Stores values as loads do: nobody is told.
fn fill(cache: &Values, keys: &[String], value: &Bytes) {
    let runtime = Builder::new_current_thread().build().expect("a runtime without drivers");
    runtime.block_on(async {
        for key in keys {
            let loaded = cache.get_or_load(key, || async { Ok::<_, ()>(value.clone()) }).await;
            assert!(loaded.is_ok(), "a load failed");
        }
    });
    cache.settle();
}

/// What a peer with one lane sends when it removes these keys.
fn batches<'a>(keys: impl Iterator<Item = &'a String>) -> Vec<Bytes> {
    let cache = CacheId::of_name(NAME);
    let keys: Vec<Vec<u8>> =
        keys.map(|key| tidings_proto::codec::encode(key).expect("a text encodes")).collect();
    let lane = one_lane().ids().next().expect("one lane");
    let batch = |keys: &[Vec<u8>]| {
        let mut records = BytesMut::new();
        for key in keys {
            let draft = Draft::new(Parts {
                kind: EventKind::Deleted,
                operation: Operation::Remove,
                ignorable: false,
                cache,
                slot: slot_of(cache, key),
                version: None,
                metadata: &[],
                value: None,
                target: DraftTarget::Key(key),
            });
            draft.expect("a short key").write(0, &mut records);
        }
        let count = keys.len() as u32;
        let batch =
            Batch { lane, first: FIRST, count, base: Stamp::from_wall_ms(1), records: records.freeze() };
        [&batch.head()[..], &batch.records].concat().into()
    };
    keys.chunks(BATCH).map(batch).collect()
}

fn one_lane() -> Lanes {
    Lanes::new(1).expect("one is a power of two")
}

fn apply(domain: &Domain, batches: &[Bytes]) {
    let origin = Arc::new(Origin { node: "peer".parse().expect("a name"), incarnation: Incarnation(1) });
    for body in batches {
        let batch = BatchRef::parse(body, one_lane()).expect("what was encoded parses");
        domain.apply(&origin, &batch, FIRST).expect("what was encoded applies");
    }
}
