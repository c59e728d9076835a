//! A ratio that must be reached, one that is aimed at, and the verdict.

use std::fmt;

/// Which side of a limit is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Costs and latencies.
    Lower,
    /// Rates.
    Higher,
}

/// Limits on one figure, usually tidings ÷ a reference.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What is compared.
    pub name: &'static str,
    /// The side that is good.
    pub better: Better,
    /// Worse than this fails.
    pub must: f64,
    /// What is hoped for.
    pub aim: f64,
}

/// What a figure comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As good as was hoped for.
    Aim,
    /// Good enough.
    Pass,
    /// Not good enough.
    Fail,
    /// There is no figure: one of the two did not run.
    Skipped,
}

impl Target {
    /// Judges a figure; one that is not a number was not measured.
    #[must_use]
    pub fn judge(&self, figure: f64) -> Verdict {
        let reaches = |limit: f64| match self.better {
            Better::Lower => figure <= limit,
            Better::Higher => figure >= limit,
        };
        if figure.is_nan() {
            Verdict::Skipped
        } else if reaches(self.aim) {
            Verdict::Aim
        } else if reaches(self.must) {
            Verdict::Pass
        } else {
            Verdict::Fail
        }
    }

    /// One line for people, and the verdict.
    #[must_use]
    pub fn line(&self, figure: f64) -> (String, Verdict) {
        let verdict = self.judge(figure);
        let sign = if self.better == Better::Lower { "≤" } else { "≥" };
        let (must, aim) = (self.must, self.aim);
        let line = format!(
            "{verdict:<8} {:<58} {figure:>7.3}  (must {sign} {must:.3}, aim {sign} {aim:.3})",
            self.name
        );
        (line, verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aim => "PASS+AIM",
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Skipped => "SKIPPED",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Target = Target { name: "rate", better: Better::Higher, must: 3.0, aim: 8.0 };

    #[test]
    fn a_missing_figure_is_not_a_pass() {
        assert_eq!(RATE.judge(f64::NAN), Verdict::Skipped);
    }

    #[test]
    fn a_rate_below_its_limit_fails() {
        assert_eq!(RATE.judge(2.9), Verdict::Fail);
        assert_eq!(RATE.judge(3.0), Verdict::Pass);
        assert_eq!(RATE.judge(8.0), Verdict::Aim);
    }
}
