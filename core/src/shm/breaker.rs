//! When whoami fails again and again, stop asking for a while.
//!
//! A circuit breaker for the whole zone in one word of shared memory. A worker process asks it before it sends a lookup,
//! and tells it afterwards how that went. While it is closed, everything passes. [`FAILURES`] failures in a row open it,
//! for 250 ms at first. Then one lookup at a time over all processes may probe. A probe that fails opens it for twice as
//! long as before, up to [`LONGEST`]. Any success closes it. Times vary by a quarter up or down, so that many nginx in
//! front of one homeserver do not come back in step.
//!
//! Only failures that no client can provoke are to be reported (no connection, no answer in time): an answer of any
//! kind, be it 500, says that the homeserver is there. A request that may not ask goes on at once by the stale answer or
//! the fallback, instead of waiting for a timeout.

use crate::sync::{AtomicU64, Ordering};
use crate::time::Millis;

/// So many failures in a row open a closed breaker.
pub const FAILURES: u64 = 5;
/// The first time open, in milliseconds.
pub const SHORTEST: u64 = 250;
/// The longest time open, in milliseconds.
pub const LONGEST: u64 = 10_000;

const STATE_BITS: u32 = 2;
const COUNT_BITS: u32 = 6;
const UNTIL_SHIFT: u32 = STATE_BITS + COUNT_BITS;

const CLOSED: u64 = 0;
const OPEN: u64 = 1;
const PROBING: u64 = 2;
/// The count of a breaker that is open is how often its time was doubled; 250 ms doubled six times is past the longest.
const MOST_DOUBLINGS: u64 = 6;

/// The zone's breaker. Copying it copies a reference.
#[derive(Clone, Copy, Debug)]
pub struct Breaker<'m> {
    word: &'m AtomicU64,
}

/// Whether a lookup may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// It may be sent: nothing is wrong.
    Yes,
    /// It may be sent, and it is the only one until it is known how it went. In any case one of [`Breaker::success`],
    /// [`Breaker::failure`] and [`Breaker::unsent`] is to be called. If none is called until the deadline given to
    /// [`Breaker::admit`], another lookup may probe.
    Probe,
    /// It may not be sent now.
    No,
}

impl<'m> Breaker<'m> {
    /// The breaker in `word`: 0, or left by another process.
    pub fn new(word: &'m AtomicU64) -> Self {
        Self { word }
    }

    /// Says whether a lookup may be sent `now` that will be over by `deadline`.
    pub fn admit(&self, now: Millis, deadline: Millis) -> Admit {
        let seen = State::from_bits(self.word.load(Ordering::Relaxed));
        if seen.state == CLOSED {
            return Admit::Yes;
        }
        if now < seen.until {
            return Admit::No;
        }
        let probing = State {
            state: PROBING,
            count: seen.count,
            until: deadline.max(now.plus(1)),
        };
        if self.swap(seen, probing) {
            Admit::Probe
        } else {
            Admit::No
        }
    }

    /// A lookup was answered, with whatever status: closes the breaker. Writes nothing if there is nothing to forget.
    /// True if it was open.
    pub fn success(&self) -> bool {
        let seen = self.word.load(Ordering::Relaxed);
        if seen == 0 {
            return false;
        }
        State::from_bits(self.word.swap(0, Ordering::Relaxed)).state != CLOSED
    }

    /// A lookup that was `admitted` so failed in a way that no client can provoke. `seed` varies the times: the process id
    /// will do. True if the breaker opened now.
    pub fn failure(&self, admitted: Admit, now: Millis, seed: u64) -> bool {
        loop {
            let seen = State::from_bits(self.word.load(Ordering::Relaxed));
            let next = match seen.state {
                CLOSED if seen.count + 1 < FAILURES => State {
                    count: seen.count + 1,
                    ..seen
                },
                CLOSED => State::open(0, now, seed),
                PROBING if admitted == Admit::Probe => {
                    State::open((seen.count + 1).min(MOST_DOUBLINGS), now, seed)
                }
                // Sent before it opened: nothing new, and nothing of a probe that is still on its way.
                _ => return false,
            };
            if self.swap(seen, next) {
                return next.state == OPEN;
            }
        }
    }

    /// A lookup that was `admitted` so was not sent, or ended with nothing learnt about the homeserver: another may probe.
    pub fn unsent(&self, admitted: Admit, now: Millis) {
        let seen = State::from_bits(self.word.load(Ordering::Relaxed));
        if admitted == Admit::Probe && seen.state == PROBING {
            let open = State {
                state: OPEN,
                until: now,
                ..seen
            };
            // If it fails, another process has learnt something meanwhile.
            let _ = self.swap(seen, open);
        }
    }

    /// For how many milliseconds from `now` nothing will be asked; `None` if the breaker is closed.
    pub fn open_for(&self, now: Millis) -> Option<u64> {
        let seen = State::from_bits(self.word.load(Ordering::Relaxed));
        (seen.state != CLOSED).then(|| seen.until.since(now))
    }

    fn swap(&self, seen: State, next: State) -> bool {
        self.word
            .compare_exchange(
                seen.to_bits(),
                next.to_bits(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
            .is_ok()
    }
}

/// The word, taken apart.
#[derive(Clone, Copy)]
struct State {
    state: u64,
    /// Closed: failures in a row. Else: how often the time was doubled.
    count: u64,
    /// Open: when a probe may be sent. Probing: when another may.
    until: Millis,
}

impl State {
    fn open(doublings: u64, now: Millis, seed: u64) -> Self {
        let plain = (SHORTEST << doublings).min(LONGEST);
        // Three quarters to five quarters of it.
        let varied = plain * 3 / 4 + scatter(seed ^ now.get()) % (plain / 2 + 1);
        Self {
            state: OPEN,
            count: doublings,
            until: now.plus(varied),
        }
    }

    fn from_bits(bits: u64) -> Self {
        Self {
            state: bits & ((1 << STATE_BITS) - 1),
            count: bits >> STATE_BITS & ((1 << COUNT_BITS) - 1),
            until: Millis::new(bits >> UNTIL_SHIFT),
        }
    }

    /// 56 bits of milliseconds are two million years.
    fn to_bits(self) -> u64 {
        self.until.get() << UNTIL_SHIFT | self.count << STATE_BITS | self.state
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood): neighbouring seeds give unrelated numbers.
fn scatter(seed: u64) -> u64 {
    let z = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u64 = 4_711;

    fn open(breaker: &Breaker<'_>, now: Millis) {
        for _ in 1..FAILURES {
            assert!(!breaker.failure(Admit::Yes, now, PID));
            assert_eq!(breaker.admit(now, now.plus(2_000)), Admit::Yes);
        }
        assert!(breaker.failure(Admit::Yes, now, PID));
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_four_and_a_success_do_not() {
        let word = AtomicU64::new(0);
        let breaker = Breaker::new(&word);
        let now = Millis::new(9_000_000);
        for _ in 1..FAILURES {
            breaker.failure(Admit::Yes, now, PID);
        }
        assert!(!breaker.success());
        open(&breaker, now);
        assert_eq!(breaker.admit(now, now.plus(2_000)), Admit::No);
        assert!(breaker.success());
        assert_eq!(breaker.admit(now, now.plus(2_000)), Admit::Yes);
    }

    #[test]
    fn one_probe_at_a_time_and_a_lost_one_is_replaced() {
        let word = AtomicU64::new(0);
        let breaker = Breaker::new(&word);
        open(&breaker, Millis::new(1_000));
        let later = Millis::new(1_000 + SHORTEST * 5 / 4);
        let deadline = later.plus(2_000);
        assert_eq!(breaker.admit(later, deadline), Admit::Probe);
        assert_eq!(breaker.admit(later, deadline), Admit::No);
        assert_eq!(breaker.admit(deadline, deadline.plus(2_000)), Admit::Probe);
    }

    #[test]
    fn it_stays_open_twice_as_long_after_each_probe_up_to_ten_seconds() {
        let word = AtomicU64::new(0);
        let breaker = Breaker::new(&word);
        let mut now = Millis::new(5_000);
        open(&breaker, now);
        let mut plain = SHORTEST;
        for _ in 0..12 {
            let wait = breaker.open_for(now).unwrap();
            assert!(
                (plain * 3 / 4..=plain * 5 / 4).contains(&wait),
                "{wait} of {plain}"
            );
            now = now.plus(wait);
            assert_eq!(breaker.admit(now, now.plus(100)), Admit::Probe);
            assert!(breaker.failure(Admit::Probe, now.plus(50), PID));
            now = now.plus(50);
            plain = (plain * 2).min(LONGEST);
        }
    }

    #[test]
    fn lookups_sent_before_it_opened_do_not_prolong_it() {
        let word = AtomicU64::new(0);
        let breaker = Breaker::new(&word);
        let now = Millis::new(5_000);
        open(&breaker, now);
        let wait = breaker.open_for(now);
        assert!(!breaker.failure(Admit::Yes, now.plus(1), PID));
        assert_eq!(breaker.open_for(now), wait);
    }

    #[test]
    fn lookups_sent_before_it_opened_say_nothing_of_the_probe() {
        let word = AtomicU64::new(0);
        let breaker = Breaker::new(&word);
        open(&breaker, Millis::new(1_000));
        let later = Millis::new(1_000 + SHORTEST * 5 / 4);
        let over = later.plus(2_000);
        assert_eq!(breaker.admit(later, over), Admit::Probe);
        assert!(!breaker.failure(Admit::Yes, later.plus(10), PID));
        // The probe is still the only one, and it is its failure that doubles the time.
        assert_eq!(breaker.open_for(later), Some(2_000));
        assert_eq!(breaker.admit(later.plus(20), over), Admit::No);
        assert!(breaker.failure(Admit::Probe, over, PID));
        assert!(
            breaker
                .open_for(over)
                .is_some_and(|wait| wait > SHORTEST * 5 / 4)
        );
    }

    #[test]
    fn processes_do_not_come_back_in_step() {
        let waits = (0..64_u64).map(|pid| {
            let word = AtomicU64::new(0);
            let breaker = Breaker::new(&word);
            for _ in 0..FAILURES {
                breaker.failure(Admit::Yes, Millis::new(77_000), pid);
            }
            breaker.open_for(Millis::new(77_000))
        });
        let different: std::collections::BTreeSet<_> = waits.collect();
        assert!(different.len() > 32, "{}", different.len());
    }
}
