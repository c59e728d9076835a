use super::*;
use crate::call::{Action, Outcome, Tag};
use crate::id::Timestamp;
use crate::ledger::{Brief, Rules, Verdict};
use crate::settings::TopicSettings;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A journal, and the replica of who writes it.
#[derive(Default)]
struct Written {
    records: Vec<(u64, Vec<Entry>)>,
    replica: Replica,
}

impl Written {
    fn say(&mut self, entries: Vec<Entry>) {
        let sequence = self.replica.last + 3;
        // As it is read by others.
        let text = serde_json::to_string(&entries).unwrap();
        let entries: Vec<Entry> = serde_json::from_str(&text).unwrap();
        self.replica.apply(sequence, &entries);
        self.records.push((sequence, entries));
    }

    /// A group that has looked at so many events and taken them.
    fn taken(events: u64) -> Self {
        let mut written = Self::default();
        written.say(vec![Entry::Made { next: 1 }]);
        let briefs: Vec<Brief> = (1..=events).map(|id| Brief { id, lane: None, due: Timestamp(0) }).collect();
        let ledger = &written.replica.state.as_ref().unwrap().ledger;
        let (looked, ids) = ledger.look(&briefs, events + 1, Timestamp(5), 1_000);
        let taken = Step::Taken { consumer: name("c"), at: Timestamp(5), until: Timestamp(9), ids };
        written.say(vec![Entry::Step(looked), Entry::Step(taken)]);
        written
    }

    fn state(&self) -> &State {
        self.replica.state.as_ref().unwrap()
    }

    fn fail(&self, id: u64) -> Entry {
        let settings =
            TopicSettings { max_deliveries: 1_u32.try_into().unwrap(), ..TopicSettings::default() };
        let rules = Rules { settings: &settings, now: Timestamp(6), random: 0.5 };
        let reason = "it fails".to_owned();
        match self.state().ledger.settle(id, None, &Action::Fail { reason }, rules) {
            Verdict::Bury(burial) => Entry::Bury(Grave { stream: name("dead"), burial }),
            other => panic!("{other:?}"),
        }
    }

    fn store_whole(&mut self, bytes_max: usize) -> usize {
        let parts = self.state().parts(bytes_max);
        let count = parts.len();
        for part in parts {
            self.say(vec![Entry::State(Box::new(part))]);
        }
        count
    }

    /// What somebody has who reads from a place in the journal on.
    fn read_from(&self, record: usize) -> Replica {
        let mut replica = Replica::default();
        self.records[record..].iter().for_each(|(sequence, entries)| replica.apply(*sequence, entries));
        replica
    }
}

fn assert_same(one: &State, other: &State) {
    assert_eq!(one.ledger.open(), other.ledger.open());
    assert_eq!(
        (one.ledger.next(), one.ledger.epoch(), one.ledger.paused(), one.again),
        (other.ledger.next(), other.ledger.epoch(), other.ledger.paused(), other.again)
    );
    assert_eq!(one.burying, other.burying);
}

#[test]
fn a_whole_state_is_as_good_as_all_that_came_before() {
    let mut written = Written::taken(50);
    written.say(vec![Entry::Step(Step::Settled { id: 7 }), Entry::Step(Step::Paused(true))]);
    let bury = written.fail(9);
    written.say(vec![bury]);
    let before = written.records.len();
    assert!(written.store_whole(1_000) > 3, "it has parts");
    assert_same(written.read_from(before).state.as_ref().unwrap(), written.state());
    assert_same(written.read_from(0).state.as_ref().unwrap(), written.state());
    assert_eq!(written.read_from(0).whole(), written.records[before].0);
    // Half of what came before may be gone.
    assert_same(written.read_from(before - 1).state.as_ref().unwrap(), written.state());
}

#[test]
fn parts_that_others_come_between_count_for_nothing() {
    let mut written = Written::taken(50);
    let parts = written.state().parts(1_000);
    written.say(vec![Entry::State(Box::new(parts[0].clone()))]);
    written.say(vec![Entry::Step(Step::Settled { id: 1 })]);
    for part in &parts[1..] {
        written.say(vec![Entry::State(Box::new(part.clone()))]);
    }
    assert!(!written.state().ledger.open().contains_key(&1), "what came between is kept");
    assert!(written.read_from(2).state.is_none(), "half a state is no state");
}

#[test]
fn what_is_given_up_is_open_no_more_and_needed_until_it_is_stored() {
    let mut written = Written::taken(3);
    let bury = written.fail(1);
    written.say(vec![bury]);
    let epoch = written.state().ledger.epoch();
    assert!(!written.state().ledger.open().contains_key(&1));
    assert_eq!(written.state().lowest(), 1);
    written.say(vec![Entry::Buried { epoch, id: 1 }]);
    assert_eq!(written.state().lowest(), 2);
}

#[test]
fn no_epoch_comes_twice_though_a_group_is_made_again() {
    let mut written = Written::taken(3);
    let first = written.state().ledger.epoch();
    written.say(vec![Entry::Step(Step::Sought { next: 1, epoch: 0 })]);
    let second = written.state().ledger.epoch();
    written.say(vec![Entry::Removed]);
    assert!(written.replica.state.is_none());
    written.say(vec![Entry::Made { next: 1 }]);
    let third = written.state().ledger.epoch();
    assert!(first < second && second < third, "{first} {second} {third}");
    let old = Some(Tag { epoch: first, attempt: 1 });
    let settings = TopicSettings::default();
    let rules = Rules { settings: &settings, now: Timestamp(6), random: 0.5 };
    let verdict = written.state().ledger.settle(1, old, &Action::Ack, rules);
    assert_eq!(verdict, Verdict::Nothing(Outcome::Unknown));
}

#[test]
fn deliveries_beyond_the_first_are_counted() {
    let mut written = Written::taken(3);
    let again = Step::Taken { consumer: name("c"), at: Timestamp(9), until: Timestamp(12), ids: vec![1, 2] };
    written.say(vec![Entry::Step(again)]);
    assert_eq!(written.state().again, 2);
    written.store_whole(1 << 20);
    assert_eq!(written.replica.state.as_ref().unwrap().again, 2);
}

#[test]
fn a_journal_that_is_long_is_begun_anew() {
    let mut written = Written::taken(1);
    while !written.replica.is_long() {
        written.say(vec![Entry::Step(Step::Paused(true))]);
    }
    assert_eq!(written.records.len(), RECORDS_MAX);
    written.replica.put_off();
    assert!(!written.replica.is_long());
    written.store_whole(1 << 20);
    assert!(!written.replica.is_long());
}
