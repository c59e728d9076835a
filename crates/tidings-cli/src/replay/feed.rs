//! Giving out requests in batches, each at its time.

use std::collections::VecDeque;
use std::time::Duration;

use super::plan::{Plan, Step};
use super::trace::TraceError;
use super::workload::{Request, Workload};

/// Requests that one worker takes at a time.
const BATCH_MAX: usize = 64;

/// A batch spans at most this much of the workload's time: requests keep their pace within it.
const BATCH_SPAN: f64 = 0.005;

/// Requests with one time that are spread over the gap to the next; more are spread in parts.
const GROUP_MAX: usize = 65_536;

/// Longest time over which requests with one time are spread: traces count in seconds.
const SPREAD_MAX: f64 = 1.0;

/// Some requests, and when the first one is due.
#[derive(Debug, PartialEq)]
pub(super) struct Batch {
    /// Since the start of the workload.
    pub(super) due: Duration,
    /// At least one.
    pub(super) steps: Vec<Step>,
}

/// Batches of a workload, each request with its decision. After an error it ends.
pub(super) struct Batches {
    requests: Spread,
    plan: Plan,
    steps: Vec<Step>,
    error: Option<TraceError>,
    ended: bool,
}

impl Batches {
    /// All batches of a workload.
    pub(super) fn new(workload: Workload, plan: Plan) -> Self {
        let requests = Spread { source: workload, waiting: None, group: VecDeque::new(), gap: SPREAD_MAX };
        Self { requests, plan, steps: Vec::with_capacity(BATCH_MAX), error: None, ended: false }
    }

    fn take(&mut self) -> Option<Result<Batch, TraceError>> {
        let due = Duration::try_from_secs_f64(self.steps.first()?.request.at).unwrap_or(Duration::MAX);
        let steps = std::mem::replace(&mut self.steps, Vec::with_capacity(BATCH_MAX));
        Some(Ok(Batch { due, steps }))
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.requests.next() {
                Some(Ok(request)) => {
                    let span = self.steps.first().map_or(0.0, |first| request.at - first.request.at);
                    let full =
                        if self.steps.len() >= BATCH_MAX || span > BATCH_SPAN { self.take() } else { None };
                    self.steps.push(self.plan.step(request));
                    if full.is_some() {
                        return full;
                    }
                }
                Some(Err(error)) => {
                    self.error = Some(error);
                    self.ended = true;
                }
                None => self.ended = true,
            }
        }
        self.take().or_else(|| self.error.take().map(Err))
    }
}

/// Spreads requests that have one time evenly over the gap to the next time.
struct Spread {
    source: Workload,
    waiting: Option<Result<Request, TraceError>>,
    group: VecDeque<Request>,
    gap: f64,
}

impl Spread {
    fn fill(&mut self) -> Result<(), TraceError> {
        let Some(first) = self.waiting.take().or_else(|| self.source.next()).transpose()? else {
            return Ok(());
        };
        let at = first.at;
        self.group.push_back(first);
        loop {
            match self.source.next() {
                Some(Ok(request)) if request.at == at && self.group.len() < GROUP_MAX => {
                    self.group.push_back(request)
                }
                other => {
                    if let Some(Ok(next)) = &other {
                        self.gap = (next.at - at).min(SPREAD_MAX);
                    }
                    self.waiting = other;
                    break;
                }
            }
        }
        let share = self.gap / self.group.len() as f64;
        for (index, request) in self.group.iter_mut().enumerate() {
            request.at += share * index as f64;
        }
        Ok(())
    }
}

impl Iterator for Spread {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.group.is_empty()
            && let Err(error) = self.fill()
        {
            return Some(Err(error));
        }
        self.group.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(times: &[f64], error: bool) -> Vec<Result<Batch, TraceError>> {
        let requests: Vec<_> =
            times.iter().map(|at| Ok(Request { at: *at, key: "k".into(), size: 0 })).collect();
        let error = error.then(|| Err(TraceError::Line { line: 9, why: String::new() }));
        let workload: Workload = Box::new(requests.into_iter().chain(error));
        Batches::new(workload, Plan::new(1, 3, 0.0, false)).collect()
    }

    #[test]
    fn requests_of_one_second_are_spread_over_it() {
        let batches = batches(&[0.0, 0.0, 0.0, 0.0, 1.0, 3.0], false);
        let due: Vec<u128> = batches.into_iter().map(|batch| batch.unwrap().due.as_millis()).collect();
        assert_eq!(due, [0, 250, 500, 750, 1000, 3000]);
    }

    #[test]
    fn nothing_is_lost_and_order_is_kept() {
        let times: Vec<f64> = (0..1000).map(|at| f64::from(at) * 1e-4).collect();
        let batches: Vec<Batch> = batches(&times, false).into_iter().map(Result::unwrap).collect();
        assert!(batches.iter().all(|batch| batch.steps.len() <= BATCH_MAX));
        let given: Vec<f64> =
            batches.iter().flat_map(|batch| &batch.steps).map(|step| step.request.at).collect();
        assert_eq!(given, times);
    }

    #[test]
    fn an_error_comes_after_all_that_was_read_before() {
        let batches = batches(&[0.0, 1.0], true);
        assert_eq!(batches.len(), 3);
        assert!(batches[2].is_err());
    }
}
