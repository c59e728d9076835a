use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::hlc::HybridClock;

const NODES: usize = 3;
const KEYS: u8 = 6;
const AMPLE: TombstoneBounds = TombstoneBounds { count: 1_000, bytes: 1 << 20, time: Duration::MAX };

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key(u64, Vec<u8>);

impl ReplicaKey for Key {
    fn of(key: Sought<'_>) -> Self {
        Self(key.hash, key.bytes.to_vec())
    }

    fn sought(&self) -> Sought<'_> {
        Sought { hash: self.0, bytes: &self.1 }
    }
}

/// Keys of two slots.
fn key(number: u8) -> Key {
    Key(u64::from(number) | u64::from(number % 2) << 58, vec![number])
}

#[test]
fn of_a_write_that_is_undone_nothing_is_left() {
    let at = |time| WriteStamp { at: Stamp(time), author: 1 };
    let mut replica = Replica::<Key>::new(AMPLE);
    let birth = EntryBirth { began: Tick(1), epoch: 1 };
    let keys = [0, 2, 4].map(key);
    replica.put(keys[0].sought(), at(90), birth);
    replica.remove(keys[1].sought(), at(80), Tick(1));
    assert!(!replica.undo(keys[0].sought(), at(91)), "another one");
    assert!(replica.undo(keys[0].sought(), at(90)) && replica.undo(keys[1].sought(), at(80)));
    assert!(!replica.undo(keys[1].sought(), at(80)), "once");
    assert_eq!(
        (replica.len(), replica.tombstones(), replica.floor(keys[0].sought().slot())),
        Default::default()
    );
    // What was forgotten is in the floor.
    replica.put(keys[2].sought(), at(95), birth);
    replica.forget(keys[2].sought());
    assert!(replica.undo(keys[2].sought(), at(95)));
    assert_eq!(replica.judge(keys[2].sought(), at(1)), Verdict::Newer);
    // Of what named many, too.
    replica.put(keys[0].sought(), at(60), birth);
    replica.remove(keys[1].sought(), at(70), Tick(1));
    replica.clear(SlotSet::from_iter([key(1).sought().slot()]), at(70));
    assert!(replica.undo_all(at(70)) && !replica.undo_all(at(70)));
    assert_eq!((replica.len(), replica.judge(key(1).sought(), at(1))), (1, Verdict::Newer));
}

#[derive(Clone, Copy, Debug)]
enum Change {
    /// Of a key, with a value that nothing else has.
    Put(u8, u32),
    Remove(u8),
    Clear,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    change: Change,
    stamp: WriteStamp,
}

struct Node {
    replica: Replica<Key>,
    values: BTreeMap<u8, u32>,
    clock: HybridClock,
    author: u64,
    /// How far its wall clock is ahead of the slowest.
    skew_ms: u64,
}

impl Node {
    fn new(number: usize, bounds: TombstoneBounds) -> Self {
        Self {
            replica: Replica::new(bounds),
            values: BTreeMap::new(),
            clock: HybridClock::default(),
            author: number as u64,
            skew_ms: 100 * number as u64,
        }
    }

    fn write(&mut self, change: Change, now_ms: u64) -> Write {
        let at = self.clock.tick(now_ms + self.skew_ms);
        let write = Write { change, stamp: WriteStamp { at, author: self.author } };
        if let Change::Put(number, _) | Change::Remove(number) = change {
            let verdict = self.replica.judge(key(number).sought(), write.stamp);
            assert_eq!(verdict, Verdict::Newer, "a write of its own is later than all that it knows");
        }
        self.apply(write, now_ms);
        write
    }

    fn apply(&mut self, Write { change, stamp }: Write, now_ms: u64) {
        self.clock.observe(stamp.at, now_ms + self.skew_ms).expect("clocks differ by less");
        let now = Tick(now_ms);
        let birth = EntryBirth { began: now, epoch: 1 };
        match change {
            Change::Clear => {
                self.replica.clear(SlotSet::ALL, stamp);
                self.values.retain(|number, _| self.replica.held(key(*number).sought()).is_some());
            }
            Change::Put(number, _) | Change::Remove(number)
                if self.replica.judge(key(number).sought(), stamp) != Verdict::Newer => {}
            Change::Put(number, value) => {
                self.replica.put(key(number).sought(), stamp, birth);
                self.values.insert(number, value);
            }
            Change::Remove(number) => {
                self.replica.remove(key(number).sought(), stamp, now);
                self.values.remove(&number);
            }
        }
    }

    fn evict(&mut self, number: u8) {
        if self.values.remove(&number).is_some() {
            self.replica.forget(key(number).sought());
        }
    }

    /// Compares with a member, having missed writes perhaps.
    fn compare(&mut self, with: &Self, now_ms: u64) {
        for (sought, held) in with.replica.iter() {
            let number = sought.bytes[0];
            let change = match held {
                Held::Entry { .. } => Change::Put(number, with.values[&number]),
                Held::Tombstone { .. } => Change::Remove(number),
            };
            self.apply(Write { change, stamp: held.stamp() }, now_ms);
        }
        let lost = self.replica.iter().filter_map(|(sought, held)| {
            let absent = with.replica.held(sought).is_none();
            let may_be_old = held.stamp() <= with.replica.floor(sought.slot());
            (absent && may_be_old && matches!(held, Held::Entry { .. })).then_some(sought.bytes[0])
        });
        let lost: Vec<_> = lost.collect();
        lost.into_iter().for_each(|number| self.evict(number));
        let floors: Vec<_> = Slot::all().map(|slot| with.replica.floor(slot)).collect();
        let newest = floors.iter().max().expect("there are slots");
        self.clock.observe(newest.at, now_ms + self.skew_ms).expect("clocks differ by less");
        self.replica.adopt(SlotSet::ALL, &floors.try_into().expect("one for each slot"));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8),
    Remove(usize, u8),
    Clear(usize),
    /// One of the writes so far, at a node.
    Deliver(usize, prop::sample::Index),
    Evict(usize, u8),
    Compare(usize, usize),
    Pass(u64),
    Expire(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        6 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Put(node, key)),
        3 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Remove(node, key)),
        1 => node().prop_map(Step::Clear),
        8 => (node(), any::<prop::sample::Index>()).prop_map(|(node, write)| Step::Deliver(node, write)),
        2 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Evict(node, key)),
        1 => (node(), node()).prop_map(|(node, with)| Step::Compare(node, with)),
        2 => (1_u64..200).prop_map(Step::Pass),
        1 => node().prop_map(Step::Expire),
    ]
}

/// The value of each key's last write, none if that removed it: what a register of each key would hold.
fn truth(writes: &[Write]) -> BTreeMap<u8, u32> {
    let last = |number: u8| {
        let names = |write: &&Write| match write.change {
            Change::Put(of, _) | Change::Remove(of) => of == number,
            Change::Clear => true,
        };
        let last = writes.iter().filter(names).max_by_key(|write| write.stamp)?;
        if let Change::Put(_, value) = last.change { Some((number, value)) } else { None }
    };
    (0..KEYS).filter_map(last).collect()
}

struct World {
    nodes: Vec<Node>,
    writes: Vec<Write>,
    now_ms: u64,
}

impl World {
    fn new(bounds: TombstoneBounds) -> Self {
        let nodes = (0..NODES).map(|number| Node::new(number, bounds)).collect();
        Self { nodes, writes: Vec::new(), now_ms: 1_000 }
    }

    fn write(&mut self, node: usize, change: Change) {
        let write = self.nodes[node].write(change, self.now_ms);
        self.writes.push(write);
    }

    fn compare(&mut self, node: usize, with: usize) {
        if node != with {
            let mut comparing = std::mem::replace(&mut self.nodes[node], Node::new(node, AMPLE));
            comparing.compare(&self.nodes[with], self.now_ms);
            self.nodes[node] = comparing;
        }
    }

    fn run(&mut self, step: Step, forgets: bool) {
        match step {
            Step::Put(node, key) => self.write(node, Change::Put(key, self.writes.len() as u32)),
            Step::Remove(node, key) => self.write(node, Change::Remove(key)),
            Step::Clear(node) => self.write(node, Change::Clear),
            Step::Deliver(node, write) if !self.writes.is_empty() => {
                self.nodes[node].apply(*write.get(&self.writes), self.now_ms);
            }
            Step::Evict(node, key) if forgets => self.nodes[node].evict(key),
            Step::Compare(node, with) => self.compare(node, with),
            Step::Pass(ms) => self.now_ms += ms,
            Step::Expire(node) if forgets => self.nodes[node].replica.expire(Tick(self.now_ms)),
            _ => {}
        }
    }

    fn compare_all(&mut self) {
        for (node, with) in (0..NODES * NODES).map(|pair| (pair / NODES, pair % NODES)) {
            self.compare(node, with);
        }
    }

    fn digests(&self) -> Vec<[u64; SLOTS]> {
        let digest = |node: &Node| {
            let mut digest = [0; SLOTS];
            node.replica.digest(&mut digest);
            digest
        };
        self.nodes.iter().map(digest).collect()
    }
}

fn any_order() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(any::<u64>(), NODES * 60)
}

proptest! {
    #[test]
    fn whatever_the_order_every_node_ends_with_the_last_write_of_each_key(
        steps in prop::collection::vec(step(), 0..60),
        order in any_order(),
    ) {
        let mut world = World::new(AMPLE);
        steps.into_iter().for_each(|step| world.run(step, false));
        for node in 0..NODES {
            let mut writes = world.writes.clone();
            writes.sort_by_key(|write| order[node * 60 + write.stamp.at.0 as usize % 60]);
            // Twice, the second time in order.
            for write in writes.iter().chain(&world.writes) {
                world.nodes[node].apply(*write, world.now_ms);
            }
            prop_assert_eq!(&world.nodes[node].values, &truth(&world.writes), "node {}", node);
        }
    }

    #[test]
    fn who_missed_writes_ends_with_the_last_ones_by_comparing(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        // Without deliveries but those that happened: each node has some of the writes.
        let mut world = World::new(AMPLE);
        steps.into_iter().for_each(|step| world.run(step, false));
        world.compare_all();
        world.compare_all();
        let truth = truth(&world.writes);
        prop_assert!(world.nodes.iter().all(|node| node.values == truth));
        // A clear's floor stands for the tombstones that it took with it where it was applied.
        world.compare_all();
        let entries = |node: &Node| node.replica.iter().filter(|(_, held)| matches!(held, Held::Entry { .. })).count();
        prop_assert!(world.nodes.iter().all(|node| entries(node) == truth.len()));
    }

    #[test]
    fn what_forgets_never_has_an_older_value_once_everything_has_come(
        steps in prop::collection::vec(step(), 0..60),
        order in any_order(),
        few in 0_usize..3,
    ) {
        let bounds = TombstoneBounds { count: few, bytes: 2, time: Duration::from_nanos(300) };
        let mut world = World::new(bounds);
        steps.into_iter().for_each(|step| world.run(step, true));
        let truth = truth(&world.writes);
        for node in 0..NODES {
            let mut writes = world.writes.clone();
            writes.sort_by_key(|write| order[node * 60 + write.stamp.at.0 as usize % 60]);
            writes.into_iter().for_each(|write| world.nodes[node].apply(write, world.now_ms));
            let replica = &world.nodes[node].replica;
            prop_assert!(replica.tombstones() <= few.min(2));
            for (number, value) in &world.nodes[node].values {
                prop_assert_eq!(truth.get(number), Some(value), "key {} of node {}", number, node);
            }
        }
    }

    #[test]
    fn who_missed_writes_and_forgets_has_no_older_value_after_comparing(
        steps in prop::collection::vec(step(), 0..60),
        few in 0_usize..3,
    ) {
        let bounds = TombstoneBounds { count: few, bytes: 2, time: Duration::from_nanos(300) };
        let mut world = World::new(bounds);
        steps.into_iter().for_each(|step| world.run(step, true));
        world.compare_all();
        let truth = truth(&world.writes);
        for (number, node) in world.nodes.iter().enumerate() {
            for (key, value) in &node.values {
                prop_assert_eq!(truth.get(key), Some(value), "key {} of node {}", key, number);
            }
        }
    }
}

#[test]
fn equal_digests_say_that_the_same_writes_are_known() {
    let mut world = World::new(AMPLE);
    (0..KEYS).for_each(|key| world.write(0, Change::Put(key, u32::from(key))));
    assert_ne!(world.digests()[0], world.digests()[1]);
    world.compare(1, 0);
    assert_eq!(world.digests()[0], world.digests()[1]);
    world.write(0, Change::Remove(0));
    world.write(1, Change::Put(1, 100));
    let digests = world.digests();
    assert_ne!(digests[0], digests[1]);
    world.compare(1, 0);
    world.compare(0, 1);
    assert_eq!(world.digests()[0], world.digests()[1]);
}

#[test]
fn keys_that_have_gone_are_forgotten_by_looking() {
    let mut replica: Replica<Key> = Replica::new(AMPLE);
    let stamp = |at| WriteStamp { at: Stamp(at), author: 1 };
    for number in 0..KEYS {
        let birth = EntryBirth { began: Tick(1), epoch: 1 };
        replica.put(key(number).sought(), stamp(10 + u64::from(number)), birth);
    }
    replica.remove(key(0).sought(), stamp(20), Tick(1));
    replica.probe(100, |key| key.bytes[0] != 3);
    assert_eq!((replica.len(), replica.tombstones()), (usize::from(KEYS) - 1, 1));
    assert_eq!(replica.judge(key(3).sought(), stamp(13)), Verdict::Older);
    assert_eq!(replica.judge(key(3).sought(), stamp(14)), Verdict::Newer);
    assert_eq!(replica.judge(key(2).sought(), stamp(12)), Verdict::Same);
}

#[test]
fn a_write_is_ordered_by_time_and_then_by_its_author() {
    let origin =
        |node: &str, life| Origin { node: node.parse().unwrap(), incarnation: crate::id::Incarnation(life) };
    let (one, other) = (author(&origin("n1", 1)), author(&origin("n1", 2)));
    assert_eq!((one, other), (GOLDEN.0, GOLDEN.1), "the same in every release");
    let early = WriteStamp::of(Stamp(1), &origin("n1", 1));
    assert!(early < WriteStamp::of(Stamp(2), &origin("n1", 2)) && WriteStamp::NEVER < early);
}

const GOLDEN: (u64, u64) = (17_087_226_273_791_960_586, 15_517_040_550_102_056_031);

#[test]
fn a_value_counts_that_could_not_be_had_before() {
    let mut replica: Replica<Key> = Replica::new(AMPLE);
    let stamp = |at| WriteStamp { at: Stamp(at), author: 1 };
    replica.remove(key(0).sought(), stamp(20), Tick(1));
    assert_eq!(replica.judge(key(0).sought(), stamp(20)), Verdict::Same);
    assert_eq!(replica.judge_value(key(0).sought(), stamp(20)), Verdict::Newer);
    assert_eq!(replica.judge_value(key(0).sought(), stamp(19)), Verdict::Older);
    replica.put(key(0).sought(), stamp(20), EntryBirth { began: Tick(1), epoch: 1 });
    assert_eq!(replica.judge_value(key(0).sought(), stamp(20)), Verdict::Same);
}
