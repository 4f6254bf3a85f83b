//! The upstream family: how the servers behind whoami are talked to, with nginx's own meanings.

use core::ffi::{c_char, c_void};
use core::mem;

use nginx_sys::{
    NGX_CONF_BITMASK_SET, NGX_HTTP_UPSTREAM_FT_ERROR, NGX_HTTP_UPSTREAM_FT_HTTP_403,
    NGX_HTTP_UPSTREAM_FT_HTTP_404, NGX_HTTP_UPSTREAM_FT_HTTP_429, NGX_HTTP_UPSTREAM_FT_HTTP_500,
    NGX_HTTP_UPSTREAM_FT_HTTP_502, NGX_HTTP_UPSTREAM_FT_HTTP_503, NGX_HTTP_UPSTREAM_FT_HTTP_504,
    NGX_HTTP_UPSTREAM_FT_INVALID_HEADER, NGX_HTTP_UPSTREAM_FT_NON_IDEMPOTENT,
    NGX_HTTP_UPSTREAM_FT_OFF, NGX_HTTP_UPSTREAM_FT_TIMEOUT, ngx_command_t, ngx_conf_t,
    ngx_http_upstream_conf_t, ngx_uint_t,
};

use super::LocationConf;
use super::slot;

const SET: ngx_uint_t = NGX_CONF_BITMASK_SET as ngx_uint_t;
/// What `ngx_http_upstream_next` is told when we want the next server.
pub(crate) const INVALID_HEADER: ngx_uint_t = NGX_HTTP_UPSTREAM_FT_INVALID_HEADER as ngx_uint_t;
/// `error timeout`, nginx's own default.
pub(crate) const DEFAULT_CASES: ngx_uint_t =
    SET | (NGX_HTTP_UPSTREAM_FT_ERROR | NGX_HTTP_UPSTREAM_FT_TIMEOUT) as ngx_uint_t;
const OFF: ngx_uint_t = NGX_HTTP_UPSTREAM_FT_OFF as ngx_uint_t;

/// What `matrix_user_hash_next_upstream` takes: the words of `proxy_next_upstream`, and `invalid_response` and
/// `not_found` as `memcached_next_upstream` calls them.
const CASES: [(&[u8], u32); 14] = [
    (b"error", NGX_HTTP_UPSTREAM_FT_ERROR),
    (b"timeout", NGX_HTTP_UPSTREAM_FT_TIMEOUT),
    (b"invalid_header", NGX_HTTP_UPSTREAM_FT_INVALID_HEADER),
    (b"invalid_response", NGX_HTTP_UPSTREAM_FT_INVALID_HEADER),
    (b"http_500", NGX_HTTP_UPSTREAM_FT_HTTP_500),
    (b"http_502", NGX_HTTP_UPSTREAM_FT_HTTP_502),
    (b"http_503", NGX_HTTP_UPSTREAM_FT_HTTP_503),
    (b"http_504", NGX_HTTP_UPSTREAM_FT_HTTP_504),
    (b"http_403", NGX_HTTP_UPSTREAM_FT_HTTP_403),
    (b"http_404", NGX_HTTP_UPSTREAM_FT_HTTP_404),
    (b"not_found", NGX_HTTP_UPSTREAM_FT_HTTP_404),
    (b"http_429", NGX_HTTP_UPSTREAM_FT_HTTP_429),
    (b"non_idempotent", NGX_HTTP_UPSTREAM_FT_NON_IDEMPOTENT),
    (b"off", NGX_HTTP_UPSTREAM_FT_OFF),
];

/// The case of `next_upstream` that an answer's status is, if it is one.
pub(crate) fn case_of(status: u16) -> Option<ngx_uint_t> {
    let case = match status {
        403 => NGX_HTTP_UPSTREAM_FT_HTTP_403,
        404 => NGX_HTTP_UPSTREAM_FT_HTTP_404,
        429 => NGX_HTTP_UPSTREAM_FT_HTTP_429,
        500 => NGX_HTTP_UPSTREAM_FT_HTTP_500,
        502 => NGX_HTTP_UPSTREAM_FT_HTTP_502,
        503 => NGX_HTTP_UPSTREAM_FT_HTTP_503,
        504 => NGX_HTTP_UPSTREAM_FT_HTTP_504,
        _ => return None,
    };
    Some(case as ngx_uint_t)
}

/// A structure in which no directive has set anything.
pub(crate) fn new() -> ngx_http_upstream_conf_t {
    // SAFETY: nginx's modules make theirs with ngx_pcalloc, as here.
    let mut conf: ngx_http_upstream_conf_t = unsafe { mem::zeroed() };
    // An answer that was asked for is kept even if nobody waits for it any more.
    conf.ignore_client_abort = 1;
    conf
}

/// nginx's page size, its own default for buffers.
pub(crate) fn page_size() -> usize {
    // SAFETY: nginx sets it before it reads the configuration (ngx_os_init).
    unsafe { nginx_sys::ngx_pagesize }
}

/// `off` takes all other words away.
pub(crate) fn tidy(conf: &mut ngx_http_upstream_conf_t) {
    if conf.next_upstream & OFF != 0 {
        conf.next_upstream = SET | OFF;
    }
}

/// Reads `matrix_user_hash_next_upstream`.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(crate) unsafe extern "C" fn next(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments; `conf` is a block of ours.
    let mask = unsafe { &mut (*conf.cast::<LocationConf>()).own_upstream.next_upstream };
    slot::mask(cf, &CASES, SET, mask)
}
