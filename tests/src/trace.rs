//! Requests that a cluster in production was asked, from a file of lines `time_s,key,size_bytes`.

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
        let sample = || Path::new(env!("CARGO_MANIFEST_DIR")).join("data/twitter_cluster52_20k.csv");
        let path = std::env::var_os(FILE_VARIABLE).map_or_else(sample, PathBuf::from);
        let read = std::fs::read_to_string(&path);
        read.map_err(Into::into)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
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

    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.starts_with(['#', 't']) && !line.is_empty());
        let requests = lines.map(|line| request(line).with_context(|| line.to_owned()));
        let mut requests = requests.collect::<Result<Vec<_>>>()?;
        let last = requests.last().context("no requests")?.at;
        spread(&mut requests);
        Ok(Self { requests, span: Duration::from_secs(last.as_secs() + 1) })
    }
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

    #[test]
    fn requests_of_a_second_are_spread_over_it() {
        let text = "# a comment\ntime_s,key,size_bytes\n0,a,10\n0,b,99999\n2,a,10\n";
        let trace = Trace::parse(text).expect("a trace");
        let at: Vec<_> = trace.requests.iter().map(|it| (it.at.as_millis(), it.key.as_str())).collect();
        assert_eq!(at, [(0, "a"), (500, "b"), (2_000, "a")]);
        assert_eq!(trace.requests[1].bytes, VALUE_BYTES_MAX);
        assert_eq!([2, 3, 4].map(|turn| trace.due(turn).as_millis()), [2_000, 3_000, 3_500]);
        assert!((trace.pace() - 1.0).abs() < f64::EPSILON);
        assert!(Trace::parse("# nothing\n").is_err());
        assert!(Trace::parse("0,a\n").is_err());
    }
}
