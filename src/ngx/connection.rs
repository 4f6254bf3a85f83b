//! A connection to a server, as nginx's upstream machinery opens it.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use nginx_sys::{
    ngx_add_timer, ngx_buf_t, ngx_close_connection, ngx_connection_t, ngx_del_timer,
    ngx_destroy_pool, ngx_event_handler_pt, ngx_event_t, ngx_handle_read_event, ngx_log_t,
    ngx_msec_t, ngx_recv_pt,
};
use ngx::core::Status;

use super::buffer;

/// An open connection of an upstream: it has both events, a log and a pool (`ngx_http_upstream_connect`). Copies are cheap and
/// dangle once it is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection(NonNull<ngx_connection_t>);

impl Connection {
    /// `None` if `connection` is NULL.
    ///
    /// # Safety
    ///
    /// Else it is an open connection of an upstream, and the result is not used once it is closed.
    pub(crate) unsafe fn from_ptr(connection: *mut ngx_connection_t) -> Option<Self> {
        NonNull::new(connection).map(Self)
    }

    /// For calls into nginx.
    pub(crate) fn as_ptr(self) -> *mut ngx_connection_t {
        self.0.as_ptr()
    }

    fn events<'c>(self) -> (&'c mut ngx_event_t, &'c mut ngx_event_t) {
        // SAFETY: open by construction; each event is one of nginx's array, and nothing else refers to it while we do.
        unsafe { (&mut *(*self.as_ptr()).read, &mut *(*self.as_ptr()).write) }
    }

    /// Whether nginx has marked it to be closed, as it does when a worker process ends.
    pub(crate) fn is_to_be_closed(self) -> bool {
        // SAFETY: open by construction.
        unsafe { (*self.as_ptr()).close() != 0 }
    }

    /// Whether a timer of it has expired while it was read.
    pub(crate) fn read_timed_out(self) -> bool {
        self.events().0.timedout() != 0
    }

    /// Whether a timer of it has expired.
    pub(crate) fn timed_out(self) -> bool {
        let (read, write) = self.events();
        read.timedout() != 0 || write.timedout() != 0
    }

    /// Whether it cannot be used any more: it ended, failed or timed out.
    pub(crate) fn is_broken(self) -> bool {
        let (read, write) = self.events();
        read.eof() != 0 || read.error() != 0 || write.error() != 0 || self.timed_out()
    }

    /// How many requests it has had, and when it was opened, in milliseconds of nginx's clock.
    pub(crate) fn uses(self) -> (usize, ngx_msec_t) {
        // SAFETY: open by construction.
        unsafe { ((*self.as_ptr()).requests, (*self.as_ptr()).start_time) }
    }

    /// Whether something may have come on it.
    pub(crate) fn is_ready(self) -> bool {
        self.events().0.ready() != 0
    }

    /// Has nginx call its read handler when something comes. False if it cannot.
    pub(crate) fn watch(self) -> bool {
        // SAFETY: open by construction.
        unsafe { ngx_handle_read_event(self.events().0, 0) == Status::NGX_OK.0 }
    }

    /// Puts another function in the place of the one that it receives with, and gives that.
    pub(crate) fn replace_recv(self, recv: ngx_recv_pt) -> ngx_recv_pt {
        // SAFETY: open by construction.
        unsafe { core::mem::replace(&mut (*self.as_ptr()).recv, recv) }
    }

    /// Receives into what is free of a buffer: how many bytes, or what nginx's functions say instead.
    ///
    /// # Safety
    ///
    /// As [`buffer::received`], and the rest up to `end` may be written to.
    pub(crate) unsafe fn receive(self, into: &mut ngx_buf_t) -> isize {
        // SAFETY: open by construction, and the caller's; no more is written than what is free.
        unsafe {
            let (_, free) = buffer::room(into);
            let got = match (*self.as_ptr()).recv {
                Some(recv) => recv(self.as_ptr(), into.last, free),
                None => Status::NGX_ERROR.0,
            };
            into.last = into.last.offset(got.max(0));
            got
        }
    }

    /// Has the lines about it go to `log`, which lives until another one is set.
    pub(crate) fn log_to(self, log: *mut ngx_log_t) {
        let (read, write) = self.events();
        (read.log, write.log) = (log, log);
        // SAFETY: open by construction; an upstream's connection has a pool.
        unsafe {
            (*self.as_ptr()).log = log;
            (*(*self.as_ptr()).pool).log = log;
        }
    }

    /// Makes it wait until it is used again: `handler` is called for what comes, or in `timeout` milliseconds, and finds `owner`
    /// with [`Self::owner`]. As `ngx_http_upstream_free_keepalive_peer` does.
    pub(crate) fn make_idle(
        self,
        timeout: ngx_msec_t,
        handler: ngx_event_handler_pt,
        owner: *mut c_void,
    ) {
        let (read, write) = self.events();
        read.set_delayed(0);
        read.handler = handler;
        write.handler = Some(nginx_sys::ngx_http_empty_handler);
        remove_timer(write);
        // SAFETY: open by construction; nginx's timers are of this one thread.
        unsafe {
            ngx_add_timer(read, timeout);
            (*self.as_ptr()).data = owner;
            (*self.as_ptr()).set_idle(1);
        }
    }

    /// Ends [`Self::make_idle`]. As `ngx_http_upstream_get_keepalive_peer` does.
    pub(crate) fn make_used(self) {
        remove_timer(self.events().0);
        // SAFETY: open by construction.
        unsafe {
            (*self.as_ptr()).set_idle(0);
            (*self.as_ptr()).sent = 0;
            (*self.as_ptr()).data = ptr::null_mut();
        }
    }

    /// What was given to [`Self::make_idle`].
    pub(crate) fn owner(self) -> *mut c_void {
        // SAFETY: open by construction.
        unsafe { (*self.as_ptr()).data }
    }

    /// Whether nothing has come on it, not even its end.
    pub(crate) fn is_silent(self) -> bool {
        #[cfg(ngx_feature = "http_ssl")]
        if self.has_pending() {
            return false;
        }
        let mut byte = [0u8; 1];
        let room = byte.as_mut_ptr().cast();
        // SAFETY: open by construction; the buffer has the length that is said; the byte stays where it is.
        let got = unsafe { libc::recv((*self.as_ptr()).fd, room, 1, libc::MSG_PEEK) };
        got == -1 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock
    }

    /// Whether its TLS, if it has any, has taken more from the socket than was read: an answer that fills the buffer leaves there
    /// what came behind it.
    #[cfg(ngx_feature = "http_ssl")]
    fn has_pending(self) -> bool {
        // SAFETY: open by construction; the TLS of an open connection has OpenSSL's structure.
        unsafe {
            let tls = (*self.as_ptr()).ssl.as_ref();
            tls.is_some_and(|tls| nginx_sys::SSL_has_pending(tls.connection) != 0)
        }
    }

    /// Nothing has come on it after all.
    pub(crate) fn set_unready(self) {
        self.events().0.set_ready(0);
    }

    /// Closes it (`ngx_http_upstream_keepalive_close`).
    ///
    /// # Safety
    ///
    /// Nothing uses it any more.
    pub(crate) unsafe fn close(self) {
        // SAFETY: open by construction, and the caller's.
        unsafe { close(self.as_ptr()) }
    }
}

fn remove_timer(event: &mut ngx_event_t) {
    if event.timer_set() != 0 {
        // SAFETY: the event is in the tree of timers, as it says.
        unsafe { ngx_del_timer(event) }
    }
}

/// Closes a connection; with TLS, once the server has heard of it.
unsafe extern "C" fn close(connection: *mut ngx_connection_t) {
    // SAFETY: the caller vouches that it is open and that nothing uses it; as a handler of TLS, nginx does.
    unsafe {
        #[cfg(ngx_feature = "http_ssl")]
        if !shut_down(connection) {
            return;
        }
        ngx_destroy_pool((*connection).pool);
        ngx_close_connection(connection);
    }
}

/// Ends TLS, if the connection has it. False if that goes on, and [`close`] is called again.
///
/// # Safety
///
/// The connection is open, and nothing uses it.
#[cfg(ngx_feature = "http_ssl")]
unsafe fn shut_down(connection: *mut ngx_connection_t) -> bool {
    // SAFETY: the caller's; without TLS it is NULL.
    let Some(ssl) = (unsafe { (*connection).ssl.as_mut() }) else {
        return true;
    };
    ssl.set_no_wait_shutdown(1);
    ssl.set_no_send_shutdown(1);
    // SAFETY: the caller's; the structure for TLS is there as long as this has not ended.
    unsafe {
        if nginx_sys::ngx_ssl_shutdown(connection) != Status::NGX_AGAIN.0 {
            return true;
        }
        if let Some(ssl) = (*connection).ssl.as_mut() {
            ssl.handler = Some(close);
        }
    }
    false
}
