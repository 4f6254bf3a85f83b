//! Who was used when: one word beside each entry, and the logical clock that orders it.
//!
//! In the word stand, from the top: the second of the lookup (26 bits), the second of the last use that was noted (26
//! bits), and the stamp of that use (12 bits). All three are modular.
//!
//! Seconds alone would not order a flood: 10,000 tokens within a second are all equally old, and the next insertion would
//! evict any of them. So the order of use is told by a logical clock that counts insertions: its stamp advances 64 to
//! 128 times while the table is filled once. The least recently used entry is the one with the oldest stamp, to within
//! that step and the eighth of the capacity within which a hit is not noted again.
//!
//! Wrapping is harmless. Seconds wrap after 2^26 s, 776 days: an entry of that age looks freshly looked up (a token
//! never changes its user, so its answer is still right) and recently used (it keeps its place until the stamps
//! speak). Stamps wrap after 32 times the capacity in insertions; by then every set has been replaced about 32 times
//! over, oldest first, so no stamp of that age is left. And a stored time may be *ahead* of a reader, whose event loop
//! read its clock earlier: ages in the last thousandth of the range count as 0.

use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::time::{Millis, Seconds};

const SECONDS_BITS: u32 = 26;
const STAMP_BITS: u32 = 12;
const LOOKED_UP_SHIFT: u32 = SECONDS_BITS + STAMP_BITS;
const SECONDS: u64 = (1 << SECONDS_BITS) - 1;
const STAMP: u64 = (1 << STAMP_BITS) - 1;

/// How far a stored second may lie ahead of the reader's clock: 18 hours, far more than an event loop's turn.
const SECONDS_AHEAD: u64 = 1 << 16;
/// How far a stored stamp may lie ahead of the reader's, who read the counter earlier.
const STAMPS_AHEAD: u64 = 64;
/// The stamp advances at least so often while the table is filled once.
const STAMPS_PER_CAPACITY: u64 = 64;
/// The rank of a place where nothing stands.
pub(super) const EMPTY: u64 = u64::MAX;
/// The rank of an entry that nobody can find.
pub(super) const TORN: u64 = u64::MAX - 1;
/// Marks in a rank that its entry is unused for longer than `inactive`.
const INACTIVE: u64 = 1 << 63;

/// The word of an entry that says when it was looked up and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UseWord(u64);

impl UseWord {
    /// Looked up and used that long before `now`, at that stamp.
    pub(super) fn new(now: Millis, looked_up: Seconds, used: Seconds, stamp: u64) -> Self {
        // Older than can be told is as old as can be told.
        let ago = |age: Seconds| {
            let age = u64::from(age.get()).min(SECONDS - SECONDS_AHEAD);
            now.seconds().wrapping_sub(age) & SECONDS
        };
        Self(ago(looked_up) << LOOKED_UP_SHIFT | ago(used) << STAMP_BITS | stamp & STAMP)
    }

    #[inline]
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline]
    pub(super) const fn to_bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) fn since_lookup(self, now: Millis) -> Seconds {
        seconds_since(self.0 >> LOOKED_UP_SHIFT, now)
    }

    #[inline]
    pub(super) fn since_use(self, now: Millis) -> Seconds {
        seconds_since(self.0 >> STAMP_BITS, now)
    }

    #[inline]
    fn used_now(self, now: Millis, stamp: u64) -> Self {
        let looked_up = self.0 >> LOOKED_UP_SHIFT << LOOKED_UP_SHIFT;
        Self(looked_up | (now.seconds() & SECONDS) << STAMP_BITS | stamp & STAMP)
    }
}

#[inline]
fn seconds_since(second: u64, now: Millis) -> Seconds {
    let age = now.seconds().wrapping_sub(second) & SECONDS;
    // 26 bits fit.
    Seconds::new(if age > SECONDS - SECONDS_AHEAD {
        0
    } else {
        age as u32
    })
}

/// The logical clock of a table: a counter of insertions in shared memory, read in steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock<'m> {
    insertions: &'m AtomicU64,
    /// A step is two to that power of insertions.
    step: u32,
    /// Hits are noted again after so many steps.
    note_after: u64,
}

impl<'m> Clock<'m> {
    pub(super) fn new(insertions: &'m AtomicU64, capacity: usize) -> Self {
        let capacity = capacity as u64;
        let step = (capacity / STAMPS_PER_CAPACITY).max(1).ilog2();
        Self {
            insertions,
            step,
            note_after: (capacity >> step >> 3).max(1),
        }
    }

    /// The stamp of now.
    #[inline]
    pub(super) fn read(&self) -> u64 {
        self.insertions.load(Relaxed) >> self.step
    }

    /// Counts an insertion, and gives its stamp.
    pub(super) fn advance(&self) -> u64 {
        self.insertions.fetch_add(1, Relaxed).wrapping_add(1) >> self.step
    }

    /// Steps since the entry's use was noted.
    #[inline]
    pub(super) fn age(&self, word: UseWord) -> u16 {
        let age = self.read().wrapping_sub(word.0) & STAMP;
        // 12 bits fit.
        if age > STAMP - STAMPS_AHEAD {
            0
        } else {
            age as u16
        }
    }

    /// The word to write for a use of that entry now; `None` if what stands there is recent enough.
    #[inline]
    pub(super) fn note_use(
        &self,
        word: UseWord,
        now: Millis,
        inactive: Seconds,
    ) -> Option<UseWord> {
        let period = (inactive.get() / 16).clamp(1, 60);
        let due =
            word.since_use(now).get() >= period || u64::from(self.age(word)) >= self.note_after;
        due.then(|| word.used_now(now, self.read()))
    }

    /// The higher, the sooner this entry may go: first those unused for longer than `inactive`, then by stamp, then by
    /// seconds.
    pub(super) fn dispensable(&self, bits: u64, now: Millis, inactive: Seconds) -> u64 {
        let word = UseWord(bits);
        let unused = word.since_use(now);
        let rank = u64::from(self.age(word)) << 32 | u64::from(unused.get());
        if unused > inactive {
            INACTIVE | rank
        } else {
            rank
        }
    }
}

/// Whether a rank is that of an entry in use, which would be missed.
pub(super) fn is_live(rank: u64) -> bool {
    rank & INACTIVE == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Seconds = Seconds::new(86_400);

    fn at(seconds: u64) -> Millis {
        Millis::new(seconds * 1000)
    }

    #[test]
    fn ages_are_told_across_the_wrap_of_26_bits() {
        for now in [0, 5, 86_400, SECONDS, SECONDS + 3, 40 * SECONDS + 7] {
            let word = UseWord::new(at(now), Seconds::new(7_200), Seconds::new(30), 9);
            assert_eq!(word.since_lookup(at(now)), Seconds::new(7_200));
            assert_eq!(word.since_use(at(now + 12)), Seconds::new(42));
        }
    }

    #[test]
    fn a_time_ahead_of_the_readers_clock_is_now() {
        let word = UseWord::new(at(1_000), Seconds::new(0), Seconds::new(0), 0);
        assert_eq!(word.since_use(at(999)), Seconds::new(0));
        let insertions = AtomicU64::new(64);
        let clock = Clock::new(&insertions, 64);
        let ahead = UseWord::new(at(0), Seconds::new(0), Seconds::new(0), 66);
        assert_eq!(clock.age(ahead), 0);
    }

    #[test]
    fn a_use_is_noted_by_time_or_by_insertions_and_not_more_often() {
        let insertions = AtomicU64::new(0);
        let clock = Clock::new(&insertions, 6_400);
        let word = UseWord::new(at(500), Seconds::new(0), Seconds::new(0), clock.read());
        assert_eq!(clock.note_use(word, at(559), DAY), None);
        let noted = clock.note_use(word, at(560), DAY).unwrap();
        assert_eq!(noted.since_use(at(560)), Seconds::new(0));
        assert_eq!(noted.since_lookup(at(560)), Seconds::new(60));
        insertions.store(6_400 / 8 - 64, Relaxed);
        assert_eq!(clock.note_use(word, at(500), DAY), None);
        insertions.store(6_400 / 8, Relaxed);
        assert!(clock.note_use(word, at(500), DAY).is_some());
    }

    #[test]
    fn inactive_goes_first_then_the_oldest_stamp_then_the_oldest_second() {
        let insertions = AtomicU64::new(6_400);
        let clock = Clock::new(&insertions, 6_400);
        let rank = |used: u32, stamp: u64| {
            let word = UseWord::new(at(90_000), Seconds::new(used), Seconds::new(used), stamp);
            clock.dispensable(word.to_bits(), at(90_000), DAY)
        };
        assert!(rank(86_401, 100) > rank(86_400, 0));
        assert!(!is_live(rank(86_401, 100)) && is_live(rank(86_400, 0)));
        assert!(rank(1, 3) > rank(500, 4));
        assert!(rank(2, 4) > rank(1, 4));
    }
}
