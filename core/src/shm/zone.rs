//! A zone: one stretch of shared memory, divided among table, flights, places, breaker, counters and
//! log throttle.
//!
//! The border takes the memory from nginx's slab pool, calls [`Zone::format`] on it once, and on every later start
//! [`Zone::attach`], which refuses memory that another module's layout made. A [`Zone`] that exists is ready: there is no
//! other way to reach what is in it. It is a few references, cheap to copy, and `'static` if the memory is.
//!
//! | words | content |
//! |---|---|
//! | 0..8 | magic, layout version, length, secret (2) |
//! | 8..16 | counter of insertions, the table's logical clock |
//! | 16..24 | breaker |
//! | 24..40 | log throttle |
//! | 40..112 | places |
//! | 112.. | flights, then counters, then the table, each from a cache line's start |

use std::fmt;

use crate::key::Secret;
use crate::shm::breaker::Breaker;
use crate::shm::claims::Flights;
use crate::shm::counters::{Counters, SLOT_WORDS};
use crate::shm::places::{PLACES_WORDS, Places};
use crate::shm::table::{self, Table};
use crate::shm::throttle::{LogThrottle, THROTTLE_WORDS};
use crate::sync::{AtomicU64, Ordering};

/// "MUserHsh", and not what another program leaves in memory.
const MAGIC: u64 = u64::from_be_bytes(*b"MUserHsh");
/// Goes up whenever a word changes its meaning: then a binary upgrade starts with an empty zone.
pub const LAYOUT_VERSION: u64 = if OTHER { 3 } else { 2 };
/// Whether this build is to be another version's.
const OTHER: bool = cfg!(feature = "other-layout");

const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 1;
const LENGTH_AT: usize = 2;
const SECRET_AT: usize = 3;
const CLOCK_AT: usize = 8;
const BREAKER_AT: usize = 16;
const THROTTLE_AT: usize = 24;
const PLACES_AT: usize = THROTTLE_AT + THROTTLE_WORDS;
const FLIGHTS_AT: usize = PLACES_AT + PLACES_WORDS + if OTHER { 64 } else { 0 };

/// How a stretch of memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    words: usize,
    flights: usize,
    slots: usize,
}

impl Layout {
    /// The least memory for a zone, in words: 32 KiB, which holds 936 tokens.
    pub const MIN_WORDS: usize = 4096;

    /// The division of `words` words of 8 bytes; `None` if they are too few.
    ///
    /// One flight for each kilobyte up to 4096, one slot of counters for each 64 KiB from 4 to 64, and the rest is table.
    pub fn for_words(words: usize) -> Option<Self> {
        (words >= Self::MIN_WORDS).then(|| Self {
            words,
            flights: (words / 128).clamp(32, 4096).next_multiple_of(8),
            slots: (words / 8192).clamp(4, 64),
        })
    }

    /// How many tokens the table has room for.
    pub fn capacity(&self) -> usize {
        (self.words - self.table_at()) / table::SET_WORDS * table::WAYS
    }

    fn counters_at(&self) -> usize {
        FLIGHTS_AT + self.flights
    }

    fn table_at(&self) -> usize {
        self.counters_at() + self.slots * SLOT_WORDS
    }
}

/// Why memory is not a zone of ours. Start with an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// Too short for any zone.
    TooSmall,
    /// Never formatted, or by something else.
    Foreign,
    /// Formatted by a module with another layout, older or newer: its version.
    Version(u64),
    /// Formatted as a zone of another size.
    Size,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall => f.write_str("it is too small"),
            Self::Foreign => f.write_str("it is not a zone of this module"),
            Self::Version(found) => {
                write!(
                    f,
                    "its layout has version {found}, this module's has {LAYOUT_VERSION}"
                )
            }
            Self::Size => f.write_str("it was made with another size"),
        }
    }
}

impl std::error::Error for AttachError {}

/// A zone that is ready.
#[derive(Clone, Copy, Debug)]
pub struct Zone<'m> {
    head: &'m [AtomicU64],
    table: Table<'m>,
    flights: Flights<'m>,
    counters: Counters<'m>,
    throttle: LogThrottle<'m>,
    places: &'m [AtomicU64; PLACES_WORDS],
}

impl<'m> Zone<'m> {
    /// Makes an empty zone of `words`, whatever they hold. No other process may use them yet.
    ///
    /// # Errors
    ///
    /// [`AttachError::TooSmall`]: `words` are too few for any zone.
    pub fn format(words: &'m [AtomicU64], secret: &Secret) -> Result<Self, AttachError> {
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        let zone = Self::over(words).ok_or(AttachError::TooSmall)?;
        zone.set_secret(secret);
        words[VERSION_AT].store(LAYOUT_VERSION, Ordering::Relaxed);
        words[LENGTH_AT].store(words.len() as u64, Ordering::Relaxed);
        // Last: a zone whose making was interrupted is none.
        words[MAGIC_AT].store(MAGIC, Ordering::Release);
        Ok(zone)
    }

    /// The zone that another process, or an earlier configuration, made of `words`.
    ///
    /// # Errors
    ///
    /// Why `words` are none of ours; nothing was written to them.
    pub fn attach(words: &'m [AtomicU64]) -> Result<Self, AttachError> {
        let zone = Self::over(words).ok_or(AttachError::TooSmall)?;
        if words[MAGIC_AT].load(Ordering::Acquire) != MAGIC {
            return Err(AttachError::Foreign);
        }
        match words[VERSION_AT].load(Ordering::Relaxed) {
            LAYOUT_VERSION => {}
            other => return Err(AttachError::Version(other)),
        }
        if words[LENGTH_AT].load(Ordering::Relaxed) != words.len() as u64 {
            return Err(AttachError::Size);
        }
        Ok(zone)
    }

    fn over(words: &'m [AtomicU64]) -> Option<Self> {
        let layout = Layout::for_words(words.len())?;
        let (head, rest) = words.split_at(FLIGHTS_AT);
        let (flights, rest) = rest.split_at(layout.flights);
        let (counters, table) = rest.split_at(layout.slots * SLOT_WORDS);
        Some(Self {
            head,
            table: Table::new(table, &head[CLOCK_AT])?,
            flights: Flights::new(flights)?,
            counters: Counters::new(counters)?,
            throttle: LogThrottle::new(head[THROTTLE_AT..].first_chunk()?),
            places: head[PLACES_AT..].first_chunk()?,
        })
    }

    /// What keys are made with. Two words from a line that nobody writes.
    #[inline]
    pub fn secret(&self) -> Secret {
        let mut bytes = [0; 16];
        for (half, word) in bytes.chunks_exact_mut(8).zip(&self.head[SECRET_AT..]) {
            half.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Secret::from_bytes(bytes)
    }

    /// Takes over the secret of a state file; what the table holds under the old one is not found any more.
    pub(crate) fn set_secret(&self, secret: &Secret) {
        for (half, word) in secret
            .as_bytes()
            .chunks_exact(8)
            .zip(&self.head[SECRET_AT..])
        {
            let half = half.try_into().map_or(0, u64::from_le_bytes);
            word.store(half, Ordering::Relaxed);
        }
    }

    /// The table of tokens.
    #[inline]
    pub fn table(&self) -> Table<'m> {
        self.table
    }

    /// The lookups in flight.
    pub fn flights(&self) -> Flights<'m> {
        self.flights
    }

    /// Whether the homeserver may be asked.
    pub fn breaker(&self) -> Breaker<'m> {
        Breaker::new(&self.head[BREAKER_AT])
    }

    /// Whose turn it is, seen by the process with that number.
    pub fn places(&self, process: usize) -> Places<'m> {
        Places::new(self.places, process)
    }

    /// The counters.
    pub fn counters(&self) -> Counters<'m> {
        self.counters
    }

    /// The log lines that are said once in a while.
    pub fn log_throttle(&self) -> LogThrottle<'m> {
        self.throttle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::table::Masquerade;
    use crate::time::{Millis, Seconds};
    use crate::user::UserHash;

    const SECRET: Secret = Secret::from_bytes(*b"0123456789abcdef");
    const DAY: Seconds = Seconds::new(86_400);

    fn memory(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|n| AtomicU64::new(n as u64)).collect()
    }

    #[test]
    fn a_formatted_zone_is_attached_to_with_all_that_is_in_it() {
        let words = memory(8192);
        let key = crate::key::Key::from_words([71, 1 << 40]);
        let alice = UserHash::from_bits(0x86f0_1aef_21b1_acd3);
        let made = Zone::format(&words, &SECRET).unwrap();
        made.table()
            .insert(&key, alice, Masquerade::No, Millis::new(78), DAY);
        let zone = Zone::attach(&words).unwrap();
        assert_eq!(zone.secret(), SECRET);
        assert_eq!(
            zone.table().get(&key, Millis::new(78), DAY).unwrap().user,
            alice
        );
    }

    #[test]
    fn memory_of_another_layout_is_refused() {
        let words = memory(8192);
        assert_eq!(Zone::attach(&words).unwrap_err(), AttachError::Foreign);
        Zone::format(&words, &SECRET).unwrap();
        assert_eq!(Zone::attach(&words[..8000]).unwrap_err(), AttachError::Size);
        words[VERSION_AT].store(7, Ordering::Relaxed);
        assert_eq!(Zone::attach(&words).unwrap_err(), AttachError::Version(7));
        assert_eq!(
            Zone::attach(&words[..4095]).unwrap_err(),
            AttachError::TooSmall
        );
    }

    #[test]
    fn a_mebibyte_has_room_for_28_000_tokens_beside_what_nginx_and_the_rest_take() {
        // The slab pool of a zone of 256 pages hands out at most 252 in one piece (ngx_slab_init).
        let layout = Layout::for_words(252 * 4096 / 8).unwrap();
        assert!(layout.capacity() >= 28_000, "{}", layout.capacity());
        assert_eq!(
            Layout::for_words(Layout::MIN_WORDS).unwrap().capacity(),
            936
        );
    }

    #[test]
    fn parts_begin_at_cache_lines_and_do_not_overlap() {
        for words in [4096, 4099, 8192, 131_072, 524_288, 8_388_608] {
            let layout = Layout::for_words(words).unwrap();
            for start in [FLIGHTS_AT, layout.counters_at(), layout.table_at()] {
                assert_eq!(start % 8, 0);
            }
            let end = layout.table_at() + layout.capacity() / table::WAYS * table::SET_WORDS;
            assert!(end <= words && words - end < table::SET_WORDS);
        }
    }
}
