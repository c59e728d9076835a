//! What auditors ask and answer.

use tidings_proto::audit::{Answer, Differing, Digested, Held, Incomparable, Question, Subject};
use tidings_proto::hash::CacheId;

fn subject() -> Subject {
    Subject::new(CacheId(0x0102_0304), 2)
}

fn asked() -> [Question; 2] {
    let entry = |key| Digested { key, value: 70_000 };
    let page = Question::Page(subject(), vec![entry(1), entry(251), entry(u64::MAX)]);
    [page, Question::Keys(subject(), vec![b"\x01a".to_vec(), Vec::new()])]
}

/// The body of a question.
pub(crate) fn question(bytes: &[u8]) -> bool {
    let Ok(question) = Question::decode(bytes) else { return false };
    assert_eq!(Question::decode(&question.encode()).expect("what is written can be read"), question);
    true
}

/// The body of an answer: to a question for a page behind an even byte, for keys behind an odd one.
pub(crate) fn answer(bytes: &[u8]) -> bool {
    let Some((which, body)) = bytes.split_first() else { return false };
    let to = &asked()[usize::from(which % 2)];
    let Ok(answer) = Answer::decode(body, to) else { return false };
    assert_eq!(Answer::decode(&answer.encode(), to).expect("what is written can be read"), answer);
    true
}

pub(crate) fn questions() -> Vec<Vec<u8>> {
    asked().iter().map(Question::encode).collect()
}

pub(crate) fn answers() -> Vec<Vec<u8>> {
    let held = Held { value: 3, mark: 300, age_ms: 70_000 };
    let differing = vec![Differing { at: 0, held }, Differing { at: 2, held }];
    let answers = [
        (0, Answer::Incomparable(Incomparable::NotAudited)),
        (0, Answer::Page { held: 2, differing }),
        (1, Answer::Incomparable(Incomparable::OtherSchema)),
        (1, Answer::Keys { applied_ago_ms: Some(250), held: vec![None, Some(held)] }),
        (1, Answer::Keys { applied_ago_ms: None, held: vec![Some(held), None] }),
    ];
    answers.iter().map(|(to, answer)| [&[*to][..], &answer.encode()].concat()).collect()
}
