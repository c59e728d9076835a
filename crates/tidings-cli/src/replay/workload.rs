//! Requests, one after another.

use std::path::{Path, PathBuf};

use super::random::{SplitMix64, mix};
use super::trace::{Trace, TraceError};
use super::zipf::Zipf;

/// Popularity of generated keys: the Zipf exponent published for the trace that real runs use (Twitter's cluster
/// 52; J. Yang, Y. Yue, K. V. Rashmi, OSDI 2020).
const ZIPF_EXPONENT: f64 = 1.21;

/// Sizes of generated objects in bytes, evenly spread: the mean is that of the same trace, 204.
const SIZE_MIN: u64 = 54;
const SIZE_SPREAD: u64 = 301;

/// Purpose of the random numbers here: keys.
const PURPOSE: u64 = 1;

/// One request of a workload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// Seconds since the start.
    pub(crate) at: f64,
    /// The key.
    pub(crate) key: String,
    /// Size of the object, in bytes.
    pub(crate) size: u32,
}

/// Requests in the order of their times.
pub(crate) type Workload = Box<dyn Iterator<Item = Result<Request, TraceError>> + Send>;

/// Requests whose keys follow a Zipf law, so many a second, without end.
pub(crate) fn generated(keys: u64, per_second: f64, seed: u64) -> Workload {
    let law = Zipf::new(keys, ZIPF_EXPONENT);
    let mut random = SplitMix64::for_purpose(seed, PURPOSE);
    let requests = (0_u64..).map(move |index| {
        let rank = law.draw(&mut random);
        let size = SIZE_MIN + mix(rank) % SIZE_SPREAD;
        Ok(Request { at: index as f64 / per_second, key: format!("key-{rank}"), size: size as u32 })
    });
    Box::new(requests)
}

/// The requests of a trace, over and over: each round goes on where the last one ended.
///
/// # Errors
/// The trace cannot be opened.
pub(crate) fn repeated(path: &Path) -> Result<Workload, TraceError> {
    let first = Trace::open(path)?;
    Ok(Box::new(Repeated {
        path: path.to_owned(),
        round: first,
        start: 0.0,
        last: 0.0,
        given: false,
        ended: false,
    }))
}

struct Repeated {
    path: PathBuf,
    round: Trace,
    start: f64,
    last: f64,
    given: bool,
    ended: bool,
}

impl Iterator for Repeated {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = match self.round.next() {
            // An empty trace ends at once instead of being read for ever.
            None if self.given => {
                match Trace::open(&self.path) {
                    Ok(round) => self.round = round,
                    Err(error) => {
                        self.ended = true;
                        return Some(Err(error));
                    }
                }
                self.start = self.last;
                self.given = false;
                self.round.next()
            }
            next => next,
        };
        let request = next.map(|request| {
            request.map(|request| {
                self.given = true;
                self.last = self.start + request.at;
                Request { at: self.last, ..request }
            })
        });
        self.ended = !matches!(request, Some(Ok(_)));
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_requests_are_the_same_for_a_seed() {
        let take =
            |seed| -> Vec<Request> { generated(1000, 10.0, seed).take(100).map(Result::unwrap).collect() };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
        let requests = take(1);
        assert!((requests[99].at - 9.9).abs() < 1e-9);
        let sizes = SIZE_MIN..SIZE_MIN + SIZE_SPREAD;
        assert!(requests.iter().all(|request| sizes.contains(&u64::from(request.size))));
    }

    #[test]
    fn a_repeated_trace_goes_on_in_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "1,a,1\n3,b,1\n").unwrap();
        let times: Vec<f64> =
            repeated(file.path()).unwrap().take(6).map(|request| request.unwrap().at).collect();
        assert_eq!(times, [1.0, 3.0, 4.0, 6.0, 7.0, 9.0]);
    }

    #[test]
    fn an_empty_trace_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(repeated(file.path()).unwrap().count(), 0);
    }
}
