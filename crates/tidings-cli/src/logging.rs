//! What the nodes of this process have to say, on stderr.

use std::sync::Arc;

use parking_lot::Mutex;
use tidings_http::LogLevel;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry, reload};

use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Logs from here on, by directives such as `info` or `warn,tidings=debug`. The level can be changed later.
///
/// # Errors
/// The directives make no sense: exit 78.
pub(crate) fn start(directives: &str, output: &Output) -> Result<Arc<LogLevel>, Failure> {
    let filter = parse(directives)
        .map_err(|why| Failure::new(Exit::Configuration, format!("telemetry.log: {why}")))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(output.colours_errors());
    // Only a second call could fail, and the first one's logging is then as good.
    let _ = registry().with(filter).with(lines).try_init();
    let current = Arc::new(Mutex::new(directives.to_owned()));
    let shown = Arc::clone(&current);
    let change = move |directives: &str| {
        handle.reload(parse(directives)?).map_err(|error| error.to_string())?;
        directives.clone_into(&mut current.lock());
        Ok(())
    };
    Ok(Arc::new(LogLevel::new(move || shown.lock().clone(), change)))
}

/// The directives for nodes that are there only for a demonstration or a measurement.
pub(crate) fn quiet_directives(verbose: u8) -> &'static str {
    match verbose {
        0 => "error",
        1 => "info",
        _ => "info,tidings=debug,tidings_membership=debug,tidings_transport=debug,tidings_cache=debug",
    }
}

/// Reads directives.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn parse(directives: &str) -> Result<EnvFilter, String> {
    // A lone word that is no level would be taken for the name of a module, and silence everything else.
    let is_sound =
        |word: &str| word.contains(['=', '[']) || (!word.is_empty() && word.parse::<LevelFilter>().is_ok());
    if let Some(word) = directives.split(',').find(|word| !is_sound(word)) {
        return Err(format!(
            "{word:?} is no level: write off, error, warn, info, debug or trace, or TARGET=LEVEL"
        ));
    }
    EnvFilter::builder().parse(directives).map_err(|error| format!("{directives:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_level_are_refused() {
        for sound in ["info", "WARN", "off", "warn,tidings=debug", "warn,[span{a}]=info"] {
            assert!(parse(sound).is_ok(), "{sound}");
        }
        for strange in ["", "loud", "inf0", "info,", "bogus,tidings=debug", "tidings=loud"] {
            assert!(parse(strange).is_err(), "{strange}");
        }
    }
}
