//! Where memory is taken, and where not: counted by an allocator that counts.

#![cfg(not(loom))]
#![allow(
    clippy::print_stdout,
    reason = "figures for the documentation go to stdout"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::negative::{CAPACITY, NegativeCache};
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::token::Token;
use matrix_user_hash_core::user::{UserHash, UserId};
use matrix_user_hash_core::whoami::{self, DeviceParam, Progress, Request, parse};

#[path = "support/random.rs"]
mod random;

use random::key;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: everything is left to the system's allocator; counting in thread-local cells allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        BYTES.set(BYTES.get() + layout.size() as i64);
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size() as i64);
        // SAFETY: as above; `memory` came from `System`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NOW: Millis = Millis::new(1_000_000);
const DAY: Seconds = Seconds::new(86_400);

#[test]
fn a_request_whose_user_is_known_allocates_nothing() {
    let words: Vec<AtomicU64> = (0..16_384).map(|_| AtomicU64::new(0)).collect();
    let zone = Zone::format(&words, &Secret::from_bytes([7; 16])).unwrap();
    let token = Token::new(b"syt_YWxpY2U_kQzPvXwRtYuIoPlKjHgF_3fQx1a").unwrap();
    let alice = UserHash::from_bits(0x86f0_1aef_21b1_acd3);
    let before = ALLOCATIONS.get();
    let key = zone.secret().token(&token);
    zone.table().insert(&key, alice, Masquerade::No, NOW, DAY);
    // Later, so that its use is noted as well.
    for later in [0, 61_000, 122_000] {
        let key = zone.secret().token(&token);
        let entry = zone.table().get(&key, NOW.plus(later), DAY);
        assert_eq!(entry.map(|entry| entry.user), Some(alice));
    }
    assert_eq!(ALLOCATIONS.get(), before);
}

#[test]
fn an_answer_of_synapse_is_read_without_memory() {
    for (status, body) in [
        (
            200,
            r#"{"user_id":"@alice:example.org","is_guest":false,"device_id":"GHTYAJCE"}"#,
        ),
        (200, r#"{"user_id":"@alice:example.org","is_guest":false}"#),
        (
            401,
            r#"{"errcode":"M_UNKNOWN_TOKEN","error":"Unknown","soft_logout":false}"#,
        ),
    ] {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        let before = ALLOCATIONS.get();
        let Ok(Progress::Complete(response)) = parse(answer.as_bytes(), 4096, false) else {
            panic!("{answer}");
        };
        let result = response.result(None);
        assert_eq!(ALLOCATIONS.get(), before, "{body}");
        assert_eq!(result.is_ok(), status == 200);
    }
}

#[test]
fn a_question_for_a_masquerade_is_made_without_memory() {
    let token = Token::new(b"as_telegram_3f9c1be07d5a4c21").unwrap();
    let request = Request {
        path: b"/_matrix/client/v3/account/whoami",
        host: b"synapse",
        token: &token,
        user_agent: None,
        forwarded_for: b"192.0.2.1",
        remote_addr: b"192.0.2.1",
        forwarded_proto: b"https",
        masquerade: Some(whoami::Masquerade {
            user_id: UserId::try_from("@telegram_1:example.org").unwrap(),
            device_id: Some((DeviceParam::Stable, b"A B")),
        }),
    };
    let (before, mut length) = (ALLOCATIONS.get(), 0);
    request.pieces(&mut |piece| length += piece.len());
    assert_eq!(ALLOCATIONS.get(), before);
    assert_eq!(length, request.len());
}

#[test]
fn the_memory_of_refused_tokens_is_bounded_under_a_flood() {
    let before = BYTES.get();
    let mut refused = NegativeCache::new();
    let fresh = BYTES.get() - before;
    for n in 0..CAPACITY as u64 {
        refused.refuse(&key(n), 30_000, NOW);
    }
    let full = BYTES.get() - before;
    let mut most = full;
    for n in 0..200_000 {
        refused.refuse(&key(n), 30_000, NOW);
        most = most.max(BYTES.get() - before);
    }
    assert!(fresh < 4_096, "{fresh}");
    // The map doubles once more when the places of forgotten tokens have used it up.
    assert!(most < 1 << 20, "{most}");
    drop(refused);
    assert_eq!(BYTES.get(), before);
    println!("{fresh} bytes when made, {full} with {CAPACITY} tokens, at most {most} in a flood");
}
