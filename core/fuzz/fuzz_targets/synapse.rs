//! Whatever a client sends: the token that is found is the one that the installed Synapse takes, by its own code.
//!
//! `scripts/fuzz synapse` gives the Python of its virtualenv in `SYNAPSE_PYTHON`.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::{Corpus, fuzz_target};
use matrix_user_hash_core::token::find;
use matrix_user_hash_core::wipe::Room;

#[path = "../../tests/support/synapse.rs"]
mod synapse;
use synapse::{Synapse, in_header, in_query, usable};

thread_local! {
    static SYNAPSE: RefCell<Synapse> = RefCell::new(Synapse::start(
        &std::env::var("SYNAPSE_PYTHON").expect("SYNAPSE_PYTHON names a Python"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support/tokens_of_synapse.py"),
    ));
}

// The first line of the input is the query, each further one a header's value.
fuzz_target!(|request: &[u8]| -> Corpus {
    let mut lines = request.split(|&byte| byte == b'\n').map(<[u8]>::to_vec);
    let args = lines.next().unwrap_or_default();
    let headers: Vec<_> = lines.collect();
    // Twisted takes 500 headers and no more; a few are enough.
    let comes_so_far = args.iter().all(|&byte| in_query(byte))
        && headers.iter().flatten().all(|&byte| in_header(byte))
        && headers.len() <= 100;
    if !comes_so_far {
        return Corpus::Reject;
    }
    let said = SYNAPSE.with_borrow_mut(|synapse| synapse.access_token(&headers, &args));
    let mut room = Room::new();
    let found = find(headers.iter().map(Vec::as_slice), &args, &mut room);
    assert_eq!(found.map(|token| token.as_bytes().to_vec()), usable(said));
    Corpus::Keep
});
