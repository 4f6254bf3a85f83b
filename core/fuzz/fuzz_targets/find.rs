//! Whatever a client sends: the token that is found is the one that Synapse would take.

#![no_main]

use libfuzzer_sys::fuzz_target;
use matrix_user_hash_core::token::find;
use matrix_user_hash_core::wipe::Room;

#[path = "../../src/model.rs"]
mod model;

// The first line of the input is the query, each further one a header's value.
fuzz_target!(|request: &[u8]| {
    let mut lines = request.split(|&byte| byte == b'\n').map(<[u8]>::to_vec);
    let args = lines.next().unwrap_or_default();
    let headers: Vec<_> = lines.collect();
    let mut room = Room::new();
    let token = find(headers.iter().map(Vec::as_slice), &args, &mut room);
    let expected = model::access_token(&headers, &model::parse_qs(&args));
    assert_eq!(token.map(|token| token.as_bytes().to_vec()), expected);
});
