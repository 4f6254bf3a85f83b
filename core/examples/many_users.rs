//! Writes a state file in which so many users are known, for benchmarks that would take hours to ask for them all:
//! `cargo run --release -p matrix-user-hash-core --example many_users -- 10000000 FILE`. Tokens are those of bench/client.py.

use std::time::{SystemTime, UNIX_EPOCH};

use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::state;
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::token::Token;
use matrix_user_hash_core::user::{UserHash, UserId};

const NOW: Millis = Millis::new(86_400_000);
const DAY: Seconds = Seconds::new(86_400);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let users: usize = arguments
        .next()
        .and_then(|n| n.parse().ok())
        .expect("how many users");
    let path = arguments.next().expect("the file to write");
    let memory: Vec<AtomicU64> = (0..users * 40 / 9 + 131_072)
        .map(|_| AtomicU64::new(0))
        .collect();
    let zone = Zone::format(&memory, &Secret::from_bytes([7; 16])).expect("it is large enough");
    for n in 0..users {
        let token = format!("mat_u{n:09}_Xk3fQ9vLwZ8pRt5yB2mN7cD4hJ");
        let user = format!("@u{n:09}:example.org");
        let key = zone
            .secret()
            .token(&Token::new(token.as_bytes()).expect("a token"));
        let hash = UserHash::of_user(&UserId::try_from(user.as_str()).expect("a user id"));
        zone.table().insert(&key, hash, Masquerade::No, NOW, DAY);
    }
    let unix_seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock that is past 1970")
        .as_secs();
    std::fs::write(
        path,
        state::encode(&zone, NOW, unix_seconds).expect("there is memory"),
    )
    .expect("the file can be written");
}
