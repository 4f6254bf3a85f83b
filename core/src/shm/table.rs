//! The shared table of tokens.
//!
//! In goes a [`Key`], out comes the [`UserHash`] that an earlier lookup found, with its age. It is the first thing that
//! a request with a token asks, and for nearly every request the last: no lock, no allocation, no system call, at most
//! five cache lines read and usually none written.
//!
//! # An entry certifies itself
//!
//! Any number of processes read and write the same memory with no lock, so a reader may see a mixture: one word of one
//! write and one of another, or what a process left that was killed between two stores. An entry is therefore
//!
//! | word | content |
//! |---|---|
//! | tag | the upper 60 bits of the key's second half, 4 flag bits |
//! | check | the key's first half xor tag xor user |
//! | user | the user hash |
//! | use | when looked up, when used, and a stamp of the logical clock; see [`recency`] |
//!
//! and a reader accepts it only if check xor tag xor user is the first half of its own key, and the tag carries the
//! second (Hyatt and Mann's lockless hashing of transposition tables). Words of two different writes pass that only by
//! a coincidence of 60 random bits and more that nobody can bring about, since keys are SipHash under a secret. So a
//! torn entry is a miss, never another user, under any order of loads and stores: all of them are `Relaxed`. The use
//! word is not covered: mixed up, it makes an entry look older or younger, which costs a lookup and no correctness.
//!
//! # Placement
//!
//! Every key may be in either of two sets of 8 entries, and an entry may move to its other set when room is needed: see
//! `table/place.rs`. Measured in a zone of 1m with room for 31,824 tokens (`examples/hit_ratio.rs`):
//!
//! | | ours | one set of 16 | true LRU |
//! |---|---|---|---|
//! | kept of 28,000 distinct tokens | 100.00% | 95.01% | 100.00% |
//! | kept of 31,000 distinct tokens | 99.87% | 91.49% | 100.00% |
//! | fewest of the last 20,000 kept, in 2,000,000 | 100.00% | 99.20% | 100.00% |
//! | hits, Zipf 0.9 over 200,000 tokens | 67.80% | 67.51% | 67.87% |
//! | hits, the same and a sweep over 10,000 | 80.88% | 80.20% | 80.95% |
//!
//! What a hit adds to the digest's 33 ns, with the requests of all users at random (`examples/hit_path.rs`): 8 ns with 100
//! entries, 12 with 1,000, 33 with 30,000 (a full zone of 1m, in the processor's last cache), 217 with 1,000,000 (in
//! memory). Tags and data in separate lines, or each entry in one, with branches or without: all were measured, and
//! none was better by more than the noise.
//!
//! A set is 256 bytes: a cache line of tags, one of checks, one of users, one of use words. A look at a set that does not
//! hold the key reads one line, and what hits write (the use words) shares no line with what lookups compare.

mod place;
pub mod recency;
mod set;

use crate::key::Key;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::time::{Millis, Seconds};
pub use crate::user::Masquerade;
use crate::user::UserHash;
use recency::{Clock, UseWord};
use set::{Found, Set, Slot};

/// Entries in a set.
pub const WAYS: usize = 8;
/// Words of memory that a set takes: four for each entry.
pub const SET_WORDS: usize = 4 * WAYS;
/// Above so many entries, [`Table::occupancy`] looks at an even sample of about that size.
pub const EXACT_UP_TO: usize = 1 << 17;

const PRESENT: u64 = 1;
const NO_DEVICE: u64 = 2;
const NEVER_MASQUERADES: u64 = 4;
/// The bits of a key's second half that fit beside the flags; the other four are not kept.
const TAG: u64 = !0xf;

/// What the table knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is.
    pub user: UserHash,
    /// Seconds since whoami said so.
    pub age: Seconds,
    /// Whether a `user_id` argument is to be heeded.
    pub masquerade: Masquerade,
}

/// What an insertion did to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// A key still in use lost its place: the zone is too small for its users.
    pub evicted: bool,
    /// The key was there already; its answer and age are new now.
    pub refreshed: bool,
}

/// An entry with all that the state file keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key, but for the four lowest bits of its second half, which are 0 and which the table does not compare.
    pub key: Key,
    /// Whose it is.
    pub user: UserHash,
    /// Whether a `user_id` argument is to be heeded.
    pub masquerade: Masquerade,
    /// Seconds since whoami was asked.
    pub looked_up: Seconds,
    /// Seconds since a request used it, to within [`Table::get`]'s coarseness.
    pub used: Seconds,
    /// How long ago on the logical clock it was used; only the order means something.
    pub rank: u16,
}

/// A view of the zone's table. Copying it copies two references.
#[derive(Clone, Copy, Debug)]
pub struct Table<'m> {
    words: &'m [AtomicU64],
    sets: usize,
    clock: Clock<'m>,
}

impl<'m> Table<'m> {
    /// The table in `words`, all zero or left by another process, with as many whole sets as fit; `insertions` counts
    /// for its logical clock. `None` if not even one set fits.
    ///
    /// `words` should begin at a multiple of 64 bytes: else a set's lines straddle cache lines, and all is slower.
    pub fn new(words: &'m [AtomicU64], insertions: &'m AtomicU64) -> Option<Self> {
        let sets = words.len() / SET_WORDS;
        if sets == 0 {
            return None;
        }
        Some(Self {
            words,
            sets,
            clock: Clock::new(insertions, sets * WAYS),
        })
    }

    /// How many entries there is room for.
    pub fn capacity(&self) -> usize {
        self.sets * WAYS
    }

    /// Whose `key` is, if the table knows.
    ///
    /// Also notes that it was used, but only if the last note is an eighth of the table's capacity in insertions old,
    /// or a sixteenth of `inactive` in time (between 1 s and 60 s): else a hit writes nothing.
    #[inline]
    pub fn get(&self, key: &Key, now: Millis, inactive: Seconds) -> Option<Entry> {
        let [low, high] = key.words();
        let (first, second) = self.choices(low, high);
        let (slot, found) = match self.set(first).find(low, high) {
            Some(known) => known,
            None => self.set(second).find(low, high)?,
        };
        let word = slot.uses();
        let seen = UseWord::from_bits(word.load(Relaxed));
        if let Some(noted) = self.clock.note_use(seen, now, inactive) {
            // One try: if it fails, somebody else has just noted the same.
            let _ = word.compare_exchange(seen.to_bits(), noted.to_bits(), Relaxed, Relaxed);
        }
        Some(Entry {
            user: found.user,
            age: seen.since_lookup(now),
            masquerade: found.masquerade,
        })
    }

    /// Stores whoami's answer for `key`, looked up `now`.
    ///
    /// It replaces what was known of the key, else takes an empty place, else that of an entry unused for longer than
    /// `inactive`, else of the least recently used within reach.
    pub fn insert(
        &self,
        key: &Key,
        user: UserHash,
        masquerade: Masquerade,
        now: Millis,
        inactive: Seconds,
    ) -> Inserted {
        let fresh = |stamp| UseWord::new(now, Seconds::new(0), Seconds::new(0), stamp);
        self.store(key, Found { user, masquerade }, fresh, now, inactive)
    }

    /// Puts back what [`Self::records`] gave, with its ages. Put back the longest unused first: each counts as used
    /// later than those before.
    pub fn restore(&self, record: &Record, now: Millis, inactive: Seconds) -> Inserted {
        let found = Found {
            user: record.user,
            masquerade: record.masquerade,
        };
        let aged = |stamp| UseWord::new(now, record.looked_up, record.used, stamp);
        self.store(&record.key, found, aged, now, inactive)
    }

    /// Forgets `key`. True if it was known.
    pub fn remove(&self, key: &Key) -> bool {
        let [low, high] = key.words();
        let (first, second) = self.choices(low, high);
        let mut known = false;
        for set in [self.set(first), self.set(second)] {
            while let Some((slot, _)) = set.find(low, high) {
                slot.tag().store(0, Relaxed);
                known = true;
            }
        }
        known
    }

    /// How many entries are there and not unused for longer than `inactive`, and how many there is room for.
    ///
    /// Takes no lock and reads two lines of each set, so it can be asked under load. Up to [`EXACT_UP_TO`] entries of
    /// room every set is read (under a millisecond); above, every n-th set is, and the figure is extrapolated: keys
    /// are spread evenly, so it is right to within about half a percent.
    pub fn occupancy(&self, now: Millis, inactive: Seconds) -> (u64, u64) {
        let stride = self.capacity().div_ceil(EXACT_UP_TO);
        let (mut live, mut looked_at) = (0, 0_u64);
        for index in (0..self.sets).step_by(stride) {
            looked_at += 1;
            for slot in self.set(index).slots() {
                let word = UseWord::from_bits(slot.uses().load(Relaxed));
                let present = slot.tag().load(Relaxed) & PRESENT != 0;
                live += u64::from(present && word.since_use(now) <= inactive);
            }
        }
        let sets = self.sets as u64;
        (live * sets / looked_at, sets * WAYS as u64)
    }

    /// Every entry, in no particular order, as it stands while the iterator passes by.
    ///
    /// There is no key to certify an entry with. So a torn entry comes out too, under a key that no token has.
    pub fn records(&self, now: Millis) -> impl Iterator<Item = Record> + use<'m> {
        let table = *self;
        (0..table.sets).flat_map(move |index| {
            let slots = table.set(index).slots();
            slots.filter_map(move |slot| table.record(index, slot, now))
        })
    }

    fn record(&self, index: usize, slot: Slot<'m>, now: Millis) -> Option<Record> {
        // Each word is read once: a second look at the user might show another one, beside this key.
        let (low, tag, user) = slot.read();
        if tag & PRESENT == 0 || self.other_set(low, tag, index).is_none() {
            return None;
        }
        let word = UseWord::from_bits(slot.uses().load(Relaxed));
        Some(Record {
            key: Key::from_words([low, tag & TAG]),
            user: UserHash::from_bits(user),
            masquerade: masquerade_of(tag),
            looked_up: word.since_lookup(now),
            used: word.since_use(now),
            rank: self.clock.age(word),
        })
    }

    fn store(
        &self,
        key: &Key,
        found: Found,
        used: impl FnOnce(u64) -> UseWord,
        now: Millis,
        inactive: Seconds,
    ) -> Inserted {
        let [low, high] = key.words();
        let place = self.place(low, high, now, inactive);
        if let Some(other) = place.makes_way_to {
            // The copy first: who looks for it meanwhile finds it in one place or the other.
            place.slot.copy_to(other);
        }
        let stamp = if place.inserted.refreshed {
            self.clock.read()
        } else {
            self.clock.advance()
        };
        let tag = (high & TAG) | PRESENT | flags_of(found.masquerade);
        let user = found.user.to_bits();
        let uses = used(stamp).to_bits();
        place.slot.write(tag, low ^ tag ^ user, user, uses);
        place.inserted
    }

    /// The two sets of a key: each from other bits of it, by multiplying instead of dividing (any number of sets will
    /// do). Only bits that the tag keeps are used, so that [`Self::record`] finds the same.
    #[inline]
    fn choices(&self, low: u64, high: u64) -> (usize, usize) {
        (self.scale(low), self.scale(high & TAG))
    }

    /// The other set where an entry that stands in set `index` may stand. `None` if it does not belong even there: then
    /// its words are of two writes, and no request will ever find it.
    fn other_set(&self, low: u64, tag: u64, index: usize) -> Option<usize> {
        match self.choices(low, tag) {
            (first, second) if first == index => Some(second),
            (first, second) if second == index => Some(first),
            _ => None,
        }
    }

    #[inline]
    fn scale(&self, random: u64) -> usize {
        // Below `sets`, so it fits.
        ((u128::from(random) * self.sets as u128) >> 64) as usize
    }

    #[inline]
    fn set(&self, index: usize) -> Set<'m> {
        let words = &self.words[index * SET_WORDS..];
        match words.first_chunk() {
            Some(words) => Set(words),
            None => unreachable!("set {index} of {}", self.sets),
        }
    }
}

fn flags_of(masquerade: Masquerade) -> u64 {
    match masquerade {
        Masquerade::No => 0,
        Masquerade::Maybe => NO_DEVICE,
        Masquerade::Never => NO_DEVICE | NEVER_MASQUERADES,
    }
}

fn masquerade_of(tag: u64) -> Masquerade {
    match (tag & NO_DEVICE != 0, tag & NEVER_MASQUERADES != 0) {
        (false, _) => Masquerade::No,
        (true, false) => Masquerade::Maybe,
        (true, true) => Masquerade::Never,
    }
}

#[cfg(test)]
mod tests;
