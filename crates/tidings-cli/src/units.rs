//! Quantities with their units, as people write them: `250ms`, `5m`, `64MiB`, `0.05`.

use std::time::Duration;

/// Bytes of each unit, largest first. Decimal and binary units mean what they say.
const BYTE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Parses a duration such as `3s`, `250ms` or `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| {
        format!("{text:?} is not a duration: write a number and its unit, such as 250ms, 3s or 5m")
    })
}

/// A duration as [`duration`] reads it.
pub(crate) fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Parses a number of bytes such as `64MiB`, `500kB` or `1024`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || {
        format!("{text:?} is not a size: write a whole number and its unit, such as 64MiB, 500kB or 4096B")
    };
    let (digits, factor) = BYTE_UNITS
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits.trim_end(), *factor)))
        .unwrap_or((text, 1));
    let number: u64 = digits.replace('_', "").parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

/// A number of bytes as [`bytes`] reads it, in the largest binary unit that loses nothing.
pub(crate) fn show_bytes(bytes: u64) -> String {
    let exact = BYTE_UNITS.iter().take(3).find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    exact.map_or_else(|| format!("{bytes}B"), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// Parses a share from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a share: write a number from 0 to 1, such as 0.05");
    let share: f64 = text.parse().map_err(|_| wrong())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, expected) in [
            ("64MiB", 64 << 20),
            ("500kB", 500_000),
            ("7", 7),
            ("1_024 B", 1024),
            ("1GiB", 1 << 30),
            ("2 KB", 2000),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn sizes_without_meaning_are_refused() {
        for text in ["", "MiB", "-1", "1.5MiB", "64 mebi", "99999999999GiB", "1TiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shown_sizes_are_read_back() {
        for size in [0, 1, 1023, 1024, 64 << 20, 3 << 30, 1_000_000] {
            assert_eq!(bytes(&show_bytes(size)), Ok(size));
        }
    }

    #[test]
    fn shares_stay_within_their_range() {
        assert_eq!(share("0.05"), Ok(0.05));
        for text in ["-0.1", "1.1", "NaN", "x"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
