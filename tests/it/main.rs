//! Whole nodes, and the rig they are tested with.

mod architecture;
mod network;
