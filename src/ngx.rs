//! nginx in Rust, and nothing of Matrix: requests, timers, panics, log lines, scarce memory, versions, each in one place.

#[macro_use]
pub(crate) mod log;

pub(crate) mod built_for;
pub(crate) mod clock;
pub(crate) mod compat;
pub(crate) mod conf;
pub(crate) mod event;
pub(crate) mod guard;
pub(crate) mod memory;
pub(crate) mod phases;
pub(crate) mod pool;
pub(crate) mod process;
pub(crate) mod request;
