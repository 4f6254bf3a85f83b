//! How much a zone holds and how well it chooses what to drop: experiments that `examples/hit_ratio.rs` runs at length and
//! `tests/capacity.rs` in short.
//!
//! Each experiment asks a [`Cache`] for keys, as requests would: a miss is looked up and stored. Beside the module's table
//! stand the alternatives to its placement and the true least-recently-used cache of the same size.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::Range;

use lru::LruCache;
use matrix_user_hash_core::key::{Key, Secret};
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::user::UserHash;

use crate::random::{Random, key, scatter};

/// What nginx's slab pool hands out in one piece of a zone of 1 MiB: 252 of 256 pages.
pub(crate) const MEBIBYTE_WORDS: usize = 252 * 4096 / 8;

const DAY: Seconds = Seconds::new(86_400);

/// Something that remembers tokens.
pub(crate) trait Cache {
    /// A request for the `n`-th token: true if it was known; if not, it is now.
    fn request(&mut self, n: u64) -> bool;
    /// How many tokens of a range are known, without using them.
    fn known(&mut self, range: Range<u64>) -> u64;
}

/// The module's table in a formatted zone, with the clock standing still: the hardest case for the order of use.
pub(crate) struct Module {
    zone: Zone<'static>,
    now: Millis,
}

impl Module {
    /// In that many words.
    pub(crate) fn new(words: usize) -> Self {
        let memory: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
        let now = Millis::new(86_400_000);
        // For the length of the process; a handful of zones.
        let memory = Box::leak(memory.into_boxed_slice());
        let zone = Zone::format(memory, &Secret::from_bytes([7; 16])).unwrap();
        Self { zone, now }
    }

    /// Tokens that there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.zone.table().capacity()
    }
}

impl Cache for Module {
    fn request(&mut self, n: u64) -> bool {
        let table = self.zone.table();
        let (key, user) = (key(n), UserHash::from_bits(scatter(!n)));
        match table.get(&key, self.now, DAY) {
            Some(entry) => {
                assert_eq!(entry.user, user, "another user");
                true
            }
            None => {
                table.insert(&key, user, Masquerade::No, self.now, DAY);
                false
            }
        }
    }

    fn known(&mut self, range: Range<u64>) -> u64 {
        let records = self.zone.table().records(self.now);
        let there: HashSet<_> = records.map(|record| record.key.words()).collect();
        range
            .map(|n| u64::from(there.contains(&kept(&key(n)))))
            .sum()
    }
}

/// The alternative: each key in one set only, exact order of use inside it.
pub(crate) struct OneSet {
    sets: Vec<Vec<u64>>,
    ways: usize,
}

impl OneSet {
    /// With room for `capacity` tokens in sets of `ways`.
    pub(crate) fn new(capacity: usize, ways: usize) -> Self {
        Self {
            sets: vec![Vec::with_capacity(ways); capacity / ways],
            ways,
        }
    }

    fn set(&mut self, n: u64) -> &mut Vec<u64> {
        let sets = self.sets.len() as u128;
        let index = (u128::from(scatter(n)) * sets) >> 64;
        &mut self.sets[index as usize]
    }
}

impl Cache for OneSet {
    fn request(&mut self, n: u64) -> bool {
        let ways = self.ways;
        let set = self.set(n);
        let place = set.iter().position(|other| *other == n);
        if let Some(place) = place {
            set.remove(place);
        } else if set.len() == ways {
            set.remove(0);
        }
        set.push(n);
        place.is_some()
    }

    fn known(&mut self, range: Range<u64>) -> u64 {
        range.map(|n| u64::from(self.set(n).contains(&n))).sum()
    }
}

/// The measure: exact order of use over all.
pub(crate) struct TrueLru(LruCache<u64, ()>);

impl TrueLru {
    /// With room for `capacity` tokens.
    pub(crate) fn new(capacity: usize) -> Self {
        Self(LruCache::new(NonZeroUsize::new(capacity).unwrap()))
    }
}

impl Cache for TrueLru {
    fn request(&mut self, n: u64) -> bool {
        let known = self.0.get(&n).is_some();
        self.0.put(n, ());
        known
    }

    fn known(&mut self, range: Range<u64>) -> u64 {
        range.map(|n| u64::from(self.0.contains(&n))).sum()
    }
}

/// Of so many distinct tokens asked for once, how many are kept.
pub(crate) fn kept_of(cache: &mut dyn Cache, tokens: u64) -> u64 {
    for n in 0..tokens {
        cache.request(n);
    }
    cache.known(0..tokens)
}

/// Asks for `tokens` distinct tokens, and after every `pause` of them counts how many of the last `window` are known. The
/// fewest ever counted.
pub(crate) fn fewest_of_the_last(
    cache: &mut dyn Cache,
    tokens: u64,
    pause: u64,
    window: u64,
) -> u64 {
    let mut fewest = window;
    for n in 0..tokens {
        cache.request(n);
        let asked = n + 1;
        if asked >= window && asked % pause == 0 {
            fewest = fewest.min(cache.known(asked - window..asked));
        }
    }
    fewest
}

/// The share of hits on a trace.
pub(crate) fn hit_ratio(cache: &mut dyn Cache, trace: impl Iterator<Item = u64>) -> f64 {
    let (mut hits, mut all) = (0_u64, 0_u64);
    for n in trace {
        hits += u64::from(cache.request(n));
        all += 1;
    }
    hits as f64 / all as f64
}

/// Requests of a population in which the k-th most active token comes with a probability proportional to 1/k^s.
pub(crate) fn zipf(tokens: usize, s: f64, requests: usize, seed: u64) -> impl Iterator<Item = u64> {
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=tokens)
        .map(|k| {
            sum += (k as f64).powf(-s);
            sum
        })
        .collect();
    let mut random = Random(seed);
    (0..requests).map(move |_| {
        // 53 random bits are a number from 0 to below 1.
        let at = (random.next() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        cumulative.partition_point(|bound| *bound < at) as u64
    })
}

/// Every second request from a [`zipf`] trace, every other from a sweep over `swept` tokens that goes round and round, like
/// a crawler or a bridge that syncs all its ghosts.
pub(crate) fn zipf_and_scan(
    tokens: usize,
    swept: u64,
    requests: usize,
    seed: u64,
) -> impl Iterator<Item = u64> {
    let sweep = (0..swept).cycle().map(|n| (1 << 40) + n);
    zipf(tokens, 0.9, requests / 2, seed)
        .zip(sweep)
        .flat_map(|(one, other)| [one, other])
}

/// Round and round over the same tokens.
pub(crate) fn cycle(tokens: u64, requests: usize) -> impl Iterator<Item = u64> {
    (0..tokens).cycle().take(requests)
}

/// What a table keeps of a key: all but the four bits that its flags take.
fn kept(key: &Key) -> [u64; 2] {
    let [low, high] = key.words();
    [low, high & !0xf]
}
