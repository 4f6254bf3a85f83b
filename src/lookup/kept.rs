//! Connections that lookups leave open for the next lookup: theirs alone.
//!
//! A group with `keepalive` keeps the connections of all who use it in one list, found by the server's address. Those of
//! `proxy_pass https://…` are not verified unless the operator says so, those of `grpc_pass` and of `proxy_http_version 2`
//! speak HTTP/2, and ours speak HTTP/1.1. So lookups take none out of that list and put none into it. They have a list of
//! their own in each worker for each set of directives, as long as the group's, and with the group's `keepalive_requests`,
//! `keepalive_time` and `keepalive_timeout`. What it does with a connection is what `ngx_http_upstream_keepalive_module`
//! does.

use core::cell::RefCell;
use core::ffi::CStr;
use core::ptr::{self, NonNull};

use nginx_sys::{
    ngx_add_timer, ngx_close_connection, ngx_conf_t, ngx_connection_t, ngx_del_timer,
    ngx_destroy_pool, ngx_event_t, ngx_handle_read_event, ngx_http_upstream_srv_conf_t,
    ngx_http_upstream_t, ngx_log_t, ngx_msec_t, ngx_peer_connection_t, ngx_queue_t, ngx_uint_t,
};
use ngx::core::Status;

use super::peer::Address;
use crate::ngx::guard;
use crate::ngx::log;
use crate::zone::now;

/// The most connections that one list has, whatever `keepalive` says.
const LONGEST: usize = 1024;

/// How `ngx_http_upstream_keepalive_srv_conf_t` begins, in every nginx that we build for.
#[repr(C)]
struct GroupKept {
    max_cached: ngx_uint_t,
    requests: ngx_uint_t,
    time: ngx_msec_t,
    timeout: ngx_msec_t,
    cache: ngx_queue_t,
}

/// The list.
pub(super) struct Kept {
    /// The group's own list, and its limits.
    group: Option<NonNull<GroupKept>>,
    /// How many connections may be in ours.
    limit: usize,
    /// Ours, the longest unused first.
    idle: RefCell<Vec<(Address, *mut ngx_connection_t)>>,
}

impl Kept {
    /// An empty list beside that of `group`; one that stays empty if the group has none, or if `keeps` is false.
    pub(super) fn beside(
        cf: &ngx_conf_t,
        group: *const ngx_http_upstream_srv_conf_t,
        keeps: bool,
    ) -> Self {
        let found = group_kept(cf, group);
        // SAFETY: the configuration of the keepalive module lives as long as ours.
        let max = found.map_or(0, |found| unsafe { found.as_ref() }.max_cached);
        Self {
            group: found,
            limit: if keeps { max.min(LONGEST) } else { 0 },
            idle: RefCell::default(),
        }
    }

    /// Calls the group's balancer, which sees an empty list meanwhile.
    pub(super) fn hidden<T>(&self, body: impl FnOnce() -> T) -> T {
        let Some(group) = self.group else {
            return body();
        };
        // SAFETY: the head of the module's list; the body only looks for a connection in it, in this one thread. The links
        // of the list's members are not touched, so the head put back makes the list what it was.
        unsafe {
            let head = &raw mut (*group.as_ptr()).cache;
            let (prev, next) = ((*head).prev, (*head).next);
            (*head).prev = head;
            (*head).next = head;
            let result = body();
            (*head).prev = prev;
            (*head).next = next;
            result
        }
    }

    /// Gives `peer` a connection to `server` that a lookup left open; false if there is none.
    ///
    /// # Safety
    ///
    /// The peer is that of a live lookup's upstream, and has no connection.
    pub(super) unsafe fn take(&self, peer: &mut ngx_peer_connection_t, server: &Address) -> bool {
        let connection = loop {
            let connection = {
                let mut idle = self.idle.borrow_mut();
                let Some(at) = idle.iter().rposition(|(address, _)| address == server) else {
                    return false;
                };
                idle.remove(at).1
            };
            // What has come, and nginx has not told us yet, would be read as the answer to the next question.
            // SAFETY: a connection in the list is open; once out of it, nothing refers to it.
            unsafe {
                if is_silent(connection) {
                    break connection;
                }
                close(connection);
            }
        };
        // SAFETY: a connection in the list is open, and nothing else uses it; the log is the lookup's.
        unsafe {
            (*connection).set_idle(0);
            (*connection).sent = 0;
            (*connection).data = ptr::null_mut();
            set_log(connection, peer.log);
            if (*(*connection).read).timer_set() != 0 {
                ngx_del_timer((*connection).read);
            }
        }
        peer.connection = connection;
        peer.set_cached(1);
        true
    }

    /// Keeps the connection of a lookup that has ended, if it can be used again.
    ///
    /// # Safety
    ///
    /// The upstream is that of a live lookup, and `self` lives as long as the worker's configuration.
    pub(super) unsafe fn keep(&self, upstream: &mut ngx_http_upstream_t, server: Address) {
        let connection = upstream.peer.connection;
        // SAFETY: the caller's; the connection is live, with both events.
        unsafe {
            if !self.is_usable(upstream)
                || self.idle.borrow_mut().try_reserve(1).is_err()
                || ngx_handle_read_event((*connection).read, 0) != Status::NGX_OK.0
            {
                return;
            }
            upstream.peer.connection = ptr::null_mut();
            self.park(connection);
        }
        let oldest = {
            let mut idle = self.idle.borrow_mut();
            let oldest = (idle.len() >= self.limit).then(|| idle.remove(0).1);
            idle.push((server, connection));
            oldest
        };
        // SAFETY: what is not in the list any more is used by nobody. What has come already may be its end.
        unsafe {
            if let Some(oldest) = oldest {
                close(oldest);
            }
            if (*(*connection).read).ready() != 0 {
                woken((*connection).read);
            }
        }
    }

    /// Whether the connection of an upstream may be used once more (`ngx_http_upstream_free_keepalive_peer`).
    ///
    /// # Safety
    ///
    /// The upstream is live.
    unsafe fn is_usable(&self, upstream: &ngx_http_upstream_t) -> bool {
        // SAFETY: the caller's; a connection has both events; nginx sets the flags in this thread.
        unsafe {
            let (Some(group), Some(connection)) = (self.group, upstream.peer.connection.as_ref())
            else {
                return false;
            };
            let (group, read, write) = (group.as_ref(), &*connection.read, &*connection.write);
            let age = now().get().wrapping_sub(connection.start_time as u64);
            let broken =
                read.eof() | read.error() | read.timedout() | write.error() | write.timedout();
            self.limit > 0
                && broken == 0
                && upstream.keepalive() != 0
                && upstream.request_body_sent() != 0
                && connection.requests < group.requests
                && age <= group.time as u64
                && nginx_sys::ngx_terminate == 0
                && nginx_sys::ngx_exiting == 0
        }
    }

    /// Has a connection wait, until it is used again, is closed by the server, or is too old.
    ///
    /// # Safety
    ///
    /// The connection is live and used by nobody; the group keeps connections; `self` lives as long as it waits.
    unsafe fn park(&self, connection: *mut ngx_connection_t) {
        // SAFETY: the caller's.
        unsafe {
            let (read, write) = ((*connection).read, (*connection).write);
            let timeout = self.group.map_or(0, |group| group.as_ref().timeout);
            (*read).set_delayed(0);
            ngx_add_timer(read, timeout);
            if (*write).timer_set() != 0 {
                ngx_del_timer(write);
            }
            (*write).handler = Some(nginx_sys::ngx_http_empty_handler);
            (*read).handler = Some(woken);
            (*connection).data = ptr::from_ref(self).cast_mut().cast();
            (*connection).set_idle(1);
            set_log(connection, log::cycle_log());
        }
    }
}

/// Where the keepalive module keeps the connections of a group; `None` if it keeps none.
fn group_kept(
    cf: &ngx_conf_t,
    group: *const ngx_http_upstream_srv_conf_t,
) -> Option<NonNull<GroupKept>> {
    // SAFETY: the group is live, and has a place for each module of the http type, or none at all. The module's structure
    // is no smaller than what we read of it, and nothing else has a reference to it.
    unsafe {
        let places = NonNull::new((*group).srv_conf)?;
        let mut modules = (*cf.cycle).modules;
        while let Some(module) = (*modules).as_ref() {
            if !module.name.is_null()
                && CStr::from_ptr(module.name) == c"ngx_http_upstream_keepalive_module"
            {
                let kept =
                    NonNull::new((*places.as_ptr().add(module.ctx_index)).cast::<GroupKept>())?;
                // A list that is empty, as it must be now, refers to itself. That proves that it is where we look.
                let head = &raw mut (*kept.as_ptr()).cache;
                let is_list = ptr::eq((*head).prev, head) && ptr::eq((*head).next, head);
                return is_list.then_some(kept);
            }
            modules = modules.add(1);
        }
        None
    }
}

/// Has the lines about a connection go to `log`.
///
/// # Safety
///
/// The connection is live, and the log lives until another one is set.
unsafe fn set_log(connection: *mut ngx_connection_t, log: *mut ngx_log_t) {
    // SAFETY: the caller's; an upstream's connection has both events and a pool (ngx_http_upstream_connect).
    unsafe {
        (*connection).log = log;
        (*(*connection).read).log = log;
        (*(*connection).write).log = log;
        (*(*connection).pool).log = log;
    }
}

/// Closes a kept connection that the balancer gave all the same; the peer connects anew.
///
/// # Safety
///
/// The peer has a connection, which nothing else uses.
pub(super) unsafe fn refuse(peer: &mut ngx_peer_connection_t) {
    let connection = core::mem::replace(&mut peer.connection, ptr::null_mut());
    peer.set_cached(0);
    // SAFETY: the caller's.
    unsafe { close(connection) }
}

/// The event of a connection that waits: its time is up, the server has closed it, or the worker ends.
unsafe extern "C" fn woken(event: *mut ngx_event_t) {
    guard::guard((), || {
        // SAFETY: nginx calls for a connection that `park` prepared, whose list lives as long as it waits.
        unsafe {
            let connection = (*event).data.cast::<ngx_connection_t>();
            if (*connection).close() == 0 && (*event).timedout() == 0 && is_silent(connection) {
                (*event).set_ready(0);
                if ngx_handle_read_event(event, 0) == Status::NGX_OK.0 {
                    return;
                }
            }
            let kept = &*(*connection).data.cast_const().cast::<Kept>();
            let mut idle = kept.idle.borrow_mut();
            idle.retain(|(_, other)| !ptr::eq(*other, connection));
            drop(idle);
            close(connection);
        }
    });
}

/// Whether nothing has come on a connection, not even its end.
///
/// # Safety
///
/// The connection is open.
unsafe fn is_silent(connection: *mut ngx_connection_t) -> bool {
    let mut byte = [0u8; 1];
    // SAFETY: the buffer has the length that is said; the byte stays where it is.
    let got = unsafe {
        #[cfg(ngx_feature = "http_ssl")]
        if has_pending(connection) {
            return false;
        }
        libc::recv(
            (*connection).fd,
            byte.as_mut_ptr().cast(),
            1,
            libc::MSG_PEEK,
        )
    };
    got == -1 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock
}

/// Whether the TLS of a connection, if it has any, has taken more from the socket than was read: an answer that fills the
/// buffer leaves there what came behind it.
///
/// # Safety
///
/// The connection is open.
#[cfg(ngx_feature = "http_ssl")]
unsafe fn has_pending(connection: *mut ngx_connection_t) -> bool {
    // SAFETY: the caller's; the TLS of an open connection has OpenSSL's structure.
    unsafe {
        let tls = (*connection).ssl.as_ref();
        tls.is_some_and(|tls| nginx_sys::SSL_has_pending(tls.connection) != 0)
    }
}

/// Closes a connection that nobody uses (`ngx_http_upstream_keepalive_close`).
unsafe extern "C" fn close(connection: *mut ngx_connection_t) {
    // SAFETY: the caller vouches that it is open, and that nothing refers to it.
    unsafe {
        #[cfg(ngx_feature = "http_ssl")]
        if let Some(ssl) = (*connection).ssl.as_mut() {
            ssl.set_no_wait_shutdown(1);
            ssl.set_no_send_shutdown(1);
            if nginx_sys::ngx_ssl_shutdown(connection) == Status::NGX_AGAIN.0 {
                if let Some(ssl) = (*connection).ssl.as_mut() {
                    ssl.handler = Some(close);
                }
                return;
            }
        }
        ngx_destroy_pool((*connection).pool);
        ngx_close_connection(connection);
    }
}
