//! Requests that a cluster in production was asked, from a file of lines `time_s,key,size_bytes`, compressed with zstd
//! where it is called `.zst`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Names a file to take instead of the sample beside the tests.
pub const FILE_VARIABLE: &str = "TIDINGS_TRACE";

/// Longest value that stands for one of the trace: how long it is makes no difference to what is tried with it.
const VALUE_BYTES_MAX: usize = 16 << 10;

/// One of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When, since the first one.
    pub at: Duration,
    /// Of which key.
    pub key: String,
    /// Bytes of its value.
    pub bytes: usize,
}

/// Requests in their order.
#[derive(Clone, Debug)]
pub struct Trace {
    /// At least one.
    pub requests: Vec<Request>,
    /// How long they took.
    pub span: Duration,
}

impl Trace {
    /// The trace that the environment names, or the sample.
    pub fn load() -> Result<Self> {
        Self::load_part(usize::MAX)
    }

    /// The trace that the environment names, or so many requests of the sample.
    pub fn load_part(most: usize) -> Result<Self> {
        match std::env::var_os(FILE_VARIABLE) {
            Some(path) => Self::read(Path::new(&path), usize::MAX),
            None => Self::read(&sample(), most),
        }
    }

    fn read(path: &Path, most: usize) -> Result<Self> {
        let text = || -> Result<Box<dyn Read>> {
            let file = File::open(path)?;
            let is_compressed = path.extension().is_some_and(|extension| extension == "zst");
            Ok(if is_compressed { Box::new(zstd::Decoder::new(file)?) } else { Box::new(file) })
        };
        let trace = text().and_then(|text| Self::parse(BufReader::new(text), most));
        trace.with_context(|| path.display().to_string())
    }

    /// When a request is due that is asked after all before it, the trace over and over again.
    #[must_use]
    pub fn due(&self, turn: usize) -> Duration {
        let (round, place) = (turn / self.requests.len(), turn % self.requests.len());
        self.span * u32::try_from(round).expect("few rounds") + self.requests[place].at
    }

    /// How many requests a second there are.
    #[must_use]
    pub fn pace(&self) -> f64 {
        self.requests.len() as f64 / self.span.as_secs_f64()
    }

    fn parse(text: impl BufRead, most: usize) -> Result<Self> {
        let mut requests = Vec::new();
        for line in text.lines() {
            let line = line?;
            if requests.len() < most && !line.starts_with(['#', 't']) && !line.is_empty() {
                requests.push(request(&line).with_context(|| line.clone())?);
            }
        }
        let last = requests.last().context("no requests")?.at;
        spread(&mut requests);
        Ok(Self { requests, span: Duration::from_secs(last.as_secs() + 1) })
    }
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/twitter_cluster52_20k.csv")
}

/// Moves requests of one second, of which no more is told, evenly over it.
fn spread(requests: &mut [Request]) {
    for second in requests.chunk_by_mut(|one, next| one.at == next.at) {
        let pause = Duration::from_secs(1) / u32::try_from(second.len()).expect("few in a second");
        for (place, request) in second.iter_mut().enumerate() {
            request.at += pause * place as u32;
        }
    }
}

fn request(line: &str) -> Result<Request> {
    let fields: Vec<&str> = line.split(',').collect();
    ensure!(fields.len() == 3, "{} fields", fields.len());
    let bytes = fields[2].parse::<usize>().context("no size")?.min(VALUE_BYTES_MAX);
    let at = Duration::from_secs(fields[0].parse().context("no second")?);
    Ok(Request { at, key: fields[1].to_owned(), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;

    #[test]
    fn requests_of_a_second_are_spread_over_it() {
        let text = "# a comment\ntime_s,key,size_bytes\n0,a,10\n0,b,99999\n2,a,10\n";
        let trace = Trace::parse(text.as_bytes(), usize::MAX).expect("a trace");
        let at: Vec<_> = trace.requests.iter().map(|it| (it.at.as_millis(), it.key.as_str())).collect();
        assert_eq!(at, [(0, "a"), (500, "b"), (2_000, "a")]);
        assert_eq!(trace.requests[1].bytes, VALUE_BYTES_MAX);
        assert_eq!([2, 3, 4].map(|turn| trace.due(turn).as_millis()), [2_000, 3_000, 3_500]);
        assert!((trace.pace() - 1.0).abs() < f64::EPSILON);
        assert!(Trace::parse("# nothing\n".as_bytes(), 1).is_err());
        assert!(Trace::parse("0,a\n".as_bytes(), 1).is_err());
        assert_eq!(Trace::parse(text.as_bytes(), 2).expect("a trace").requests.len(), 2);
    }

    #[test]
    fn a_compressed_trace_is_the_same() {
        let directory = Directory::create().expect("a directory");
        let path = directory.path().join("trace.csv.zst");
        let text = std::fs::read(sample()).expect("a sample");
        std::fs::write(&path, zstd::encode_all(&*text, 0).expect("it compresses")).expect("it is written");
        let [one, other] = [&path, &sample()].map(|path| Trace::read(path, usize::MAX).expect("a trace"));
        assert!(one.requests == other.requests && one.requests.len() > 10_000);
    }
}
