//! Memory that may not be there.
//!
//! Rust's own allocations abort the process when they fail: a worker process with all its connections. What a request needs to
//! wait, and a lookup to be sent, is asked for here or with `try_reserve`: without it the request goes on by the fallback.

use std::alloc::{Layout, alloc};

/// A box, if there is memory for it.
pub(crate) fn boxed<T>(value: T) -> Option<Box<T>> {
    const { assert!(size_of::<T>() > 0, "`alloc` wants a size") };
    // SAFETY: the layout is that of `T`, whose size is not 0; the memory is written before it is anybody's.
    unsafe {
        let place = alloc(Layout::new::<T>()).cast::<T>();
        if place.is_null() {
            return None;
        }
        place.write(value);
        Some(Box::from_raw(place))
    }
}

/// An empty vector with room for `capacity`, if there is memory for it.
pub(crate) fn with_capacity<T>(capacity: usize) -> Option<Vec<T>> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(capacity).ok()?;
    Some(vector)
}

/// A copy of bytes, if there is memory for it.
pub(crate) fn copy(of: &[u8]) -> Option<Vec<u8>> {
    let mut copy = with_capacity(of.len())?;
    copy.extend_from_slice(of);
    Some(copy)
}

/// A copy of a text, if there is memory for it.
pub(crate) fn text(of: &str) -> Option<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(of.len()).ok()?;
    copy.push_str(of);
    Some(copy)
}
