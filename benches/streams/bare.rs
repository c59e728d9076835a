//! What the store is compared with: the same bytes and as many syncs, and nothing else.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::Path;

use anyhow::Result;
use bytes::Bytes;

/// What a record takes beside its payload, as the store writes it: a frame's header, number, moment, version and an empty
/// event's header.
const OVERHEAD_BYTES: usize = 48;

/// Bytes that are read at once, as the store reads them.
const READ_BYTES: usize = 32 << 10;

/// Bytes of bookkeeping for an event that is taken, and for one that is settled.
const BOOKED_BYTES: usize = 32;

fn appended(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().create(true).append(true).open(path)?)
}

/// Writes so many batches, and syncs each.
pub(crate) fn publish(path: &Path, batches: usize, batch: usize, payload: usize) -> Result<()> {
    let mut file = appended(path)?;
    let record = vec![7; payload + OVERHEAD_BYTES];
    for _ in 0..batches {
        let mut buffer = Vec::new();
        (0..batch).for_each(|_| buffer.extend_from_slice(&record));
        file.write_all(&buffer)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Writes records that [`consume`] reads.
pub(crate) fn fill(path: &Path, events: usize, payload: usize) -> Result<()> {
    let mut buffer = Vec::new();
    for number in 0..events as u64 {
        buffer.extend_from_slice(&number.to_le_bytes());
        buffer.resize(buffer.len() + payload + OVERHEAD_BYTES - size_of::<u64>(), 7);
    }
    let mut file = appended(path)?;
    file.write_all(&buffer)?;
    file.sync_data()?;
    Ok(())
}

/// Scans them, and keeps books of what is taken and settled by batches, each of them written and synced.
pub(crate) fn consume(events: &Path, books: &Path, batch: usize, payload: usize) -> Result<usize> {
    let mut reader = BufReader::with_capacity(READ_BYTES, File::open(events)?);
    let mut books = appended(books)?;
    let mut open = BTreeMap::new();
    let mut record = vec![0; payload + OVERHEAD_BYTES];
    let mut read = 0;
    loop {
        let (mut taken, mut book) = (Vec::new(), Vec::new());
        while taken.len() < batch && reader.read_exact(&mut record).is_ok() {
            let (number, rest) = record.split_at(size_of::<u64>());
            let number = u64::from_le_bytes(number.try_into()?);
            taken.push((number, Bytes::copy_from_slice(&rest[OVERHEAD_BYTES - size_of::<u64>()..])));
            open.insert(number, 1_u32);
            book.extend_from_slice(&[number as u8; BOOKED_BYTES]);
        }
        if taken.is_empty() {
            return Ok(read);
        }
        books.write_all(&book)?;
        books.sync_data()?;
        book.clear();
        read += taken.len();
        for (number, payload) in taken {
            open.remove(&number);
            book.extend_from_slice(&[payload[0]; BOOKED_BYTES]);
        }
        books.write_all(&book)?;
        books.sync_data()?;
    }
}
