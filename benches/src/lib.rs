//! What the benchmarks share: clocks, reading a process's cost from `/proc`, medians, and interleaved timing.
//!
//! Only ratios between figures of one run mean anything here: the machine is small and shared. So every benchmark
//! runs its subjects in turns, round after round, and compares within the round.

pub mod clock;
pub mod interleave;
pub mod machine;
pub mod stats;
pub mod target;
