//! The control stream of a link: frames of their own, so that congestion of data never holds up a heartbeat.

use bytes::BytesMut;
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tidings_proto::frame::{Control, FrameError};

use crate::frames::take_within;
use crate::limits::CONTROL_FRAME_BYTES_MAX;

/// Bytes asked for in one read of a control stream.
const READ_BYTES: usize = 64 << 10;

/// Control frames are sent before everything else that waits on the connection.
const CONTROL_PRIORITY: i32 = 1;

/// A control stream cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The connection or the stream is gone.
    #[error("control stream")]
    Read(#[source] ReadError),
    /// The peer ended the stream.
    #[error("the peer ended the control stream")]
    Ended,
    /// What arrived is not a control frame. Nothing of it was acted on.
    #[error("control frame")]
    Frame(#[source] FrameError),
}

/// The sending half of a control stream.
#[derive(Debug)]
pub struct ControlSender(SendStream);

impl ControlSender {
    pub(crate) fn new(stream: SendStream) -> Self {
        // Fails only for a stream that is gone already, which the first write says.
        let _ = stream.set_priority(CONTROL_PRIORITY);
        Self(stream)
    }

    /// Sends a frame. Waits only while the peer grants no window.
    ///
    /// # Errors
    /// If the connection or the stream is gone.
    ///
    /// # Cancel safety
    /// Not cancel-safe: a part of the frame may have been sent, after which the stream is of no use.
    pub async fn send(&mut self, frame: &Control) -> Result<(), WriteError> {
        self.0.write_chunk(frame.encode().into()).await
    }

    /// The stream itself, for frames that are encoded already.
    pub fn stream(&mut self) -> &mut SendStream {
        &mut self.0
    }
}

/// The receiving half of a control stream.
#[derive(Debug)]
pub struct ControlReceiver {
    stream: RecvStream,
    buffer: BytesMut,
}

impl ControlReceiver {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next frame.
    ///
    /// # Errors
    /// [`ControlError`], after each of which the connection is of no use.
    ///
    /// # Cancel safety
    /// Cancel-safe: what has been read is kept.
    pub async fn recv(&mut self) -> Result<Control, ControlError> {
        loop {
            if let Some(frame) =
                take_within(&mut self.buffer, CONTROL_FRAME_BYTES_MAX).map_err(ControlError::Frame)?
            {
                return Control::decode(&frame).map_err(ControlError::Frame);
            }
            match self.stream.read_chunk(READ_BYTES, true).await.map_err(ControlError::Read)? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None => return Err(ControlError::Ended),
            }
        }
    }
}
