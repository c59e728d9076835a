//! Any sequence of operations on two nodes gives the results, entries and events of a naive model.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Node, Wire, items};
use proptest::prelude::*;
use tidings_cache::{
    Cache, Computed, EventKind, FillToken, Item, Operation, ReadOrFill, SlotSet, Subscription, TOKEN_TIME,
    Target,
};

/// Keys of the model: few, so that operations meet.
const KEYS: u8 = 5;

/// Time to live of the caches.
const TTL: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, i64),
    InsertFor(u8, i64, u8),
    InsertIfAbsent(u8, i64),
    Replace(u8, i64),
    Increment(u8, i64),
    Remove(u8),
    Take(u8),
    ComputePut(u8, i64),
    ComputeRemove(u8),
    ComputeKeep(u8),
    InsertMany(Vec<(u8, i64)>),
    RemoveMany(Vec<u8>),
    Clear,
    Get(u8),
    Token(u8),
    /// Fills with the token given so many steps ago, if there is one.
    Fill(usize, i64),
    Advance(u8),
    Fence,
    Carry,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS;
    let value = -3_i64..3;
    prop_oneof![
        4 => (key.clone(), value.clone()).prop_map(|(k, v)| Step::Insert(k, v)),
        2 => (key.clone(), value.clone(), 5_u8..40).prop_map(|(k, v, s)| Step::InsertFor(k, v, s)),
        3 => (key.clone(), value.clone()).prop_map(|(k, v)| Step::InsertIfAbsent(k, v)),
        3 => (key.clone(), value.clone()).prop_map(|(k, v)| Step::Replace(k, v)),
        3 => (key.clone(), value.clone()).prop_map(|(k, v)| Step::Increment(k, v)),
        3 => key.clone().prop_map(Step::Remove),
        2 => key.clone().prop_map(Step::Take),
        1 => (key.clone(), value.clone()).prop_map(|(k, v)| Step::ComputePut(k, v)),
        1 => key.clone().prop_map(Step::ComputeRemove),
        1 => key.clone().prop_map(Step::ComputeKeep),
        2 => prop::collection::vec((key.clone(), value.clone()), 0..6).prop_map(Step::InsertMany),
        2 => prop::collection::vec(key.clone(), 0..6).prop_map(Step::RemoveMany),
        1 => Just(Step::Clear),
        4 => key.clone().prop_map(Step::Get),
        2 => key.prop_map(Step::Token),
        2 => (0_usize..3, value).prop_map(|(n, v)| Step::Fill(n, v)),
        2 => (0_u8..20).prop_map(Step::Advance),
        1 => Just(Step::Fence),
        3 => Just(Step::Carry),
        1 => Just(Step::Settle),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    kind: EventKind,
    operation_number: u8,
    /// `None`: everything.
    key: Option<u8>,
    local: bool,
}

/// That everything was fenced.
const FENCED: Told = Told {
    kind: EventKind::Invalidated,
    operation_number: Operation::Invalidate as u8,
    key: None,
    local: true,
};

fn told(kind: EventKind, operation: Operation, key: u8) -> Told {
    Told { kind, operation_number: operation as u8, key: Some(key), local: true }
}

/// A change as it travels.
#[derive(Clone, Debug)]
struct Sent {
    told: Told,
}

/// One node as simply as it can be said.
#[derive(Default)]
struct Model {
    /// Value and second of expiry.
    entries: BTreeMap<u8, (i64, u64)>,
    now: u64,
    /// Numbers of tokens that are still good, and when they end.
    tokens: BTreeMap<usize, (u8, u64)>,
    told: Vec<Told>,
    sent: Vec<Sent>,
}

impl Model {
    fn get(&self, key: u8) -> Option<i64> {
        self.entries.get(&key).filter(|(_, expires)| *expires > self.now).map(|(value, _)| *value)
    }

    fn end_flights(&mut self, key: u8) {
        self.tokens.retain(|_, (of, _)| *of != key);
    }

    fn change(&mut self, key: u8, operation: Operation, value: Option<i64>, ttl: u64) {
        let kind = match (value, self.get(key)) {
            (None, _) => EventKind::Deleted,
            (Some(_), Some(_)) => EventKind::Updated,
            (Some(_), None) => EventKind::Inserted,
        };
        self.end_flights(key);
        match value {
            Some(value) => drop(self.entries.insert(key, (value, self.now + ttl.min(TTL.as_secs())))),
            None => drop(self.entries.remove(&key)),
        }
        let told = told(kind, operation, key);
        self.told.push(told);
        self.sent.push(Sent { told });
    }

    fn put(&mut self, key: u8, operation: Operation, value: i64) {
        self.change(key, operation, Some(value), TTL.as_secs());
    }

    fn clear(&mut self) {
        self.fence();
        let told = Told {
            kind: EventKind::Cleared,
            operation_number: Operation::Clear as u8,
            key: None,
            local: true,
        };
        self.told.push(told);
        self.sent.push(Sent { told });
    }

    fn fence(&mut self) {
        self.entries.clear();
        self.tokens.clear();
    }

    /// What a peer's change does here.
    fn apply(&mut self, sent: &Sent) {
        match sent.told.key {
            Some(key) => {
                self.end_flights(key);
                if self.get(key).is_some() {
                    let invalidated = told(EventKind::Invalidated, Operation::Invalidate, key);
                    self.told.push(Told { local: false, ..invalidated });
                }
                self.entries.remove(&key);
            }
            None => self.fence(),
        }
        self.told.push(Told { local: false, ..sent.told });
    }
}

/// A node and its model, driven alike.
struct Twin<'a> {
    node: &'a Node,
    cache: Cache<u8, i64>,
    heard: Subscription<u8>,
    tokens: Vec<(u8, FillToken)>,
    model: Model,
}

impl<'a> Twin<'a> {
    fn new(node: &'a Node, partitions: usize) -> Self {
        let cache = node.cache("model").time_to_live(TTL).partitions(partitions).open().unwrap();
        let heard = cache.subscribe().start().unwrap();
        Self { node, cache, heard, tokens: Vec::new(), model: Model::default() }
    }

    fn check(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let (cache, model) = (&self.cache, &mut self.model);
        match step {
            Step::Insert(key, value) => {
                cache.insert(*key, *value).unwrap();
                model.put(*key, Operation::Insert, *value);
            }
            Step::InsertFor(key, value, seconds) => {
                let ttl = Duration::from_secs(u64::from(*seconds));
                cache.write().ttl(ttl).insert(*key, *value).unwrap();
                model.change(*key, Operation::Insert, Some(*value), ttl.as_secs());
            }
            Step::InsertMany(entries) => {
                cache.write().insert_many(entries.iter().copied()).unwrap();
                entries.iter().for_each(|(key, value)| model.put(*key, Operation::Insert, *value));
            }
            Step::RemoveMany(keys) => {
                cache.write().remove_many(keys.iter().copied()).unwrap();
                keys.iter().for_each(|key| model.change(*key, Operation::Remove, None, 0));
            }
            Step::Clear => {
                cache.clear().unwrap();
                model.clear();
            }
            Step::Get(key) => prop_assert_eq!(cache.get(key), model.get(*key)),
            Step::Token(key) => self.check_token(*key)?,
            Step::Fill(back, value) => self.check_fill(*back, *value)?,
            Step::Advance(seconds) => {
                self.node.clock.advance(Duration::from_secs(u64::from(*seconds)));
                model.now += u64::from(*seconds);
            }
            Step::Fence => {
                self.node.domain.fence_all();
                model.fence();
                model.told.push(FENCED);
            }
            Step::Settle => cache.settle(),
            conditional => self.check_conditional(conditional)?,
        }
        self.check_entries()
    }

    /// Operations that depend on what is there.
    fn check_conditional(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let (cache, model) = (&self.cache, &mut self.model);
        match step {
            Step::InsertIfAbsent(key, value) => {
                let absent = model.get(*key).is_none();
                prop_assert_eq!(cache.insert_if_absent(*key, *value).unwrap(), absent);
                if absent {
                    model.put(*key, Operation::InsertIfAbsent, *value);
                }
            }
            Step::Replace(key, value) => {
                let present = model.get(*key).is_some();
                prop_assert_eq!(cache.replace(*key, *value).unwrap(), present);
                if present {
                    model.put(*key, Operation::Replace, *value);
                }
            }
            Step::Increment(key, by) => {
                let sum = model.get(*key).unwrap_or(0) + by;
                prop_assert_eq!(cache.increment(key, *by).unwrap(), sum);
                model.put(*key, Operation::Increment, sum);
            }
            Step::Remove(key) => {
                cache.remove(key).unwrap();
                model.change(*key, Operation::Remove, None, 0);
            }
            Step::Take(key) => {
                let present = model.get(*key);
                prop_assert_eq!(cache.take(key).unwrap(), present);
                if present.is_some() {
                    model.change(*key, Operation::Take, None, 0);
                }
            }
            Step::ComputePut(key, value) => {
                let seen = model.get(*key);
                let stored =
                    cache.compute(key, |old| Computed::Put(value + old.copied().unwrap_or(100))).unwrap();
                let value = value + seen.unwrap_or(100);
                prop_assert_eq!(stored, Some(value));
                model.put(*key, Operation::Compute, value);
            }
            Step::ComputeRemove(key) => {
                prop_assert_eq!(cache.compute(key, |_| Computed::Remove).unwrap(), None);
                model.change(*key, Operation::Compute, None, 0);
            }
            Step::ComputeKeep(key) => {
                prop_assert_eq!(cache.compute(key, |_| Computed::Keep).unwrap(), model.get(*key));
            }
            step => unreachable!("{step:?}"),
        }
        Ok(())
    }

    fn check_entries(&self) -> Result<(), TestCaseError> {
        let (cache, model) = (&self.cache, &self.model);
        for key in 0..KEYS {
            prop_assert_eq!(cache.peek(&key).map(|(value, _)| value), model.get(key), "key {}", key);
        }
        let listed: BTreeSet<_> = cache.iter().collect();
        let held: BTreeSet<_> = (0..KEYS).filter_map(|key| Some((key, model.get(key)?))).collect();
        prop_assert_eq!(listed, held);
        Ok(())
    }

    fn check_token(&mut self, key: u8) -> Result<(), TestCaseError> {
        match (self.cache.get_or_token(&key, TOKEN_TIME).unwrap(), self.model.get(key)) {
            (ReadOrFill::Hit(value), held) => prop_assert_eq!(Some(value), held),
            (ReadOrFill::Miss(token), held) => {
                prop_assert_eq!(held, None);
                self.model.tokens.insert(self.tokens.len(), (key, self.model.now + TOKEN_TIME.as_secs()));
                self.tokens.push((key, token));
            }
        }
        Ok(())
    }

    fn check_fill(&mut self, back: usize, value: i64) -> Result<(), TestCaseError> {
        let Some(number) = self.tokens.len().checked_sub(back + 1) else { return Ok(()) };
        let (key, token) = self.tokens[number];
        let good = self.model.tokens.remove(&number).is_some_and(|(_, ends)| self.model.now <= ends);
        prop_assert_eq!(self.cache.fill(&key, value, token, None).unwrap(), good);
        if good {
            self.model.entries.insert(key, (value, self.model.now + TTL.as_secs()));
        }
        Ok(())
    }

    /// What subscribers heard is what the model told: in order per key, and all of it.
    fn check_told(&mut self) -> Result<(), TestCaseError> {
        let mut heard = Vec::new();
        for item in items(&mut self.heard) {
            let event = match item {
                Item::Event(event) => event,
                Item::Fenced { slots: SlotSet::ALL } => {
                    heard.push(FENCED);
                    continue;
                }
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            let keys = match event.target() {
                Target::Key(key) => vec![Some(*key)],
                Target::Keys(keys) => keys.iter().copied().map(Some).collect(),
                Target::All => vec![None],
                target => return Err(TestCaseError::fail(format!("{target:?}"))),
            };
            let operation_number = event.operation as u8;
            heard.extend(keys.into_iter().map(|key| Told {
                kind: event.kind,
                operation_number,
                key,
                local: event.local,
            }));
        }
        let model = std::mem::take(&mut self.model.told);
        for key in 0..KEYS {
            let of_key = |told: &&Told| told.key == Some(key);
            let heard: Vec<_> = heard.iter().filter(of_key).collect();
            let model: Vec<_> = model.iter().filter(of_key).collect();
            prop_assert_eq!(heard, model, "key {}", key);
        }
        let whole = |all: &[Told]| all.iter().filter(|told| told.key.is_none()).copied().collect::<Vec<_>>();
        prop_assert_eq!(whole(&heard), whole(&model));
        Ok(())
    }
}

fn carry(twins: &mut [Twin<'_>; 2], wire: &mut Wire<'_>) {
    wire.carry();
    let sent: Vec<_> = twins.iter_mut().map(|twin| std::mem::take(&mut twin.model.sent)).collect();
    // As the wire does: first all of the second node's changes at the first, then the other way round. A change of
    // several lanes reaches a key's lane in order, which is all that a single key can see.
    sent[1].iter().for_each(|sent| twins[0].model.apply(sent));
    sent[0].iter().for_each(|sent| twins[1].model.apply(sent));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_nodes_behave_like_the_model(
        steps in prop::collection::vec((0_usize..2, step()), 1..60),
        partitions in 1_usize..4,
    ) {
        let nodes = [Node::new("a"), Node::new("b")];
        let mut wire = Wire::new(&nodes);
        let mut twins = [Twin::new(&nodes[0], partitions), Twin::new(&nodes[1], 1)];
        for (at, step) in &steps {
            if matches!(step, Step::Carry) {
                carry(&mut twins, &mut wire);
                for twin in &mut twins {
                    twin.check_told()?;
                }
            } else {
                twins[*at].check(step)?;
            }
        }
        carry(&mut twins, &mut wire);
        for twin in &mut twins {
            twin.check(&Step::Settle)?;
            twin.check_told()?;
        }
    }
}
