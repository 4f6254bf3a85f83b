//! The shared table: whose token is it?
//!
//! In goes a [`Key`], out comes the [`UserHash`] that an earlier lookup found, with its age. It is the first thing that
//! a request with a token asks, and for nearly every request the last: no lock, no allocation, no system call, at most
//! five cache lines read and usually none written.
//!
//! # An entry certifies itself
//!
//! Any number of processes read and write the same memory with no lock, so a reader may see a mixture: one word of one
//! write and one of another, or what a worker left that was killed between two stores. An entry is therefore
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
//! Every key may be in either of two sets of 8 entries. A new key goes into the set with more room; when both are full it
//! replaces, of their 16 entries, one unused for longer than `inactive`, or else the one least recently used. Two
//! choices of 8 and one choice of 16 were measured (`examples/hit_ratio.rs`); two choices fill more evenly.
//!
//! A set is 256 bytes: a cache line of tags, one of checks, one of users, one of use words. A look at a set that does not
//! hold the key reads one line, and what hits write (the use words) shares no line with what lookups compare.

pub mod recency;

use crate::key::Key;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::time::{Millis, Seconds};
use crate::user::UserHash;
use recency::{Clock, UseWord};

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

/// Whether a token may speak for other users than its own (interface.md, "Application services").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Masquerade {
    /// It has a device, so it is an ordinary user's.
    No,
    /// whoami named no device: it may be an application service's.
    Maybe,
    /// It has no device and was asked to speak for another user, and did not: an admin-minted token.
    Never,
}

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
        let (set, way, found) = match self.set(first).find(low, high) {
            Some((way, found)) => (self.set(first), way, found),
            None => {
                let (way, found) = self.set(second).find(low, high)?;
                (self.set(second), way, found)
            }
        };
        let seen = UseWord::from_bits(set.uses()[way].load(Relaxed));
        if let Some(noted) = self.clock.note_use(seen, now, inactive) {
            // One try: if it fails, somebody else has just noted the same.
            let _ =
                set.uses()[way].compare_exchange(seen.to_bits(), noted.to_bits(), Relaxed, Relaxed);
        }
        Some(Entry {
            user: found.user,
            age: seen.since_lookup(now),
            masquerade: found.masquerade,
        })
    }

    /// Stores whoami's answer for `key`, looked up `now`.
    ///
    /// It replaces what was known of the key, else takes an empty place, else one unused for longer than `inactive`, else
    /// the least recently used of the key's two sets.
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
            while let Some((way, _)) = set.find(low, high) {
                set.tags()[way].store(0, Relaxed);
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
            let set = self.set(index);
            looked_at += 1;
            for (tag, used) in set.tags().iter().zip(set.uses()) {
                let word = UseWord::from_bits(used.load(Relaxed));
                let is_live = tag.load(Relaxed) & PRESENT != 0 && word.since_use(now) <= inactive;
                live += u64::from(is_live);
            }
        }
        let sets = self.sets as u64;
        (live * sets / looked_at, sets * WAYS as u64)
    }

    /// Every entry, in no particular order, as it stands while the iterator passes by.
    ///
    /// Nobody's key is at hand to certify an entry with, so a torn one comes out too, under a key that is nobody's.
    pub fn records(&self, now: Millis) -> impl Iterator<Item = Record> + use<'m> {
        let table = *self;
        (0..table.capacity()).filter_map(move |slot| table.record(slot / WAYS, slot % WAYS, now))
    }

    fn record(&self, index: usize, way: usize, now: Millis) -> Option<Record> {
        let set = self.set(index);
        let tag = set.tags()[way].load(Relaxed);
        if tag & PRESENT == 0 {
            return None;
        }
        let user = set.users()[way].load(Relaxed);
        let low = set.checks()[way].load(Relaxed) ^ tag ^ user;
        let word = UseWord::from_bits(set.uses()[way].load(Relaxed));
        // A torn entry's key is mixed from two, and belongs to this set by chance only.
        let (first, second) = self.choices(low, tag);
        (first == index || second == index).then(|| Record {
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
        let (place, inserted) = self.place(low, high, now, inactive);
        let stamp = if inserted.refreshed {
            self.clock.read()
        } else {
            self.clock.advance()
        };
        let (set, way) = place;
        let tag = (high & TAG) | PRESENT | flags_of(found.masquerade);
        let user = found.user.to_bits();
        set.uses()[way].store(used(stamp).to_bits(), Relaxed);
        set.users()[way].store(user, Relaxed);
        set.checks()[way].store(low ^ tag ^ user, Relaxed);
        set.tags()[way].store(tag, Relaxed);
        inserted
    }

    /// Where a key goes that is stored now, and what that costs.
    fn place(
        &self,
        low: u64,
        high: u64,
        now: Millis,
        inactive: Seconds,
    ) -> ((Set<'m>, usize), Inserted) {
        let (first, second) = self.choices(low, high);
        let sets = [self.set(first), self.set(second)];
        let both = if first == second { 1 } else { 2 };
        let mut refreshed = None;
        let mut roomiest: Option<(Set<'m>, usize, usize)> = None;
        let mut victim: Option<(Set<'m>, usize, u64)> = None;
        for set in &sets[..both] {
            let (mut empty, mut empties) = (0, 0);
            for way in 0..WAYS {
                let tag = set.tags()[way].load(Relaxed);
                if tag & PRESENT == 0 {
                    (empty, empties) = (way, empties + 1);
                } else if tag & TAG == high & TAG {
                    // By its tag alone, so that a torn entry of this key is mended. Two processes that stored it at
                    // once may have made two of it: one goes.
                    match refreshed {
                        None => refreshed = Some((*set, way)),
                        Some(_) => set.tags()[way].store(0, Relaxed),
                    }
                } else {
                    let word = UseWord::from_bits(set.uses()[way].load(Relaxed));
                    let rank = self.clock.dispensable(word, now, inactive);
                    if victim.is_none_or(|(_, _, highest)| rank > highest) {
                        victim = Some((*set, way, rank));
                    }
                }
            }
            if empties > roomiest.map_or(0, |(_, _, most)| most) {
                roomiest = Some((*set, empty, empties));
            }
        }
        let inserted = |refreshed, evicted| Inserted { evicted, refreshed };
        match (refreshed, roomiest, victim) {
            (Some(place), _, _) => (place, inserted(true, false)),
            (None, Some((set, way, _)), _) => ((set, way), inserted(false, false)),
            (None, None, Some((set, way, rank))) => {
                ((set, way), inserted(false, !recency::is_inactive(rank)))
            }
            // A set has entries, and each is one of the three.
            (None, None, None) => ((sets[0], 0), inserted(false, false)),
        }
    }

    /// The two sets of a key: each from other bits of it, by multiplying instead of dividing (any number of sets will
    /// do). Only bits that the tag keeps are used, so that [`Self::record`] finds the same.
    #[inline]
    fn choices(&self, low: u64, high: u64) -> (usize, usize) {
        (self.scale(low), self.scale(high & TAG))
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

/// What a lookup found of a key.
#[derive(Clone, Copy)]
struct Found {
    user: UserHash,
    masquerade: Masquerade,
}

/// Eight entries: a line of each kind of word.
#[derive(Clone, Copy)]
struct Set<'m>(&'m [AtomicU64; SET_WORDS]);

impl<'m> Set<'m> {
    #[inline]
    fn line(self, kind: usize) -> &'m [AtomicU64] {
        &self.0[kind * WAYS..(kind + 1) * WAYS]
    }

    #[inline]
    fn tags(self) -> &'m [AtomicU64] {
        self.line(0)
    }

    #[inline]
    fn checks(self) -> &'m [AtomicU64] {
        self.line(1)
    }

    #[inline]
    fn users(self) -> &'m [AtomicU64] {
        self.line(2)
    }

    #[inline]
    fn uses(self) -> &'m [AtomicU64] {
        self.line(3)
    }

    /// The entry that certifies itself to be that key's.
    #[inline]
    fn find(self, low: u64, high: u64) -> Option<(usize, Found)> {
        for way in 0..WAYS {
            let tag = self.tags()[way].load(Relaxed);
            if tag & TAG == high & TAG && tag & PRESENT != 0 {
                let user = self.users()[way].load(Relaxed);
                if self.checks()[way].load(Relaxed) ^ tag ^ user == low {
                    let found = Found {
                        user: UserHash::from_bits(user),
                        masquerade: masquerade_of(tag),
                    };
                    return Some((way, found));
                }
            }
        }
        None
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
