//! Log lines that would repeat, once in a while over all workers.
//!
//! "Logged once per kind and minute" (docs/requests.md, 4): the zone keeps for each kind when it was
//! logged last, and the worker whose compare-and-swap moves that forward is the one that logs.

use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::time::Millis;
use crate::whoami::FailureKind;

/// Words of memory that the notices take: room for more kinds than there are.
pub const NOTICE_WORDS: usize = 16;

/// What is logged now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
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

impl Notice {
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

/// The zone's notices. Copying it copies a reference.
#[derive(Clone, Copy, Debug)]
pub struct Notices<'m> {
    words: &'m [AtomicU64; NOTICE_WORDS],
}

impl<'m> Notices<'m> {
    /// The notices in `words`, all zero or left by another process.
    pub fn new(words: &'m [AtomicU64; NOTICE_WORDS]) -> Self {
        Self { words }
    }

    /// Whether the caller should log this one: at most one process in `every` milliseconds is told so.
    pub fn is_due(&self, notice: Notice, now: Millis, every: u64) -> bool {
        let word = &self.words[notice.index()];
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
        let words = [const { AtomicU64::new(0) }; NOTICE_WORDS];
        let notices = Notices::new(&words);
        let minute = 60_000;
        let timeout = Notice::Failure(FailureKind::Timeout);
        assert!(notices.is_due(timeout, Millis::new(0), minute));
        assert!(!notices.is_due(timeout, Millis::new(59_999), minute));
        assert!(notices.is_due(Notice::ZoneSmall, Millis::new(59_999), minute));
        assert!(notices.is_due(timeout, Millis::new(60_000), minute));
    }

    #[test]
    fn every_kind_has_a_word_of_its_own() {
        let failures = FailureKind::ALL.map(Notice::Failure);
        let others = [
            Notice::ZoneSmall,
            Notice::Suspended,
            Notice::Overload,
            Notice::State,
        ];
        let indices: std::collections::BTreeSet<_> = others
            .iter()
            .chain(&failures)
            .map(|notice| notice.index())
            .collect();
        assert_eq!(indices.len(), others.len() + failures.len());
        assert!(indices.last().is_some_and(|last| *last < NOTICE_WORDS));
    }
}
