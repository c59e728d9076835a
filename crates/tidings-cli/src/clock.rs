//! The wall clock, for what is shown and for the validity of certificates; nothing else asks it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The time of day.
#[allow(clippy::disallowed_methods, reason = "certificates are valid by the wall clock")]
pub(crate) fn wall_clock() -> OffsetDateTime {
    std::time::SystemTime::now().into()
}

/// A time as people and machines read it.
pub(crate) fn show(time: OffsetDateTime) -> String {
    let seconds = time.replace_nanosecond(0).unwrap_or(time);
    seconds.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}
