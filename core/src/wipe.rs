//! Memory that held a token and must not hold it any longer: what is freed is used again, and not cleared before.

use std::hint::black_box;
use std::ops::{Deref, DerefMut};

/// Overwrites what a vector holds, and empties it.
#[inline]
pub fn wipe(bytes: &mut Vec<u8>) {
    if !bytes.is_empty() {
        bytes.fill(0);
        // Somebody might look at the zeros, so the compiler must write them.
        black_box(bytes.as_slice());
        bytes.clear();
    }
}

/// Bytes that are overwritten when they are dropped. Who adds to them must have made room: a vector that grows leaves its old
/// memory as it was.
#[derive(Default)]
pub struct Wiped(Vec<u8>);

impl From<Vec<u8>> for Wiped {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Wiped {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}
