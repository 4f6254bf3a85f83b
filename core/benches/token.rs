//! What every request costs before the table is read: finding its token and making the key.
//!
//! `cargo bench -p matrix-user-hash-core --bench token`.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::token::find;
use matrix_user_hash_core::wipe::Room;

const HEADER: &[u8] = b"Bearer syt_YWxpY2U_kQzPvXwRtYuIoPlKjHgF_3fQx1a";
const SYNC: &[u8] =
    b"since=s72594_4483_1934_109_23_1_42_7_0_12&timeout=30000&filter=0&set_presence=offline";
const FILTER: &[u8] =
    b"filter=%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A20%7D%2C%22state%22%3A%7B%22\
    lazy_load_members%22%3Atrue%7D%7D%7D&timeout=0&since=s72594_4483_1934_109_23_1_42_7_0_12";
const QUERY: &[u8] =
    b"since=s72594_4483_1934&timeout=30000&access_token=syt_YWxpY2U_kQzPvXwRtYuIoPlKjHgF_3fQx1a";
const ENCODED: &[u8] =
    b"timeout=30000&access%5Ftoken=syt%5FYWxpY2U%5FkQzPvXwRtYuIoPlKjHgF%5F3fQx1a";

fn token(c: &mut Criterion) {
    let secret = Secret::from_bytes(*b"0123456789abcdef");
    let mut group = c.benchmark_group("find");
    for (name, header, args) in [
        ("header", Some(HEADER), SYNC),
        ("header, inline filter", Some(HEADER), FILTER),
        ("query", None, QUERY),
        ("encoded query", None, ENCODED),
    ] {
        let mut room = Room::new();
        group.bench_function(name, |b| {
            b.iter(|| find(black_box(header), black_box(args), &mut room).is_some())
        });
        group.bench_function(format!("{name}, and key"), |b| {
            b.iter(|| Some(secret.token(&find(black_box(header), black_box(args), &mut room)?)))
        });
    }
}

criterion_group!(benches, token);
criterion_main!(benches);
