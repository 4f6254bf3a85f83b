//! Prints what a hit costs beside the digest alone, on a machine that does other things too: the fastest of many short
//! runs, which no other process disturbed. `cargo run --release -p matrix-user-hash-core --example hit_path`.
//!
//! With `ENTRIES DIGESTS LOOKS` it prints nothing and does as many, for a profiler: the difference of two runs is what the
//! digests or the looks alone take (`bench/micro.py`).

#![allow(clippy::print_stdout, reason = "a table on stdout is its purpose")]

use std::hint::black_box;
use std::time::Instant;

use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::token::Token;
use matrix_user_hash_core::user::UserHash;

#[path = "../tests/support/random.rs"]
mod random;

use random::{Random, scatter};

const NOW: Millis = Millis::new(86_400_000);
const DAY: Seconds = Seconds::new(86_400);
const RUNS: usize = 4_000;
const BATCH: usize = 500;

fn main() {
    let counts: Vec<u64> = std::env::args()
        .skip(1)
        .map(|word| word.parse().expect("ENTRIES DIGESTS LOOKS: three numbers"))
        .collect();
    match counts[..] {
        [] => compare(),
        [entries, digests, looks] => profiled(entries, digests, looks),
        _ => panic!("give ENTRIES DIGESTS LOOKS, or nothing"),
    }
}

fn compare() {
    println!(
        "{:>10}{:>14}{:>14}{:>14}",
        "entries", "digest", "and hit", "and miss"
    );
    for entries in [100, 1_000, 10_000, 30_000, 100_000, 1_000_000] {
        let memory = memory(entries);
        let zone = filled(&memory, entries);
        let digest = fastest(entries, 0, |token| {
            black_box(zone.secret().token(token));
        });
        let look = |token: &Token<'_>| {
            let key = zone.secret().token(token);
            black_box(zone.table().get(&key, NOW, DAY));
        };
        let hit = fastest(entries, 0, look);
        let miss = fastest(entries, 1 << 40, look);
        println!("{entries:>10}{digest:>11.1} ns{hit:>11.1} ns{miss:>11.1} ns");
    }
}

fn profiled(entries: u64, digests: u64, looks: u64) {
    let memory = memory(entries);
    let zone = filled(&memory, entries);
    let mut random = Random(11);
    for n in 0..digests.max(looks) {
        let token = token(random.next() % entries);
        let key = zone.secret().token(&Token::new(black_box(&token)).unwrap());
        if n < looks {
            assert!(zone.table().get(black_box(&key), NOW, DAY).is_some());
        }
    }
}

/// With room for so many entries, nine tenths full.
fn memory(entries: u64) -> Vec<AtomicU64> {
    let words = (entries as usize * 40 / 9 + 16_384).max(131_072);
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

fn filled(memory: &[AtomicU64], entries: u64) -> Zone<'_> {
    let zone = Zone::format(memory, &Secret::from_bytes([7; 16])).unwrap();
    for n in 0..entries {
        let key = zone.secret().token(&Token::new(&token(n)).unwrap());
        zone.table()
            .insert(&key, UserHash::from_bits(n), Masquerade::No, NOW, DAY);
    }
    zone
}

/// Nanoseconds for each of a batch of random tokens, in the fastest run.
fn fastest(entries: u64, from: u64, run: impl Fn(&Token<'_>)) -> f64 {
    let mut random = Random(11);
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let tokens: Vec<_> = (0..BATCH)
            .map(|_| token(from + random.next() % entries))
            .collect();
        let tokens: Vec<_> = tokens
            .iter()
            .map(|token| Token::new(token).unwrap())
            .collect();
        let start = Instant::now();
        for token in &tokens {
            run(black_box(token));
        }
        best = best.min(start.elapsed().as_nanos() as f64 / BATCH as f64);
    }
    best
}

/// 46 bytes, as Synapse makes them for a user with a name of 9 letters.
fn token(n: u64) -> [u8; 46] {
    let mut token = *b"syt_YWxpY2Utc21p_AbCdEfGhIjKlMnOpQrSt_0a1B2c_x";
    for (at, byte) in token[17..37].iter_mut().enumerate() {
        *byte = b'a' + (scatter(n ^ (at as u64) << 50) % 26) as u8;
    }
    token
}
