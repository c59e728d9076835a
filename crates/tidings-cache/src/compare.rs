//! One comparison with one member, whatever carries the questions.

use std::collections::HashMap;
use std::future::Future;

use bytes::Bytes;
use tidings_proto::hash::CacheId;
use tidings_proto::id::SlotSet;
use tidings_proto::record::Unsound;
use tidings_proto::replicate::copy::{Answer, Digests, PARTS, Question};

use crate::repair::{Comparison, Page, Replicating, Wanted};

/// A member was not compared with. What it had told by then is merged.
#[derive(Debug, thiserror::Error)]
pub enum CompareError<E> {
    /// It did not answer the first question.
    #[error(transparent)]
    First(E),
    /// It did not answer a later one.
    #[error(transparent)]
    Asked(E),
    /// It answered what cannot be read.
    #[error(transparent)]
    Unsound(#[from] Unsound),
    /// It answered something else.
    #[error("an answer to another question")]
    Unexpected,
}

/// Compares a cache with a member and takes what is later there. Returns how many values that were.
///
/// `comparison` says that writes may have been missed here, and which slots that concerns; without, what the member does
/// not have is kept. `ask` sends a question and waits for its answer; it decides how fast that goes.
///
/// # Errors
/// [`CompareError`].
///
/// # Cancel safety
/// Cancel-safe: what was merged by then is merged.
pub async fn compare_with<E, F>(
    cache: &dyn Replicating,
    id: CacheId,
    comparison: Option<&Comparison>,
    mut ask: impl FnMut(Bytes) -> F,
) -> Result<usize, CompareError<E>>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let answer = ask(Question::Digests.encode(id)).await.map_err(CompareError::First)?;
    let digests = match Answer::decode(&answer)? {
        Answer::Digests(digests) => digests,
        // It holds nothing.
        Answer::Absent => return Ok(0),
        _ => return Err(CompareError::Unexpected),
    };
    let slots = cache.differing(&digests);
    let mut taken = 0;
    if !slots.is_empty() {
        let doubted = comparison.map(|_| &*digests);
        for part in 0..PARTS as u8 {
            taken += compare_part(cache, id, (slots, part, doubted), &mut ask).await?;
        }
    }
    if let Some(comparison) = comparison {
        cache.compared(comparison, &digests);
    }
    Ok(taken)
}

async fn compare_part<E, F>(
    cache: &dyn Replicating,
    id: CacheId,
    (slots, part, doubted): (SlotSet, u8, Option<&Digests>),
    ask: &mut impl FnMut(Bytes) -> F,
) -> Result<usize, CompareError<E>>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let (mut after, mut taken) = (None, 0);
    loop {
        let question = Question::List { slots, part, after };
        let answer = ask(question.encode(id)).await.map_err(CompareError::Asked)?;
        let Answer::List(listed) = Answer::decode(&answer)? else { return Err(CompareError::Unexpected) };
        if !listed.is_sound(id, after) {
            return Err(CompareError::Unexpected);
        }
        let wanted = cache.compare(Page { slots, part, after }, &listed, doubted);
        taken += fetch(cache, id, &wanted, ask).await?;
        after = Some(match listed.end(id) {
            Some(end) => end,
            None => return Ok(taken),
        });
    }
}

async fn fetch<E, F>(
    cache: &dyn Replicating,
    id: CacheId,
    wanted: &[Wanted],
    ask: &mut impl FnMut(Bytes) -> F,
) -> Result<usize, CompareError<E>>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let keys: Vec<&[u8]> = wanted.iter().map(|wanted| &wanted.key[..]).collect();
    let (mut done, mut taken) = (0, 0);
    while done < keys.len() {
        let (question, asked) = Question::fetch(&keys[done..]);
        let answer = ask(question.encode(id)).await.map_err(CompareError::Asked)?;
        let Answer::Fetch { schema, values } = Answer::decode(&answer)? else {
            return Err(CompareError::Unexpected);
        };
        taken += cache.take(schema, &values);
        // Those behind the last value did not fit, unless there is none: then none of them is held any more.
        let asked = &wanted[done..done + asked];
        let last = values.last().and_then(|value| asked.iter().position(|wanted| wanted.key == value.key));
        let answered = &asked[..last.map_or(asked.len(), |last| last + 1)];
        let handed_out: HashMap<_, _> = values.iter().map(|value| (value.key, value.stamp)).collect();
        let lacks =
            |wanted: &&Wanted| handed_out.get(&wanted.key[..]).is_none_or(|stamp| *stamp < wanted.stamp);
        answered.iter().filter(lacks).for_each(|wanted| cache.lack(wanted));
        done += answered.len();
    }
    Ok(taken)
}
