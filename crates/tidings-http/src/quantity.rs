//! Sizes and durations as people write them, here and in the configuration file, and points in time.

use std::time::{Duration, UNIX_EPOCH};

/// Units of sizes, the binary ones first: those are what sizes are shown in.
const UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

/// The last millisecond of the year 9999.
const TIME_MAX_MS: u64 = 253_402_300_799_999;

/// Reads a number of bytes with its unit, such as `64MiB`.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, factor) =
        UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), *factor)))?;
    number.replace('_', "").parse::<u64>().ok()?.checked_mul(factor)
}

/// A number of bytes as [`bytes()`] reads it.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let exact = UNITS[..3].iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    exact.map_or_else(|| format!("{bytes}B"), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// Reads a duration with its unit, such as `250ms` or `1m30s`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// A duration as [`duration`] reads it.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// Milliseconds since 1970 as RFC 3339 in UTC. A peer's clock may say anything: what is beyond the year 9999, which
/// this form cannot say, is shown as its end.
#[must_use]
pub fn show_time(wall_ms: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(wall_ms.min(TIME_MAX_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Reads a moment of RFC 3339 in UTC, such as `2026-01-31T12:00:00Z`, as milliseconds since 1970.
#[must_use]
pub fn time(text: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(time.as_millis()).ok()
}

/// Milliseconds with three decimals.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        for (text, expected) in [
            ("64MiB", Some(64 << 20)),
            ("500kB", Some(500_000)),
            ("1_024 B", Some(1024)),
            ("1GiB", Some(1 << 30)),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        for text in ["", "7", "MiB", "-1B", "1.5MiB", "99999999999GiB", "1TiB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for size in [0, 1, 1023, 1024, 64 << 20, 3 << 30] {
            assert_eq!(bytes(&show_bytes(size)), Some(size));
        }
        for time in [Duration::from_millis(250), Duration::from_secs(90), Duration::from_secs(300)] {
            assert_eq!(duration(&show_duration(time)), Some(time));
        }
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(show_time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(show_time(TIME_MAX_MS), "9999-12-31T23:59:59.999Z");
        assert_eq!(show_time(u64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(time("2023-11-14T22:13:20.123Z"), Some(1_700_000_000_123));
        for text in ["", "2023-11-14", "1700000000123", "1969-12-31T23:59:59Z", "2023-11-14T22:13:20+01:00"] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
