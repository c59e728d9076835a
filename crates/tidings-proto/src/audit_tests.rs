use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::ask::{ANSWER_BYTES_MAX, QUESTION_BYTES_MAX};
use crate::hash::CacheId;
use crate::id::NodeId;
use crate::record::KEY_BYTES_MAX;

const HORIZON: Duration = Duration::from_secs(5);

fn at(milliseconds: u64) -> Tick {
    Tick(1 << 40).after(Duration::from_millis(milliseconds))
}

fn held(value: u64, mark: u64) -> Held {
    Held { value, mark, age_ms: 70_000 }
}

fn difference(peer: usize, cache: u32, key: usize) -> Difference {
    let peer = NodeId::new(&format!("n{peer}")).unwrap();
    let key = Bytes::from(format!("key-{key}"));
    Difference { peer, cache: CacheId(cache), key, own: held(1, 10), theirs: held(2, 20) }
}

/// The suspect that was noted at `at(0)`, and the first time at which it is due.
fn noted() -> (Suspects, Suspect, Tick) {
    let mut suspects = Suspects::new(HORIZON);
    suspects.note(difference(1, 1, 1), at(0));
    let due = suspects.next_due().unwrap();
    let suspect = suspects.due(due).unwrap().suspects.remove(0);
    (suspects, suspect, due)
}

fn unchanged(applied: Tick) -> Again {
    let (own, theirs) = (Some(held(1, 10)), Some(held(2, 20)));
    Again { own, own_applied: applied, theirs, theirs_applied: applied }
}

#[test]
fn a_difference_is_looked_at_again_only_after_what_may_explain_it_can_have_been_told() {
    let mut suspects = Suspects::new(HORIZON);
    suspects.note(difference(1, 1, 1), at(0));
    assert_eq!(suspects.due(at(5_000)), None);
    assert!(suspects.next_due().unwrap() > at(5_000));
    assert_eq!(suspects.due(at(6_000)).unwrap().suspects.len(), 1);
    assert_eq!((suspects.len(), suspects.next_due()), (0, None));
}

#[test]
fn what_differs_after_both_have_applied_everything_is_inconsistent() {
    let (mut suspects, suspect, due) = noted();
    let judged = suspects.judge(suspect, &unchanged(at(5_001)), due).unwrap();
    assert_eq!((judged.outcome, judged.seen), (Outcome::Inconsistent, at(0)));
    assert_eq!(judged.difference, difference(1, 1, 1));
}

#[test]
fn an_entry_that_has_changed_or_gone_shows_that_a_change_was_under_way() {
    let applied = at(9_000);
    let changed = [
        Again { own: None, ..unchanged(applied) },
        Again { theirs: None, ..unchanged(applied) },
        Again { own: Some(held(3, 11)), ..unchanged(applied) },
        // The same value from another load.
        Again { own: Some(held(1, 11)), ..unchanged(applied) },
        Again { theirs: Some(held(2, 21)), ..unchanged(applied) },
    ];
    for again in changed {
        let (mut suspects, suspect, due) = noted();
        let judged = suspects.judge(suspect, &again, due).unwrap();
        assert_eq!(judged.outcome, Outcome::Lag, "{again:?}");
    }
}

#[test]
fn nothing_is_inconsistent_before_both_have_applied_what_was_told_within_the_horizon() {
    let late = [
        Again { own_applied: at(5_000), ..unchanged(at(9_000)) },
        Again { theirs_applied: at(5_000), ..unchanged(at(9_000)) },
        Again { theirs_applied: Tick::NEVER, ..unchanged(at(9_000)) },
    ];
    for again in late {
        let (mut suspects, suspect, due) = noted();
        assert_eq!(suspects.judge(suspect, &again, due), None, "{again:?}");
        assert_eq!(suspects.next_due(), Some(due.after(RECHECK_PAUSE)), "it is looked at once more");
    }
}

#[test]
fn a_difference_that_nobody_can_judge_is_given_up_in_the_end() {
    let (mut suspects, suspect, mut now) = noted();
    let mut suspect = Some(suspect);
    let judged = loop {
        let again = unchanged(Tick::NEVER);
        if let Some(judged) = suspects.judge(suspect.take().unwrap(), &again, now) {
            break judged;
        }
        now = suspects.next_due().unwrap();
        suspect = Some(suspects.due(now).unwrap().suspects.remove(0));
    };
    assert_eq!(judged.outcome, Outcome::Unsettled);
    let waited = now.since(at(0).after(HORIZON));
    assert!((GIVE_UP_AFTER..GIVE_UP_AFTER + 2 * RECHECK_PAUSE).contains(&waited), "{waited:?}");
}

#[test]
fn a_question_is_about_one_peer_and_one_cache_and_holds_no_more_than_it_may() {
    let mut suspects = Suspects::new(HORIZON);
    for key in 0..3 * KEYS_MAX {
        suspects.note(difference(key % 2, 1 + key as u32 % 3 / 2, key), at(0));
    }
    let mut asked = Vec::new();
    while let Some(round) = suspects.due(at(60_000)) {
        assert!((1..=KEYS_MAX).contains(&round.suspects.len()));
        for suspect in round.suspects {
            assert_eq!((&suspect.difference.peer, suspect.difference.cache), (&round.peer, round.cache));
            asked.push(suspect.difference.key);
        }
    }
    asked.sort();
    asked.dedup();
    assert_eq!((asked.len(), suspects.len()), (3 * KEYS_MAX, 0), "each is asked about once");
}

#[test]
fn long_keys_do_not_make_a_question_longer_than_it_may_be() {
    let mut suspects = Suspects::new(HORIZON);
    for key in 0..KEYS_MAX {
        let key = Bytes::from(vec![key as u8; 4_096]);
        suspects.note(Difference { key, ..difference(1, 1, 1) }, at(0));
    }
    let mut asked = 0;
    while let Some(round) = suspects.due(at(60_000)) {
        let bytes: usize = round.suspects.iter().map(|suspect| suspect.difference.key.len()).sum();
        assert!(bytes <= KEYS_BYTES_MAX, "{bytes}");
        asked += round.suspects.len();
    }
    assert_eq!(asked, KEYS_MAX);
}

#[test]
fn more_suspects_than_there_is_room_for_are_counted_and_not_examined() {
    let mut suspects = Suspects::new(HORIZON);
    (0..SUSPECTS_MAX + 7).for_each(|key| suspects.note(difference(1, 1, key), at(0)));
    assert_eq!((suspects.len(), suspects.unexamined()), (SUSPECTS_MAX, 7));
    let mut suspects = Suspects::new(HORIZON);
    let key = Bytes::from(vec![0; 4_096]);
    let long = |_| Difference { key: key.clone(), ..difference(1, 1, 1) };
    (0..300).map(long).for_each(|difference| suspects.note(difference, at(0)));
    assert_eq!((suspects.len(), suspects.unexamined()), (SUSPECTS_BYTES_MAX / 4_096, 44));
    while suspects.due(at(60_000)).is_some() {}
    suspects.note(difference(1, 1, 1), at(0));
    assert_eq!((suspects.len(), suspects.unexamined()), (1, 44), "there is room again");
}

proptest! {
    /// In any time passes at most what it is worth, and one page.
    #[test]
    fn no_more_passes_than_the_rate_allows(
        rate in 1_u64..5_000,
        spent in prop::collection::vec((1_usize..=PAGE_KEYS_MAX, 0_usize..100_000, 0_u64..3_000), 1..60),
    ) {
        let mut pace = Pace::new(Some(rate));
        let (mut now, mut passed) = (at(0), Vec::new());
        for (keys, bytes, idle) in spent {
            now = now.after(Duration::from_millis(idle));
            now = now.after(pace.wait(now));
            prop_assert_eq!(pace.wait(now), Duration::ZERO);
            pace.spend(keys, bytes, now);
            passed.push((now, keys as f64, bytes as f64));
        }
        for from in 0..passed.len() {
            let (mut keys, mut bytes) = (0.0, 0.0);
            for (until, (time, ..)) in passed.iter().enumerate().skip(from) {
                let seconds = time.since(passed[from].0).as_secs_f64() + 1e-6;
                prop_assert!(keys <= rate as f64 * seconds, "{keys} keys in {seconds} s from {from} to {until}");
                prop_assert!(bytes <= BYTES_PER_SECOND_MAX as f64 * seconds, "{bytes} bytes in {seconds} s");
                keys += passed[until].1;
                bytes += passed[until].2;
            }
        }
    }

    /// Each difference is judged once, or is not examined and counted, whatever comes of the questions.
    #[test]
    fn no_difference_is_lost_or_judged_twice(
        keys in 1_usize..300,
        answers in prop::collection::vec(0_u8..4, 1..400),
    ) {
        let mut suspects = Suspects::new(HORIZON);
        (0..keys).for_each(|key| suspects.note(difference(key % 3, 1, key), at(0)));
        let mut answers = answers.into_iter().cycle();
        let (mut now, mut judged) = (at(0), Vec::new());
        while let Some(due) = suspects.next_due() {
            now = now.max(due);
            for suspect in suspects.due(now).unwrap().suspects {
                let verdict = match answers.next().unwrap() {
                    0 => suspects.unanswered(suspect, now),
                    1 => suspects.judge(suspect, &unchanged(at(0)), now),
                    2 => suspects.judge(suspect, &unchanged(now), now),
                    _ => suspects.judge(suspect, &Again { theirs: None, ..unchanged(now) }, now),
                };
                judged.extend(verdict.map(|verdict| verdict.difference.key));
            }
        }
        judged.sort();
        judged.dedup();
        prop_assert_eq!((judged.len(), suspects.unexamined()), (keys, 0));
    }
}

#[test]
fn a_page_is_about_a_second_of_the_rate_and_no_longer_than_it_may_be() {
    for (rate, keys) in [(1, 16), (100, 100), (700, 700), (1_667, PAGE_KEYS_MAX)] {
        assert_eq!(Pace::new(Some(rate)).page(), keys, "{rate}");
    }
    assert_eq!(Pace::unbounded().page(), PAGE_KEYS_MAX);
}

fn questions() -> [Question; 2] {
    let subject = Subject::new(CacheId(0x0102_0304), 2);
    let entries = vec![Digested { key: 1, value: 2 }, Digested { key: u64::MAX, value: 251 }];
    [Question::Page(subject, entries), Question::Keys(subject, vec![b"\x01a".to_vec(), Vec::new()])]
}

#[test]
fn questions_and_answers_look_the_same_in_every_release() {
    let [page, keys] = questions();
    assert_eq!(
        page.encode(),
        [[0, 1, 252, 4, 3, 2, 1, 2, 2, 1, 2, 253].as_slice(), &[255; 8], &[251, 251, 0],].concat()
    );
    assert_eq!(keys.encode(), [1, 1, 252, 4, 3, 2, 1, 2, 2, 2, 1, b'a', 0]);
    let (first, second) = (held(1, 300), held(2, 4));
    let of_page = Answer::Page { held: 2, differing: vec![Differing { at: 1, held: first }] };
    assert_eq!(of_page.encode(), [1, 2, 1, 1, 1, 251, 44, 1, 252, 112, 17, 1, 0]);
    let of_keys = Answer::Keys { applied_ago_ms: Some(250), held: vec![None, Some(second)] };
    assert_eq!(of_keys.encode(), [2, 1, 250, 2, 0, 1, 2, 4, 252, 112, 17, 1, 0]);
    let reasons = [Incomparable::NotHosted, Incomparable::OtherSchema, Incomparable::NotAudited];
    for (index, reason) in reasons.into_iter().enumerate() {
        assert_eq!(Answer::Incomparable(reason).encode(), [0, index as u8]);
    }
    for (question, answer) in [(page, of_page), (keys, of_keys)] {
        assert_eq!(Question::decode(&question.encode()).unwrap(), question);
        assert_eq!(Answer::decode(&answer.encode(), &question).unwrap(), answer);
    }
}

#[test]
fn more_than_may_be_asked_at_once_is_refused() {
    let subject = Subject::new(CacheId(1), 0);
    let entry = Digested { key: 1, value: 1 };
    let too_much = [
        Question::Page(subject, vec![entry; PAGE_KEYS_MAX + 1]),
        Question::Keys(subject, vec![Vec::new(); KEYS_MAX + 1]),
        Question::Keys(subject, vec![vec![0; 4_096]; 9]),
        Question::Keys(subject, vec![vec![0; KEY_BYTES_MAX + 1]]),
    ];
    for question in too_much {
        let refused = Question::decode(&question.encode());
        assert!(matches!(refused, Err(Unusable::TooMuch)), "{:?}", refused.err());
    }
    assert!(matches!(Question::decode(b"\x07"), Err(Unusable::Codec(_))));
}

#[test]
fn a_full_question_and_its_answer_fit_into_what_may_be_sent() {
    let subject = Subject::new(CacheId(u32::MAX), u32::MAX);
    let entry = Digested { key: u64::MAX, value: u64::MAX };
    let question = Question::Page(subject, vec![entry; PAGE_KEYS_MAX]);
    assert!(question.encode().len() <= QUESTION_BYTES_MAX, "{}", question.encode().len());
    let held = Held { value: u64::MAX, mark: u64::MAX, age_ms: u64::MAX };
    let differing = (0..PAGE_KEYS_MAX as u32).map(|at| Differing { at, held }).collect();
    let answer = Answer::Page { held: PAGE_KEYS_MAX as u32, differing };
    assert!(answer.encode().len() <= ANSWER_BYTES_MAX, "{}", answer.encode().len());
    assert_eq!(Answer::decode(&answer.encode(), &question).unwrap(), answer);
    let keys = Question::Keys(subject, vec![vec![0; KEYS_BYTES_MAX / KEYS_MAX]; KEYS_MAX]);
    assert!(Question::decode(&keys.encode()).is_ok() && keys.encode().len() <= QUESTION_BYTES_MAX);
}

#[test]
fn an_answer_to_something_else_is_refused() {
    let [page, keys] = questions();
    let one = |at| Differing { at, held: held(1, 1) };
    let of_page = |held, differing| Answer::Page { held, differing };
    let wrong = [
        (&page, Answer::Keys { applied_ago_ms: None, held: vec![None, None] }),
        (&keys, of_page(0, Vec::new())),
        (&keys, Answer::Keys { applied_ago_ms: None, held: vec![None] }),
        (&page, of_page(3, Vec::new())),
        (&page, of_page(0, vec![one(0)])),
        (&page, of_page(2, vec![one(2)])),
        (&page, of_page(2, vec![one(1), one(0)])),
        (&page, of_page(2, vec![one(0), one(0)])),
    ];
    for (question, answer) in wrong {
        let refused = Answer::decode(&answer.encode(), question);
        assert!(matches!(refused, Err(Unusable::Mismatch)), "{answer:?}: {refused:?}");
    }
}
