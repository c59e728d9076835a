//! Whole nodes, and the rig they are tested with.

mod architecture;
mod clocks;
mod consumers;
mod crashes;
mod cuts;
mod deploy;
mod forming;
mod frozen;
mod lag;
mod log_files;
mod loss;
mod matrix;
mod network;
mod receipts;
mod releases;
mod repair;
mod replay;
mod restarts;
mod trace;
mod verdict;
