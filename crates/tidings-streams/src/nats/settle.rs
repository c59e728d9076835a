//! Words about deliveries.

use std::collections::HashMap;

use super::Nats;
use super::journal::{Entry, Grave, RECORD_BYTES_MAX, State};
use super::retain::BURIED_AT_A_TIME;
use super::writer::Writer;
use crate::call::{Outcome, Settlement};
use crate::error::GroupError;
use crate::ledger::{OpenState, Rules, Step, Verdict};
use crate::name::Name;
use crate::settings::Topic;

/// What a word takes of a record besides the text of a failure, in bytes, about.
const WORD_BYTES: usize = 160;

/// What becomes of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// This.
    Is(Outcome),
    /// The event is given up: what becomes of that is known when its dead letter is stored.
    Buries(u64),
}

impl Judgement {
    /// What it gives up, in this epoch of the group.
    fn given_up(self, epoch: u64) -> Option<(u64, u64)> {
        if let Self::Buries(id) = self { Some((epoch, id)) } else { None }
    }
}

/// What becomes of as many words as fit into a record.
#[derive(Debug, Default)]
struct Judged {
    judgements: Vec<Judgement>,
    entries: Vec<Entry>,
    /// Something becomes available to somebody who waits.
    wakes: bool,
    bytes: usize,
    /// Events that are given up.
    buries: usize,
    /// What words are about of which nothing is left to say: the same event may be named twice.
    over: HashMap<u64, Outcome>,
}

impl Judged {
    fn of(state: &State, settlements: &[Settlement], topic: &Topic, rules: Rules<'_>) -> Self {
        let mut judged = Self::default();
        for one in settlements {
            if judged.bytes >= RECORD_BYTES_MAX || judged.buries >= BURIED_AT_A_TIME {
                break;
            }
            judged.add(state, one, topic, rules);
        }
        judged
    }

    fn add(&mut self, state: &State, one: &Settlement, topic: &Topic, rules: Rules<'_>) {
        let id = one.id.major();
        let over = if one.id.minor() == 0 { self.over.get(&id).copied() } else { Some(Outcome::Unknown) };
        if let Some(over) = over {
            return self.judgements.push(Judgement::Is(over));
        }
        let (entry, judgement) = match state.ledger.settle(id, one.tag, &one.action, rules) {
            Verdict::Nothing(outcome) => return self.judgements.push(Judgement::Is(outcome)),
            Verdict::Step(step, outcome) => {
                self.wakes |= wakes(state, topic, &step);
                match outcome {
                    Outcome::Acked => drop(self.over.insert(id, Outcome::Unknown)),
                    Outcome::RetryAt(_) => drop(self.over.insert(id, Outcome::Stale)),
                    _ => {}
                }
                if let Step::Failed { error, .. } = &step {
                    self.bytes += error.len();
                }
                (Entry::Step(step), Judgement::Is(outcome))
            }
            Verdict::Bury(burial) => {
                self.wakes |= topic.settings.ordered;
                self.over.insert(id, Outcome::Unknown);
                self.buries += 1;
                self.bytes += burial.failure.error.len();
                let stream = topic.settings.dead_letter.clone();
                (Entry::Bury(Grave { stream, burial }), Judgement::Buries(id))
            }
        };
        self.bytes += WORD_BYTES;
        self.entries.push(entry);
        self.judgements.push(judgement);
    }
}

/// Whether a step makes something available, or earlier than was known.
fn wakes(state: &State, topic: &Topic, step: &Step) -> bool {
    match step {
        // Others may wait for it, or for room.
        Step::Settled { .. } => topic.settings.ordered || state.room() == 0,
        Step::Extended { id, until, .. } => {
            let was = state.ledger.open().get(id).map(|open| open.state);
            matches!(was, Some(OpenState::Taken(_, was)) if *until < was)
        }
        _ => true,
    }
}

impl Nats {
    pub(super) async fn settle_all(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: &[Settlement],
    ) -> Result<Vec<Outcome>, GroupError> {
        let random = rand::random();
        let mut writer = Writer::open(self, &topic.name, group).await;
        let mut outcomes = Vec::with_capacity(settlements.len());
        loop {
            let state = writer.state().await?;
            let rules = Rules { settings: &topic.settings, now: self.link.now(), random };
            let judged = Judged::of(state, &settlements[outcomes.len()..], topic, rules);
            let epoch = state.ledger.epoch();
            // Those alone: what others have given up may be more than there is time for.
            let given_up: Vec<_> = judged.judgements.iter().filter_map(|one| one.given_up(epoch)).collect();
            if judged.entries.is_empty() {
                // That a word says nothing is believed of what is known now.
                if writer.freshen().await? {
                    continue;
                }
            } else if !writer.append(judged.entries, judged.wakes).await? {
                continue;
            }
            let letters = writer.bury_only(&given_up).await?;
            for judgement in judged.judgements {
                outcomes.push(match judgement {
                    Judgement::Is(outcome) => outcome,
                    // Without a letter the event was gone, and nothing is left to do about it.
                    Judgement::Buries(id) => {
                        let letter = match letters.get(&(epoch, id)) {
                            Some(letter) => *letter,
                            // Somebody else has stored it meanwhile.
                            None => writer.letter((epoch, id)).await?,
                        };
                        letter.map_or(Outcome::Unknown, Outcome::Buried)
                    }
                });
            }
            if outcomes.len() >= settlements.len() {
                return Ok(outcomes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Action;
    use crate::id::{EventId, Timestamp};
    use crate::ledger::{Brief, Ledger};

    fn taken(events: u64) -> State {
        let mut ledger = Ledger::new(1, 1, false);
        let briefs: Vec<Brief> = (1..=events).map(|id| Brief { id, lane: None, due: Timestamp(0) }).collect();
        let (looked, ids) = ledger.look(&briefs, events + 1, Timestamp(5), 1_000);
        ledger.apply(&looked);
        let consumer = Name::new("c").unwrap();
        ledger.apply(&Step::Taken { consumer, at: Timestamp(5), until: Timestamp(9), ids });
        State { ledger, ..State::default() }
    }

    fn judged(state: &State, words: &[(EventId, Action)]) -> Judged {
        let topic = Topic { name: Name::new("t").unwrap(), settings: std::sync::Arc::default() };
        let words: Vec<Settlement> = words
            .iter()
            .map(|(id, action)| Settlement { id: *id, tag: None, action: action.clone() })
            .collect();
        let rules = Rules { settings: &topic.settings, now: Timestamp(6), random: 0.5 };
        Judged::of(state, &words, &topic, rules)
    }

    fn fail(bytes: usize) -> Action {
        Action::Fail { reason: "x".repeat(bytes) }
    }

    #[test]
    fn a_second_word_about_an_event_comes_too_late() {
        let (one, two) = (EventId::new(1), EventId::new(2));
        let words = [(one, Action::Ack), (one, Action::Ack), (two, fail(1)), (two, Action::Ack)];
        let judged = judged(&taken(2), &words);
        let said = |at: usize| judged.judgements[at];
        assert_eq!((said(0), said(1)), (Judgement::Is(Outcome::Acked), Judgement::Is(Outcome::Unknown)));
        assert!(matches!(said(2), Judgement::Is(Outcome::RetryAt(_))));
        assert_eq!(said(3), Judgement::Is(Outcome::Stale));
        assert!(judged.entries.len() == 2 && judged.wakes);
    }

    #[test]
    fn words_that_do_not_fit_into_a_record_are_left_for_the_next() {
        let words: Vec<_> = (1..=1_000).map(|id| (EventId::new(id), fail(2_000))).collect();
        let judged = judged(&taken(1_000), &words);
        assert!(judged.judgements.len() < 200 && judged.judgements.len() == judged.entries.len());
        let record = serde_json::to_vec(&judged.entries).unwrap();
        assert!(record.len() < 2 * RECORD_BYTES_MAX, "{}", record.len());
    }

    #[test]
    fn a_delivery_that_is_done_wakes_nobody_who_does_not_wait_for_it() {
        let state = taken(2);
        assert!(!judged(&state, &[(EventId::new(1), Action::Ack)]).wakes);
        let longer = Action::Extend { by: std::time::Duration::from_secs(1) };
        assert!(!judged(&state, &[(EventId::new(1), longer)]).wakes);
        let shorter = Action::Extend { by: std::time::Duration::from_millis(1) };
        assert!(judged(&state, &[(EventId::new(1), shorter)]).wakes);
    }
}
