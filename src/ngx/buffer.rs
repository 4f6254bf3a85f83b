//! nginx's buffers: what is sent, and what was received.

use core::ptr::{self, NonNull};
use core::slice;

use nginx_sys::{ngx_alloc_chain_link, ngx_buf_t, ngx_chain_t, ngx_create_temp_buf, ngx_pool_t};

/// A chain of one buffer with a copy of `bytes`, whose flags `set` sets; `None` if there is no memory. Both live as long as the
/// pool.
///
/// # Safety
///
/// `pool` is live.
pub(crate) unsafe fn chain(
    pool: *mut ngx_pool_t,
    bytes: &[u8],
    set: impl FnOnce(&mut ngx_buf_t),
) -> Option<NonNull<ngx_chain_t>> {
    // SAFETY: the caller's; each is NULL or new.
    let (buffer, link) = unsafe {
        let buffer = ngx_create_temp_buf(pool, bytes.len());
        (buffer.as_mut()?, ngx_alloc_chain_link(pool).as_mut()?)
    };
    // SAFETY: the buffer is empty, and as long as what is copied.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.last, bytes.len());
        buffer.last = buffer.last.add(bytes.len());
    }
    set(buffer);
    link.buf = buffer;
    link.next = ptr::null_mut();
    Some(NonNull::from(link))
}

/// What was received into a buffer.
///
/// # Safety
///
/// `start`, `last` and `end` are those of one allocation, in that order, and it is written up to `last`.
pub(crate) unsafe fn received(buffer: &ngx_buf_t) -> &[u8] {
    // SAFETY: the caller's.
    unsafe {
        let length = buffer.last.offset_from(buffer.start).unsigned_abs();
        slice::from_raw_parts(buffer.start, length)
    }
}

/// How many bytes fit into a buffer, and how many of them are still free.
///
/// # Safety
///
/// As [`received`].
pub(crate) unsafe fn room(buffer: &ngx_buf_t) -> (usize, usize) {
    // SAFETY: the caller's.
    unsafe {
        let all = buffer.end.offset_from(buffer.start);
        let free = buffer.end.offset_from(buffer.last);
        (all.unsigned_abs(), free.unsigned_abs())
    }
}

/// Overwrites all of a buffer.
///
/// # Safety
///
/// The buffer is NULL, or in memory that can be written to.
pub(crate) unsafe fn wipe(buffer: *const ngx_buf_t) {
    // SAFETY: the caller's; `start` and `end` are the bounds of its memory.
    unsafe {
        if let Some(buffer) = buffer.as_ref().filter(|buffer| !buffer.start.is_null()) {
            let len = buffer.end.offset_from(buffer.start).unsigned_abs();
            libc::explicit_bzero(buffer.start.cast(), len);
        }
    }
}
