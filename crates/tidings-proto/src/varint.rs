//! Varints and length-prefixed blocks: what records are made of.

use smallvec::SmallVec;

/// A batch's or record's framing is broken: what follows it cannot be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsound batch: {0}")]
pub struct Unsound(pub(crate) &'static str);

/// Something that bytes can be appended to.
pub trait Extend8 {
    /// Appends them.
    fn put(&mut self, bytes: &[u8]);

    /// Appends the first of them.
    fn put_some(&mut self, bytes: [u8; 16], length: usize) {
        self.put(&bytes[..length]);
    }
}

impl Extend8 for bytes::BytesMut {
    /// Most keys have 16 to 32 bytes: those without a call, as two blocks of a known length that may overlap.
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        match (bytes.first_chunk::<16>(), bytes.last_chunk::<16>()) {
            (Some(head), Some(tail)) if bytes.len() <= 32 => {
                let tail_at = self.len() + bytes.len() - 16;
                self.extend_from_slice(head);
                self.truncate(tail_at);
                self.extend_from_slice(tail);
            }
            _ => self.extend_from_slice(bytes),
        }
    }

    /// All at once, which needs no loop, and the rest away again.
    #[inline]
    fn put_some(&mut self, bytes: [u8; 16], length: usize) {
        let end = self.len() + length;
        self.extend_from_slice(&bytes);
        self.truncate(end);
    }
}

impl<A: smallvec::Array<Item = u8>> Extend8 for SmallVec<A> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Longest varint, in bytes: 64 bits in groups of seven.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

pub(crate) fn put_varint(out: &mut impl Extend8, value: u64) {
    let mut bytes = [0_u8; VARINT_BYTES_MAX];
    let length = write_varint(&mut bytes, 0, value);
    out.put(&bytes[..length]);
}

/// Writes it at a position, and returns the position after it.
pub(crate) fn write_varint(out: &mut [u8], mut at: usize, mut value: u64) -> usize {
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

/// A varint of at most eight bytes in the low bytes of a word, and how many those are.
#[inline]
pub(crate) fn varint_word(mut value: u64) -> (u64, usize) {
    let (mut word, mut bytes) = (0, 0);
    while value >= 0x80 {
        word |= (value & 0x7f | 0x80) << (8 * bytes);
        value >>= 7;
        bytes += 1;
    }
    (word | value << (8 * bytes), bytes + 1)
}

/// The varint that a word begins with, and how many bytes it has; nothing if it is longer than the word. The groups of
/// seven bits are moved together in pairs, then in fours, then in eights.
#[inline]
pub(crate) fn word_varint(word: u64) -> Option<(u64, usize)> {
    const CONTINUED: u64 = 0x8080_8080_8080_8080;
    let last = !word & CONTINUED;
    if last == 0 {
        return None;
    }
    // All bits below that of the last byte which says that it is the last.
    let groups = word & (last ^ (last - 1)) & !CONTINUED;
    let pairs = groups & 0x007f_007f_007f_007f | (groups & 0x7f00_7f00_7f00_7f00) >> 1;
    let fours = pairs & 0x0000_3fff_0000_3fff | (pairs & 0x3fff_0000_3fff_0000) >> 2;
    let value = fours & 0x0fff_ffff | (fours & 0x0fff_ffff_0000_0000) >> 4;
    Some((value, last.trailing_zeros() as usize / 8 + 1))
}

pub(crate) fn put_block(out: &mut impl Extend8, block: &[u8]) {
    put_varint(out, block.len() as u64);
    out.put(block);
}

pub(crate) fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(crate) fn text(bytes: &[u8]) -> Result<&str, Unsound> {
    std::str::from_utf8(bytes).map_err(|_| Unsound("text is not UTF-8"))
}

#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn byte(&mut self) -> Result<u8, Unsound> {
        let (&byte, rest) = self.0.split_first().ok_or(Unsound("cut short"))?;
        self.0 = rest;
        Ok(byte)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Unsound> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Unsound("cut short"))?;
        self.0 = rest;
        Ok(*array)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Unsound> {
        // Nearly all are lengths and small distances.
        match self.0 {
            [byte @ ..0x80, rest @ ..] => {
                self.0 = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Unsound> {
        let mut value = 0_u64;
        for shift in (0..).step_by(7).take(VARINT_BYTES_MAX) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unsound("varint"))
    }

    /// A length and as many bytes.
    pub(crate) fn block(&mut self) -> Result<&'a [u8], Unsound> {
        let length = usize::try_from(self.varint()?).map_err(|_| Unsound("length"))?;
        let (block, rest) = self.0.split_at_checked(length).ok_or(Unsound("cut short"))?;
        self.0 = rest;
        Ok(block)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Unsound> {
        text(self.block()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_is_read_from_a_word_as_it_is_byte_by_byte(bits in 0_u32..64, noise: u64, after: [u8; 8]) {
            let value = noise >> bits;
            let mut bytes = SmallVec::<[u8; 32]>::new();
            put_varint(&mut bytes, value);
            let length = bytes.len();
            bytes.put(&after);
            let word = u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes and more"));
            prop_assert_eq!(word_varint(word), (length <= 8).then_some((value, length)));
        }

        #[test]
        fn bytes_of_any_length_are_put_behind_what_is_there(bytes: Vec<u8>, before in 0_usize..40) {
            let mut out = bytes::BytesMut::from(&vec![7; before][..]);
            out.put(&bytes);
            prop_assert_eq!(&out[..before], &vec![7; before][..]);
            prop_assert_eq!(&out[before..], &bytes[..]);
        }
    }
}
