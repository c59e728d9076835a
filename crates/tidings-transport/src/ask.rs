//! Asking a peer a question, on a stream of its own, and answering one. What is asked yields to control and lanes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use tidings_proto::ask::{self, ANSWER_BYTES_MAX, Declined, QUESTION_BYTES_MAX, Topic};
use tidings_proto::frame::{FrameError, RawFrame};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::frames::take_within;
use crate::limits::{ANSWERS_BYTES, ANSWERS_HELD_BYTES};
use crate::link::Link;

/// Bytes asked for in one read.
const READ_BYTES: usize = 64 << 10;

/// Questions and answers are sent when nothing else waits on the connection.
const PRIORITY: i32 = -1;

/// A question got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// It is longer than [`QUESTION_BYTES_MAX`].
    #[error("a question of {0} bytes exceeds {QUESTION_BYTES_MAX}")]
    TooLong(usize),
    /// The node has no link.
    #[error("no link to that node")]
    Unlinked,
    /// As many questions to this peer as may be open are.
    #[error("too many questions to that node are open")]
    Busy,
    /// The peer said why not.
    #[error(transparent)]
    Declined(#[from] Declined),
    /// There was no answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The connection or the stream is gone.
    #[error("connection to that node")]
    Connection(#[from] ConnectionError),
    /// The peer stopped reading the question.
    #[error("the question was not read")]
    Write(#[from] WriteError),
    /// The peer ended its answer early.
    #[error("the answer broke off")]
    Read(#[source] Option<ReadError>),
    /// What came is no answer. The stream is of no use, the link is.
    #[error("the answer cannot be read")]
    Frame(#[source] Option<FrameError>),
}

impl Link {
    /// Asks the peer a question and waits for the answer.
    ///
    /// # Errors
    /// [`AskError`]. At most [`crate::limits::QUESTIONS_MAX`] questions to a peer are open at once; one more is
    /// refused at once with [`AskError::Busy`].
    ///
    /// # Cancel safety
    /// Cancel-safe: the peer is told that nobody waits any more, and stops.
    pub async fn ask(&self, topic: Topic, body: &[u8], within: Duration) -> Result<Bytes, AskError> {
        if body.len() > QUESTION_BYTES_MAX {
            return Err(AskError::TooLong(body.len()));
        }
        let _open = self.questions.try_acquire().map_err(|_| AskError::Busy)?;
        let exchange = async {
            let (mut send, receive) = self.connection.open_bi().await?;
            // Fails only for a stream that is gone already, which the write says.
            let _ = send.set_priority(PRIORITY);
            send.write_chunk(ask::question(topic, body)).await?;
            let answer = read_answer(receive).await?;
            Ok(answer?)
        };
        tokio::time::timeout(within, exchange).await.unwrap_or(Err(AskError::Late(within)))
    }
}

async fn read_answer(mut receive: RecvStream) -> Result<Result<Bytes, Declined>, AskError> {
    let mut buffer = BytesMut::new();
    loop {
        let frame =
            take_within(&mut buffer, 1 + ANSWER_BYTES_MAX).map_err(|error| AskError::Frame(Some(error)))?;
        if let Some(frame) = frame {
            return ask::read_answer(frame).ok_or(AskError::Frame(None));
        }
        match receive.read_chunk(READ_BYTES, true).await.map_err(|error| AskError::Read(Some(error)))? {
            Some(chunk) => buffer.extend_from_slice(&chunk.bytes),
            None => return Err(AskError::Read(None)),
        }
    }
}

/// What answers to one peer may take up: how many at once, how many bytes that are held, and of those on their way.
#[derive(Debug)]
pub(crate) struct Answers {
    open: Semaphore,
    held: Semaphore,
    bytes: Semaphore,
}

impl Default for Answers {
    fn default() -> Self {
        let semaphore = |bytes| Semaphore::new(bytes as usize);
        Self { open: questions(), held: semaphore(ANSWERS_HELD_BYTES), bytes: semaphore(ANSWERS_BYTES) }
    }
}

impl Answers {
    /// Has an answer made once there is room for the longest one, and gives back what it does not take.
    async fn make<F>(
        &self,
        answer: impl FnOnce() -> F,
    ) -> (Result<Bytes, Declined>, Option<SemaphorePermit<'_>>)
    where
        F: Future<Output = Result<Bytes, Declined>>,
    {
        let Ok(mut room) = self.held.acquire_many(ANSWER_BYTES_MAX as u32).await else {
            return (Err(Declined::Failed), None);
        };
        let made = answer().await;
        let taken = made.as_ref().map_or(0, Bytes::len);
        // One that is longer is none.
        let Some(taken) = room.split(taken) else { return (Err(Declined::Failed), None) };
        (made, Some(taken))
    }
}

/// A place for each question that may be open.
pub(crate) fn questions() -> Semaphore {
    Semaphore::new(usize::from(crate::limits::QUESTIONS_MAX))
}

/// Answers a peer's question with what `answer` makes of it, or stops when nobody waits for it any more. `None` if the
/// frame is no question.
///
/// The peer counts its questions by those that it waits for. One that it has just given up may still be open here, so
/// beyond the bound it is told that this node is busy.
pub(crate) async fn answer<F>(
    frame: RawFrame,
    mut send: SendStream,
    answers: &Answers,
    answer: impl FnOnce(Topic, Bytes) -> F,
) -> Option<()>
where
    F: Future<Output = Result<Bytes, Declined>>,
{
    let question = ask::read_question(frame)?;
    let open = answers.open.try_acquire();
    let gone = send.stopped();
    let placed = async {
        let (made, room) = match (question.topic, &open) {
            (_, Err(_)) => (Err(Declined::Busy), None),
            (None, _) => (Err(Declined::Unknown), None),
            (Some(topic), _) => answers.make(|| answer(topic, question.body)).await,
        };
        let bytes = made.as_ref().map_or(0, Bytes::len) as u32;
        let window = answers.bytes.acquire_many(bytes.min(ANSWERS_BYTES)).await;
        (made, (room, window))
    };
    let (made, _places) = tokio::select! {
        placed = placed => placed,
        _ = gone => return Some(()),
    };
    let _ = send.set_priority(PRIORITY);
    // Nobody waits for what cannot be written, and there is nobody else to tell.
    let frame = ask::answer(made.as_deref().map_err(|declined| *declined));
    drop(made);
    if send.write_chunk(frame).await.is_ok() && send.finish().is_ok() {
        // What it takes up is free again once the peer has it.
        let _ = send.stopped().await;
    }
    Some(())
}
