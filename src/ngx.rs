//! nginx in Rust, and nothing of Matrix: requests, timers, panics, log lines, scarce memory, versions, each in one place.

#[macro_use]
pub mod log;

pub mod built_for;
pub mod clock;
pub mod compat;
pub mod conf;
pub mod event;
pub mod guard;
pub mod memory;
pub mod phases;
pub mod pool;
pub mod process;
pub mod request;
