//! What one worker process remembers of tokens that have no user: refused ones, and lookups that failed.
//!
//! It is asked between a miss in the shared table and a lookup. In goes a [`Key`], out comes the [`LookupError`] of an
//! earlier lookup, while that is remembered. A flood of invented tokens fills this and nothing else: it is bounded, each worker process has its own,
//! and the shared table holds good answers only. How often a token was refused stays known when the time of the last
//! refusal is over, so that it is asked about less and less often.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;

use crate::key::Key;
use crate::time::Millis;
use crate::whoami::{FailureKind, LookupError};

/// How many tokens a worker process remembers. They take 606 kB when that many are there, and at most 885 kB in a flood
/// (`tests/memory.rs`).
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

/// A token in its place, linked to those that were asked for just before and after it.
#[derive(Debug)]
struct Node {
    key: Key,
    entry: Entry,
    newer: u32,
    older: u32,
}

/// No node.
const NONE: u32 = u32::MAX;

/// The tokens without a user. Those that were not asked for for the longest time go first.
///
/// What there is no memory for is not remembered: that costs a lookup, where the standard collections would end the process.
#[derive(Debug)]
pub struct NegativeCache {
    /// Where a token's node is, by a word of its key. Two keys with the same word take turns.
    places: HashMap<u64, u32, BuildHasherDefault<AlreadyRandom>>,
    nodes: Vec<Node>,
    newest: u32,
    oldest: u32,
    /// Nodes of tokens that were forgotten, linked by `older`.
    vacant: u32,
    capacity: usize,
}

impl NegativeCache {
    /// With room for [`CAPACITY`] tokens; memory is taken as they come.
    pub fn new() -> Self {
        Self::with_capacity(const { NonZeroUsize::new(CAPACITY).unwrap() })
    }

    /// With room for so many tokens.
    pub fn with_capacity(capacity: NonZeroUsize) -> Self {
        Self {
            places: HashMap::default(),
            nodes: Vec::new(),
            newest: NONE,
            oldest: NONE,
            vacant: NONE,
            capacity: capacity.get().min(NONE as usize),
        }
    }

    /// Why `key` has no user, if that still holds for a request that would wait `patience` milliseconds: that a lookup with
    /// less time took too long says nothing to it.
    pub fn get(&mut self, key: &Key, patience: u64, now: Millis) -> Option<LookupError> {
        let index = self.find(key)?;
        self.touch(index);
        let entry = &self.nodes[index as usize].entry;
        let too_short = entry.error == LookupError::Failed(FailureKind::Timeout)
            && u64::from(entry.given) < patience;
        (now < entry.until && !too_short).then_some(entry.error)
    }

    /// Remembers that the homeserver refused `key`: for [`FIRST_PAUSE`] at first, then for twice as long each time, up to
    /// `longest` milliseconds.
    pub fn refuse(&mut self, key: &Key, longest: u64, now: Millis) {
        let before = self.refusals(key);
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
        let before = self.refusals(key);
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

    fn refusals(&self, key: &Key) -> u8 {
        self.find(key)
            .map_or(0, |index| self.nodes[index as usize].entry.refusals)
    }

    fn put(&mut self, key: &Key, entry: Entry) {
        let known = self.places.get(&word(key)).copied();
        let Some(index) = known.or_else(|| self.take()) else {
            return;
        };
        let node = &mut self.nodes[index as usize];
        (node.key, node.entry) = (*key, entry);
        self.places.insert(word(key), index);
        self.touch(index);
    }

    /// A node for one more token, with room for its place. `None` without memory.
    fn take(&mut self) -> Option<u32> {
        self.places.try_reserve(1).ok()?;
        if self.places.len() >= self.capacity {
            let index = self.oldest;
            self.places.remove(&word(&self.nodes[index as usize].key));
            self.unlink(index);
            self.link(index);
            return Some(index);
        }
        let index = self.vacant;
        if index != NONE {
            self.vacant = self.nodes[index as usize].older;
            self.link(index);
            return Some(index);
        }
        self.nodes.try_reserve(1).ok()?;
        let index = u32::try_from(self.nodes.len()).ok()?;
        self.nodes.push(Node {
            key: Key::from_words([0, 0]),
            entry: Entry {
                until: Millis::new(0),
                error: LookupError::Refused,
                refusals: 0,
                given: 0,
            },
            newer: NONE,
            older: NONE,
        });
        self.link(index);
        Some(index)
    }

    /// Where the node of that very key is.
    fn find(&self, key: &Key) -> Option<u32> {
        let index = *self.places.get(&word(key))?;
        (self.nodes[index as usize].key == *key).then_some(index)
    }

    /// Makes a node the newest.
    fn touch(&mut self, index: u32) {
        if index != self.newest {
            self.unlink(index);
            self.link(index);
        }
    }

    /// Takes a node out of the order.
    fn unlink(&mut self, index: u32) {
        let Node { newer, older, .. } = self.nodes[index as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
    }

    /// Puts a node that is in no order before all others.
    fn link(&mut self, index: u32) {
        let before = self.newest;
        let node = &mut self.nodes[index as usize];
        (node.newer, node.older) = (NONE, before);
        match before {
            NONE => self.oldest = index,
            before => self.nodes[before as usize].newer = index,
        }
        self.newest = index;
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: &Key) {
        let Some(index) = self.find(key) else {
            return;
        };
        self.places.remove(&word(key));
        self.unlink(index);
        self.nodes[index as usize].older = self.vacant;
        self.vacant = index;
    }
}

/// The word by which a key is found. Both halves of a key are random, and count.
fn word(key: &Key) -> u64 {
    let [low, high] = key.words();
    low ^ high.rotate_left(32)
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
        self.0 = word;
    }

    /// Words come by [`Self::write_u64`], and there is nothing else.
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    use proptest::prelude::*;

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
        assert_eq!(cache.places.len(), CAPACITY);
        assert_eq!(cache.nodes.len(), CAPACITY);
        assert_eq!(cache.get(&key(5), 0, at(0)), None);
    }

    #[test]
    fn keys_are_found_by_both_their_halves() {
        let word = |words| word(&Key::from_words(words));
        assert_ne!(word([1 << 60, 7]), word([2 << 60, 7]));
        assert_ne!(word([7, 1 << 60]), word([7, 2 << 60]));
    }

    #[test]
    fn two_keys_with_the_same_word_are_not_taken_for_each_other() {
        let (one, other) = (Key::from_words([1, 0]), Key::from_words([0, 1 << 32]));
        assert_eq!(word(&one), word(&other));
        let mut cache = NegativeCache::new();
        cache.refuse(&one, 30_000, at(0));
        assert_eq!(cache.get(&other, 0, at(0)), None);
        cache.remove(&other);
        assert!(cache.get(&one, 0, at(0)).is_some());
        cache.refuse(&other, 30_000, at(0));
        assert_eq!(cache.get(&one, 0, at(0)), None);
        assert_eq!((cache.places.len(), cache.nodes.len()), (1, 1));
    }

    proptest! {
        /// Against a queue in which the newest is last.
        #[test]
        fn the_least_recently_used_goes_first(steps in prop::collection::vec((0_u8..3, 0_u64..12), 0..200)) {
            let mut cache = NegativeCache::with_capacity(NonZeroUsize::new(5).unwrap());
            let mut model: VecDeque<u64> = VecDeque::new();
            for (step, n) in steps {
                let place = model.iter().position(|&known| known == n);
                match step {
                    0 => {
                        cache.refuse(&key(n), 30_000, at(0));
                        place.map(|place| model.remove(place));
                        model.push_back(n);
                        if model.len() > 5 {
                            model.pop_front();
                        }
                    }
                    1 => {
                        prop_assert_eq!(cache.get(&key(n), 0, at(0)).is_some(), place.is_some());
                        if let Some(known) = place.and_then(|place| model.remove(place)) {
                            model.push_back(known);
                        }
                    }
                    _ => {
                        cache.remove(&key(n));
                        place.map(|place| model.remove(place));
                    }
                }
                prop_assert_eq!(cache.places.len(), model.len());
                prop_assert!(cache.nodes.len() <= 5);
            }
        }
    }
}
