use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

fn settings() -> TopicSettings {
    TopicSettings { max_deliveries: NonZeroU32::new(2).unwrap(), ..TopicSettings::default() }
}

fn consumer() -> Name {
    Name::new("c").unwrap()
}

fn brief(id: u64, lane: Option<u64>) -> Brief {
    Brief { id, lane, due: Timestamp(0) }
}

/// A group, and every step that it made.
#[derive(Debug)]
struct Walked {
    ledger: Ledger,
    steps: Vec<Step>,
    last: u64,
    now: Timestamp,
}

impl Walked {
    fn new() -> Self {
        Self { ledger: Ledger::new(1, 1, false), steps: Vec::new(), last: 0, now: Timestamp(1_000) }
    }

    fn step(&mut self, step: Step) {
        self.ledger.apply(&step);
        self.steps.push(step);
    }

    fn take(&mut self, max: usize, lanes: bool) {
        let mut ids = self.ledger.due(self.now, max);
        let lane = |id: u64| lanes.then_some(id % 3);
        let new: Vec<Brief> = (self.ledger.next()..=self.last).map(|id| brief(id, lane(id))).collect();
        let (looked, taken) = self.ledger.look(&new, self.last + 1, self.now, max - ids.len());
        self.step(looked);
        ids.extend(taken);
        let until = self.now.after(Duration::from_millis(100));
        self.step(Step::Taken { consumer: consumer(), at: self.now, until, ids });
    }

    fn settle(&mut self, id: u64, action: &Action) {
        let settings = settings();
        let rules = Rules { settings: &settings, now: self.now, random: 0.5 };
        match self.ledger.settle(id, None, action, rules) {
            Verdict::Step(step, _) => self.step(step),
            Verdict::Bury(burial) => self.step(Step::Settled { id: burial.id }),
            Verdict::Nothing(_) => {}
        }
    }

    /// One thing, by a number.
    fn act(&mut self, what: u8, which: u8, lanes: bool) {
        match what % 8 {
            0 | 1 => self.last += u64::from(which % 5),
            2 | 3 => self.take(usize::from(which % 4) + 1, lanes),
            4 => self.now = self.now.after(Duration::from_millis(u64::from(which))),
            what => {
                let open: Vec<u64> = self.ledger.open().keys().copied().collect();
                let Some(id) = open.get(usize::from(which) % open.len().max(1)) else { return };
                let fail = Action::Fail { reason: "by chance".to_owned() };
                let actions = [Action::Ack, fail, Action::Extend { by: Duration::from_millis(50) }];
                self.settle(*id, &actions[usize::from(what % 8 - 5)]);
            }
        }
    }
}

fn replayed<'a>(steps: impl IntoIterator<Item = &'a Step>) -> Ledger {
    let mut ledger = Ledger::new(1, 1, false);
    steps.into_iter().for_each(|step| ledger.apply(step));
    ledger
}

proptest! {
    #[test]
    fn steps_make_the_same_state_again(acts: Vec<(u8, u8)>, lanes: bool) {
        let mut walked = Walked::new();
        acts.into_iter().for_each(|(what, which)| walked.act(what, which, lanes));
        let again = replayed(&walked.steps);
        prop_assert_eq!(again.open(), walked.ledger.open());
        prop_assert_eq!((again.next(), &again.times), (walked.ledger.next(), &walked.ledger.times));
    }

    #[test]
    fn a_state_that_is_written_down_is_the_same_again(acts: Vec<(u8, u8)>, lanes: bool, backwards: bool) {
        let mut walked = Walked::new();
        acts.into_iter().for_each(|(what, which)| walked.act(what, which, lanes));
        let mut again = Ledger::new(walked.ledger.next(), walked.ledger.epoch(), false);
        let mut open: Vec<_> = walked.ledger.open().clone().into_iter().collect();
        if backwards {
            open.reverse();
        }
        open.into_iter().for_each(|(id, open)| again.restore(id, open));
        prop_assert_eq!(again.open(), walked.ledger.open());
        prop_assert_eq!((&again.times, &again.lanes), (&walked.ledger.times, &walked.ledger.lanes));
    }

    #[test]
    fn a_step_that_is_lost_loses_no_event(acts: Vec<(u8, u8)>, lanes: bool, lost: prop::sample::Index) {
        let mut walked = Walked::new();
        acts.into_iter().for_each(|(what, which)| walked.act(what, which, lanes));
        if walked.steps.is_empty() {
            return Ok(());
        }
        let lost = lost.index(walked.steps.len());
        let kept = walked.steps.iter().enumerate().filter(|(place, _)| *place != lost).map(|(_, step)| step);
        let again = replayed(kept);
        for id in walked.ledger.open().keys() {
            let there = again.open().contains_key(id) || again.next() <= *id;
            prop_assert!(there, "event {} is lost with {:?}", id, walked.steps[lost]);
        }
        prop_assert!(again.next() <= walked.ledger.next());
    }

    #[test]
    fn one_event_of_a_lane_is_due_at_most(acts: Vec<(u8, u8)>) {
        let mut walked = Walked::new();
        for (what, which) in acts {
            walked.act(what, which, true);
            let mut lanes: Vec<Option<u64>> =
                walked.ledger.times.iter().map(|(_, id)| walked.ledger.open()[id].lane).collect();
            let all = lanes.len();
            lanes.sort_unstable();
            lanes.dedup();
            prop_assert_eq!(lanes.len(), all);
        }
    }
}

#[test]
fn a_group_takes_nothing_new_beyond_its_bound() {
    let mut walked = Walked::new();
    walked.last = OPEN_MAX as u64 + 10;
    walked.take(OPEN_MAX + 10, false);
    assert_eq!((walked.ledger.open().len(), walked.ledger.room()), (OPEN_MAX, 0));
    assert_eq!(walked.ledger.next(), OPEN_MAX as u64 + 1);
    walked.settle(1, &Action::Ack);
    walked.take(10, false);
    assert_eq!(walked.ledger.next(), OPEN_MAX as u64 + 2);
}
