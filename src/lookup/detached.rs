//! The connection and the request of a lookup: with no socket behind them, and of no client.
//!
//! Made as nginx makes those of an HTTP/2 stream (`ngx_http_v2_create_stream`, `ngx_http_v2_run_request`). What nginx, its log
//! lines and an operator's group may read of a request is copied from the client's, since that may end first.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_SUBREQUEST_IN_MEMORY, NGX_HTTP_SUBREQUEST_WAITED, NGX_LOG_CRIT,
    NGX_LOG_DEBUG_FIRST, ngx_connection_local_sockaddr, ngx_http_core_loc_conf_t,
    ngx_http_request_t, ngx_http_subrequest, ngx_pcalloc, ngx_pnalloc, ngx_str_t, sockaddr,
};
use ngx::core::Status;
use ngx::http::HttpModule;
use ngx::ngx_string;

use super::{Lookup, concluded, finalized};
use crate::Module;
use crate::ngx::request::Request;
use crate::zone::now;

impl Lookup {
    /// Makes the connection: as a stream's, with no descriptor, always ready to write, never to read.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`].
    pub(super) unsafe fn connect(lookup: *mut Self, client: Request) {
        // SAFETY: as `launch`; field by field, without a reference to the whole, because the parts point to each other.
        unsafe {
            let from = client.connection();
            let to = &raw mut (*lookup).connection;
            (*lookup).http.conf_ctx = (*(*client.as_ptr()).http_connection).conf_ctx;
            (*lookup).http.addr_conf = (*(*client.as_ptr()).http_connection).addr_conf;
            (*lookup).log_context.connection = to;
            (*lookup).log.data = (&raw mut (*lookup).log_context).cast();
            (*lookup).log.action = c"looking up a user".as_ptr().cast_mut();
            (*to).fd = -1;
            (*to).data = (&raw mut (*lookup).http).cast();
            (*to).log = &raw mut (*lookup).log;
            (*to).read = &raw mut (*lookup).read;
            (*to).write = &raw mut (*lookup).write;
            (*to).number = (*from).number;
            (*to).listening = (*from).listening;
            for event in [&raw mut (*lookup).read, &raw mut (*lookup).write] {
                (*event).data = to.cast();
                (*event).log = &raw mut (*lookup).log;
                (*event).handler = Some(nginx_sys::ngx_http_empty_handler);
            }
            // "Active" and "ready": ngx_http_upstream_init then adds no event for a descriptor that is none.
            (*lookup).write.set_active(1);
            (*lookup).write.set_ready(1);
            (*lookup).write.set_write(1);
        }
    }

    /// Gives the request what nginx and the operator's upstream group may read of one: a line for the error log, the
    /// client's address, the location's configuration.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`]; `parent` is its main request.
    pub(super) unsafe fn dress(
        lookup: *mut Self,
        parent: *mut ngx_http_request_t,
        client: Request,
    ) -> Option<()> {
        // SAFETY: as `launch`; addresses are copied into the request's pool, which lives as long as the connection is
        // used.
        unsafe {
            let from = client.connection();
            let to = &raw mut (*lookup).connection;
            (*to).pool = (*parent).pool;
            (*to).sockaddr = copy_address(parent, (*from).sockaddr, (*from).socklen)?;
            (*to).socklen = (*from).socklen;
            // A group may be hashed by $server_addr, which is asked of the socket where nginx listens on all addresses.
            if (*from).fd != -1 {
                ngx_connection_local_sockaddr(from, ptr::null_mut(), 0);
            }
            (*to).local_sockaddr =
                copy_address(parent, (*from).local_sockaddr, (*from).local_socklen)?;
            (*to).local_socklen = (*from).local_socklen;
            (*to).addr_text = copy_text(parent, &(*from).addr_text)?;

            (*parent).srv_conf = (*client.as_ptr()).srv_conf;
            (*parent).loc_conf = (*client.as_ptr()).loc_conf;
            (*parent).method = NGX_HTTP_GET as usize;
            (*parent).request_line = ngx_string!("matrix_user_hash lookup");
            (*parent).uri = ngx_string!("/matrix_user_hash");
            (*parent).unparsed_uri = (*parent).uri;
            (*parent).write_event_handler = Some(concluded);
            *(*parent).ctx.add(Module::module().ctx_index) = ptr::null_mut();
            Self::hush(lookup);
            Some(())
        }
    }

    /// nginx's own error lines about an upstream come once for each failure. While we have said lately that lookups
    /// fail, they are left out of each log, unless somebody debugs with it.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`].
    unsafe fn hush(lookup: *mut Self) {
        // SAFETY: as `launch`.
        unsafe {
            let Some(order) = &(*lookup).order else {
                return;
            };
            let quiet = order
                .site
                .zone
                .with_local(|local| local.engine.is_failing(now()))
                .unwrap_or(false);
            if quiet {
                Self::lower(lookup);
            }
        }
    }

    /// Lowers the level of each log of the location, but of those that somebody debugs with. The first is a copy already; the
    /// others belong to the configuration, so they are copied as well.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`].
    unsafe fn lower(lookup: *mut Self) {
        // SAFETY: as `launch`; the logs of a location live as long as the cycle. The vector does not grow, so that its
        // members stay where they are.
        unsafe {
            let mut further = (*lookup).log.next;
            while let Some(log) = further.as_ref() {
                if (*lookup).logs.try_reserve(1).is_err() {
                    (*lookup).logs.clear();
                    return;
                }
                (*lookup).logs.push(*log);
                further = log.next;
            }
            let mut last = &raw mut (*lookup).log;
            for copy in &mut (*lookup).logs {
                (*last).next = copy;
                last = copy;
            }
            let mut log = &raw mut (*lookup).log;
            while let Some(each) = log.as_mut() {
                if each.log_level < NGX_LOG_DEBUG_FIRST as usize {
                    each.log_level = each.log_level.min(NGX_LOG_CRIT as usize);
                }
                log = each.next;
            }
        }
    }

    /// Makes the subrequest that carries the upstream.
    ///
    /// # Safety
    ///
    /// As [`Self::dress`].
    pub(super) unsafe fn subrequest(
        lookup: *mut Self,
        parent: *mut ngx_http_request_t,
    ) -> Option<*mut ngx_http_request_t> {
        // SAFETY: as `dress`; `done` lives in the lookup.
        unsafe {
            (*lookup).done.handler = Some(finalized);
            (*lookup).done.data = lookup.cast();
            let mut child: *mut ngx_http_request_t = ptr::null_mut();
            let flags = (NGX_HTTP_SUBREQUEST_IN_MEMORY | NGX_HTTP_SUBREQUEST_WAITED) as usize;
            let made = ngx_http_subrequest(
                parent,
                &raw mut (*parent).uri,
                ptr::null_mut(),
                &raw mut child,
                &raw mut (*lookup).done,
                flags,
            );
            if made != Status::NGX_OK.0 {
                return None;
            }
            *(*child).ctx.add(Module::module().ctx_index) = lookup.cast();
            Some(child)
        }
    }
}

/// A location's configuration, in which subrequests are not logged: with `log_subrequest on`, each lookup would be a line in
/// the access log. nginx allows no other way of leaving one subrequest out (ngx_http_finalize_request).
///
/// # Safety
///
/// `location` is the configuration of a location.
pub(super) unsafe fn unlogged(
    r: *mut ngx_http_request_t,
    location: *mut *mut c_void,
) -> Option<*mut *mut c_void> {
    // SAFETY: the caller's; a location's configuration has a place for each module of the http type, and the core module's
    // is an `ngx_http_core_loc_conf_t`. The copies live as long as the subrequest, and are only read.
    unsafe {
        let core = (*ptr::addr_of!(nginx_sys::ngx_http_core_module)).ctx_index;
        let logged = (*location.add(core)).cast::<ngx_http_core_loc_conf_t>();
        if (*logged).log_subrequest == 0 {
            return Some(location);
        }
        let modules = nginx_sys::ngx_http_max_module;
        let places = room_for::<*mut c_void>(r, modules)?;
        ptr::copy_nonoverlapping(location, places, modules);
        let unlogged = room_for::<ngx_http_core_loc_conf_t>(r, 1)?;
        ptr::copy_nonoverlapping(logged, unlogged, 1);
        (*unlogged).log_subrequest = 0;
        *places.add(core) = unlogged.cast();
        Some(places)
    }
}

/// Room for values in a request's pool, not yet written.
///
/// # Safety
///
/// `r` is live.
unsafe fn room_for<T>(r: *mut ngx_http_request_t, count: usize) -> Option<*mut T> {
    // SAFETY: the pool gives as much as is asked for, aligned (`ngx_palloc`), or NULL.
    let room = unsafe { nginx_sys::ngx_palloc((*r).pool, count * size_of::<T>()) };
    NonNull::new(room.cast()).map(NonNull::as_ptr)
}

/// Copies an address into a request's pool; a missing one becomes an address of no family.
///
/// # Safety
///
/// `address` is NULL or has `len` bytes.
unsafe fn copy_address(
    r: *mut ngx_http_request_t,
    address: *mut sockaddr,
    len: u32,
) -> Option<*mut sockaddr> {
    let room = (len as usize).max(size_of::<libc::sockaddr_storage>());
    // SAFETY: the pool gives as much as is asked for, or NULL.
    unsafe {
        let copy = NonNull::new(ngx_pcalloc((*r).pool, room).cast::<u8>())?;
        if !address.is_null() {
            ptr::copy_nonoverlapping(address.cast::<u8>(), copy.as_ptr(), len as usize);
        }
        Some(copy.as_ptr().cast())
    }
}

/// Copies a text into a request's pool.
///
/// # Safety
///
/// `text` is a valid string of nginx's.
unsafe fn copy_text(r: *mut ngx_http_request_t, text: &ngx_str_t) -> Option<ngx_str_t> {
    // SAFETY: the pool gives as much as is asked for, or NULL.
    unsafe {
        let copy = NonNull::new(ngx_pnalloc((*r).pool, text.len).cast::<u8>())?;
        if text.len > 0 {
            ptr::copy_nonoverlapping(text.data, copy.as_ptr(), text.len);
        }
        Some(ngx_str_t {
            len: text.len,
            data: copy.as_ptr(),
        })
    }
}
