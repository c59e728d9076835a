//! Cutting frames out of a stream that has a limit of its own: how long a frame may be depends on what may come.

use bytes::BytesMut;
use tidings_proto::frame::{FrameError, HEADER_BYTES, PROTOCOL_VERSION, RawFrame, take};

/// As [`take`], for a stream on which no body is longer than `most`. A longer one is refused by its header, before
/// anything is kept for it.
pub(crate) fn take_within(buffer: &mut BytesMut, most: usize) -> Result<Option<RawFrame>, FrameError> {
    loop {
        let Some(&[version, _, a, b, c, d]) = buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if version == PROTOCOL_VERSION && length > most {
            return Err(FrameError::TooLong(length));
        }
        // Alone, for what follows a frame that is skipped is not judged yet.
        let mut first = buffer.split_to(buffer.len().min(HEADER_BYTES.saturating_add(length)));
        let frame = take(&mut first)?;
        if frame.is_some() {
            return Ok(frame);
        }
        if !first.is_empty() {
            // Not whole yet, so that it was all there is.
            *buffer = first;
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::frame::{Control, FrameType, header};

    use super::*;

    #[test]
    fn a_body_beyond_the_limit_is_refused_by_its_header() {
        for length in [65, 1 << 20, u32::MAX as usize] {
            let mut buffer = BytesMut::from(&header(FrameType::Follow, length)[..]);
            assert!(matches!(take_within(&mut buffer, 64), Err(FrameError::TooLong(long)) if long == length));
        }
        let mut buffer = BytesMut::from(&b"GET / HTTP/1.1"[..]);
        assert!(matches!(take_within(&mut buffer, 64), Err(FrameError::Version(b'G'))));
    }

    #[test]
    fn frames_come_out_whole_in_any_pieces_and_what_may_be_skipped_is() {
        let mut sent = Control::Ack(1).encode();
        sent.extend([PROTOCOL_VERSION, 200, 3, 0, 0, 0, 9, 9, 9]);
        sent.extend(Control::Ack(2).encode());
        for piece in 1..sent.len() {
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for bytes in sent.chunks(piece) {
                buffer.extend_from_slice(bytes);
                while let Some(frame) = take_within(&mut buffer, 64).unwrap() {
                    got.push(Control::decode(&frame).unwrap());
                }
            }
            assert_eq!((got, buffer.len()), (vec![Control::Ack(1), Control::Ack(2)], 0));
        }
    }

    #[test]
    fn a_long_frame_behind_one_that_is_skipped_is_refused_too() {
        let mut buffer = BytesMut::from(&[PROTOCOL_VERSION, 200, 0, 0, 0, 0][..]);
        buffer.extend_from_slice(&header(FrameType::Ack, 65));
        assert!(matches!(take_within(&mut buffer, 64), Err(FrameError::TooLong(65))));
    }
}
