//! Frames: how a record lies in a file, so that each one proves itself.
//!
//! A frame is a mark of four bytes, the body's length, a checksum, and the body. The checksum covers the place in the
//! file and which file it is: a copy of a frame that somebody published as a payload is not mistaken for one. So a
//! reader that meets damage looks for the next mark and goes on there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What a frame begins with. No text has the first byte.
const MARK: [u8; 4] = [0xf5, b't', b's', 1];

/// Mark, length and checksum.
pub(super) const HEADER_BYTES: usize = 16;

/// Longest body: the largest event with all that may go with it, and a page of a group's state.
pub(super) const BODY_BYTES_MAX: usize = (1 << 20) + (128 << 10);

/// What is read of a file at once. Several events, and not more than a look at one of them should cost.
const READ_BYTES: usize = 32 << 10;

/// What makes the frames of a file differ from those of every other.
pub(super) fn salt(directory: &str, first: u64) -> u64 {
    xxh3_64_with_seed(directory.as_bytes(), first)
}

fn checksum(body: &[u8], salt: u64, offset: u64) -> u64 {
    xxh3_64_with_seed(body, salt ^ xxh3_64(&offset.to_le_bytes()))
}

/// Appends a frame to what goes to a file at `offset`: the place of the buffer's end. The frame's size.
pub(super) fn append(out: &mut Vec<u8>, salt: u64, offset: u64, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
    let start = out.len();
    out.extend_from_slice(&MARK);
    out.extend_from_slice(&[0; HEADER_BYTES - MARK.len()]);
    write(out);
    let length = out.len() - start - HEADER_BYTES;
    assert!(length <= BODY_BYTES_MAX, "what is stored was judged to fit: {length} bytes");
    let sum = checksum(&out[start + HEADER_BYTES..], salt, offset);
    out[start + 4..start + 8].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    out[start + 8..start + HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    (HEADER_BYTES + length) as u64
}

/// What a walk through a file meets.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// A frame that proves itself.
    Frame {
        /// Where it begins.
        offset: u64,
        /// What it holds.
        body: &'a [u8],
    },
    /// Bytes that are no frame.
    Damage {
        /// How many.
        bytes: u64,
        /// How many frames seem to have begun among them; one at least.
        marks: u64,
    },
}

/// Goes through the frames of a file, and over what is none.
#[derive(Debug)]
pub(super) struct Walker {
    file: File,
    salt: u64,
    end: u64,
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl Walker {
    /// From an offset, which need not be a frame's, to the end that is given.
    pub(super) fn new(file: File, salt: u64, at: u64, end: u64) -> Self {
        Self { file, salt, end, at, buffer: Vec::new(), buffer_at: at }
    }

    /// Where the next frame begins, if there is no damage.
    pub(super) fn offset(&self) -> u64 {
        self.at
    }

    /// Goes on from elsewhere.
    pub(super) fn jump(&mut self, at: u64) {
        self.at = at;
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Found<'_>>> {
        if self.at >= self.end {
            return Ok(None);
        }
        if let Some(length) = self.frame_at(self.at)? {
            let offset = self.at;
            let start = usize::try_from(offset - self.buffer_at).unwrap_or(usize::MAX) + HEADER_BYTES;
            self.at += (HEADER_BYTES + length) as u64;
            return Ok(Some(Found::Frame { offset, body: &self.buffer[start..start + length] }));
        }
        let from = self.at;
        let mut marks = 0;
        let mut probe = from;
        while let Some(mark) = self.mark_from(probe)? {
            if mark > from && self.frame_at(mark)?.is_some() {
                self.at = mark;
                return Ok(Some(Found::Damage { bytes: mark - from, marks: marks.max(1) }));
            }
            marks += 1;
            probe = mark + 1;
        }
        self.at = self.end;
        Ok(Some(Found::Damage { bytes: self.end - from, marks: marks.max(1) }))
    }

    /// The length of the body of the frame there, if it is one.
    fn frame_at(&mut self, offset: u64) -> io::Result<Option<usize>> {
        let Some(header) = self.bytes(offset, HEADER_BYTES)? else { return Ok(None) };
        if header[..4] != MARK {
            return Ok(None);
        }
        let length = u32::from_le_bytes(header[4..8].try_into().expect("four bytes")) as usize;
        let sum = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        if length > BODY_BYTES_MAX {
            return Ok(None);
        }
        let salt = self.salt;
        let Some(frame) = self.bytes(offset, HEADER_BYTES + length)? else { return Ok(None) };
        Ok((checksum(&frame[HEADER_BYTES..], salt, offset) == sum).then_some(length))
    }

    /// The first mark at or after an offset.
    fn mark_from(&mut self, mut offset: u64) -> io::Result<Option<u64>> {
        while offset < self.end {
            let there = (self.end - offset).min(READ_BYTES as u64);
            let window = usize::try_from(there).unwrap_or(READ_BYTES);
            let Some(bytes) = self.bytes(offset, window)? else { return Ok(None) };
            if let Some(found) = bytes.windows(MARK.len()).position(|four| four == MARK) {
                return Ok(Some(offset + found as u64));
            }
            // A mark may lie across the edge.
            offset += (window.saturating_sub(MARK.len() - 1)).max(1) as u64;
        }
        Ok(None)
    }

    /// So many bytes of the file, if there are so many.
    fn bytes(&mut self, offset: u64, length: usize) -> io::Result<Option<&[u8]>> {
        if offset + length as u64 > self.end {
            return Ok(None);
        }
        let held = self.buffer_at..self.buffer_at + self.buffer.len() as u64;
        if offset < held.start || offset + length as u64 > held.end {
            let wanted = (self.end - offset).min(length.max(READ_BYTES) as u64);
            self.buffer.resize(usize::try_from(wanted).unwrap_or(length), 0);
            self.buffer_at = offset;
            if let Err(error) = self.file.read_exact_at(&mut self.buffer, offset) {
                self.buffer.clear();
                return Err(error);
            }
        }
        let start = usize::try_from(offset - self.buffer_at).unwrap_or(usize::MAX);
        Ok(Some(&self.buffer[start..start + length]))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn written(bodies: &[&[u8]]) -> (Vec<u8>, Vec<u64>) {
        let (mut out, mut offsets) = (Vec::new(), Vec::new());
        for body in bodies {
            offsets.push(out.len() as u64);
            let offset = out.len() as u64;
            append(&mut out, 7, offset, |out| out.extend_from_slice(body));
        }
        (out, offsets)
    }

    fn walked(bytes: &[u8]) -> (Vec<Vec<u8>>, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut walker = Walker::new(file, 7, 0, bytes.len() as u64);
        let (mut bodies, mut damage) = (Vec::new(), 0);
        while let Some(found) = walker.next().unwrap() {
            match found {
                Found::Frame { body, .. } => bodies.push(body.to_vec()),
                Found::Damage { bytes, .. } => damage += bytes,
            }
        }
        (bodies, damage)
    }

    #[test]
    fn every_flipped_bit_hides_its_own_frame_alone() {
        let bodies: [&[u8]; 4] = [b"first", b"", b"third, longer", b"last"];
        let (whole, offsets) = written(&bodies);
        for place in 0..whole.len() {
            let hit = offsets.iter().rposition(|offset| *offset <= place as u64).unwrap();
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[place] ^= 1 << bit;
                let left: Vec<Vec<u8>> =
                    (0..4).filter(|frame| *frame != hit).map(|frame| bodies[frame].to_vec()).collect();
                let (found, damage) = walked(&flipped);
                assert_eq!(found, left, "bit {bit} of byte {place}");
                assert!(damage > 0, "bit {bit} of byte {place}");
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_keeps_what_was_before() {
        let bodies: [&[u8]; 3] = [b"first", b"second", b"third"];
        let (whole, offsets) = written(&bodies);
        for length in 0..whole.len() {
            let kept = offsets.iter().skip(1).filter(|offset| **offset <= length as u64).count();
            let (found, damage) = walked(&whole[..length]);
            assert_eq!(found.len(), kept, "{length} bytes");
            assert_eq!(damage == 0, offsets.contains(&(length as u64)), "{length} bytes");
        }
    }

    #[test]
    fn a_frame_inside_a_payload_is_not_taken_for_one() {
        let (inner, _) = written(&[b"inner"]);
        let (mut whole, _) = written(&[&inner, b"after"]);
        whole[20] ^= 1;
        assert_eq!(walked(&whole).0, [b"after".to_vec()]);
    }

    #[test]
    fn frames_larger_than_a_read_are_whole() {
        let large = vec![9; READ_BYTES * 3 + 5];
        let (whole, _) = written(&[b"before", &large, b"after"]);
        assert_eq!(walked(&whole), (vec![b"before".to_vec(), large, b"after".to_vec()], 0));
    }
}
