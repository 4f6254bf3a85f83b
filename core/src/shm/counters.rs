//! Where the worker processes count.
//!
//! Each counts in a slot of its own, in whole cache lines that no other writes (with more processes than slots some share one,
//! which costs time and no count). A reader adds the slots up. What is counted is [`crate::metrics`].

use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the latency histogram's buckets, in microseconds: 1 ms to 5 s. What took longer is in one more.
pub const BUCKETS: [u64; 12] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000,
];

/// Words of a slot: six cache lines.
pub const SLOT_WORDS: usize = 48;
/// How many counters there is room for, beside the histogram.
pub const MOST_COUNTERS: usize = SLOT_WORDS - HISTOGRAM - 1;

const HISTOGRAM: usize = BUCKETS.len() + 1;
const BUCKETS_AT: usize = MOST_COUNTERS;
const SUM_AT: usize = SLOT_WORDS - 1;

/// The zone's counters. Copying it copies a reference.
#[derive(Clone, Copy, Debug)]
pub struct Counters<'m> {
    words: &'m [AtomicU64],
}

impl<'m> Counters<'m> {
    /// The counters in `words`, all zero or left by another process, with as many whole slots as fit. `None` if no slot
    /// does.
    pub fn new(words: &'m [AtomicU64]) -> Option<Self> {
        let whole = words.len() / SLOT_WORDS * SLOT_WORDS;
        (whole > 0).then(|| Self {
            words: &words[..whole],
        })
    }

    /// The slot of the worker process with that number (`ngx_worker`), for it to keep.
    pub fn slot(&self, worker: usize) -> Slot<'m> {
        let start = worker % (self.words.len() / SLOT_WORDS) * SLOT_WORDS;
        Slot {
            words: &self.words[start..start + SLOT_WORDS],
        }
    }

    /// What the counter with that number says.
    pub fn count_of(&self, counter: usize) -> u64 {
        self.sum(counter)
    }

    /// How many lookups are in that bucket of the histogram.
    pub fn in_bucket(&self, bucket: usize) -> u64 {
        self.sum(BUCKETS_AT + bucket)
    }

    /// How long all lookups took together, in microseconds.
    pub fn duration_sum(&self) -> u64 {
        self.sum(SUM_AT)
    }

    fn sum(&self, at: usize) -> u64 {
        let slots = self.words.chunks_exact(SLOT_WORDS);
        slots.fold(0, |sum, slot| sum.wrapping_add(slot[at].load(Relaxed)))
    }
}

/// Where one worker process counts.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'m> {
    pub(crate) words: &'m [AtomicU64],
}

impl Slot<'_> {
    /// Adds one to the counter with that number.
    #[inline]
    pub fn count(&self, counter: impl Into<usize>) {
        self.words[counter.into()].fetch_add(1, Relaxed);
    }

    /// A lookup, answered or not, took that long.
    pub fn observe_lookup(&self, micros: u64) {
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        self.words[BUCKETS_AT + bucket].fetch_add(1, Relaxed);
        self.words[SUM_AT].fetch_add(micros, Relaxed);
    }
}
