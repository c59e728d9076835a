//! What the program reads, compiled from its sources: it has no library.

#[path = "../../../crates/tidings-cli/src/config/finding.rs"]
pub(crate) mod finding;
#[path = "../../../crates/tidings-cli/src/config/settings.rs"]
pub(crate) mod settings;
#[path = "../../../crates/tidings-cli/src/config/source.rs"]
pub(crate) mod source;
#[path = "../../../crates/tidings-cli/src/replay/trace.rs"]
mod trace;
#[path = "../../../crates/tidings-cli/src/config/value.rs"]
mod value;

/// What a trace is made of.
mod workload {
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct Request {
        pub(crate) at: f64,
        pub(crate) key: String,
        pub(crate) size: u32,
    }
}

/// How many requests stand before the end of a trace, or before what is wrong with it.
pub(crate) fn requests(bytes: Vec<u8>) -> usize {
    let trace = trace::Trace::new(std::io::Cursor::new(bytes));
    trace.map_or(0, |trace| trace.take_while(Result::is_ok).count())
}
