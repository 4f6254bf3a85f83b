//! The atomics that the shared memory is made of: the standard library's, or loom's where `--cfg loom` checks every
//! interleaving of them (`tests/loom.rs`).

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
