//! The token that is found in a request is the one that the installed Synapse takes from it, by its own code.
//!
//! Ignored by itself: `scripts/fuzz --short` gives the Python of a Synapse in `SYNAPSE_PYTHON`. `CASES` requests are
//! made up, 20,000 by default, the same in every run; `SEED` gives others.

#![cfg(not(loom))]

#[path = "../src/model.rs"]
mod model;
#[path = "support/random.rs"]
mod random;
#[path = "support/synapse.rs"]
mod synapse;

use matrix_user_hash_core::token::find;
use matrix_user_hash_core::wipe::Room;
use random::Random;
use synapse::{Synapse, in_header, in_query, usable};

/// What headers' values are put together from.
const HEADER: [&str; 18] = [
    "Bearer ",
    "Bearer ",
    "Bearer ",
    "Bearer",
    "bearer ",
    "BEARER ",
    "Basic ",
    " ",
    "\t",
    ",",
    "mat_a",
    "mat_b",
    "syt_YWxpY2U_kQzPvXwRtYuIoPlKjHgF_3fQx1a",
    "\u{b}",
    "\u{a0}",
    "é",
    "=",
    "%41",
];
/// What queries are put together from.
const QUERY: [&str; 26] = [
    "access_token",
    "access_token",
    "access_token=",
    "access_token=",
    "access%5Ftoken=",
    "%61ccess_token=",
    "access_toke%6e",
    "Access_Token=",
    "access+token=",
    "%access_token=",
    "=",
    "&",
    "&",
    ";",
    "%",
    "%4",
    "%41",
    "%2B",
    "+",
    "%00",
    "%C3%A4",
    "mat_a",
    "mat_b",
    "since=s72594_4483_1934",
    "timeout=30000",
    "?",
];

/// Up to `most` pieces, here and there a byte of any value that may stand there.
fn text(random: &mut Random, pieces: &[&str], most: u64, fits: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..random.next() % (most + 1) {
        let (kind, choice) = (random.next() % 8, random.next());
        if kind == 0 {
            text.extend(Some(choice as u8).filter(|&byte| fits(byte)));
        } else {
            text.extend(pieces[choice as usize % pieces.len()].bytes());
        }
    }
    text
}

/// The headers of a request and its query.
fn request(random: &mut Random) -> (Vec<Vec<u8>>, Vec<u8>) {
    // Most requests have one header or none.
    let count = [0, 0, 0, 1, 1, 1, 1, 2][random.next() as usize % 8];
    let mut headers: Vec<_> = (0..count)
        .map(|_| text(random, &HEADER, 4, in_header))
        .collect();
    let mut args = text(random, &QUERY, 7, in_query);
    // Made up like that, few have a token. Half of them begin with a good one, and most of these have it in one place.
    let (good, place) = (random.next() % 2 == 0, random.next() % 8);
    if good && place < 7 {
        args.clear();
    }
    if good && headers.is_empty() {
        args.splice(..0, b"access_token=mat_a".iter().copied());
    } else if good {
        headers[0].splice(..0, b"Bearer mat_a".iter().copied());
    }
    // Sometimes a token about as long as one may be.
    if random.next() % 64 == 0 {
        let long = vec![b'm'; 4090 + random.next() as usize % 12];
        headers = vec![[b"Bearer ".to_vec(), long].concat()];
    }
    (headers, args)
}

#[test]
#[ignore = "needs an installed Synapse: scripts/fuzz --short"]
fn the_token_is_the_one_that_synapse_takes() {
    let number = |name, default| std::env::var(name).map_or(default, |n| n.parse().expect(name));
    let python = std::env::var("SYNAPSE_PYTHON").expect("SYNAPSE_PYTHON names a Python");
    let program = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/tokens_of_synapse.py"
    );
    let mut synapse = Synapse::start(&python, program);
    let mut random = Random(number("SEED", 0) << 32);
    let (cases, mut tokens) = (number("CASES", 20_000), 0);
    for case in 0..cases {
        let (headers, args) = request(&mut random);
        let said = synapse.access_token(&headers, &args);
        tokens += u64::from(said.is_some());
        let said = usable(said);
        let shown = || {
            format!(
                "case {case}: {:?} {:?}",
                headers.escaped(),
                args.escape_ascii().to_string()
            )
        };
        let mut room = Room::new();
        let found = find(headers.iter().map(Vec::as_slice), &args, &mut room);
        assert_eq!(
            found.map(|token| token.as_bytes().to_vec()),
            said,
            "{}",
            shown()
        );
        // The rules as they are written out must be true as well: the fuzz target `find` is held against them.
        assert_eq!(
            model::access_token(&headers, &model::parse_qs(&args)),
            said,
            "{}",
            shown()
        );
    }
    // Both ends of the question are asked often enough.
    assert!(
        (cases / 5..cases * 4 / 5).contains(&tokens),
        "{tokens} of {cases} requests have a token"
    );
}

/// Readable, for a failure's message. These tokens are nobody's.
trait Escaped {
    fn escaped(&self) -> Vec<String>;
}

impl Escaped for Vec<Vec<u8>> {
    fn escaped(&self) -> Vec<String> {
        self.iter()
            .map(|value| value.escape_ascii().to_string())
            .collect()
    }
}
