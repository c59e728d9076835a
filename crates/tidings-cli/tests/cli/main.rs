//! The program as its users meet it: the built binary, its output and its exit codes.

mod certificates;
mod configuration;
mod general;
mod http;
mod replay;
mod support;
