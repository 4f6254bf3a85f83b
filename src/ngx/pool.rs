//! Memory of nginx's pools.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use nginx_sys::{ngx_palloc, ngx_pcalloc, ngx_pnalloc, ngx_pool_t, ngx_str_t};

use super::guard;

/// Keeps `value` until the pool is destroyed, and drops it then. `None` if there is no memory.
///
/// # Safety
///
/// `pool` is live, and nothing uses the result after it is destroyed.
pub(crate) unsafe fn adopt<T>(pool: *mut ngx_pool_t, value: T) -> Option<&'static mut T> {
    // SAFETY: the cleanup entry is allocated from the pool, and gives the box back exactly once.
    unsafe {
        let cleanup = nginx_sys::ngx_pool_cleanup_add(pool, 0).as_mut()?;
        let value = Box::into_raw(Box::new(value));
        cleanup.handler = Some(release::<T>);
        cleanup.data = value.cast();
        Some(&mut *value)
    }
}

unsafe extern "C" fn release<T>(value: *mut c_void) {
    // SAFETY: `adopt` left a box of that type here, and nginx runs a cleanup once.
    guard::guard((), || unsafe { drop(Box::from_raw(value.cast::<T>())) });
}

/// A copy of `count` values from `source`; `None` if there is no memory.
///
/// # Safety
///
/// `pool` is live, and `source` has as many values, which are plain data.
pub(crate) unsafe fn copy<T>(
    pool: *mut ngx_pool_t,
    source: *const T,
    count: usize,
) -> Option<NonNull<T>> {
    // SAFETY: the caller's; the pool gives as much as is asked for, aligned, or NULL.
    unsafe {
        let copy = NonNull::new(ngx_palloc(pool, count * size_of::<T>()).cast::<T>())?;
        ptr::copy_nonoverlapping(source, copy.as_ptr(), count);
        Some(copy)
    }
}

/// Memory of zeros for `bytes`; `None` if there is no memory.
///
/// # Safety
///
/// `pool` is live.
pub(crate) unsafe fn zeroed(pool: *mut ngx_pool_t, bytes: usize) -> Option<NonNull<u8>> {
    // SAFETY: the caller's; the pool gives as much as is asked for, aligned, or NULL.
    NonNull::new(unsafe { ngx_pcalloc(pool, bytes) }.cast())
}

/// A copy of a text; `None` if there is no memory.
///
/// # Safety
///
/// `pool` is live.
pub(crate) unsafe fn copy_text(pool: *mut ngx_pool_t, text: &[u8]) -> Option<ngx_str_t> {
    // SAFETY: the caller's; the pool gives as much as is asked for, or NULL.
    unsafe {
        let copy = NonNull::new(ngx_pnalloc(pool, text.len()).cast::<u8>())?;
        ptr::copy_nonoverlapping(text.as_ptr(), copy.as_ptr(), text.len());
        Some(ngx_str_t {
            len: text.len(),
            data: copy.as_ptr(),
        })
    }
}
