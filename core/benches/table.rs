//! What a request pays: `cargo bench -p matrix-user-hash-core --bench table`.
//!
//! The digest of a token alone, and with the look into the table, for hits and misses in zones of 100 to 1,000,000 entries,
//! each token asked for in random order; then what a lookup pays on top, and what reading the figures and the state costs.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::metrics::Snapshot;
use matrix_user_hash_core::shm::claims::{Asker, Claim};
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::state;
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::token::Token;
use matrix_user_hash_core::user::UserHash;

#[path = "../tests/support/random.rs"]
mod random;

use random::{Random, key, scatter};

const NOW: Millis = Millis::new(86_400_000);
const DAY: Seconds = Seconds::new(86_400);
/// Tokens are asked for in this many steps of a random walk, made beforehand.
const ASKED: usize = 1 << 16;

/// A zone with room for so many entries, and so many in it.
fn zone(entries: usize) -> Zone<'static> {
    let words = (entries * 4 * 10 / 9 + 16_384).max(131_072);
    let memory: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
    let zone = Zone::format(
        Box::leak(memory.into_boxed_slice()),
        &Secret::from_bytes([7; 16]),
    );
    let zone = zone.unwrap();
    for n in 0..entries as u64 {
        let token = token(n);
        let key = zone.secret().token(&Token::new(&token).unwrap());
        zone.table().insert(
            &key,
            UserHash::from_bits(scatter(n)),
            Masquerade::No,
            NOW,
            DAY,
        );
    }
    zone
}

/// 46 bytes, as Synapse makes them for a user with a name of 9 letters.
fn token(n: u64) -> [u8; 46] {
    let mut token = *b"syt_YWxpY2Utc21p_AbCdEfGhIjKlMnOpQrSt_0a1B2c_x";
    for (at, byte) in token[17..37].iter_mut().enumerate() {
        *byte = b'a' + (scatter(n ^ (at as u64) << 50) % 26) as u8;
    }
    token
}

fn asked(entries: u64, from: u64) -> Vec<[u8; 46]> {
    let mut random = Random(11);
    (0..ASKED)
        .map(|_| token(from + random.next() % entries))
        .collect()
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    for entries in [100, 1_000, 10_000, 100_000, 1_000_000_u64] {
        let zone = zone(entries as usize);
        for (name, tokens) in [
            ("hit", asked(entries, 0)),
            ("miss", asked(entries, 1 << 40)),
        ] {
            let mut at = 0;
            group.bench_function(BenchmarkId::new(format!("digest, {name}"), entries), |b| {
                b.iter(|| {
                    at = (at + 1) % ASKED;
                    let token = Token::new(black_box(&tokens[at])).unwrap();
                    let key = zone.secret().token(&token);
                    black_box(zone.table().get(&key, NOW, DAY))
                });
            });
        }
        let tokens = asked(entries, 0);
        let mut at = 0;
        group.bench_function(BenchmarkId::new("digest alone", entries), |b| {
            b.iter(|| {
                at = (at + 1) % ASKED;
                let token = Token::new(black_box(&tokens[at])).unwrap();
                black_box(zone.secret().token(&token))
            });
        });
    }
    group.finish();
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    let zone = zone(40_000);
    let mut n = 1 << 50;
    group.bench_function("insert into a full table", |b| {
        b.iter(|| {
            n += 1;
            zone.table()
                .insert(&key(n), UserHash::from_bits(n), Masquerade::No, NOW, DAY)
        });
    });
    let asker = Asker {
        pid: 1,
        deadline: NOW.plus(2_000),
        max_lookups: 64,
        waited: false,
        yields: false,
        patience: 2_000,
    };
    group.bench_function("claim and release", |b| {
        b.iter(|| {
            n += 1;
            match zone.flights().claim(&key(n), &asker, NOW, |_| true) {
                Claim::Leader(permit) => zone.flights().release(permit),
                _ => false,
            }
        });
    });
    group.finish();
}

fn figures(c: &mut Criterion) {
    let mut group = c.benchmark_group("zone");
    group.sample_size(20);
    for entries in [28_000, 112_000, 1_000_000] {
        let zone = zone(entries);
        group.bench_function(BenchmarkId::new("read the figures", entries), |b| {
            b.iter(|| Snapshot::read(&zone, NOW, DAY, |_| true));
        });
        group.bench_function(BenchmarkId::new("encode the state", entries), |b| {
            b.iter(|| state::encode(&zone, NOW, 0).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, requests, lookups, figures);
criterion_main!(benches);
