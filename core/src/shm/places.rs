//! Whose turn it is, when requests of several worker processes wait for a place below `max_lookups`.
//!
//! Each process queues its own requests ([`crate::engine`]), fairly by client, as start-time fair queueing does (Goyal, Vin
//! and Cheng, 1996): a request has a start tag, and the lowest is served next. Here the processes tell each other the lowest
//! tag in their queue, so that a place goes to the request with the lowest tag of all, and not to the process that happens to
//! be awake when a place becomes free.
//!
//! # The words
//!
//! One word for each process, by its number (`ngx_worker`), that only that process writes, and the virtual time:
//!
//! | bits of a process's word | content |
//! |---|---|
//! | 48..64 | until when it stands, in units of 16 ms, modular |
//! | 38..48 | `max_lookups` of the request that waits, less one |
//! | 0..38 | its start tag, plus one; 0 if nothing waits |
//!
//! | bits of the virtual time | content |
//! |---|---|
//! | 8..64 | the highest start tag that was served, plus one for each lookup |
//! | 0..8 | the process that took the last place, plus one |
//!
//! A process writes its word anew whenever it looks after its queue, so the word of one that has died or is stuck runs out
//! after [`STANDS_FOR`]. No permit depends on these words: if they are wrong, a place is given in another order, and is free
//! for up to that time.

use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::time::Millis;

/// Words of memory: the virtual time in a cache line of its own, and one word for each of 64 processes. If there are more,
/// some share a word, and their order among each other is left to chance.
pub const PLACES_WORDS: usize = 8 + PROCESSES;
/// How much one lookup costs the client that it is for, in virtual time. All lookups together move that on by at least one
/// each, so a client that always has requests waiting gets at least one of so many places, whoever else comes.
pub const COST: u64 = 64;
/// For how long a process's word stands, in milliseconds: some of the pauses between two looks after its queue.
pub const STANDS_FOR: u64 = 96;

const PROCESSES: usize = 64;
const UNIT: u64 = 16;
const UNITS: u64 = 1 << 16;
const TAG_BITS: u32 = 38;
const LIMIT_BITS: u32 = 10;
const TAG: u64 = (1 << TAG_BITS) - 1;
const UNTIL_SHIFT: u32 = TAG_BITS + LIMIT_BITS;
const PROCESS_BITS: u32 = 8;

/// The words, as one process sees them. Copying it copies a reference.
#[derive(Clone, Copy, Debug)]
pub struct Places<'m> {
    time: &'m AtomicU64,
    words: &'m [AtomicU64],
    me: usize,
}

impl<'m> Places<'m> {
    /// The places in `words`, all zero or left by another process, for the process with that number.
    pub fn new(words: &'m [AtomicU64; PLACES_WORDS], process: usize) -> Self {
        Self {
            time: &words[0],
            words: &words[8..],
            me: process % PROCESSES,
        }
    }

    /// The virtual time: the least start tag of a request that comes now.
    pub fn time(&self) -> u64 {
        self.time.load(Relaxed) >> PROCESS_BITS
    }

    /// A request with that start tag has its place.
    pub fn serve(&self, tag: u64) {
        let me = self.me as u64 + 1;
        let mut seen = self.time.load(Relaxed);
        loop {
            let next = ((seen >> PROCESS_BITS).max(tag) + 1) << PROCESS_BITS | me;
            match self.time.compare_exchange(seen, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// Tells the other processes that a request with that start tag waits here for a place below `limit` lookups.
    pub fn wait(&self, tag: u64, limit: u32, now: Millis) {
        let until = now.plus(STANDS_FOR).get().div_ceil(UNIT) % UNITS;
        let limit = u64::from(limit).clamp(1, 1 << LIMIT_BITS) - 1;
        let word = until << UNTIL_SHIFT | limit << TAG_BITS | ((tag + 1) & TAG).max(1);
        self.words[self.me].store(word, Relaxed);
    }

    /// Tells the others that nothing waits in this process any more.
    pub fn leave(&self) {
        if self.words[self.me].load(Relaxed) != 0 {
            self.words[self.me].store(0, Relaxed);
        }
    }

    /// Whether a place that is free belongs to a request of another process, and not to one with that start tag here.
    /// `has_room` tells whether fewer lookups than that are in flight: who waits for more than its own limit allows does not
    /// keep others out.
    pub fn must_yield(&self, tag: u64, now: Millis, mut has_room: impl FnMut(u32) -> bool) -> bool {
        let time = self.time.load(Relaxed);
        let took_last = time & ((1 << PROCESS_BITS) - 1) == self.me as u64 + 1;
        self.words.iter().enumerate().any(|(process, word)| {
            let seen = word.load(Relaxed);
            if seen == 0 || process == self.me {
                return false;
            }
            if (now.get() / UNIT).wrapping_sub(seen >> UNTIL_SHIFT) % UNITS < UNITS / 2 {
                // It is modular, so a word that nobody touches would come to stand again.
                let _ = word.compare_exchange(seen, 0, Relaxed, Relaxed);
                return false;
            }
            // Modular as well; the tags of two that wait are close to each other.
            let ahead = (seen & TAG).wrapping_sub(tag + 1) & TAG;
            let goes_first = ahead > TAG / 2 || ahead == 0 && took_last;
            let limit = (seen >> TAG_BITS & ((1 << LIMIT_BITS) - 1)) + 1;
            // 10 bits fit.
            goes_first && has_room(limit as u32)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis::new(1 << 20);

    fn memory() -> [AtomicU64; PLACES_WORDS] {
        [const { AtomicU64::new(0) }; PLACES_WORDS]
    }

    #[test]
    fn the_lowest_tag_goes_first_whichever_process_has_it() {
        let memory = memory();
        let (a, b) = (Places::new(&memory, 0), Places::new(&memory, 1));
        a.wait(70, 8, NOW);
        b.wait(6, 8, NOW);
        assert!(a.must_yield(70, NOW, |_| true));
        assert!(!b.must_yield(6, NOW, |_| true));
        b.leave();
        assert!(!a.must_yield(70, NOW, |_| true));
    }

    #[test]
    fn between_equal_tags_processes_take_turns() {
        let memory = memory();
        let (a, b) = (Places::new(&memory, 0), Places::new(&memory, 1));
        a.wait(5, 8, NOW);
        b.wait(5, 8, NOW);
        for _ in 0..3 {
            a.serve(0);
            assert!(a.must_yield(5, NOW, |_| true) && !b.must_yield(5, NOW, |_| true));
            b.serve(0);
            assert!(b.must_yield(5, NOW, |_| true) && !a.must_yield(5, NOW, |_| true));
        }
    }

    #[test]
    fn a_process_that_is_silent_keeps_nobody_out_for_long_nor_ever_again() {
        let memory = memory();
        let (a, b) = (Places::new(&memory, 0), Places::new(&memory, 1));
        b.wait(0, 8, NOW);
        assert!(a.must_yield(9, NOW.plus(STANDS_FOR - 1), |_| true));
        assert!(!a.must_yield(9, NOW.plus(STANDS_FOR + 2 * UNIT), |_| true));
        assert!(!a.must_yield(9, NOW.plus(UNIT * UNITS), |_| true));
    }

    #[test]
    fn who_waits_for_a_place_below_a_lower_limit_does_not_keep_others_out() {
        let memory = memory();
        let (a, b) = (Places::new(&memory, 0), Places::new(&memory, 1));
        b.wait(0, 2, NOW);
        assert!(!a.must_yield(9, NOW, |limit| limit > 2));
        b.wait(0, 1024, NOW);
        assert!(a.must_yield(9, NOW, |limit| limit == 1024));
    }

    #[test]
    fn the_virtual_time_never_goes_back() {
        let memory = memory();
        let places = Places::new(&memory, 3);
        places.serve(100);
        assert_eq!(places.time(), 101);
        places.serve(7);
        assert_eq!(places.time(), 102);
    }
}
