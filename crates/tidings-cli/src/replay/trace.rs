//! Reading request traces: `time_s,key,size_bytes` a line, plain or compressed with zstd.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::workload::Request;

/// Longest line, in bytes: a key of 4 KiB and two numbers, with room to spare.
const LINE_BYTES_MAX: u64 = 8 << 10;

/// Longest key, in bytes, as everywhere in tidings.
const KEY_BYTES_MAX: usize = 4 << 10;

/// Latest time of a request, in seconds: a year. Whatever is later is a date, and would be waited for.
const TIME_MAX_S: f64 = 366.0 * 24.0 * 60.0 * 60.0;

/// First bytes of a zstd frame (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The heading that a trace may have.
const HEADING: &str = "time_s,key,size_bytes";

/// A trace could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    /// The file cannot be opened.
    #[error("cannot open it: {0}")]
    Open(#[source] io::Error),
    /// Reading failed, or the compressed data is broken.
    #[error("line {line}: cannot read on: {source}")]
    Read {
        /// From 1.
        line: u64,
        /// What happened.
        source: io::Error,
    },
    /// A line is not a request.
    #[error("line {line}: {why}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// Requests of a trace, one at a time; memory does not grow with the file. Lines that start with `#`, empty lines
/// and one heading are passed over. After an error it ends.
pub(crate) struct Trace {
    lines: Box<dyn BufRead + Send>,
    line: u64,
    buffer: Vec<u8>,
    last_time: f64,
    started: bool,
    ended: bool,
}

impl Trace {
    /// Opens a file; whether it is compressed shows in its first bytes.
    ///
    /// # Errors
    /// [`TraceError::Open`].
    pub(crate) fn open(path: &Path) -> Result<Self, TraceError> {
        Self::new(File::open(path).map_err(TraceError::Open)?)
    }

    /// Reads what a file would hold.
    ///
    /// # Errors
    /// [`TraceError::Open`].
    pub(super) fn new(source: impl Read + Send + 'static) -> Result<Self, TraceError> {
        let mut source = BufReader::new(source);
        let compressed = source.fill_buf().map_err(TraceError::Open)?.starts_with(&ZSTD_MAGIC);
        let lines: Box<dyn BufRead + Send> = if compressed {
            let decoder = zstd::Decoder::with_buffer(source).map_err(TraceError::Open)?;
            Box::new(BufReader::new(decoder))
        } else {
            Box::new(source)
        };
        Ok(Self { lines, line: 0, buffer: Vec::new(), last_time: 0.0, started: false, ended: false })
    }

    fn request(&mut self) -> Result<Option<Request>, TraceError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let read = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.buffer);
            let read = read.map_err(|source| TraceError::Read { line: self.line, source })?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 == LINE_BYTES_MAX && !self.buffer.ends_with(b"\n") {
                return Err(self.wrong(format!("it is longer than {LINE_BYTES_MAX} bytes")));
            }
            let text = std::str::from_utf8(&self.buffer).map_err(|_| self.wrong("it is not UTF-8"))?.trim();
            if text.is_empty() || text.starts_with('#') || (!self.started && text == HEADING) {
                continue;
            }
            let request = parse(text).map_err(|why| self.wrong(why))?;
            if request.at < self.last_time {
                return Err(self.wrong(format!("time {} is before {}", request.at, self.last_time)));
            }
            self.started = true;
            self.last_time = request.at;
            return Ok(Some(request));
        }
    }

    fn wrong(&self, why: impl Into<String>) -> TraceError {
        TraceError::Line { line: self.line, why: why.into() }
    }
}

impl Iterator for Trace {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.request().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn parse(text: &str) -> Result<Request, String> {
    // The key stands between the first and the last comma, so it may have commas of its own.
    let (time, rest) = text.split_once(',').ok_or_else(expected)?;
    let (key, size) = rest.rsplit_once(',').ok_or_else(expected)?;
    let at: f64 = time.trim().parse().unwrap_or(f64::NAN);
    if !at.is_finite() || at < 0.0 {
        return Err(format!("{time:?} is no time in seconds"));
    }
    if at > TIME_MAX_S {
        return Err(format!("time {time} is beyond a year: times count from the start of the trace"));
    }
    let size: u32 = size.trim().parse().map_err(|_| format!("{size:?} is no size in bytes"))?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(format!("the key is longer than {KEY_BYTES_MAX} bytes"));
    }
    Ok(Request { at, key: key.into(), size })
}

fn expected() -> String {
    format!("expected {HEADING}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: impl Into<Vec<u8>>) -> Vec<Result<Request, String>> {
        let trace = Trace::new(io::Cursor::new(bytes.into())).unwrap();
        trace.map(|request| request.map_err(|error| error.to_string())).collect()
    }

    fn request(at: f64, key: &str, size: u32) -> Result<Request, String> {
        Ok(Request { at, key: key.into(), size })
    }

    const TEXT: &str = "# licence: CC BY 4.0\ntime_s,key,size_bytes\n0,a,10\n\n0.5,b,c,20\r\n# more\n7,é,0";

    #[test]
    fn plain_and_compressed_traces_read_alike() {
        let expected = [request(0.0, "a", 10), request(0.5, "b,c", 20), request(7.0, "é", 0)];
        assert_eq!(read(TEXT), expected);
        assert_eq!(read(zstd::encode_all(TEXT.as_bytes(), 1).unwrap()), expected);
    }

    #[test]
    fn malformed_lines_are_named_by_number() {
        for (bad, why) in [
            ("x,k,1", "line 3: \"x\" is no time"),
            ("-1,k,1", "line 3: \"-1\" is no time"),
            ("1,k,big", "line 3: \"big\" is no size"),
            ("1,k,-1", "line 3: \"-1\" is no size"),
            ("1,,1", "line 3: the key is empty"),
            ("1e30,k,1", "line 3: time 1e30 is beyond a year"),
            ("1,k", "line 3: expected time_s,key,size_bytes"),
            ("one", "line 3: expected time_s,key,size_bytes"),
            ("0.1,k,1", "line 3: time 0.1 is before 0.5"),
        ] {
            let read = read(format!("# c\n0.5,a,1\n{bad}\n9,z,1\n"));
            assert_eq!(read.len(), 2, "nothing follows an error");
            let error = read[1].clone().unwrap_err();
            assert!(error.starts_with(why), "{bad}: {error}");
        }
    }

    #[test]
    fn endless_lines_and_keys_are_refused() {
        let error = read(format!("0,{},1\n", "k".repeat(5000))).pop().unwrap().unwrap_err();
        assert!(error.contains("longer than 4096"), "{error}");
        let error = read("k".repeat(20_000)).pop().unwrap().unwrap_err();
        assert!(error.contains("longer than 8192"), "{error}");
    }

    #[test]
    fn broken_compression_is_an_error_and_not_an_end() {
        let mut bytes = zstd::encode_all(TEXT.as_bytes(), 1).unwrap();
        bytes.truncate(bytes.len() - 6);
        assert!(read(bytes).pop().unwrap().is_err());
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        assert!(read(vec![0xff, 0xfe, b'\n'])[0].clone().unwrap_err().contains("UTF-8"));
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_reading_panic(bytes: Vec<u8>) {
            let mut compressed = ZSTD_MAGIC.to_vec();
            compressed.extend(&bytes);
            let _ = (read(bytes), Trace::new(io::Cursor::new(compressed)).map(Iterator::count));
        }
    }
}
