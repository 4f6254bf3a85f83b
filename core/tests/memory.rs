//! Where memory is taken, and where not: counted by an allocator that counts, and that can refuse.

#![cfg(not(loom))]
#![allow(
    clippy::print_stdout,
    reason = "figures for the documentation go to stdout"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use matrix_user_hash_core::engine::{Engine, Outcome, Parts, Question, Status, Step, Terms};
use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::negative::{CAPACITY, NegativeCache};
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::token::Token;
use matrix_user_hash_core::user::{UserHash, UserId};
use matrix_user_hash_core::whoami::{self, DeviceParam, Identity, Progress, Request, parse};

#[path = "support/random.rs"]
mod random;

use random::key;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
    static IS_EMPTY: Cell<bool> = const { Cell::new(false) };
}

/// What `body` gives where every allocation fails. Rust's own then abort the test.
fn without_memory<T>(body: impl FnOnce() -> T) -> T {
    IS_EMPTY.set(true);
    let result = body();
    IS_EMPTY.set(false);
    result
}

// SAFETY: everything is refused or left to the system's allocator; thread-local cells allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        if IS_EMPTY.get() {
            return std::ptr::null_mut();
        }
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

/// An argument of a query, with every byte as an escape.
fn escaped(name: &str, value: &str) -> String {
    let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("{name}={value}")
}

/// A request keeps its token, and the user that it names beside it, wherever the memory ends: it is resolved as with memory, or
/// goes on by its token. It is never one without a token, and never a bridge's own user in place of the one that it speaks for.
#[test]
fn a_request_without_memory_keeps_its_token_and_its_user() {
    let words: Vec<AtomicU64> = (0..16_384).map(|_| AtomicU64::new(0)).collect();
    let zone = Zone::format(&words, &Secret::from_bytes([7; 16])).unwrap();
    let mut engine: Engine<'_, u32, fn(u32) -> bool> = Engine::new(zone, DAY, 0, 1, |_| true);
    let (bridge, ghost) = ("as_telegram_3f9c1be07d5a4c21", "@telegram_1:example.org");
    let token = Token::new(bridge.as_bytes()).unwrap();
    let header = format!("Bearer {bridge}");
    let named = escaped("user_id", ghost);
    let in_query = format!("{}&{named}", escaped("access_token", bridge));
    let terms = Terms {
        fresh: Seconds::new(3600),
        serves_stale: true,
        refused: 30_000,
        failed: 1000,
        max_lookups: 8,
        timeout: 1000,
    };
    let (bot, person) = (UserHash::from_bits(1), UserHash::from_bits(2));
    let said = |user, masquerade| Outcome {
        result: Ok(Identity { user, masquerade }),
        status: Status::Miss,
    };
    for (authorization, args) in [(Some(header.as_bytes()), &named), (None, &in_query)] {
        let parts = Parts {
            authorization,
            args: args.as_bytes(),
        };
        let owner = Question::Owner(zone.secret().token(&token));
        let key = zone
            .secret()
            .masquerade(&token, &UserId::try_from(ghost).unwrap());
        let masquerade = Question::Masquerade {
            key,
            owner: *owner.key(),
        };
        let arrived = without_memory(|| engine.arrive(parts, &terms, NOW));
        assert_eq!(arrived, Step::Ask(owner));
        let answered = said(bot, Masquerade::Maybe);
        let next = without_memory(|| engine.resume(parts, &terms, owner, answered, NOW));
        assert_eq!(next, Step::Ask(masquerade));
        let answered = said(person, Masquerade::Never);
        let end = without_memory(|| engine.resume(parts, &terms, masquerade, answered, NOW));
        let Step::Done(resolution) = end else {
            panic!("{end:?}");
        };
        assert_eq!(
            (resolution.hash, resolution.status),
            (Some(person), Status::Miss)
        );
        let fallback = without_memory(|| engine.fall_back(parts));
        assert_eq!(fallback.hash, Some(UserHash::of_token(&token)));
        assert_eq!(fallback.status, Status::Error);
    }
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
