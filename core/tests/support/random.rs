//! Random numbers that are the same in every run, and keys made of them.

#![allow(dead_code, reason = "not every test that shares this needs all of it")]

use matrix_user_hash_core::key::Key;

/// splitmix64 (Steele, Lea, Flood): neighbouring numbers give unrelated ones.
pub(crate) fn scatter(n: u64) -> u64 {
    let z = n
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The key of the `n`-th token, spread like a digest.
pub(crate) fn key(n: u64) -> Key {
    Key::from_words([scatter(n), scatter(n ^ 0x5bf0_3635_dcf5_a6b3)])
}

/// A sequence of random numbers, by its state.
pub(crate) struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        scatter(self.0)
    }
}
