//! Quantities with their units, as people write them: `250ms`, `5m`, `64MiB`, `0.05`.

use std::time::Duration;

use tidings_http::quantity;
pub(crate) use tidings_http::quantity::{show_bytes, show_duration};

/// Parses a duration such as `3s`, `250ms` or `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    quantity::duration(text).ok_or_else(|| {
        format!("{text:?} is not a duration: write a number and its unit, such as 250ms, 3s or 5m")
    })
}

/// Parses a number of bytes such as `64MiB`, `500kB` or `1024`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let plain = text.trim().replace('_', "").parse().ok();
    plain.or_else(|| quantity::bytes(text)).ok_or_else(|| {
        format!("{text:?} is not a size: write a whole number and its unit, such as 64MiB, 500kB or 4096B")
    })
}

/// Parses a share from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a share: write a number from 0 to 1, such as 0.05");
    let share: f64 = text.parse().map_err(|_| wrong())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(wrong()) }
}

/// A share of things that should all be fine, in per cent, rounded down: what is not all is never 100 %.
pub(crate) fn show_share(share: f64) -> String {
    let thousandths = (share.clamp(0.0, 1.0) * 100_000.0).floor() as u32;
    let text = format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
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
    fn what_is_not_all_is_not_shown_as_all() {
        for (share, text) in
            [(1.0, "100 %"), (0.999_999, "99.999 %"), (0.5, "50 %"), (0.0, "0 %"), (0.12345, "12.345 %")]
        {
            assert_eq!(show_share(share), text);
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
