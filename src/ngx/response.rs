//! A response of our own to a client's request.

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, ngx_http_discard_request_body, ngx_http_output_filter,
    ngx_http_send_header, ngx_int_t,
};
use ngx::core::Status;

use super::buffer;
use super::request::{Request, string};

/// Whether the request's method is GET or HEAD.
pub(crate) fn is_read(request: Request) -> bool {
    // SAFETY: live by construction.
    let method = unsafe { (*request.as_ptr()).method };
    method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize != 0
}

/// Has nginx throw the request's body away.
///
/// # Errors
///
/// What the handler is to return instead.
pub(crate) fn discard_body(request: Request) -> Result<(), ngx_int_t> {
    // SAFETY: live by construction.
    match unsafe { ngx_http_discard_request_body(request.as_ptr()) } {
        code if code == Status::NGX_OK.0 => Ok(()),
        code => Err(code),
    }
}

/// What a content handler returns without memory.
pub(crate) const INTERNAL_SERVER_ERROR: ngx_int_t = 500;

/// Sends a whole response, and gives what the content handler is to return. To be called once for a request.
pub(crate) fn send(request: Request, body: &[u8], kind: &'static str) -> ngx_int_t {
    // Before the head, which promises a body.
    // SAFETY: the pool is that of the live request.
    let chain = unsafe {
        buffer::chain(request.pool(), body, |buffer| {
            // In a subrequest (SSI) the page goes on behind it.
            buffer.set_last_buf(request.is_main().into());
            buffer.set_last_in_chain(1);
        })
    };
    let Some(chain) = chain else {
        return INTERNAL_SERVER_ERROR;
    };
    let kind = string(kind.as_bytes());
    // SAFETY: live by construction, and nothing else refers to its headers now.
    let (headers, is_head) = unsafe {
        let r = request.as_ptr();
        (&mut (*r).headers_out, (*r).method == NGX_HTTP_HEAD as usize)
    };
    headers.status = 200;
    headers.content_length_n = i64::try_from(body.len()).unwrap_or(0);
    headers.content_type = kind;
    headers.content_type_len = kind.len;
    // SAFETY: live by construction.
    let sent = unsafe { ngx_http_send_header(request.as_ptr()) };
    if sent == Status::NGX_ERROR.0 || sent > Status::NGX_OK.0 || is_head {
        return sent;
    }
    // SAFETY: the chain lives as long as the request's pool.
    unsafe { ngx_http_output_filter(request.as_ptr(), chain.as_ptr()) }
}
