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
        spare(self.elapsed(), self.waited, waited())
    }

    /// Waits until there was so much time to spare, and this process ran; on a machine that has none, for 10 s.
    pub async fn rest(span: Duration) {
        rest(span, REST_MAX, waited).await;
    }
}

/// Of some time what was left besides the waits for a processor, whose sum is told before and after it.
fn spare(elapsed: Duration, before: Duration, after: Duration) -> Duration {
    elapsed.saturating_sub(after.saturating_sub(before))
}

/// Waits until there was so much time to spare, at most so long; `waited` tells the sum of waits for a processor.
async fn rest(span: Duration, most: Duration, mut waited: impl FnMut() -> Duration) {
    let (whole, mut sum) = (Instant::now(), Duration::ZERO);
    while sum < span && whole.elapsed() < most {
        let (begun, before) = (Instant::now(), waited());
        sleep(LOOK_EVERY).await;
        sum += spare(begun.elapsed(), before, waited()).min(LOOK_MAX);
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

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn time_to_spare_is_what_nothing_waited_in() {
        assert_eq!(spare(ms(10), ms(5), ms(5)), ms(10));
        assert_eq!(spare(ms(10), ms(5), ms(8)), ms(7));
        assert_eq!(spare(ms(10), ms(5), ms(15)), Duration::ZERO);
        // Several wait at a time.
        assert_eq!(spare(ms(10), ms(5), ms(99)), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_rest_lasts_until_there_was_time_to_spare() {
        const SPAN: Duration = ms(200);
        let begun = Instant::now();
        rest(SPAN, ms(60_000), Duration::default).await;
        let whole = begun.elapsed();
        assert!((SPAN..ms(30_000)).contains(&whole), "{whole:?} on a machine with nothing to do");

        // For as long as it has waited, something waits; then nothing does.
        let begun = Instant::now();
        rest(SPAN, ms(60_000), || begun.elapsed().min(SPAN)).await;
        assert!(begun.elapsed() > SPAN * 3 / 2, "{:?} on a machine that was busy at first", begun.elapsed());
    }

    #[tokio::test]
    async fn a_rest_on_a_machine_that_is_always_busy_ends() {
        const MOST: Duration = ms(100);
        let begun = Instant::now();
        rest(ms(60_000), MOST, || begun.elapsed()).await;
        assert!((MOST..ms(30_000)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}
