//! What one worker remembers of tokens that have no user: refused ones, and lookups that failed.
//!
//! Between a miss in the shared table and a lookup. In goes a [`Key`], out comes the [`LookupError`] of a lookup before,
//! while it lasts. A flood of invented tokens fills this and nothing else: it is bounded, each worker process has its own,
//! and the shared table holds good answers only. How often a token was refused stays known when the time of the last
//! refusal is over, so that it is asked about less and less often.

use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::key::Key;
use crate::time::Millis;
use crate::whoami::{FailureKind, LookupError};

/// How many tokens a worker remembers. That takes 672 kB when full, and at most 950 kB in a flood (`tests/memory.rs`).
pub const CAPACITY: usize = 8192;

/// The first pause before a refused token is asked about again, in milliseconds; each refusal in a row doubles it.
///
/// Right after a login, a token can be unknown for a moment to the process of the homeserver that is asked.
pub const FIRST_PAUSE: u64 = 1000;

/// What is known of a token.
#[derive(Clone, Copy, Debug)]
struct Entry {
    until: Millis,
    error: LookupError,
    /// Refusals in a row.
    refusals: u8,
    /// How long an answer was waited for, in milliseconds.
    given: u32,
}

/// The tokens without a user. Those that were not asked for for the longest time go first.
#[derive(Debug)]
pub struct NegativeCache {
    entries: LruCache<Key, Entry, BuildHasherDefault<AlreadyRandom>>,
}

impl NegativeCache {
    /// With room for [`CAPACITY`] tokens; memory is taken as they come.
    pub fn new() -> Self {
        Self::with_capacity(const { NonZeroUsize::new(CAPACITY).unwrap() })
    }

    /// With room for so many tokens.
    pub fn with_capacity(capacity: NonZeroUsize) -> Self {
        // `LruCache::with_hasher` would take all its memory at once, used or not.
        let mut entries = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        entries.resize(capacity);
        Self { entries }
    }

    /// Why `key` has no user, if that still holds for a request that would wait `patience` milliseconds: that a lookup with
    /// less time took too long says nothing to it.
    pub fn get(&mut self, key: &Key, patience: u64, now: Millis) -> Option<LookupError> {
        let entry = self.entries.get(key)?;
        let too_short = entry.error == LookupError::Failed(FailureKind::Timeout)
            && u64::from(entry.given) < patience;
        (now < entry.until && !too_short).then_some(entry.error)
    }

    /// Remembers that the homeserver refused `key`: for [`FIRST_PAUSE`] at first, then for twice as long each time, up to
    /// `longest` milliseconds.
    pub fn refuse(&mut self, key: &Key, longest: u64, now: Millis) {
        let before = self.entries.peek(key).map_or(0, |entry| entry.refusals);
        let pause = FIRST_PAUSE.saturating_mul(1 << before.min(32)).min(longest);
        self.put(
            key,
            Entry {
                until: now.plus(pause),
                error: LookupError::Refused,
                refusals: before.saturating_add(1),
                given: 0,
            },
        );
    }

    /// Remembers for `lasts` milliseconds that a lookup with `given` milliseconds of time failed. A failure is no refusal,
    /// and leaves the count of those as it is.
    pub fn fail(&mut self, key: &Key, kind: FailureKind, given: u64, lasts: u64, now: Millis) {
        let before = self.entries.peek(key).map_or(0, |entry| entry.refusals);
        self.put(
            key,
            Entry {
                until: now.plus(lasts),
                error: LookupError::Failed(kind),
                refusals: before,
                given: u32::try_from(given).unwrap_or(u32::MAX),
            },
        );
    }

    fn put(&mut self, key: &Key, entry: Entry) {
        self.entries.put(*key, entry);
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: &Key) {
        self.entries.pop(key);
    }
}

impl Default for NegativeCache {
    fn default() -> Self {
        Self::new()
    }
}

/// A key is a keyed digest already; hashing it once more would only take time.
#[derive(Default, Debug)]
struct AlreadyRandom(u64);

impl Hasher for AlreadyRandom {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }

    /// The array's length comes through here, the same for every key.
    fn write_usize(&mut self, _: usize) {}

    /// Arrays of integers come as bytes.
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;

    fn key(n: u64) -> Key {
        Key::from_words([n.wrapping_mul(0x9e37_79b9_7f4a_7c15), !n])
    }

    const TIMED_OUT: LookupError = LookupError::Failed(FailureKind::Timeout);

    fn at(ms: u64) -> Millis {
        Millis::new(ms)
    }

    #[test]
    fn a_refused_token_is_asked_about_after_1_2_4_seconds_and_then_as_often_as_is_configured() {
        let mut cache = NegativeCache::new();
        let mut now = 5_000;
        for pause in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            cache.refuse(&key(1), 30_000, at(now));
            let refused = Some(LookupError::Refused);
            assert_eq!(cache.get(&key(1), 0, at(now + pause - 1)), refused);
            now += pause;
            assert_eq!(cache.get(&key(1), 0, at(now)), None, "after {pause}");
        }
        assert_eq!(cache.get(&key(2), 0, at(0)), None);
        cache.refuse(&key(3), 400, at(0));
        assert_eq!(cache.get(&key(3), 0, at(400)), None);
    }

    #[test]
    fn a_user_ends_the_row_of_refusals_and_a_failure_does_not() {
        let mut cache = NegativeCache::new();
        cache.refuse(&key(1), 30_000, at(0));
        cache.fail(&key(1), FailureKind::Connect, 2_000, 1_000, at(1_000));
        cache.refuse(&key(1), 30_000, at(2_000));
        assert!(cache.get(&key(1), 0, at(3_999)).is_some());
        cache.remove(&key(1));
        cache.refuse(&key(1), 30_000, at(5_000));
        assert_eq!(cache.get(&key(1), 0, at(6_000)), None);
    }

    #[test]
    fn the_last_word_is_the_one_that_counts() {
        let mut cache = NegativeCache::new();
        cache.fail(&key(1), FailureKind::Timeout, 2_000, 1_000, at(0));
        cache.refuse(&key(1), 30_000, at(0));
        assert_eq!(cache.get(&key(1), 0, at(500)), Some(LookupError::Refused));
        cache.remove(&key(1));
        assert_eq!(cache.get(&key(1), 0, at(500)), None);
    }

    #[test]
    fn that_a_lookup_with_little_time_took_too_long_says_nothing_to_the_patient() {
        let mut cache = NegativeCache::new();
        cache.fail(&key(1), FailureKind::Timeout, 100, 1_000, at(0));
        assert_eq!(cache.get(&key(1), 100, at(1)), Some(TIMED_OUT));
        assert_eq!(cache.get(&key(1), 101, at(1)), None);
        cache.fail(&key(1), FailureKind::Head, 100, 1_000, at(0));
        assert!(cache.get(&key(1), 101, at(1)).is_some());
    }

    #[test]
    fn a_flood_forgets_the_least_recently_asked_for_and_stays_bounded() {
        let mut cache = NegativeCache::new();
        cache.refuse(&key(0), 30_000, at(0));
        for n in 1..100_000 {
            cache.refuse(&key(n), 30_000, at(0));
            if n % 1_000 == 0 {
                assert!(cache.get(&key(0), 0, at(0)).is_some(), "{n}");
            }
        }
        assert_eq!(cache.entries.len(), CAPACITY);
        assert_eq!(cache.get(&key(5), 0, at(0)), None);
    }

    #[test]
    fn keys_are_spread_by_both_their_halves() {
        let hash =
            |words| BuildHasherDefault::<AlreadyRandom>::default().hash_one(Key::from_words(words));
        assert_ne!(hash([1 << 60, 7]), hash([2 << 60, 7]));
        assert_ne!(hash([7, 1 << 60]), hash([7, 2 << 60]));
    }
}
