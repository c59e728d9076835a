//! Whole nodes, and the rig they are tested with.

mod architecture;
mod crashes;
mod cuts;
mod forming;
mod loss;
mod matrix;
mod network;
mod receipts;
mod replay;
mod restarts;
mod verdict;
