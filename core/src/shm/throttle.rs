//! The log throttle: a line that would repeat is logged once in a while, over all worker processes.
//!
//! "Logged once per kind and minute" (docs/requests.md, 4): the zone keeps for each kind when it was logged last, and the
//! worker process whose compare-and-swap moves that forward is the one that logs.

use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::time::Millis;
use crate::whoami::FailureKind;

/// Words of memory that the throttle takes: room for more kinds of line than there are.
pub const THROTTLE_WORDS: usize = 16;

/// A kind of line that is throttled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// An entry in use was evicted: the zone is small.
    ZoneSmall,
    /// Lookups are suspended.
    Suspended,
    /// Requests go on by the fallback because `matrix_user_hash_max_lookups` are in flight.
    Overload,
    /// The state file could not be written.
    State,
    /// A lookup failed.
    Failure(FailureKind),
}

impl LogLine {
    fn index(self) -> usize {
        match self {
            Self::ZoneSmall => 0,
            Self::Suspended => 1,
            Self::Overload => 2,
            Self::State => 3,
            Self::Failure(kind) => 8 + kind as usize,
        }
    }
}

/// When each kind of line was logged last. Copying it copies a reference.
#[derive(Clone, Copy, Debug)]
pub struct LogThrottle<'m> {
    words: &'m [AtomicU64; THROTTLE_WORDS],
}

impl<'m> LogThrottle<'m> {
    /// The throttle in `words`, all zero or left by another process.
    pub fn new(words: &'m [AtomicU64; THROTTLE_WORDS]) -> Self {
        Self { words }
    }

    /// Whether the caller should log this line: at most one process in `every` milliseconds is told so.
    pub fn is_due(&self, line: LogLine, now: Millis, every: u64) -> bool {
        let word = &self.words[line.index()];
        let last = word.load(Relaxed);
        // One more than the moment, so that 0 is "never" even at boot.
        if last != 0 && now.since(Millis::new(last - 1)) < every {
            return false;
        }
        word.compare_exchange(last, now.get() + 1, Relaxed, Relaxed)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_due_once_a_minute() {
        let words = [const { AtomicU64::new(0) }; THROTTLE_WORDS];
        let throttle = LogThrottle::new(&words);
        let minute = 60_000;
        let timeout = LogLine::Failure(FailureKind::Timeout);
        assert!(throttle.is_due(timeout, Millis::new(0), minute));
        assert!(!throttle.is_due(timeout, Millis::new(59_999), minute));
        assert!(throttle.is_due(LogLine::ZoneSmall, Millis::new(59_999), minute));
        assert!(throttle.is_due(timeout, Millis::new(60_000), minute));
    }

    #[test]
    fn every_kind_has_a_word_of_its_own() {
        let failures = FailureKind::ALL.map(LogLine::Failure);
        let others = [
            LogLine::ZoneSmall,
            LogLine::Suspended,
            LogLine::Overload,
            LogLine::State,
        ];
        let indices: std::collections::BTreeSet<_> = others
            .iter()
            .chain(&failures)
            .map(|line| line.index())
            .collect();
        assert_eq!(indices.len(), others.len() + failures.len());
        assert!(indices.last().is_some_and(|last| *last < THROTTLE_WORDS));
    }
}
