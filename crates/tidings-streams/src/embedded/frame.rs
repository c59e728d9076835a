//! Frames: how a record lies in a file, so that each one proves itself.
//!
//! A frame is a mark of four bytes, the body's length, a check of the length, a checksum, and the body. Both checks cover
//! the place in the file, and the file's salt, which is chance and nobody's who publishes: neither a copy of a frame nor
//! one that was made up is mistaken for one where it lies in a payload. So a reader that meets damage looks for the next
//! mark and goes on there, and reads no body for a mark that has no length beside it.

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::disk::Data;

/// What a frame begins with. No text has the first byte.
const MARK: [u8; 4] = [0xf5, b't', b's', 1];

/// Mark, length, its check, and checksum.
pub(super) const HEADER_BYTES: usize = 20;

/// Longest body: the largest event with all that may go with it, and a page of a group's state.
pub(super) const BODY_BYTES_MAX: usize = (1 << 20) + (128 << 10);

/// What is read of a file at once. Several events, and not more than a look at one of them should cost.
pub(super) const READ_BYTES: usize = 32 << 10;

/// What makes the frames of a file differ from those of every other: where it belongs, and chance.
pub(super) fn salt(directory: &str, first: u64, chance: u64) -> u64 {
    xxh3_64_with_seed(directory.as_bytes(), first ^ chance)
}

/// What makes a frame differ from a copy of it elsewhere.
fn place(salt: u64, offset: u64) -> u64 {
    salt ^ xxh3_64(&offset.to_le_bytes())
}

fn length_check(length: [u8; 4], place: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = xxh3_64_with_seed(&length, place).to_le_bytes();
    [a, b, c, d]
}

/// Appends a frame to what goes to a file at `offset`: the place of the buffer's end. The frame's size.
pub(super) fn append(out: &mut Vec<u8>, salt: u64, offset: u64, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
    let start = out.len();
    out.extend_from_slice(&MARK);
    out.extend_from_slice(&[0; HEADER_BYTES - MARK.len()]);
    write(out);
    let length = out.len() - start - HEADER_BYTES;
    assert!(length <= BODY_BYTES_MAX, "what is stored was judged to fit: {length} bytes");
    let place = place(salt, offset);
    let sum = xxh3_64_with_seed(&out[start + HEADER_BYTES..], place);
    let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&prefix);
    out[start + 8..start + 12].copy_from_slice(&length_check(prefix, place));
    out[start + 12..start + HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    (HEADER_BYTES + length) as u64
}

/// What a walk through a file meets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    /// A frame that proves itself. [`Walker::body`] has what it holds.
    Frame {
        /// Where it begins.
        offset: u64,
        /// Of what it holds.
        length: usize,
    },
    /// Bytes that are no frame.
    Damage {
        /// Where they begin.
        offset: u64,
        /// How many.
        bytes: u64,
        /// How many frames seem to have begun among them; one at least.
        marks: u64,
    },
}

/// Goes through the frames of a file, and over what is none.
#[derive(Debug)]
pub(super) struct Walker {
    file: Arc<dyn Data>,
    salt: u64,
    end: u64,
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl Walker {
    /// From an offset, which need not be a frame's, to the end that is given.
    pub(super) fn new(file: Arc<dyn Data>, salt: u64, at: u64, end: u64) -> Self {
        Self { file, salt, end, at, buffer: Vec::new(), buffer_at: at }
    }

    /// Where the next frame begins, if there is no damage.
    pub(super) fn offset(&self) -> u64 {
        self.at
    }

    /// Where it ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Goes on from elsewhere.
    pub(super) fn jump(&mut self, at: u64) {
        self.at = at;
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let offset = self.at;
        if let Some(length) = self.frame_at(offset)? {
            self.at += (HEADER_BYTES + length) as u64;
            return Ok(Some(Found::Frame { offset, length }));
        }
        let mut marks = 0;
        let mut probe = offset;
        while let Some(mark) = self.mark_from(probe)? {
            if mark > offset && self.frame_at(mark)?.is_some() {
                self.at = mark;
                return Ok(Some(Found::Damage { offset, bytes: mark - offset, marks: marks.max(1) }));
            }
            marks += 1;
            probe = mark + 1;
        }
        self.at = self.end;
        Ok(Some(Found::Damage { offset, bytes: self.end - offset, marks: marks.max(1) }))
    }

    /// What the frame holds that was found last.
    pub(super) fn body(&self, offset: u64, length: usize) -> &[u8] {
        let start = usize::try_from(offset - self.buffer_at).unwrap_or(usize::MAX) + HEADER_BYTES;
        &self.buffer[start..start + length]
    }

    /// The length of the body of the frame there, if it is one.
    fn frame_at(&mut self, offset: u64) -> io::Result<Option<usize>> {
        let place = place(self.salt, offset);
        let Some(header) = self.bytes(offset, HEADER_BYTES)? else { return Ok(None) };
        let (mark, rest) = header.split_at(MARK.len());
        let prefix: [u8; 4] = rest[..4].try_into().expect("four bytes");
        if mark != MARK || rest[4..8] != length_check(prefix, place) {
            return Ok(None);
        }
        let length = u32::from_le_bytes(prefix) as usize;
        let sum = u64::from_le_bytes(rest[8..].try_into().expect("eight bytes"));
        if length > BODY_BYTES_MAX {
            return Ok(None);
        }
        let Some(frame) = self.bytes(offset, HEADER_BYTES + length)? else { return Ok(None) };
        Ok((xxh3_64_with_seed(&frame[HEADER_BYTES..], place) == sum).then_some(length))
    }

    /// The first mark at or after an offset.
    fn mark_from(&mut self, mut offset: u64) -> io::Result<Option<u64>> {
        while self.bytes(offset, MARK.len())?.is_some() {
            // All that is held is looked at before more is read, however many marks there are.
            let held = &self.buffer[usize::try_from(offset - self.buffer_at).unwrap_or(usize::MAX)..];
            if let Some(found) = held.windows(MARK.len()).position(|four| four == MARK) {
                return Ok(Some(offset + found as u64));
            }
            // A mark may lie across the edge.
            offset += (held.len() - (MARK.len() - 1)) as u64;
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A file that counts what is read of it.
    #[derive(Debug, Default)]
    struct Counted {
        bytes: Vec<u8>,
        read: AtomicUsize,
    }

    impl Data for Counted {
        fn length(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.read.fetch_add(buffer.len(), Ordering::Relaxed);
            buffer.copy_from_slice(&self.bytes[offset as usize..][..buffer.len()]);
            Ok(())
        }

        fn write_all_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

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
        let (bodies, damage, _) = counted(bytes);
        (bodies, damage)
    }

    fn counted(bytes: &[u8]) -> (Vec<Vec<u8>>, u64, usize) {
        let file = Arc::new(Counted { bytes: bytes.to_vec(), read: AtomicUsize::new(0) });
        let mut walker = Walker::new(Arc::clone(&file) as Arc<dyn Data>, 7, 0, bytes.len() as u64);
        let (mut bodies, mut damage) = (Vec::new(), 0);
        while let Some(found) = walker.next().unwrap() {
            match found {
                Found::Frame { offset, length } => bodies.push(walker.body(offset, length).to_vec()),
                Found::Damage { bytes, .. } => damage += bytes,
            }
        }
        (bodies, damage, file.read.load(Ordering::Relaxed))
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
    fn marks_in_a_damaged_payload_cost_no_more_than_its_bytes() {
        // What looks like the beginning of a frame as long as can be, again and again.
        let length = u32::try_from(BODY_BYTES_MAX).unwrap().to_le_bytes();
        let payload = [MARK, length].concat().repeat(1 << 16);
        let (mut whole, _) = written(&[&payload, b"after"]);
        whole[HEADER_BYTES] ^= 1;
        let (bodies, _, read) = counted(&whole);
        assert_eq!(bodies, [b"after".to_vec()]);
        assert!(read < 8 * whole.len(), "{read} bytes were read of {}", whole.len());
    }

    #[test]
    fn a_frame_that_was_made_for_its_place_and_not_for_its_file_is_none() {
        let mut forged = Vec::new();
        append(&mut forged, 8, (HEADER_BYTES) as u64, |out| out.extend_from_slice(b"forged"));
        let (mut whole, _) = written(&[&forged, b"after"]);
        whole[4] ^= 1;
        assert_eq!(walked(&whole).0, [b"after".to_vec()]);
        assert_ne!(salt("orders", 1, 5), salt("orders", 1, 6));
    }

    #[test]
    fn frames_larger_than_a_read_are_whole() {
        let large = vec![9; READ_BYTES * 3 + 5];
        let (whole, _) = written(&[b"before", &large, b"after"]);
        assert_eq!(walked(&whole), (vec![b"before".to_vec(), large, b"after".to_vec()], 0));
    }
}
