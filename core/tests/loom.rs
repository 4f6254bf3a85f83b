//! Every interleaving of the shared words' loads and stores, as loom enumerates them:
//! `RUSTFLAGS="--cfg loom" cargo test -p matrix-user-hash-core --test loom --release`. Empty without that flag.
//!
//! loom lets a relaxed load return any value that the memory model allows, so this checks the orderings too, which no
//! test on a real x86 would. Each model explores all schedules with up to the given number of preemptions; bugs of such
//! protocols need two or three.

#![cfg(loom)]

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::reserve::Reserve;
use matrix_user_hash_core::shm::claims::{Asker, Claim, Flights, Permit};
use matrix_user_hash_core::shm::table::{Masquerade, SET_WORDS, Table};
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::user::UserHash;

const NOW: Millis = Millis::new(1_000_000);
const DAY: Seconds = Seconds::new(86_400);
const ALICE: (Key, UserHash) = token(0x0123_4567_89ab_cdef, 0x86f0_1aef_21b1_acd3);
const BOB: (Key, UserHash) = token(0xfedc_ba98_7654_3210, 0x1b7e_40c9_88d2_5a36);

const fn token(key: u64, user: u64) -> (Key, UserHash) {
    let key = Key::from_words([key, key.rotate_left(31) | 0x10]);
    (key, UserHash::from_bits(user))
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// A zone's worth of atomics, small enough to enumerate: one set, and so many words of flights.
struct Memory {
    set: Vec<AtomicU64>,
    clock: AtomicU64,
    flights: Vec<AtomicU64>,
}

impl Memory {
    fn new(flights: usize) -> Arc<Self> {
        let zeros = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            set: zeros(SET_WORDS),
            clock: AtomicU64::new(0),
            flights: zeros(flights),
        })
    }

    fn table(&self) -> Table<'_> {
        Table::new(&self.set, &self.clock).unwrap()
    }

    fn flights(&self) -> Flights<'_> {
        Flights::new(&self.flights).unwrap()
    }
}

fn insert(memory: &Memory, (key, user): (Key, UserHash)) {
    memory.table().insert(&key, user, Masquerade::No, NOW, DAY);
}

/// What a request would be told: its own user or nothing.
fn get(memory: &Memory, (key, user): (Key, UserHash)) -> bool {
    let entry = memory.table().get(&key, NOW, DAY);
    assert!(entry.is_none_or(|entry| entry.user == user), "another user");
    entry.is_some()
}

fn claim(memory: &Memory, key: &Key, pid: u32, max_lookups: u32) -> Option<Permit> {
    let asker = Asker {
        pid,
        deadline: NOW.plus(2_000),
        max_lookups,
        waited: false,
        yields: false,
        patience: 2_000,
    };
    match memory.flights().claim(key, &asker, NOW, |_| true) {
        Claim::Leader(permit) => Some(permit),
        _ => None,
    }
}

#[test]
fn two_writers_of_one_place_never_show_a_reader_another_user() {
    check(2, || {
        // Seven places are taken, so both writers want the eighth.
        let memory = Memory::new(1);
        for n in 1..8 {
            insert(&memory, token(n << 33, n));
        }
        let other = Arc::clone(&memory);
        let writer = thread::spawn(move || insert(&other, ALICE));
        let other = Arc::clone(&memory);
        let second = thread::spawn(move || insert(&other, BOB));
        get(&memory, ALICE);
        get(&memory, BOB);
        writer.join().unwrap();
        second.join().unwrap();
        get(&memory, ALICE);
        get(&memory, BOB);
    });
}

#[test]
fn what_a_finished_writer_stored_is_found_by_who_comes_after_it() {
    check(3, || {
        let memory = Memory::new(1);
        let other = Arc::clone(&memory);
        let writer = thread::spawn(move || insert(&other, ALICE));
        get(&memory, ALICE);
        writer.join().unwrap();
        assert!(get(&memory, ALICE));
    });
}

#[test]
fn a_key_is_looked_up_once_by_two_that_miss_it_at_once() {
    check(3, || {
        let memory = Memory::new(1);
        let lookups = std::sync::Arc::new(AtomicU32::new(0));
        let request = |pid: u32| {
            let (memory, lookups) = (Arc::clone(&memory), std::sync::Arc::clone(&lookups));
            move || {
                if get(&memory, ALICE) {
                    return;
                }
                let Some(permit) = claim(&memory, &ALICE.0, pid, 64) else {
                    return;
                };
                // The second look that flight.rs asks of a leader.
                if !get(&memory, ALICE) {
                    lookups.fetch_add(1, SeqCst);
                    insert(&memory, ALICE);
                }
                assert!(memory.flights().release(permit));
            }
        };
        let other = thread::spawn(request(101));
        request(100)();
        other.join().unwrap();
        assert_eq!(lookups.load(SeqCst), 1);
    });
}

/// Each of some processes claims a key of its own word; at no moment may more than `max_lookups` hold a permit. The count
/// is kept in an atomic that loom does not know, so it tells the moment as it is and orders nothing.
fn never_more_than(max_lookups: u32, processes: u32, preemptions: usize) {
    check(preemptions, move || {
        let memory = Memory::new(processes as usize);
        let held = std::sync::Arc::new(AtomicU32::new(0));
        let request = |process: u32| {
            let (memory, held) = (Arc::clone(&memory), std::sync::Arc::clone(&held));
            move || {
                let word = u64::from(process) << 32 | 1 << 31;
                let key = Key::from_words([1, word / u64::from(processes)]);
                if let Some(permit) = claim(&memory, &key, 100 + process, max_lookups) {
                    assert!(held.fetch_add(1, SeqCst) < max_lookups);
                    thread::yield_now();
                    held.fetch_sub(1, SeqCst);
                    assert!(memory.flights().release(permit));
                }
            }
        };
        let others: Vec<_> = (1..processes).map(|n| thread::spawn(request(n))).collect();
        request(0)();
        for other in others {
            other.join().unwrap();
        }
    });
}

#[test]
fn the_cap_of_one_holds_over_two_processes() {
    never_more_than(1, 2, 5);
}

#[test]
fn the_cap_of_two_holds_over_three_processes() {
    never_more_than(2, 3, 2);
}

#[test]
fn a_permit_is_exclusive_and_what_its_holder_wrote_is_seen_by_the_next() {
    check(3, || {
        let memory = Memory::new(1);
        let cell = Arc::new(loom::cell::UnsafeCell::new(()));
        let request = |pid: u32| {
            let (memory, cell) = (Arc::clone(&memory), Arc::clone(&cell));
            move || {
                if let Some(permit) = claim(&memory, &ALICE.0, pid, 64) {
                    // loom fails here if another access to the cell is not ordered before or after this one.
                    cell.with_mut(|_| ());
                    assert!(memory.flights().release(permit));
                }
            }
        };
        let others = [101, 102].map(|pid| thread::spawn(request(pid)));
        request(100)();
        for other in others {
            other.join().unwrap();
        }
    });
}

#[test]
fn a_block_of_the_reserve_is_one_borrowers_and_what_that_wrote_is_seen_by_the_next() {
    check(3, || {
        let reserve = Arc::new(Reserve::new(2));
        let cells = Arc::new([(); 2].map(|()| loom::cell::UnsafeCell::new(())));
        let borrower = || {
            let (reserve, cells) = (Arc::clone(&reserve), Arc::clone(&cells));
            move || {
                if let Some(offset) = reserve.take(1, 1) {
                    // loom fails here if another access to the cell is not ordered before or after this one.
                    cells[offset].with_mut(|_| ());
                    reserve.give_back();
                }
            }
        };
        let others = [thread::spawn(borrower()), thread::spawn(borrower())];
        borrower()();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(reserve.lent(), 0);
    });
}
