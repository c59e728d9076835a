//! Reading one record.

use super::{
    HAS_METADATA, HAS_MORE, HAS_VALUE, HAS_VERSION, HEAD_BYTES, IGNORABLE, KEY_BYTES_MAX, Keys, Metadata,
    Opaque, Record, Target, more,
};
use crate::event::{EventKind, Operation};
use crate::hash::CacheId;
use crate::hlc::Stamp;
use crate::id::Slot;
use crate::varint::{Reader, Unsound, text, word_varint};

/// A plain record's bits of the first byte beside its kind: it names one key.
const NOT_PLAIN: u8 = !(0x0f | IGNORABLE);
/// Flags that announce something further.
const FURTHER: u8 = 0xf0;

/// Reads what follows a record's length.
#[inline]
pub(super) fn parse(body: &[u8], base: Stamp) -> Result<Result<Record<'_>, Opaque>, Unsound> {
    match parse_plain(body, base) {
        Some(record) => Ok(Ok(record)),
        None => parse_any(body, base),
    }
}

/// Reads a record that says of one key what happened to it, and when, and nothing further: by words, for nearly all are
/// such. Nothing of any other, of one that is too short to be read so, and of one that is broken.
#[inline]
fn parse_plain(body: &[u8], base: Stamp) -> Option<Record<'_>> {
    let [kind, a, b, c, d, slot, flags] = *body.first_chunk::<HEAD_BYTES>()?;
    let (delta, bytes) = word_varint(u64::from_le_bytes(*body[HEAD_BYTES..].first_chunk()?))?;
    let key = body.get(HEAD_BYTES + bytes..)?;
    if kind & NOT_PLAIN | flags & FURTHER != 0 || key.len() > KEY_BYTES_MAX {
        return None;
    }
    Some(Record {
        kind: EventKind::of(kind & 0x0f)?,
        operation: Operation::of(flags)?,
        cache: CacheId(u32::from_le_bytes([a, b, c, d])),
        slot: Slot::new(slot)?,
        stamp: Stamp(base.0.checked_add(delta)?),
        schema: 0,
        version: None,
        metadata: Metadata::default(),
        value: None,
        target: Target::Key(key),
        uncertain: false,
    })
}

fn parse_any(body: &[u8], base: Stamp) -> Result<Result<Record<'_>, Opaque>, Unsound> {
    let mut reader = Reader(body);
    let kind = reader.byte()?;
    let cache = CacheId(u32::from_le_bytes(reader.array()?));
    let slot = Slot::new(reader.byte()?).ok_or(Unsound("no such slot"))?;
    let ignorable = kind & IGNORABLE != 0;
    let Some(known) = EventKind::of(kind & 0x0f) else {
        return Ok(Err(Opaque { ignorable, cache, unknown_kind: Some(kind & 0x0f) }));
    };
    let record = parse_body(reader, known, kind >> 5, cache, slot, base);
    Ok(record.map_err(|_| Opaque { ignorable: false, cache, unknown_kind: None }))
}

fn parse_body<'a>(
    mut reader: Reader<'a>,
    kind: EventKind,
    target: u8,
    cache: CacheId,
    slot: Slot,
    base: Stamp,
) -> Result<Record<'a>, Unsound> {
    let flags = reader.byte()?;
    let operation = Operation::of(flags & 0x0f).ok_or(Unsound("operation"))?;
    let stamp = Stamp(base.0.checked_add(reader.varint()?).ok_or(Unsound("stamp"))?);
    let more = if flags & HAS_MORE != 0 { more::read(&mut reader)? } else { more::More::default() };
    let version = if flags & HAS_VERSION != 0 { Some(reader.varint()?) } else { None };
    let metadata = Metadata(if flags & HAS_METADATA != 0 { reader.block()? } else { &[] });
    let mut pairs = Reader(metadata.0);
    while !pairs.0.is_empty() {
        pairs.text()?;
        pairs.text()?;
    }
    let value = if flags & HAS_VALUE != 0 { Some(reader.block()?) } else { None };
    let rest = reader.0;
    if !matches!(target, 1 | 5) && rest.len() > KEY_BYTES_MAX {
        return Err(Unsound("key length"));
    }
    let target = match target {
        0 => Target::Key(rest),
        1 | 5 => {
            let count = usize::try_from(reader.varint()?).map_err(|_| Unsound("count of keys"))?;
            let bytes = reader.0;
            for _ in 0..count {
                if reader.block()?.len() > KEY_BYTES_MAX {
                    return Err(Unsound("key length"));
                }
            }
            if !reader.0.is_empty() {
                return Err(Unsound("bytes left over"));
            }
            let keys = Keys { count, bytes };
            if target == 1 { Target::Keys(keys) } else { Target::MoreKeys(keys) }
        }
        2 => Target::Tag(text(rest)?),
        3 => Target::Prefix(text(rest)?),
        4 if rest.is_empty() => Target::All,
        _ => return Err(Unsound("target")),
    };
    let more::More { uncertain, schema } = more;
    Ok(Record { kind, operation, cache, slot, stamp, schema, version, metadata, value, target, uncertain })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_by_words_is_read_alike_byte_by_byte(
            kind in 0_u8..16,
            ignorable: bool,
            mut body: Vec<u8>,
            flags in 0_u8..32,
            base: u64,
        ) {
            if let Some(front) = body.first_chunk_mut::<HEAD_BYTES>() {
                front[0] = kind | if ignorable { IGNORABLE } else { 0 };
                front[HEAD_BYTES - 1] = flags;
            }
            if let Some(record) = parse_plain(&body, Stamp(base)) {
                prop_assert_eq!(parse_any(&body, Stamp(base)), Ok(Ok(record)));
            }
        }

        #[test]
        fn every_kind_is_known_by_its_number(byte: u8) {
            let named = EventKind::ALL.into_iter().find(|kind| *kind as u8 == byte);
            prop_assert_eq!(EventKind::of(byte), named);
        }
    }
}
