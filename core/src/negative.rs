//! What one worker remembers of tokens that have no user: refused ones, and lookups that failed.
//!
//! Between a miss in the shared table and a lookup. In goes a [`Key`], out comes the [`Verdict`] of a lookup before, while
//! it lasts. A flood of invented tokens fills this and nothing else: it is bounded, each worker has its own, and the
//! shared table holds good answers only. A token that comes again within 30 s is not asked for again by this worker.

use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::key::Key;
use crate::time::Millis;
use crate::whoami::FailureKind;

/// How many tokens a worker remembers. That takes 672 kB when full, and at most 950 kB in a flood (`tests/memory.rs`).
pub const CAPACITY: usize = 8192;

/// What a lookup said about a token that is not a user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The homeserver does not know it (401, M_UNKNOWN_TOKEN).
    Refused,
    /// There was no usable answer.
    Failed(FailureKind),
}

/// The least recently asked for go first.
#[derive(Debug)]
pub struct Refused {
    verdicts: LruCache<Key, (Verdict, Millis), BuildHasherDefault<AlreadyRandom>>,
}

impl Refused {
    /// With room for [`CAPACITY`] tokens; memory is taken as they come.
    pub fn new() -> Self {
        Self::with_capacity(const { NonZeroUsize::new(CAPACITY).unwrap() })
    }

    /// With room for so many tokens.
    pub fn with_capacity(capacity: NonZeroUsize) -> Self {
        // `LruCache::with_hasher` would take all its memory at once, used or not.
        let mut verdicts = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        verdicts.resize(capacity);
        Self { verdicts }
    }

    /// What is known of `key`, if it still holds.
    pub fn get(&mut self, key: &Key, now: Millis) -> Option<Verdict> {
        let (verdict, until) = *self.verdicts.get(key)?;
        if now < until {
            return Some(verdict);
        }
        self.verdicts.pop(key);
        None
    }

    /// Remembers a verdict until that moment.
    pub fn put(&mut self, key: &Key, verdict: Verdict, until: Millis) {
        self.verdicts.put(*key, (verdict, until));
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: &Key) {
        self.verdicts.pop(key);
    }

    /// How many tokens are remembered, run out or not.
    pub fn len(&self) -> usize {
        self.verdicts.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.verdicts.is_empty()
    }
}

impl Default for Refused {
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

    #[test]
    fn a_verdict_holds_until_its_time_and_not_longer() {
        let mut refused = Refused::new();
        refused.put(&key(1), Verdict::Refused, Millis::new(30_000));
        assert_eq!(
            refused.get(&key(1), Millis::new(29_999)),
            Some(Verdict::Refused)
        );
        assert_eq!(refused.get(&key(2), Millis::new(29_999)), None);
        assert_eq!(refused.get(&key(1), Millis::new(30_000)), None);
        assert!(refused.is_empty());
    }

    #[test]
    fn the_last_verdict_is_the_one_that_counts() {
        let mut refused = Refused::new();
        let failed = Verdict::Failed(FailureKind::Timeout);
        refused.put(&key(1), failed, Millis::new(1_000));
        refused.put(&key(1), Verdict::Refused, Millis::new(30_000));
        assert_eq!(
            refused.get(&key(1), Millis::new(500)),
            Some(Verdict::Refused)
        );
        refused.remove(&key(1));
        assert_eq!(refused.get(&key(1), Millis::new(500)), None);
    }

    #[test]
    fn a_flood_forgets_the_least_recently_asked_for_and_stays_bounded() {
        let mut refused = Refused::new();
        let until = Millis::new(30_000);
        refused.put(&key(0), Verdict::Refused, until);
        for n in 1..100_000 {
            refused.put(&key(n), Verdict::Refused, until);
            if n % 1_000 == 0 {
                assert!(refused.get(&key(0), Millis::new(0)).is_some(), "{n}");
            }
        }
        assert_eq!(refused.len(), CAPACITY);
        assert_eq!(refused.get(&key(5), Millis::new(0)), None);
    }

    #[test]
    fn keys_are_spread_by_both_their_halves() {
        let hash =
            |words| BuildHasherDefault::<AlreadyRandom>::default().hash_one(Key::from_words(words));
        assert_ne!(hash([1 << 60, 7]), hash([2 << 60, 7]));
        assert_ne!(hash([7, 1 << 60]), hash([7, 2 << 60]));
    }
}
