//! What the processes share: a zone of shared memory, as a slice of atomic words, and what stands in it.
//!
//! [`zone`] divides the memory: the [`table`] of tokens, the [`claims`] (one lookup at a time for each key, and a cap on all),
//! the [`places`] (whose turn it is), the [`breaker`], and the [`throttle`] of log lines. What the [`counters`] count is
//! [`crate::metrics`].

pub mod breaker;
pub mod claims;
pub mod counters;
pub mod places;
pub mod table;
pub mod throttle;
pub mod zone;
