//! nginx's upstream machinery, as a module that sends requests of its own sees it.

use core::ptr;

use nginx_sys::{
    ngx_http_request_t, ngx_http_upstream_create, ngx_http_upstream_t, ngx_peer_connection_t,
};
use ngx::core::Status;

use super::connection::Connection;
use super::request::Request;

/// Makes the upstream of a request; `None` without memory.
///
/// # Safety
///
/// The request has none yet, and nothing else refers to the result while it is used.
pub(crate) unsafe fn create<'r>(request: Request) -> Option<&'r mut ngx_http_upstream_t> {
    // SAFETY: the request is live, and the upstream lives as long.
    unsafe {
        let made = ngx_http_upstream_create(request.as_ptr());
        (made == Status::NGX_OK.0).then(|| &mut *(*request.as_ptr()).upstream)
    }
}

/// The upstream of a request, if it has one.
///
/// # Safety
///
/// The request is live, and nothing else changes the upstream while the result is used.
pub(crate) unsafe fn of<'r>(request: Request) -> Option<&'r ngx_http_upstream_t> {
    // SAFETY: the caller's.
    unsafe { (*request.as_ptr()).upstream.as_ref() }
}

/// The upstream that nginx makes a callback for.
///
/// # Safety
///
/// `request` is what nginx passes to a callback of its upstream, and nothing else refers to that while the result is used.
pub(crate) unsafe fn of_callback<'r>(
    request: *mut ngx_http_request_t,
) -> &'r mut ngx_http_upstream_t {
    // SAFETY: the caller's.
    unsafe { &mut *(*request).upstream }
}

/// The connection of an upstream, if it has one.
pub(crate) fn connection(upstream: &ngx_http_upstream_t) -> Option<Connection> {
    connection_of_peer(&upstream.peer)
}

/// The connection of a peer, if it has one.
pub(crate) fn connection_of_peer(peer: &ngx_peer_connection_t) -> Option<Connection> {
    // SAFETY: nginx sets it to NULL when it closes it.
    unsafe { Connection::from_ptr(peer.connection) }
}

/// Takes the connection of a peer away.
pub(crate) fn take_connection(peer: &mut ngx_peer_connection_t) -> Option<Connection> {
    let connection = connection_of_peer(peer);
    peer.connection = ptr::null_mut();
    connection
}
