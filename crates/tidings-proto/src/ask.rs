//! Questions that one member asks another, each on a stream of its own: one [`FrameType::Ask`] frame one way, one
//! [`FrameType::Answer`] frame the other. What they say beyond their first byte is the topic's own matter.
//!
//! ```text
//! Ask:    topic: u8 | question
//! Answer: 0         | answer
//!         code: u8        why there is none
//! ```

use bytes::Bytes;

use crate::frame::{FrameType, HEADER_BYTES, RawFrame, header};

/// Longest question, in bytes: three of the longest keys, or a page of an audit.
pub const QUESTION_BYTES_MAX: usize = 16 << 10;

/// Longest answer, in bytes: the longest value that a record may carry.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Topic {
    /// Who loads a key.
    Lease = 1,
    /// Which entries a member holds, and what of.
    Audit = 2,
    /// The entries themselves.
    Copy = 3,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 3] = [Self::Lease, Self::Audit, Self::Copy];
}

/// Why a question gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Declined {
    /// This release, or this node as it is set up, does not answer such questions.
    #[error("such questions are not answered there")]
    Unknown = 1,
    /// Too many questions are open.
    #[error("too many questions are open there")]
    Busy = 2,
    /// The question makes no sense, or its answer could not be made.
    #[error("the question could not be answered")]
    Failed = 3,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What about; `None` for a topic of a later release.
    pub topic: Option<Topic>,
    /// In the topic's own words.
    pub body: Bytes,
}

/// The frame of a question.
#[must_use]
pub fn question(topic: Topic, body: &[u8]) -> Bytes {
    framed(FrameType::Ask, topic as u8, body)
}

/// The frame of an answer.
#[must_use]
pub fn answer(answer: Result<&[u8], Declined>) -> Bytes {
    match answer {
        Ok(body) => framed(FrameType::Answer, 0, body),
        Err(declined) => framed(FrameType::Answer, declined as u8, &[]),
    }
}

fn framed(kind: FrameType, first: u8, body: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(HEADER_BYTES + 1 + body.len());
    frame.extend_from_slice(&header(kind, 1 + body.len()));
    frame.push(first);
    frame.extend_from_slice(body);
    frame.into()
}

/// The question in a frame; `None` if it holds none.
#[must_use]
pub fn read_question(frame: RawFrame) -> Option<Question> {
    let (first, body) = split(frame, FrameType::Ask)?;
    Some(Question { topic: Topic::ALL.into_iter().find(|topic| *topic as u8 == first), body })
}

/// The answer in a frame; `None` if it holds none. A reason of a later release counts as [`Declined::Failed`].
#[must_use]
pub fn read_answer(frame: RawFrame) -> Option<Result<Bytes, Declined>> {
    let (first, body) = split(frame, FrameType::Answer)?;
    Some(match first {
        0 => Ok(body),
        1 => Err(Declined::Unknown),
        2 => Err(Declined::Busy),
        _ => Err(Declined::Failed),
    })
}

fn split(frame: RawFrame, kind: FrameType) -> Option<(u8, Bytes)> {
    let mut body = frame.body.freeze();
    (frame.kind == kind && !body.is_empty()).then(|| (body.split_to(1)[0], body))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::frame::take;

    fn frame(bytes: &[u8]) -> RawFrame {
        take(&mut BytesMut::from(bytes)).unwrap().unwrap()
    }

    #[test]
    fn questions_and_answers_look_like_this() {
        let asked = question(Topic::Audit, b"who");
        assert_eq!(&asked[..], [1, 131, 4, 0, 0, 0, 2, b'w', b'h', b'o']);
        let body = Bytes::from_static(b"who");
        assert_eq!(read_question(frame(&asked)), Some(Question { topic: Some(Topic::Audit), body }));
        let answered = answer(Ok(b"me"));
        assert_eq!(&answered[..], [1, 132, 3, 0, 0, 0, 0, b'm', b'e']);
        assert_eq!(read_answer(frame(&answered)), Some(Ok(Bytes::from_static(b"me"))));
        for declined in [Declined::Unknown, Declined::Busy, Declined::Failed] {
            assert_eq!(read_answer(frame(&answer(Err(declined)))), Some(Err(declined)));
        }
    }

    #[test]
    fn what_a_later_release_says_is_understood_as_far_as_it_goes() {
        let topic = read_question(frame(&[1, 131, 2, 0, 0, 0, 99, 7])).unwrap().topic;
        assert_eq!(topic, None);
        assert_eq!(read_answer(frame(&[1, 132, 1, 0, 0, 0, 200])), Some(Err(Declined::Failed)));
    }

    #[test]
    fn an_empty_frame_and_another_kind_are_neither() {
        assert_eq!(read_question(frame(&[1, 131, 0, 0, 0, 0])), None);
        assert_eq!(read_question(frame(&answer(Ok(b"me")))), None);
        assert_eq!(read_answer(frame(&question(Topic::Copy, b""))), None);
    }
}
