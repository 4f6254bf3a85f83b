//! The callbacks that nginx's upstream machinery makes for a lookup.
//!
//! The response is parsed whole, head and body, from the upstream's buffer each time more of it has come. When it is
//! complete, `process_header` returns NGX_ERROR: that ends the upstream at once, with the connection kept alive if the
//! response allows it, and without the header and body filters that would otherwise see a response of ours
//! (`ngx_http_upstream_process_header`, `ngx_http_upstream_finalize_request`). Where the next server is to be tried, it
//! returns NGX_HTTP_UPSTREAM_INVALID_HEADER, which does that.

use core::mem::take;
use core::{ptr, slice};

use matrix_user_hash_core::whoami::{
    FailureKind, LookupError, LookupResult, Malformed, Progress, parse,
};
use nginx_sys::{
    NGX_HTTP_BAD_GATEWAY, NGX_HTTP_GATEWAY_TIME_OUT, NGX_HTTP_INTERNAL_SERVER_ERROR,
    NGX_HTTP_UPSTREAM_FT_INVALID_HEADER, NGX_HTTP_UPSTREAM_INVALID_HEADER, ngx_alloc_chain_link,
    ngx_connection_t, ngx_create_temp_buf, ngx_http_finalize_request, ngx_http_request_t,
    ngx_http_upstream_create, ngx_http_upstream_init, ngx_http_upstream_t, ngx_int_t, ngx_uint_t,
};
use ngx::core::Status;
use ngx::ngx_string;

use super::{Lookup, failed};
use crate::conf::Pass;
use crate::conf::upstream::case_of;
use crate::ngx::guard;

const OK: ngx_int_t = Status::NGX_OK.0;
const ERROR: ngx_int_t = Status::NGX_ERROR.0;
const AGAIN: ngx_int_t = Status::NGX_AGAIN.0;
const NEXT: ngx_int_t = NGX_HTTP_UPSTREAM_INVALID_HEADER as ngx_int_t;
const BAD_GATEWAY: ngx_int_t = NGX_HTTP_BAD_GATEWAY as ngx_int_t;
const GATEWAY_TIME_OUT: ngx_int_t = NGX_HTTP_GATEWAY_TIME_OUT as ngx_int_t;

/// Starts the upstream of a lookup's subrequest: its first and only write event.
pub(super) unsafe extern "C" fn run(child: *mut ngx_http_request_t) {
    guard::guard((), || {
        // SAFETY: nginx calls with the live subrequest that `Lookup::subrequest` made.
        unsafe {
            (*child).write_event_handler = Some(nginx_sys::ngx_http_request_empty_handler);
            let lookup = Lookup::of(child);
            if !prepare(child, lookup) {
                ngx_http_finalize_request(child, ERROR_STATUS);
                return;
            }
            ngx_http_upstream_init(child);
        }
    });
}

const ERROR_STATUS: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// Sets the upstream up; false without memory.
///
/// # Safety
///
/// `child` is the live subrequest of `lookup`.
unsafe fn prepare(child: *mut ngx_http_request_t, lookup: *mut Lookup) -> bool {
    // SAFETY: the caller's; the configuration lives as long as the cycle.
    unsafe {
        let Some(order) = &(*lookup).order else {
            return false;
        };
        let Pass::On(target) = order.site.conf.pass else {
            return false;
        };
        if ngx_http_upstream_create(child) != OK {
            return false;
        }
        let upstream = &mut *(*child).upstream;
        upstream.schema = if target.secure {
            ngx_string!("https://")
        } else {
            ngx_string!("http://")
        };
        upstream.output.tag = (&raw mut crate::ngx_http_matrix_user_hash_module).cast();
        upstream.conf = order.site.conf.upstream;
        upstream.set_ssl(target.secure.into());
        upstream.create_request = Some(create_request);
        upstream.reinit_request = Some(reinit_request);
        upstream.process_header = Some(process_header);
        upstream.abort_request = Some(abort_request);
        upstream.finalize_request = Some(finalize_request);
        // No input filter: `process_header` never returns NGX_OK, so nothing is left to be filtered. Its context is where
        // `peer::free` finds the lookup.
        upstream.input_filter_ctx = lookup.cast();
        true
    }
}

/// Hands the request's bytes to the upstream.
unsafe extern "C" fn create_request(child: *mut ngx_http_request_t) -> ngx_int_t {
    guard::guard(ERROR, || {
        // SAFETY: nginx calls with the live subrequest of a lookup; the buffer is as long as what is copied.
        unsafe {
            let lookup = Lookup::of(child);
            let bytes = take(&mut (*lookup).bytes);
            let buffer = ngx_create_temp_buf((*child).pool, bytes.len());
            let link = ngx_alloc_chain_link((*child).pool);
            if buffer.is_null() || link.is_null() {
                return ERROR;
            }
            ptr::copy_nonoverlapping(bytes.as_ptr(), (*buffer).last, bytes.len());
            (*buffer).last = (*buffer).last.add(bytes.len());
            (*lookup).sent = buffer;
            // Else TLS keeps it back for more to come, and on a connection that was kept alive nothing else writes
            // (ngx_ssl_send_chain; ngx_http_proxy_create_request does the same).
            (*buffer).set_flush(1);
            (*link).buf = buffer;
            (*link).next = ptr::null_mut();
            (*(*child).upstream).request_bufs = link;
            OK
        }
    })
}

/// The next server is tried: what the last one did is forgotten.
unsafe extern "C" fn reinit_request(child: *mut ngx_http_request_t) -> ngx_int_t {
    guard::guard(ERROR, || {
        // SAFETY: nginx calls with the live subrequest of a lookup.
        unsafe { (*Lookup::of(child)).report = None };
        OK
    })
}

/// More of the response has come.
unsafe extern "C" fn process_header(child: *mut ngx_http_request_t) -> ngx_int_t {
    guard::guard(ERROR, || {
        // SAFETY: nginx calls with the live subrequest of a lookup.
        unsafe {
            let (lookup, upstream) = (&mut *Lookup::of(child), &mut *(*child).upstream);
            match read(lookup, upstream, false) {
                Reading::More => AGAIN,
                Reading::UntilClose => until_close(lookup, upstream),
                Reading::Done(report, status) => done(lookup, upstream, report, status),
            }
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

/// Parses what is in the upstream's buffer.
///
/// # Safety
///
/// The upstream has a buffer.
unsafe fn read(lookup: &mut Lookup, upstream: &mut ngx_http_upstream_t, eof: bool) -> Reading {
    let buffer = &upstream.buffer;
    // SAFETY: nginx reads into the buffer from `start` on, up to `last`; we never move `pos`.
    let (bytes, size) = unsafe {
        let filled = buffer.last.offset_from(buffer.start);
        let size = buffer.end.offset_from(buffer.start);
        (
            slice::from_raw_parts(buffer.start, filled.unsigned_abs()),
            size.unsigned_abs(),
        )
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
            let report = lookup.judge(&response);
            upstream.set_keepalive(keepalive.into());
            Reading::Done(report, status)
        }
        Err(malformed) => Reading::Done(
            failed(match malformed {
                Malformed::Head => FailureKind::Head,
                Malformed::Body => FailureKind::Body,
                Malformed::TooLarge => FailureKind::TooLarge,
            }),
            0,
        ),
    }
}

/// The response has ended: with this server, or for good.
fn done(
    lookup: &mut Lookup,
    upstream: &ngx_http_upstream_t,
    report: LookupResult,
    status: u16,
) -> ngx_int_t {
    lookup.report = Some(report);
    let case = match report {
        Err(LookupError::Failed(FailureKind::Status)) => case_of(status),
        Err(LookupError::Failed(_)) => Some(NGX_HTTP_UPSTREAM_FT_INVALID_HEADER as ngx_uint_t),
        _ => None,
    };
    let wanted = lookup
        .order
        .as_ref()
        .map_or(0, |order| order.site.conf.retry_on);
    // As ngx_http_upstream_test_next: the server in use is still counted.
    if upstream.peer.tries > 1 && case.is_some_and(|case| wanted & case != 0) {
        NEXT
    } else {
        ERROR
    }
}

/// A response that ends with the connection: nginx takes the end of one that is not complete for a failure
/// (ngx_http_upstream_process_header), so from here on we read it ourselves.
///
/// # Safety
///
/// `upstream` is the upstream of `lookup`, and reads.
unsafe fn until_close(lookup: &mut Lookup, upstream: &mut ngx_http_upstream_t) -> ngx_int_t {
    lookup.nginx_reads = upstream.read_event_handler.replace(read_until_close);
    // SAFETY: the caller's; an upstream that reads has a connection.
    unsafe {
        match read_on(lookup, upstream) {
            Some((report, status)) => done(lookup, upstream, report, status),
            None => {
                // nginx tries to read once more when this returns. If the end had come by then, it would be a failure.
                lookup.recv = (*upstream.peer.connection).recv.replace(nothing_yet);
                AGAIN
            }
        }
    }
}

/// Stands in for a connection's `recv` while nginx must not read.
unsafe extern "C" fn nothing_yet(_: *mut ngx_connection_t, _: *mut u8, _: usize) -> isize {
    AGAIN
}

/// Reads until the connection has no more for now, or the response has ended.
///
/// # Safety
///
/// As [`until_close`].
unsafe fn read_on(
    lookup: &mut Lookup,
    upstream: &mut ngx_http_upstream_t,
) -> Option<(LookupResult, u16)> {
    loop {
        // SAFETY: an upstream that reads has a connection with its functions set; the buffer has `end - last` bytes left.
        let got = unsafe {
            let connection = upstream.peer.connection;
            let room = upstream
                .buffer
                .end
                .offset_from(upstream.buffer.last)
                .unsigned_abs();
            if room == 0 {
                return Some((failed(FailureKind::TooLarge), 0));
            }
            let recv = (*connection).recv?;
            recv(connection, upstream.buffer.last, room)
        };
        if got == Status::NGX_AGAIN.0 {
            return None;
        }
        if got < 0 {
            return Some((failed(FailureKind::Head), 0));
        }
        // SAFETY: `got` bytes were written there; the buffer is the upstream's.
        let reading = unsafe {
            upstream.buffer.last = upstream.buffer.last.offset(got);
            read(lookup, upstream, got == 0)
        };
        match reading {
            Reading::More | Reading::UntilClose if got > 0 => {}
            Reading::More | Reading::UntilClose => {
                return Some((failed(FailureKind::Head), 0));
            }
            Reading::Done(report, status) => return Some((report, status)),
        }
    }
}

/// The read event of a response that ends with the connection.
unsafe extern "C" fn read_until_close(
    child: *mut ngx_http_request_t,
    upstream: *mut ngx_http_upstream_t,
) {
    guard::guard((), || {
        // SAFETY: nginx calls with the live subrequest of a lookup and its upstream. `conclude` frees both; the frames
        // of nginx below look only at the lookup's connection after that (ngx_http_upstream_handler).
        unsafe {
            let lookup = Lookup::of(child);
            let connection = (*upstream).peer.connection;
            if let Some(recv) = (*lookup).recv.take() {
                (*connection).recv = Some(recv);
            }
            if (*(*connection).read).timedout() != 0 {
                // nginx's own handler knows what to do: the next server, or the end.
                if let Some(nginx_reads) = (*lookup).nginx_reads {
                    nginx_reads(child, upstream);
                }
                return;
            }
            match read_on(&mut *lookup, &mut *upstream) {
                Some((report, _)) => {
                    (*lookup).report = Some(report);
                    Lookup::conclude(lookup, FailureKind::Head);
                }
                None => {
                    if nginx_sys::ngx_handle_read_event((*connection).read, 0) != OK {
                        Lookup::conclude(lookup, FailureKind::Head);
                    }
                }
            }
        }
    });
}

/// nginx gives up on a server's connection; nothing of ours depends on it.
unsafe extern "C" fn abort_request(_child: *mut ngx_http_request_t) {}

/// The upstream has ended. If no response was judged, `rc` and how far it came say why.
unsafe extern "C" fn finalize_request(child: *mut ngx_http_request_t, rc: ngx_int_t) {
    guard::guard((), || {
        // SAFETY: nginx calls with the live subrequest of a lookup.
        unsafe {
            let (lookup, upstream) = (Lookup::of(child), &*(*child).upstream);
            let kind = match rc {
                // nginx itself had no connection, descriptor or memory: it has not even tried the server
                // (ngx_http_upstream_connect, ngx_event_connect_peer).
                ERROR_STATUS => FailureKind::Local,
                GATEWAY_TIME_OUT => FailureKind::Timeout,
                // That the last server failed at once does not hide that another one hung.
                _ if (*lookup).hung => FailureKind::Timeout,
                BAD_GATEWAY if upstream.request_sent() != 0 => FailureKind::Head,
                _ => FailureKind::Connect,
            };
            (*lookup).report.get_or_insert(failed(kind));
        }
    });
}
