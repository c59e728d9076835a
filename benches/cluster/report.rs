//! Figures of all rounds: medians, ratios within a round, and their judgement.

use std::collections::BTreeMap;

use serde::Serialize;
use tidings_benches::stats::{median, percentile};
use tidings_benches::target::Verdict;

use crate::session::Measured;
use crate::setup::{Pace, System};
use crate::targets;

/// One figure, with the number of subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// CPU-seconds of all processes per million deliveries, as fast as possible.
    BurstCpu(usize),
    /// Deliveries a second, as fast as possible.
    BurstRate(usize),
    /// Bytes on the wire per delivery, as fast as possible.
    BurstBytes(usize),
    /// Microseconds of CPU per put at a fixed pace, without what the pacing itself costs.
    PacedCpu(usize),
    /// Microseconds from hand-over to receipt at a fixed pace.
    PacedP50(usize),
    /// As above.
    PacedP99(usize),
    /// Cores that other processes kept busy during the burst.
    OtherLoad(usize),
}

/// One phase of one system in one round; also a line of JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) round: usize,
    pub(crate) system: System,
    pub(crate) pace: Pace,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
}

impl Figure {
    pub(crate) fn new(round: usize, system: System, pace: Pace, measured: Measured) -> Self {
        let us = |percent| percentile(&measured.latencies_ns, percent).map(|ns| f64::from(ns) / 1e3);
        Self { round, system, pace, p50_us: us(50.0), p99_us: us(99.0), measured }
    }

    fn metrics(&self) -> Vec<(Metric, f64)> {
        let n = self.measured.subscribers;
        let delivered = self.measured.delivered();
        match self.pace {
            Pace::Burst => vec![
                (Metric::BurstCpu(n), self.measured.cpu_s() / delivered * 1e6),
                (Metric::BurstRate(n), delivered / self.measured.seconds),
                (Metric::BurstBytes(n), self.measured.wire_bytes as f64 / delivered),
                (Metric::OtherLoad(n), self.measured.other_load),
            ],
            Pace::PerSecond(_) => vec![
                (Metric::PacedCpu(n), self.measured.cpu_s() / self.measured.messages as f64 * 1e6),
                (Metric::PacedP50(n), self.p50_us.unwrap_or(f64::NAN)),
                (Metric::PacedP99(n), self.p99_us.unwrap_or(f64::NAN)),
            ],
        }
    }
}

/// Everything measured: per system and metric, one value a round.
#[derive(Debug, Default)]
pub(crate) struct Report {
    values: BTreeMap<(System, Metric), BTreeMap<usize, f64>>,
}

impl Report {
    pub(crate) fn add(&mut self, figure: &Figure) {
        for (metric, value) in figure.metrics() {
            self.values.entry((figure.system, metric)).or_default().insert(figure.round, value);
        }
    }

    /// The values of a metric by round. The cost of pacing, measured without any subscriber, is taken off.
    fn rounds(&self, system: System, metric: Metric) -> BTreeMap<usize, f64> {
        let mut rounds = self.values.get(&(system, metric)).cloned().unwrap_or_default();
        if let Metric::PacedCpu(_) = metric
            && let Some(pacing) = self.pacing()
        {
            rounds.values_mut().for_each(|value| *value -= pacing);
        }
        rounds
    }

    fn median(&self, system: System, metric: Metric) -> f64 {
        median(self.rounds(system, metric).into_values().collect())
    }

    /// Median over the rounds of the ratio within the round; `NaN` if either did not run.
    fn ratio(&self, subject: System, anchor: System, metric: Metric) -> f64 {
        let anchors = self.rounds(anchor, metric);
        let subjects = self.rounds(subject, metric);
        median(subjects.iter().filter_map(|(round, value)| Some(value / anchors.get(round)?)).collect())
    }

    /// Prints the medians of all systems, then each target's ratio. Returns whether none failed.
    pub(crate) fn print(&self, systems: &[System], subject: System) -> bool {
        self.print_medians(systems);
        self.print_ratios(systems, subject);
        let judged = targets::ALL.map(|against| {
            let figure = self.ratio(subject, against.anchor, against.metric);
            against.target.line(figure)
        });
        println!("\ntargets, {} ÷ reference, median of the rounds' ratios", subject.name());
        for (line, _) in &judged {
            println!("  {line}");
        }
        judged.iter().all(|(_, verdict)| *verdict != Verdict::Fail)
    }

    fn print_medians(&self, systems: &[System]) {
        const COLUMNS: [(&str, Metric, f64, usize); 13] = [
            ("CPU-s/M 4", Metric::BurstCpu(4), 1.0, 3),
            ("CPU-s/M 8", Metric::BurstCpu(8), 1.0, 3),
            ("M/s 4", Metric::BurstRate(4), 1e-6, 2),
            ("M/s 8", Metric::BurstRate(8), 1e-6, 2),
            ("B/event 4", Metric::BurstBytes(4), 1.0, 1),
            ("p50 µs 1", Metric::PacedP50(1), 1.0, 1),
            ("p99 µs 1", Metric::PacedP99(1), 1.0, 0),
            ("p50 µs 4", Metric::PacedP50(4), 1.0, 1),
            ("p99 µs 4", Metric::PacedP99(4), 1.0, 0),
            ("µs/put 1", Metric::PacedCpu(1), 1.0, 1),
            ("µs/put 4", Metric::PacedCpu(4), 1.0, 1),
            ("load 4", Metric::OtherLoad(4), 1.0, 2),
            ("load 8", Metric::OtherLoad(8), 1.0, 2),
        ];
        print!("\n{:<17}", "median");
        COLUMNS.iter().for_each(|(title, ..)| print!("{title:>10}"));
        println!();
        for system in systems.iter().filter(|system| **system != System::Harness) {
            print!("{:<17}", system.name());
            for (_, metric, scale, digits) in COLUMNS {
                let value = self.median(*system, metric) * scale;
                if value.is_nan() { print!("{:>10}", "–") } else { print!("{value:>10.digits$}") }
            }
            println!();
        }
        if let Some(pacing) = self.pacing() {
            println!("pacing itself: {pacing:.1} µs/put, taken off above");
        }
    }

    /// What a put at a fixed pace costs when it goes nowhere; taken off the figures of all systems.
    fn pacing(&self) -> Option<f64> {
        let rounds = self.values.get(&(System::Harness, Metric::PacedCpu(0)))?;
        Some(median(rounds.values().copied().collect()))
    }

    fn print_ratios(&self, systems: &[System], subject: System) {
        const METRICS: [(&str, Metric); 8] = [
            ("CPU 4", Metric::BurstCpu(4)),
            ("CPU 8", Metric::BurstCpu(8)),
            ("rate 4", Metric::BurstRate(4)),
            ("rate 8", Metric::BurstRate(8)),
            ("p50 1", Metric::PacedP50(1)),
            ("p50 4", Metric::PacedP50(4)),
            ("put 1", Metric::PacedCpu(1)),
            ("put 4", Metric::PacedCpu(4)),
        ];
        print!("\n{:<17}", format!("{} ÷", subject.name()));
        METRICS.iter().for_each(|(title, _)| print!("{title:>10}"));
        println!();
        for anchor in systems.iter().filter(|system| **system != subject && **system != System::Harness) {
            print!("{:<17}", anchor.name());
            for (_, metric) in METRICS {
                let ratio = self.ratio(subject, *anchor, metric);
                if ratio.is_nan() { print!("{:>10}", "–") } else { print!("{ratio:>10.3}") }
            }
            println!();
        }
    }
}
