//! Walks at random: whatever is done in whatever order, each event is settled once for each group.

use std::collections::BTreeMap;

use super::Case;
use super::lab::{BACKOFF, IDLE, Lab, ordered, topic};
use crate::call::{Delivered, Outcome, Start};
use crate::event::NewEvent;
use crate::id::EventId;
use crate::name::Name;
use crate::settings::Topic;

/// Steps of a walk, before what is left is settled.
const STEPS: u32 = 150;

pub(super) fn cases() -> [Case; 2] {
    facts![every_event_is_settled_once, every_event_is_settled_once_and_in_the_order_of_its_key]
}

async fn every_event_is_settled_once(lab: &Lab<'_>) {
    for seed in 1..=4 {
        Walk::new(lab, topic(), seed).await.walk().await;
    }
}

async fn every_event_is_settled_once_and_in_the_order_of_its_key(lab: &Lab<'_>) {
    for seed in 1..=4 {
        Walk::new(lab, ordered(), seed).await.walk().await;
    }
}

/// Where an event of a group is, as whoever receives sees it.
#[derive(Debug, Default)]
struct Seen {
    attempts: u32,
    acked: bool,
    buried: bool,
}

struct Walk<'a> {
    lab: &'a Lab<'a>,
    topic: Topic,
    groups: Vec<Name>,
    published: Vec<(EventId, String)>,
    seen: BTreeMap<(Name, EventId), Seen>,
    held: Vec<(Name, Delivered)>,
    chance: u64,
    seed: u64,
}

impl<'a> Walk<'a> {
    async fn new(lab: &'a Lab<'a>, mut topic: Topic, seed: u64) -> Self {
        topic.name = Name::new(&format!("walk-{seed}")).expect("it is a name");
        let mut groups = Vec::new();
        for group in ["one", "two"] {
            groups.push(lab.group(&topic, group, Start::Earliest).await);
        }
        let (published, seen, held) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { lab, topic, groups, published, seen, held, chance: seed, seed }
    }

    /// A number below `bound`, from the seed alone.
    fn draw(&mut self, bound: u64) -> u64 {
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % bound
    }

    async fn walk(mut self) {
        for _ in 0..STEPS {
            match self.draw(10) {
                0..=2 => self.publish().await,
                3..=5 => self.receive().await,
                6 | 7 => self.settle().await,
                8 => self.lab.pass(BACKOFF / 2).await,
                _ => self.lab.pass(IDLE / 2).await,
            }
        }
        let most = self.published.len() as u32 * 3 * 4;
        for _ in 0..most {
            if self.is_done() {
                break;
            }
            self.receive().await;
            while !self.held.is_empty() {
                self.settle().await;
            }
            self.lab.pass(BACKOFF * 4).await;
            self.note_buried().await;
        }
        self.note_buried().await;
        for group in &self.groups {
            for (id, _) in &self.published {
                let seen = self.seen.get(&(group.clone(), *id));
                let once = seen.is_some_and(|seen| seen.acked != seen.buried);
                assert!(once, "seed {}: event {id} of group {group} is {seen:?}", self.seed);
            }
        }
    }

    fn is_done(&self) -> bool {
        let settled = self.seen.values().filter(|seen| seen.acked || seen.buried).count();
        settled == self.published.len() * self.groups.len()
    }

    async fn publish(&mut self) {
        let mut events = Vec::new();
        for _ in 0..=self.draw(3) {
            let key = self.draw(3).to_string();
            events.push(NewEvent::new(key.clone()).key(key));
        }
        let keys: Vec<String> = events.iter().filter_map(|event| event.key.clone()).collect();
        let ids = self.lab.publish_events(&self.topic, events).await;
        self.published.extend(ids.into_iter().zip(keys));
    }

    async fn receive(&mut self) {
        let at = self.draw(self.groups.len() as u64) as usize;
        let (group, max) = (self.groups[at].clone(), self.draw(6) as usize + 1);
        self.note_buried().await;
        let taken = self.lab.receive(&self.topic, &group, max).await;
        self.note_buried().await;
        assert!(taken.len() <= max, "seed {}: {} of {max}", self.seed, taken.len());
        for one in taken {
            let seen = self.seen.entry((group.clone(), one.event.id)).or_default();
            assert!(!seen.acked && !seen.buried, "seed {}: {:?} comes again", self.seed, one.event.id);
            seen.attempts += 1;
            assert_eq!(one.tag.attempt, seen.attempts, "seed {}: {:?}", self.seed, one.event.id);
            if self.topic.settings.ordered {
                self.assert_leads(&group, &one);
            }
            self.held.push((group.clone(), one));
        }
    }

    /// Everything before it of its key is settled.
    fn assert_leads(&self, group: &Name, one: &Delivered) {
        let key = one.event.key.as_deref();
        let before = self.published.iter().filter(|(id, of)| *id < one.event.id && Some(of.as_str()) == key);
        for (id, _) in before {
            let seen = self.seen.get(&(group.clone(), *id));
            let settled = seen.is_some_and(|seen| seen.acked || seen.buried);
            assert!(settled, "seed {}: {} comes before {id}, which is {seen:?}", self.seed, one.event.id);
        }
    }

    async fn settle(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let at = self.draw(self.held.len() as u64) as usize;
        let (group, one) = self.held.swap_remove(at);
        let fails = self.draw(2) == 0;
        let outcome = match fails {
            true => self.lab.fail(&self.topic, &group, &one, "by chance").await,
            false => self.lab.ack(&self.topic, &group, &one).await,
        };
        let seen = self.seen.get_mut(&(group, one.event.id)).expect("it was received");
        let last = seen.attempts >= self.topic.settings.max_deliveries.get();
        match outcome {
            Outcome::Acked => seen.acked = true,
            Outcome::Buried(_) => {
                assert!(last, "seed {}: buried after {} deliveries", self.seed, seen.attempts)
            }
            Outcome::RetryAt(_) => assert!(!last, "seed {}: {} deliveries", self.seed, seen.attempts),
            Outcome::Stale | Outcome::Unknown => {}
            Outcome::Extended(_) => panic!("seed {}: nobody asked for more time", self.seed),
        }
    }

    /// What was given up, by whatever way, and each once.
    async fn note_buried(&mut self) {
        let filter =
            crate::call::DeadLetterFilter { topic: Some(self.topic.name.clone()), ..Default::default() };
        let letters = self.lab.dead(filter, 100).await;
        let mut found = BTreeMap::<_, u32>::new();
        for letter in letters {
            let most = self.topic.settings.max_deliveries.get();
            assert_eq!(letter.attempts, most, "seed {}: {letter:?}", self.seed);
            *found.entry((letter.group, letter.event.id)).or_default() += 1;
        }
        for (event, times) in found {
            assert_eq!(times, 1, "seed {}: {event:?} is given up {times} times", self.seed);
            self.seen.entry(event).or_default().buried = true;
        }
    }
}
