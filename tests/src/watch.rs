//! Promises about time, told apart from the machine's doing: a cluster that gets no processor keeps none.

use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Where the kernel tells for how long something waited for a processor.
const PRESSURE: &str = "/proc/pressure/cpu";

/// Pause between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The most that counts between two looks: when it was longer, this process stood still.
const LOOK_MAX: Duration = Duration::from_millis(40);

/// Longest wait for time to spare, however busy the machine is.
const REST_MAX: Duration = Duration::from_secs(10);

/// Measures time, and how much of it the machine had to spare.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    begun: Instant,
    waited: Duration,
}

impl Watch {
    /// Starts to measure.
    #[must_use]
    pub fn start() -> Self {
        Self { begun: Instant::now(), waited: waited() }
    }

    /// All time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The time since the start in which nothing on this machine waited for a processor: what takes longer than that
    /// is slow by itself. All of it where the kernel does not tell.
    #[must_use]
    pub fn spare(&self) -> Duration {
        self.elapsed().saturating_sub(waited().saturating_sub(self.waited))
    }

    /// Waits until there was so much time to spare, and this process ran; on a machine that has none, for 10 s.
    pub async fn rest(span: Duration) {
        let (whole, mut spare) = (Self::start(), Duration::ZERO);
        while spare < span && whole.elapsed() < REST_MAX {
            let look = Self::start();
            sleep(LOOK_EVERY).await;
            spare += look.spare().min(LOOK_MAX);
        }
    }
}

/// How long anything has waited for a processor since the machine was started.
fn waited() -> Duration {
    fs::read_to_string(PRESSURE).ok().and_then(|text| total(&text)).unwrap_or_default()
}

/// Of lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`, in microseconds, the first one's.
fn total(pressure: &str) -> Option<Duration> {
    let some = pressure.lines().find(|line| line.starts_with("some "))?;
    Some(Duration::from_micros(some.rsplit_once("total=")?.1.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_in_microseconds() {
        let text = "some avg10=3.63 avg60=6.29 avg300=6.88 total=9015588183\nfull avg10=0.00 total=7\n";
        assert_eq!(total(text), Some(Duration::from_micros(9_015_588_183)));
        assert_eq!(total("full avg10=0.00 total=7\n"), None);
        assert_eq!(total(""), None);
    }

    #[tokio::test]
    async fn time_to_spare_is_part_of_all_time() {
        const SPAN: Duration = Duration::from_millis(10);
        let watch = Watch::start();
        Watch::rest(SPAN).await;
        assert!(watch.elapsed() >= SPAN);
        let (spare, elapsed) = (watch.spare(), watch.elapsed());
        assert!(spare <= elapsed, "{spare:?} of {elapsed:?}");
    }
}
