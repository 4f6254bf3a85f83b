//! What differs between nginx versions, and what `nginx-sys` gets wrong. Nothing else knows of versions.
//!
//! `nginx-sys` 0.5 is made by bindgen 0.72, which places the bitfields of `ngx_http_request_t` wrong from nginx
//! 1.29.3 on (rust-bindgen issue 3384). They are therefore only touched through a second binding that `build.rs`
//! makes with bindgen 0.73. `scripts/check-layout` compares both, and every other structure of which we touch a
//! bitfield, with what the C compiler says.

use nginx_sys::ngx_http_request_t;

// The generated code is bindgen's, not ours: our lints do not judge it.
#[allow(
    warnings,
    clippy::all,
    missing_docs,
    clippy::undocumented_unsafe_blocks
)]
mod bound {
    include!(concat!(env!("OUT_DIR"), "/request.rs"));
}

/// Marks a request as logged already, so that `ngx_http_free_request` writes no access log line for it.
///
/// # Safety
///
/// `r` points to a live request.
pub unsafe fn set_logged(r: *mut ngx_http_request_t) {
    // SAFETY: both types are bindings of the same C structure; this one has its bitfields where C has them.
    unsafe { (*r.cast::<bound::ngx_http_request_t>()).set_logged(1) }
}

/// Takes a request that `ngx_http_create_request` counted out of `stub_status` again: it is no client's.
pub fn uncount_request() {
    #[cfg(ngx_stat_stub)]
    // SAFETY: nginx points `ngx_stat_requests` at a counter that lives as long as the process
    // (ngx_event_module_init), and updates it with the same atomic instruction.
    unsafe {
        let counter = bound::ngx_stat_requests as *const core::sync::atomic::AtomicUsize;
        (*counter).fetch_sub(1, core::sync::atomic::Ordering::Relaxed);
    }
}
