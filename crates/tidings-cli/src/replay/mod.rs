//! Running load through a cluster against a system of record, and judging every answer.
//!
//! [`workload`] gives requests, from a [`trace`] or a [`zipf`] law; [`plan`] decides for each, by the seed alone,
//! which node it goes to and whether it writes; [`feed`] gives them out at their pace; [`engine`] runs them against
//! a [`target`] and lets the [`record`] judge what comes back; [`tally`] counts, [`report`] sums up.

pub(crate) mod engine;
mod feed;
pub(crate) mod http;
mod latency;
pub(crate) mod local;
pub(crate) mod plan;
pub(crate) mod random;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod tally;
pub(crate) mod target;
pub(crate) mod trace;
pub(crate) mod workload;
mod zipf;

#[cfg(test)]
mod tests;
