//! The callbacks that nginx's upstream machinery makes for a lookup.
//!
//! The response is parsed whole, head and body, from the upstream's buffer each time more of it has come. When it is
//! complete, `process_header` returns NGX_ERROR: that ends the upstream at once, with the connection kept alive if the
//! response allows it, and without the header and body filters that would otherwise see a response of ours
//! (`ngx_http_upstream_process_header`, `ngx_http_upstream_finalize_request`). Where the next server is to be tried, it
//! returns NGX_HTTP_UPSTREAM_INVALID_HEADER, which does that.

use matrix_user_hash_core::whoami::{
    FailureKind, LookupError, LookupResult, Malformed, Progress, parse,
};
use nginx_sys::{
    NGX_HTTP_BAD_GATEWAY, NGX_HTTP_GATEWAY_TIME_OUT, NGX_HTTP_INTERNAL_SERVER_ERROR,
    NGX_HTTP_UPSTREAM_FT_INVALID_HEADER, NGX_HTTP_UPSTREAM_INVALID_HEADER, ngx_connection_t,
    ngx_http_finalize_request, ngx_http_request_t, ngx_http_upstream_init, ngx_http_upstream_t,
    ngx_int_t, ngx_uint_t,
};
use ngx::core::Status;
use ngx::http::HttpModule;
use ngx::ngx_string;

use super::{Lookup, failed};
use crate::Module;
use crate::conf::Pass;
use crate::conf::upstream::case_of;
use crate::ngx::connection::Connection;
use crate::ngx::request::Request;
use crate::ngx::{buffer, guard, upstream as ngx_upstream};

const OK: ngx_int_t = Status::NGX_OK.0;
const ERROR: ngx_int_t = Status::NGX_ERROR.0;
const AGAIN: ngx_int_t = Status::NGX_AGAIN.0;
const NEXT: ngx_int_t = NGX_HTTP_UPSTREAM_INVALID_HEADER as ngx_int_t;
const BAD_GATEWAY: ngx_int_t = NGX_HTTP_BAD_GATEWAY as ngx_int_t;
const GATEWAY_TIME_OUT: ngx_int_t = NGX_HTTP_GATEWAY_TIME_OUT as ngx_int_t;
const ERROR_STATUS: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// Starts the upstream of a lookup's subrequest: its first and only write event.
pub(super) unsafe extern "C" fn run(child: *mut ngx_http_request_t) {
    guard::guard((), || {
        // SAFETY: nginx calls with the live subrequest that `Lookup::launch` made.
        let (lookup, request) = unsafe {
            (*child).write_event_handler = Some(nginx_sys::ngx_http_request_empty_handler);
            (Lookup::of(child), Request::from_ptr(child))
        };
        let is_prepared = prepare(request, lookup).is_some();
        // SAFETY: the subrequest is live. Each ends or starts what there is, and nothing of ours is used after it.
        unsafe {
            if is_prepared {
                ngx_http_upstream_init(child);
            } else {
                ngx_http_finalize_request(child, ERROR_STATUS);
            }
        }
    });
}

/// Sets the upstream up; `None` without memory.
fn prepare(child: Request, lookup: &Lookup) -> Option<()> {
    let conf = lookup.location.conf;
    let Pass::On(target) = conf.pass else {
        return None;
    };
    // SAFETY: the subrequest is new.
    let upstream = unsafe { ngx_upstream::create(child)? };
    upstream.schema = if target.secure {
        ngx_string!("https://")
    } else {
        ngx_string!("http://")
    };
    upstream.output.tag = (&raw mut crate::ngx_http_matrix_user_hash_module).cast();
    upstream.conf = conf.upstream;
    upstream.set_ssl(target.secure.into());
    upstream.create_request = Some(create_request);
    upstream.reinit_request = Some(reinit_request);
    upstream.process_header = Some(process_header);
    upstream.abort_request = Some(abort_request);
    upstream.finalize_request = Some(finalize_request);
    // No input filter: `process_header` never returns NGX_OK, so nothing is left to be filtered. Its context is where
    // `peer::free` finds the lookup.
    upstream.input_filter_ctx = child.context(Module::module());
    Some(())
}

/// Hands the request's bytes to the upstream.
unsafe extern "C" fn create_request(child: *mut ngx_http_request_t) -> ngx_int_t {
    guard::guard(ERROR, || {
        // SAFETY: nginx calls with the live subrequest of a lookup, and its upstream.
        let (lookup, request, upstream) = unsafe { callback(child) };
        let bytes = lookup.bytes.take();
        // Else TLS keeps it back for more to come, and on a connection that was kept alive nothing else writes
        // (ngx_ssl_send_chain; ngx_http_proxy_create_request does the same).
        // SAFETY: the pool is that of the live subrequest.
        let chain = unsafe { buffer::chain(request.pool(), &bytes, |buffer| buffer.set_flush(1)) };
        let Some(chain) = chain else {
            return ERROR;
        };
        // SAFETY: the chain was just made, with its one buffer.
        lookup.sent.set(unsafe { chain.as_ref().buf });
        upstream.request_bufs = chain.as_ptr();
        OK
    })
}

/// What a callback of the upstream is about.
///
/// # Safety
///
/// `child` is the live subrequest of a lookup, for which nginx makes a callback, and nothing else refers to its upstream while the
/// result is used.
unsafe fn callback<'l>(
    child: *mut ngx_http_request_t,
) -> (&'l Lookup, Request, &'l mut ngx_http_upstream_t) {
    // SAFETY: the caller's.
    unsafe {
        let upstream = ngx_upstream::of_callback(child);
        (Lookup::of(child), Request::from_ptr(child), upstream)
    }
}

/// The next server is tried: what the last one did is forgotten.
unsafe extern "C" fn reinit_request(child: *mut ngx_http_request_t) -> ngx_int_t {
    guard::guard(ERROR, || {
        // SAFETY: nginx calls with the live subrequest of a lookup.
        unsafe { Lookup::of(child) }.result.set(None);
        OK
    })
}

/// More of the response has come.
unsafe extern "C" fn process_header(child: *mut ngx_http_request_t) -> ngx_int_t {
    guard::guard(ERROR, || {
        // SAFETY: nginx calls with the live subrequest of a lookup, and its upstream.
        let (lookup, _, upstream) = unsafe { callback(child) };
        match read(lookup, upstream, false) {
            Reading::More => AGAIN,
            Reading::UntilClose => until_close(lookup, upstream),
            Reading::Done(result, status) => done(lookup, upstream, result, status),
        }
    })
}

enum Reading {
    /// It is not complete.
    More,
    /// It is complete but for a body that ends with the connection.
    UntilClose,
    /// That is what it says, with that status (0 if it is not even HTTP).
    Done(LookupResult, u16),
}

/// Parses what is in the buffer of an upstream that reads.
fn read(lookup: &Lookup, upstream: &mut ngx_http_upstream_t, eof: bool) -> Reading {
    // SAFETY: nginx reads into the buffer from `start` on, up to `last`; we never move `pos`.
    let (bytes, (size, _)) = unsafe {
        let buffer = &upstream.buffer;
        (buffer::received(buffer), buffer::room(buffer))
    };
    match parse(bytes, size, eof) {
        Ok(Progress::Incomplete) if eof => Reading::Done(failed(FailureKind::Head), 0),
        Ok(Progress::Incomplete | Progress::UntilClose(_)) if bytes.len() == size => {
            Reading::Done(failed(FailureKind::TooLarge), 0)
        }
        Ok(Progress::Incomplete) => Reading::More,
        Ok(Progress::UntilClose(200 | 401)) => Reading::UntilClose,
        // Its body would say nothing; and now the next server can still be tried.
        Ok(Progress::UntilClose(status)) => Reading::Done(failed(FailureKind::Status), status),
        Ok(Progress::Complete(response)) => {
            let (keepalive, status) = (response.keepalive, response.status);
            let result = lookup.result_of(&response);
            upstream.set_keepalive(keepalive.into());
            Reading::Done(result, status)
        }
        Err(malformed) => Reading::Done(
            failed(match malformed {
                Malformed::Head => FailureKind::Head,
                Malformed::Body => FailureKind::Body,
                Malformed::TooLarge => FailureKind::TooLarge,
                Malformed::NoMemory => FailureKind::Local,
            }),
            0,
        ),
    }
}

/// The response has ended: with this server, or for good.
fn done(
    lookup: &Lookup,
    upstream: &ngx_http_upstream_t,
    result: LookupResult,
    status: u16,
) -> ngx_int_t {
    lookup.result.set(Some(result));
    let case = match result {
        Err(LookupError::Failed(FailureKind::Status)) => case_of(status),
        Err(LookupError::Failed(_)) => Some(NGX_HTTP_UPSTREAM_FT_INVALID_HEADER as ngx_uint_t),
        _ => None,
    };
    let retry_on = lookup.location.conf.retry_on;
    // As ngx_http_upstream_test_next: the server in use is still counted.
    if upstream.peer.tries > 1 && case.is_some_and(|case| retry_on & case != 0) {
        NEXT
    } else {
        ERROR
    }
}

/// A response that ends with the connection: nginx takes the end of one that is not complete for a failure
/// (ngx_http_upstream_process_header), so from here on we read it ourselves.
fn until_close(lookup: &Lookup, upstream: &mut ngx_http_upstream_t) -> ngx_int_t {
    let nginx_reads = upstream.read_event_handler.replace(read_until_close);
    lookup.nginx_reads.set(nginx_reads);
    let Some(connection) = ngx_upstream::connection(upstream) else {
        return ERROR;
    };
    match read_on(lookup, upstream, connection) {
        Some((result, status)) => done(lookup, upstream, result, status),
        None => {
            // nginx tries to read once more when this returns. If the end had come by then, it would be a failure.
            lookup.recv.set(connection.replace_recv(Some(nothing_yet)));
            AGAIN
        }
    }
}

/// Stands in for a connection's `recv` while nginx must not read.
unsafe extern "C" fn nothing_yet(_: *mut ngx_connection_t, _: *mut u8, _: usize) -> isize {
    AGAIN
}

/// Reads until the connection has no more for now, or the response has ended.
fn read_on(
    lookup: &Lookup,
    upstream: &mut ngx_http_upstream_t,
    connection: Connection,
) -> Option<(LookupResult, u16)> {
    loop {
        // SAFETY: nginx's buffer, which has been written up to `last`.
        let got = unsafe {
            let (_, free) = buffer::room(&upstream.buffer);
            if free == 0 {
                return Some((failed(FailureKind::TooLarge), 0));
            }
            connection.receive(&mut upstream.buffer)
        };
        if got == AGAIN {
            return None;
        }
        if got < 0 {
            return Some((failed(FailureKind::Head), 0));
        }
        match read(lookup, upstream, got == 0) {
            Reading::More | Reading::UntilClose if got > 0 => {}
            Reading::More | Reading::UntilClose => {
                return Some((failed(FailureKind::Head), 0));
            }
            Reading::Done(result, status) => return Some((result, status)),
        }
    }
}

/// The read event of a response that ends with the connection.
unsafe extern "C" fn read_until_close(
    child: *mut ngx_http_request_t,
    upstream: *mut ngx_http_upstream_t,
) {
    guard::guard((), || {
        // SAFETY: nginx calls with the live subrequest of a lookup, and its upstream.
        let (lookup, _, upstream_now) = unsafe { callback(child) };
        let Some(connection) = ngx_upstream::connection(upstream_now) else {
            return;
        };
        if let Some(recv) = lookup.recv.take() {
            connection.replace_recv(Some(recv));
        }
        if connection.read_timed_out() {
            // nginx's own handler knows what to do: the next server, or the end.
            if let Some(nginx_reads) = lookup.nginx_reads.get() {
                // SAFETY: nginx's own function, with nginx's arguments.
                unsafe { nginx_reads(child, upstream) };
            }
            return;
        }
        match read_on(lookup, upstream_now, connection) {
            Some((result, _)) => lookup.result.set(Some(result)),
            None if connection.watch() => return,
            None => {}
        }
        // SAFETY: this frees the subrequest and its upstream. The frames of nginx below look only at the lookup's connection after
        // that (ngx_http_upstream_handler).
        unsafe { lookup.end(FailureKind::Head) };
    });
}

/// nginx gives up on a server's connection; nothing of ours depends on it.
unsafe extern "C" fn abort_request(_child: *mut ngx_http_request_t) {}

/// The upstream has ended. If no response was judged, `code` and how far it came say why.
unsafe extern "C" fn finalize_request(child: *mut ngx_http_request_t, code: ngx_int_t) {
    guard::guard((), || {
        // SAFETY: nginx calls with the live subrequest of a lookup, and its upstream.
        let (lookup, _, upstream) = unsafe { callback(child) };
        let kind = match code {
            // nginx itself had no connection, descriptor or memory: it has not even tried the server
            // (ngx_http_upstream_connect, ngx_event_connect_peer).
            ERROR_STATUS => FailureKind::Local,
            GATEWAY_TIME_OUT => FailureKind::Timeout,
            // That the last server failed at once does not hide that another one hung.
            _ if lookup.has_hung.get() => FailureKind::Timeout,
            BAD_GATEWAY if upstream.request_sent() != 0 => FailureKind::Head,
            _ => FailureKind::Connect,
        };
        lookup.set_result_once(failed(kind));
    });
}
