//! Single flight over all worker processes: one lookup at a time for each key, and a cap on all of them.
//!
//! A request whose key the table does not know asks here before it asks whoami. In goes the key, out comes a
//! [`Claim`]: a [`Permit`] to look it up, or why to wait. The words are Pingora's (`pingora-cache/src/lock.rs`): who has
//! the permit is the leader, who waits polls again and finds the answer in the table, or a [`LookupError`],
//! or the key free because its leader died, and then claims it.
//!
//! # The array
//!
//! One word for each lookup in flight, in shared memory, direct-mapped: a key has one word, so two processes that want
//! the same key compare-and-swap the same word and one of them wins. What stands in it:
//!
//! | bits | content |
//! |---|---|
//! | 49..64 | deadline (or end of publication), in units of 64 ms, modular |
//! | 24..49 | 25 bits of the key, others than those that choose the word |
//! | 2..24 | process id of the leader (Linux: `PID_MAX_LIMIT` is 2^22); for a failure, its kind and how long was waited |
//! | 0..2 | free, claimed, refused, failed |
//!
//! A word held for another key is waited for like a place. There is no counter of lookups: a counter would stay wrong
//! when a worker process dies. The claimed words are the lookups in flight; a word whose process is dead or whose deadline
//! has passed is free to whoever comes first, by the same compare-and-swap.
//!
//! # Never more than `max_lookups`
//!
//! A claim first takes its word, then passes a sequentially consistent fence, then counts the claimed words, its own
//! among them; if they are too many it frees its word and waits. Suppose more than `max_lookups` permits were held
//! at one moment. Their fences have a total order; take the permit whose fence comes last. All others had taken their
//! words before their fences, so before its fence, and still hold them; by C++ [atomics.fences] its count, which comes
//! after its fence, read them as claimed. So it counted more than `max_lookups` and did not get a permit. Two that come at
//! once for the last place may both step back; they poll again. `tests/loom.rs` checks both properties exhaustively.
//!
//! # Lookup after the claim
//!
//! Between a request's miss and its claim, another leader may have finished. So **a leader looks into the table once
//! more** before it asks whoami, and finds what was stored: [`Flights::release`] releases what was written before it, and
//! the claim acquires it.

use crate::key::Key;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::time::Millis;
use crate::whoami::{FailureKind, LookupError};

/// The most lookups in flight that can be asked for. The array has one word for every kilobyte of the zone (64 for
/// 64 KiB, 1024 for 1 MiB, 4096 from 4 MiB on), and each lookup needs the one word of its key: with `n` lookups in flight
/// over `w` words, a share `n / w` of new keys waits although the cap is not reached. 64 of 1024: one in 16.
pub const MAX_LOOKUPS: u32 = 1024;
/// The longest that a claim holds, in milliseconds; a later deadline means this one. Half of what the modular deadline can
/// tell, less one second.
pub const MAX_HOLD: u64 = UNIT * (UNITS / 2) - 1000;
/// For how many milliseconds an outcome that is no answer stands for those who waited: longer than they sleep between
/// two polls, and the `any 1s` of `matrix_user_hash_valid`.
pub const PUBLISHED_FOR: u64 = 1000;
/// The highest process id that fits (Linux, `include/linux/threads.h`, PID_MAX_LIMIT).
pub const MAX_PID: u32 = (1 << PID_BITS) - 1;

const PID_BITS: u32 = 22;
/// A failure has its kind and how long was waited, in units, in place of the process id.
const KIND_BITS: u32 = 4;
const GIVEN_BITS: u32 = PID_BITS - KIND_BITS;
const TAG_BITS: u32 = 25;
const PID_SHIFT: u32 = 2;
const TAG_SHIFT: u32 = PID_SHIFT + PID_BITS;
const UNTIL_SHIFT: u32 = TAG_SHIFT + TAG_BITS;
const UNIT: u64 = 64;
const UNITS: u64 = 1 << (64 - UNTIL_SHIFT);

const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const REFUSED: u64 = 2;
const FAILED: u64 = 3;

/// The array of lookups in flight. Copying it copies a reference.
#[derive(Clone, Copy, Debug)]
pub struct Flights<'m> {
    words: &'m [AtomicU64],
}

/// Who wants to look a key up, and on what terms.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The process that would do it: 1 to [`MAX_PID`].
    pub pid: u32,
    /// When the lookup is over, whatever happens: after that moment another may claim the key.
    pub deadline: Millis,
    /// No permit if that many are out already; 1 to [`MAX_LOOKUPS`].
    pub max_lookups: u32,
    /// It has waited for this key's lookup, so it takes that lookup's end for its own. If it has not waited, it asks anew.
    pub waited: bool,
    /// A place that is free belongs to another request (see [`super::places`]).
    pub yields: bool,
    /// How long it would wait for an answer, in milliseconds. That a lookup with less time took too long says nothing to it.
    pub patience: u64,
}

/// What comes of a claim.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// Look it up, after a second look into the table; then [`Flights::release`] or
    /// [`Flights::publish`].
    Leader(Permit),
    /// Somebody is looking up this key: wait, look into the table, claim again.
    Same,
    /// The word is held for another key: wait for it.
    Held,
    /// There are `max_lookups` in flight: wait for a place behind those who wait for one already.
    Full,
    /// The lookup that was waited for ended with this, less than [`PUBLISHED_FOR`] ago.
    Published(LookupError),
}

/// The right to look one key up. It ends with [`Flights::release`] or [`Flights::publish`], or else at its deadline.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is dropped holds its key until the deadline"]
pub struct Permit {
    index: usize,
    word: u64,
}

impl<'m> Flights<'m> {
    /// The array in `words`, all zero or left by another process. `None` if there are none.
    pub fn new(words: &'m [AtomicU64]) -> Option<Self> {
        (!words.is_empty()).then_some(Self { words })
    }

    /// Asks for the permit to look `key` up. `alive` tells whether a process exists (kill(pid, 0) other than ESRCH); it is
    /// not asked about the asker.
    ///
    /// Reads the whole array twice: microseconds (6 for 1,500 words, `benches/table.rs` on a busy machine), so for misses
    /// only.
    pub fn claim(
        &self,
        key: &Key,
        asker: &Asker,
        now: Millis,
        alive: impl Fn(u32) -> bool,
    ) -> Claim {
        let (index, tag) = self.place(key);
        let word = &self.words[index];
        let alive = |pid| pid == asker.pid || alive(pid);
        loop {
            let seen = Word(word.load(Ordering::Acquire));
            if let Some(busy) = seen.busy(tag, asker, now, &alive) {
                return busy;
            }
            // Asking first spares those in flight the sight of a claim that will be taken back.
            if asker.yields || !self.has_room(asker.max_lookups, now, &alive) {
                return Claim::Full;
            }
            let mine = Word::claimed(tag, asker, now).0;
            if word
                .compare_exchange(seen.0, mine, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                // Somebody was faster: the word has changed, so this ends when others stop coming.
                continue;
            }
            fence(Ordering::SeqCst);
            let permit = Permit { index, word: mine };
            if self.has_room(asker.max_lookups + 1, now, &alive) {
                return Claim::Leader(permit);
            }
            self.release(permit);
            return Claim::Full;
        }
    }

    /// Ends a lookup that gave no user, and tells those who wait why. `given` is how long an answer was waited for, in
    /// milliseconds.
    ///
    /// False if the permit was past its deadline and somebody else had taken it over: then nothing is told.
    pub fn publish(&self, permit: Permit, error: LookupError, given: u64, now: Millis) -> bool {
        let (state, detail) = match error {
            LookupError::Refused => (REFUSED, 0),
            // What one process lacks is no news for the others: one of them takes the lookup over.
            LookupError::Failed(FailureKind::Local) => return self.release(permit),
            LookupError::Failed(kind) => {
                let given = (given / UNIT).min((1 << GIVEN_BITS) - 1);
                (FAILED, given << KIND_BITS | kind as u64)
            }
        };
        let tag = Word(permit.word).tag();
        let until = units_up(now.plus(PUBLISHED_FOR));
        let published = until << UNTIL_SHIFT | tag << TAG_SHIFT | detail << PID_SHIFT | state;
        self.replace(&permit, published)
    }

    /// Gives a permit back: with the answer in the table, or with nothing learnt, so that one of those who wait takes the
    /// lookup over. False as for [`Self::publish`].
    pub fn release(&self, permit: Permit) -> bool {
        self.replace(&permit, FREE)
    }

    /// Lookups in flight, over all processes.
    pub fn in_flight(&self, now: Millis, alive: impl Fn(u32) -> bool) -> u32 {
        self.count(u32::MAX, now, &alive)
    }

    fn replace(&self, permit: &Permit, by: u64) -> bool {
        // Its own word only: after the deadline it may be somebody else's.
        self.words[permit.index]
            .compare_exchange(permit.word, by, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether fewer than `max` words are claimed. Only if it seems full does it ask who is dead.
    fn has_room(&self, max: u32, now: Millis, alive: &impl Fn(u32) -> bool) -> bool {
        self.count(max, now, &|_| true) < max || self.count(max, now, alive) < max
    }

    /// Counts claimed words, up to `enough`. Frees those whose deadline has passed or whose process is dead: a deadline is
    /// modular, and a word that nobody touched for long would seem to be in the future again.
    fn count(&self, enough: u32, now: Millis, alive: &impl Fn(u32) -> bool) -> u32 {
        let mut claimed = 0;
        let mut living = Memo::default();
        for word in self.words {
            let seen = Word(word.load(Ordering::Relaxed));
            if seen.0 == FREE {
                continue;
            }
            let over = seen.is_over(now);
            let claim = seen.state() == CLAIMED;
            if over || claim && !living.knows_or(seen.pid(), alive) {
                let _ = word.compare_exchange(seen.0, FREE, Ordering::AcqRel, Ordering::Relaxed);
            } else if claim {
                claimed += 1;
                if claimed >= enough {
                    break;
                }
            }
        }
        claimed
    }

    /// The word of a key, and the other bits that stand in it for the key.
    fn place(&self, key: &Key) -> (usize, u64) {
        let [low, high] = key.words();
        let index = ((high & u64::from(u32::MAX)) * self.words.len() as u64) >> 32;
        // Below the length, so it fits.
        (index as usize, low & ((1 << TAG_BITS) - 1))
    }
}

#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    fn claimed(tag: u64, asker: &Asker, now: Millis) -> Self {
        let until = units_up(asker.deadline.min(now.plus(MAX_HOLD)));
        let pid = u64::from(asker.pid & MAX_PID);
        Self(until << UNTIL_SHIFT | tag << TAG_SHIFT | pid << PID_SHIFT | CLAIMED)
    }

    fn state(self) -> u64 {
        self.0 & 3
    }

    fn pid(self) -> u32 {
        // 22 bits fit.
        (self.0 >> PID_SHIFT) as u32 & MAX_PID
    }

    fn tag(self) -> u64 {
        self.0 >> TAG_SHIFT & ((1 << TAG_BITS) - 1)
    }

    /// Past its deadline: never early, at most a unit late.
    fn is_over(self, now: Millis) -> bool {
        let until = self.0 >> UNTIL_SHIFT;
        (now.get() / UNIT).wrapping_sub(until) % UNITS < UNITS / 2
    }

    /// What keeps a claim for `tag` out; `None` if the word may be taken.
    fn busy(
        self,
        tag: u64,
        asker: &Asker,
        now: Millis,
        alive: &impl Fn(u32) -> bool,
    ) -> Option<Claim> {
        if self.state() == FREE || self.is_over(now) {
            return None;
        }
        let same = self.tag() == tag;
        match self.state() {
            CLAIMED if !alive(self.pid()) => None,
            CLAIMED if same => Some(Claim::Same),
            CLAIMED => Some(Claim::Held),
            _ if same && asker.waited => self.published(asker.patience).map(Claim::Published),
            _ => None,
        }
    }

    /// How the lookup ended, if that is an end for who would wait so long.
    fn published(self, patience: u64) -> Option<LookupError> {
        if self.state() == REFUSED {
            return Some(LookupError::Refused);
        }
        let detail = u64::from(self.pid());
        let (kind, given) = (detail & ((1 << KIND_BITS) - 1), detail >> KIND_BITS);
        if kind == FailureKind::Timeout as u64 && given < patience / UNIT {
            return None;
        }
        let mut known = FailureKind::ALL
            .into_iter()
            .filter(|known| *known as u64 == kind);
        // Only `publish` writes kinds; if a newer module had more, the vaguest of ours will do.
        Some(LookupError::Failed(
            known.next().unwrap_or(FailureKind::Status),
        ))
    }
}

/// The end of `moment` in units, rounded up.
fn units_up(moment: Millis) -> u64 {
    moment.get().div_ceil(UNIT) % UNITS
}

/// Processes found alive during one count: there are few, and each asking is a system call.
#[derive(Default)]
struct Memo {
    pids: [u32; 8],
    len: usize,
}

impl Memo {
    fn knows_or(&mut self, pid: u32, alive: &impl Fn(u32) -> bool) -> bool {
        if self.pids[..self.len].contains(&pid) {
            return true;
        }
        let lives = alive(pid);
        if lives && self.len < self.pids.len() {
            self.pids[self.len] = pid;
            self.len += 1;
        }
        lives
    }
}

#[cfg(test)]
mod tests;
