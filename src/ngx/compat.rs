//! What differs between nginx versions, what `nginx-sys` gets wrong, and what no header has. Nothing else knows of versions.
//!
//! `nginx-sys` 0.5 is made by bindgen 0.72, which places the bitfields of `ngx_http_request_t` wrong from nginx
//! 1.29.3 on (rust-bindgen issue 3384). They are therefore only touched through a second binding that `build.rs`
//! makes with bindgen 0.73. `scripts/check-layout` compares both, and every other structure of which we touch a
//! bitfield, with what the C compiler says.

use core::ffi::{c_char, c_void};

use nginx_sys::{
    ngx_err_t, ngx_http_request_t, ngx_http_variable_value_t, ngx_log_t, ngx_msec_t, ngx_queue_t,
    ngx_uint_t,
};

// The generated code is bindgen's, not ours: our lints do not judge it. `layout-check` compares it with the C compiler.
#[allow(
    warnings,
    clippy::all,
    missing_docs,
    clippy::undocumented_unsafe_blocks
)]
pub(crate) mod bound {
    include!(concat!(env!("OUT_DIR"), "/request.rs"));
}

/// What a module has in the place of `spare1`. Angie loads no module without its sign there (`ngx_add_module`), and names
/// that field `angie_sign`; `angie.h` has it bound as `spare1`.
#[cfg(angie)]
pub(crate) const MODULE_SIGN: ngx_uint_t = ANGIE_SIGN;
/// What a module has in `spare1`.
#[cfg(not(angie))]
pub(crate) const MODULE_SIGN: ngx_uint_t = 0;

/// The version that a module must have (`NGX_MODULE_V1`). Angie counts its own.
#[cfg(angie)]
pub(crate) const MODULE_VERSION: ngx_uint_t = nginx_sys::angie_version as ngx_uint_t;
/// The version that a module must have (`NGX_MODULE_V1`).
#[cfg(not(angie))]
pub(crate) const MODULE_VERSION: ngx_uint_t = nginx_sys::nginx_version as ngx_uint_t;

/// Angie's sign in a module (`ngx_angie_sign` in its `angie.h`).
pub(crate) const ANGIE_SIGN: ngx_uint_t = {
    let (mut sum, mut at) = (0, 0);
    while at < b"Angie".len() {
        sum += b"Angie"[at] as ngx_uint_t;
        at += 1;
    }
    sum
};

/// How `ngx_http_upstream_keepalive_srv_conf_t` begins. No header has that structure: `scripts/build` compares it with the C file
/// of the keepalive module, for each nginx that the module is built for (`layout-check/`).
#[repr(C)]
pub(crate) struct GroupKeepalive {
    /// `keepalive CONNECTIONS`.
    pub max_cached: ngx_uint_t,
    /// `keepalive_requests`.
    pub requests: ngx_uint_t,
    /// `keepalive_time`.
    pub time: ngx_msec_t,
    /// `keepalive_timeout`.
    pub timeout: ngx_msec_t,
    /// The head of the list of connections.
    pub cache: ngx_queue_t,
}

/// How `ngx_log_error_core` of a server is called.
#[derive(Clone, Copy)]
pub(crate) enum LogForm {
    /// As nginx declares it.
    Nginx,
    /// As Angie does since 1.12.0: behind the log comes the name of a source file.
    NamesFile,
}

impl LogForm {
    /// The one of the server that the module is built for, as its header declares it.
    pub(crate) const OURS: Self = if cfg!(log_names_file) {
        Self::NamesFile
    } else {
        Self::Nginx
    };

    /// The one of the server whose own modules have this sign and version.
    pub(crate) const fn of(sign: ngx_uint_t, version: ngx_uint_t) -> Self {
        if sign == ANGIE_SIGN && version >= 1_012_000 {
            Self::NamesFile
        } else {
            Self::Nginx
        }
    }
}

unsafe extern "C" {
    /// Only its address is taken: it has two forms.
    fn ngx_log_error_core();
}

/// Writes a line to a log of a server that is called in that form.
///
/// # Safety
///
/// The log is live, and the form is the server's.
pub(crate) unsafe fn log_line(form: LogForm, level: ngx_uint_t, log: *mut ngx_log_t, line: &[u8]) {
    type Nginx = unsafe extern "C" fn(ngx_uint_t, *mut ngx_log_t, ngx_err_t, *const c_char, ...);
    type NamesFile = unsafe extern "C" fn(
        ngx_uint_t,
        *mut ngx_log_t,
        *const c_char,
        ngx_err_t,
        *const c_char,
        ...
    );
    let (function, format) = (ngx_log_error_core as *const c_void, c"%*s".as_ptr());
    let (len, data) = (line.len(), line.as_ptr());
    match form {
        LogForm::Nginx => {
            // SAFETY: this is what it is in a server of that form; "%*s" takes a length and that many bytes.
            unsafe {
                core::mem::transmute::<*const c_void, Nginx>(function)(
                    level, log, 0, format, len, data,
                )
            }
        }
        LogForm::NamesFile => {
            let file = c"matrix_user_hash".as_ptr();
            // SAFETY: as above.
            unsafe {
                core::mem::transmute::<*const c_void, NamesFile>(function)(
                    level, log, file, 0, format, len, data,
                )
            }
        }
    }
}

/// Marks a request as logged already, so that `ngx_http_free_request` writes no access log line for it.
///
/// # Safety
///
/// `r` points to a live request.
pub(crate) unsafe fn set_logged(r: *mut ngx_http_request_t) {
    // SAFETY: both types are bindings of the same C structure; this one has its bitfields where C has them.
    unsafe { (*r.cast::<bound::ngx_http_request_t>()).set_logged(1) }
}

/// Marks a request as one that something else still uses, so that `ngx_http_terminate_request` neither closes its connection nor
/// frees it.
///
/// # Safety
///
/// `r` points to a live request.
pub(crate) unsafe fn set_blocked(r: *mut ngx_http_request_t) {
    // SAFETY: both types are bindings of the same C structure; this one has its bitfields where C has them.
    unsafe { (*r.cast::<bound::ngx_http_request_t>()).set_blocked(1) }
}

/// Gives a variable its value: `len` bytes behind `data`, at most 2^28 - 1, valid and to be kept.
///
/// Every request writes three. bindgen 0.72 makes setters that go bit by bit, so that they took 1,800 instructions
/// (callgrind), more than all the rest that we do for a hit; those of 0.73 are a mask each.
pub(crate) fn fill_variable(value: &mut ngx_http_variable_value_t, data: *const u8, len: u32) {
    let value: *mut ngx_http_variable_value_t = value;
    // SAFETY: both types are bindings of the same C structure, and the reference is to nobody else's.
    let value = unsafe { &mut *value.cast::<bound::ngx_http_variable_value_t>() };
    // All of them at once: len, valid, no_cacheable, not_found, escape.
    value._bitfield_1 = bound::ngx_http_variable_value_t::new_bitfield_1(len, 1, 0, 0, 0);
    value.data = data.cast_mut();
}

/// The bytes that [`fill_variable`] gave a variable; `None` if it has no value.
///
/// nginx-sys reads bitfields bit by bit as well.
pub(crate) fn variable_bytes(value: &ngx_http_variable_value_t) -> Option<&[u8]> {
    let value = core::ptr::from_ref(value).cast::<bound::ngx_http_variable_value_t>();
    // SAFETY: both types are bindings of the same C structure; a variable that is valid has `len` bytes behind `data`.
    unsafe {
        let is_set = (*value).valid() != 0 && !(*value).data.is_null();
        is_set.then(|| core::slice::from_raw_parts((*value).data, (*value).len() as usize))
    }
}

/// Takes a request that `ngx_http_create_request` has counted out of `stub_status` again, where it would be one more that
/// was made, and one that is being read: it is no client's.
///
/// # Safety
///
/// `r` points to a live request that was just created.
pub(crate) unsafe fn uncount_request(r: *mut ngx_http_request_t) {
    #[cfg(not(ngx_stat_stub))]
    let _ = r;
    #[cfg(ngx_stat_stub)]
    // SAFETY: nginx points these at counters that live as long as the process (ngx_event_module_init), and updates them
    // with the same atomic instruction. The request is the caller's; its bitfields are where C has them.
    unsafe {
        use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

        for counter in [bound::ngx_stat_requests, bound::ngx_stat_reading] {
            (*(counter as *const AtomicUsize)).fetch_sub(1, Relaxed);
        }
        (*r.cast::<bound::ngx_http_request_t>()).set_stat_reading(0);
    }
}
