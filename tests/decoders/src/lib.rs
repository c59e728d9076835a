//! Every decoder of what comes from outside, as a function of bytes, with samples of what it should accept.
//!
//! Its tests feed each with mutated samples; `tests/fuzz` hands the same functions to libFuzzer. None may panic, take
//! for ever, or allocate more than a few times what it is given.

#![allow(clippy::missing_panics_doc, reason = "that a function panics is what is looked for")]

mod asks;
mod audit;
mod copies;
mod frames;
mod gossip;
mod log_files;
mod mutate;
mod samples;
mod texts;

#[allow(dead_code, unreachable_pub, missing_docs, reason = "the program uses the rest")]
mod program;
#[allow(dead_code, unreachable_pub, missing_docs, reason = "the program uses the rest")]
#[path = "../../../crates/tidings-cli/src/secrets.rs"]
mod secrets;
#[allow(dead_code, unreachable_pub, missing_docs, reason = "the program uses the rest")]
#[path = "../../../crates/tidings-cli/src/units.rs"]
mod units;

pub use mutate::Mutator;

/// What serde makes room for at once where a length is claimed, and what gossip may decompress to: a mebibyte each, and as
/// much again for what is made of it.
const CLAIMED_BYTES: usize = 2 << 20;

/// What reading text costs whatever it says: the buffers around a compressed trace, of 128 KiB each, and the findings about
/// a configuration with what may have been meant.
const TEXT_BYTES: usize = 512 << 10;

/// What is borrowed from its bytes allocates little: a list that stays short, or an error and its text.
const BORROWED_BYTES: usize = 4 << 10;

/// A decoder.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// Its name, that of its target in `tests/fuzz`.
    pub name: &'static str,
    /// Runs it. Returns whether the bytes were accepted.
    pub decode: fn(&[u8]) -> bool,
    /// Bytes that it accepts.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Most bytes that it may allocate at once, whatever it is given.
    pub bytes_fixed: usize,
    /// And so many for each byte that it is given.
    pub bytes_per_byte: usize,
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    Decoder {
        name: "stream",
        decode: frames::stream,
        samples: samples::streams,
        bytes_fixed: CLAIMED_BYTES,
        bytes_per_byte: 64,
    },
    Decoder {
        name: "control",
        decode: frames::control,
        samples: samples::controls,
        bytes_fixed: CLAIMED_BYTES,
        bytes_per_byte: 64,
    },
    Decoder {
        name: "batch",
        decode: frames::batch,
        samples: samples::batches,
        bytes_fixed: BORROWED_BYTES,
        bytes_per_byte: 4,
    },
    Decoder {
        name: "key",
        decode: frames::key,
        samples: samples::keys,
        bytes_fixed: 2 * BORROWED_BYTES,
        bytes_per_byte: 272,
    },
    Decoder {
        name: "audit_question",
        decode: audit::question,
        samples: audit::questions,
        bytes_fixed: CLAIMED_BYTES,
        bytes_per_byte: 64,
    },
    Decoder {
        name: "audit_answer",
        decode: audit::answer,
        samples: audit::answers,
        bytes_fixed: CLAIMED_BYTES,
        bytes_per_byte: 64,
    },
    Decoder {
        name: "copy",
        decode: copies::copy,
        samples: copies::copies,
        bytes_fixed: 2 * BORROWED_BYTES,
        bytes_per_byte: 32,
    },
    Decoder {
        name: "gossip",
        decode: gossip::frame,
        samples: gossip::frames,
        bytes_fixed: CLAIMED_BYTES,
        bytes_per_byte: 16,
    },
    Decoder {
        name: "signed_record",
        decode: gossip::record,
        samples: gossip::records,
        // serde makes room for up to a mebibyte of bytes whose number is claimed.
        bytes_fixed: (1 << 20) + (80 << 10),
        bytes_per_byte: 16,
    },
    Decoder {
        name: "ask",
        decode: asks::ask,
        samples: asks::asks,
        bytes_fixed: CLAIMED_BYTES,
        bytes_per_byte: 64,
    },
    Decoder {
        name: "lease",
        decode: asks::lease,
        samples: asks::leases,
        bytes_fixed: CLAIMED_BYTES,
        bytes_per_byte: 64,
    },
    Decoder {
        name: "log_file",
        decode: log_files::files,
        samples: log_files::samples,
        bytes_fixed: 64 << 10,
        bytes_per_byte: 64,
    },
    Decoder {
        name: "trace",
        decode: texts::trace,
        samples: texts::traces,
        bytes_fixed: TEXT_BYTES,
        bytes_per_byte: 16,
    },
    Decoder {
        name: "config",
        decode: texts::config,
        samples: texts::configs,
        bytes_fixed: TEXT_BYTES,
        bytes_per_byte: 256,
    },
];

/// The decoder of this name.
#[must_use]
pub fn decoder(name: &str) -> Option<&'static Decoder> {
    DECODERS.iter().find(|decoder| decoder.name == name)
}

/// Runs the decoder of this name.
pub fn run(name: &str, bytes: &[u8]) {
    let decoder = decoder(name).expect("each target is a decoder");
    let _ = (decoder.decode)(bytes);
}
