//! Memory that held a token and must not hold it any longer: what is freed is used again, and not cleared before.

use std::hint::black_box;
use std::ops::{Deref, DerefMut};

/// Overwrites bytes.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Somebody might look at the zeros, so the compiler must write them.
    black_box(bytes);
}

/// Room on the stack for up to `N` bytes, which are overwritten when it is dropped. It is made only when it is asked for, so
/// one that nobody needs costs nothing, and it is always there: a request for which there is no memory keeps its token.
#[derive(Default)]
pub struct Room<const N: usize>(Option<[u8; N]>);

impl<const N: usize> Room<N> {
    /// No room yet.
    #[inline]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether it was asked for.
    #[cfg(test)]
    pub fn is_made(&self) -> bool {
        self.0.is_some()
    }

    /// Puts bytes there, and gives them; `None` if they are more than `N`.
    #[cold]
    pub fn fill(&mut self, bytes: impl Iterator<Item = u8>) -> Option<&[u8]> {
        let room = self.0.insert([0; N]);
        let mut len = 0;
        for byte in bytes {
            *room.get_mut(len)? = byte;
            len += 1;
        }
        room.get(..len)
    }
}

impl<const N: usize> Drop for Room<N> {
    #[inline]
    fn drop(&mut self) {
        if let Some(room) = &mut self.0 {
            wipe(room);
        }
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
