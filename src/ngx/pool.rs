//! Memory of nginx's pools for values of ours.

use core::ffi::c_void;

use nginx_sys::ngx_pool_t;

use super::guard;

/// Keeps `value` until the pool is destroyed, and drops it then. Nothing when there is no memory.
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
