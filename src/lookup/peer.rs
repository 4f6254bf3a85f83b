//! Between a lookup and the operator's group: what a lookup may do to it, and what it may take from it.
//!
//! The same group may serve `proxy_pass`. So a lookup must not take a server out of it by anything that a client can bring
//! about with a token, and must not share anything with other requests that was made under other rules:
//!
//! - **Failures.** nginx takes a server out of its group after `max_fails` failures, and takes every unusable answer and
//!   every timeout for one. A lookup reports only a server that could not be connected to. Once a connection stands, all
//!   that happens on it depends on the token or on our own settings for TLS. What a lookup learns about a server that
//!   hangs is kept here, in the worker process, and only lookups avoid the server ([`Shell::avoided`]).
//! - **Kept connections** ([`kept`]) and **TLS sessions** ([`Sessions`]) of lookups are their own.
//!
//! To do that, we stand between the upstream and the balancer of the group: each set of directives gets a [`Shell`], a copy
//! of the group's structure with an `init` of ours, which lets the group's own set the peer up and then takes the places of
//! its `get` and `free`, and in Angie of its `connect`.

use core::cell::RefCell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;

use matrix_user_hash_core::time::Millis;
use nginx_sys::{
    NGX_PEER_FAILED, ngx_conf_t, ngx_http_request_t, ngx_http_upstream_srv_conf_t,
    ngx_http_upstream_t, ngx_int_t, ngx_peer_connection_t, ngx_uint_t,
};
use ngx::core::Status;

use super::Lookup;
use super::address::Address;
use super::kept::{self, Kept};
#[cfg(ngx_feature = "http_ssl")]
use super::sessions::Sessions;
#[cfg(ngx_feature = "http_ssl")]
use crate::ngx::buffer;
use crate::ngx::{guard, pool, upstream as ngx_upstream};
use crate::zone::now;

const FAILED: ngx_uint_t = NGX_PEER_FAILED as ngx_uint_t;
const OK: ngx_int_t = Status::NGX_OK.0;
const DONE: ngx_int_t = Status::NGX_DONE.0;

/// How long lookups avoid a server that hung, in milliseconds, if another one is left: as nginx's `fail_timeout`.
const AVOIDED_FOR: u64 = 10_000;

/// How many servers are avoided at most; the oldest is forgotten.
const AVOIDED_MAX: usize = 16;

/// `ngx_event_get_peer_pt`.
type Get = Option<unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void) -> ngx_int_t>;
/// `ngx_event_free_peer_pt`.
type Free = Option<unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void, ngx_uint_t)>;

/// `ngx_event_connect_peer_pt`, of Angie.
#[cfg(peer_connects)]
type Connect = Get;

/// A group's structure with our `init`, the group, and what this worker process's lookups keep beside it.
#[repr(C)]
pub(crate) struct Shell {
    shown: ngx_http_upstream_srv_conf_t,
    group: *mut ngx_http_upstream_srv_conf_t,
    /// Connections that lookups left open.
    kept: Kept,
    /// TLS sessions of lookups.
    #[cfg(ngx_feature = "http_ssl")]
    sessions: Sessions,
    /// Servers that hung, and until when lookups avoid them.
    avoided: RefCell<Vec<(Address, Millis)>>,
}

/// What a lookup has of its peer.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    shell: *const Shell,
    get: Get,
    #[cfg(peer_connects)]
    connect: Connect,
    free: Free,
}

impl Peer {
    /// No peer was set up yet.
    pub(crate) const NONE: Self = Self {
        shell: ptr::null(),
        get: None,
        #[cfg(peer_connects)]
        connect: None,
        free: None,
    };
}

/// A shell around `group`; `None` without memory. For when every group has been initialised. `keeps`: whether connections
/// of its lookups may be used again.
pub(crate) fn shell(
    cf: &mut ngx_conf_t,
    group: *mut ngx_http_upstream_srv_conf_t,
    keeps: bool,
) -> Option<*mut ngx_http_upstream_srv_conf_t> {
    // SAFETY: the group is in the configuration, and so is the shell. The copy is never changed but for `init`; what nginx
    // changes in the group later (its peers move to shared memory) is only read by the group's own `init`.
    let (mut shown, kept) = unsafe { (ptr::read(group), Kept::beside(cf, group, keeps)) };
    shown.peer.init = Some(init);
    let shell = Shell {
        shown,
        group,
        kept,
        #[cfg(ngx_feature = "http_ssl")]
        sessions: Sessions::default(),
        avoided: RefCell::default(),
    };
    // SAFETY: the pool is that of the configuration, to which the lookups belong that use the shell.
    let shell = unsafe { pool::adopt(cf.pool, shell)? };
    Some(ptr::from_mut(shell).cast())
}

impl Shell {
    /// Whether lookups should take another server, if there is one.
    fn avoids(&self, server: &Address) -> bool {
        let now = now();
        let mut avoided = self.avoided.borrow_mut();
        avoided.retain(|(_, until)| until.since(now) > 0);
        avoided.iter().any(|(address, _)| address == server)
    }

    /// Remembers for a while that a server hung, or forgets that it did.
    fn remember(&self, server: Address, hung: bool) {
        let mut avoided = self.avoided.borrow_mut();
        avoided.retain(|(address, _)| *address != server);
        if !hung {
            return;
        }
        if avoided.len() == AVOIDED_MAX {
            avoided.remove(0);
        }
        if avoided.try_reserve(1).is_ok() {
            avoided.push((server, now().plus(AVOIDED_FOR)));
        }
    }
}

/// The upstream of a peer.
///
/// # Safety
///
/// `peer` is that of an upstream.
unsafe fn upstream_of(peer: *mut ngx_peer_connection_t) -> *mut ngx_http_upstream_t {
    // SAFETY: the caller's.
    unsafe { peer.byte_sub(offset_of!(ngx_http_upstream_t, peer)).cast() }
}

/// The lookup of a peer that [`init`] set up, and the shell that it uses.
///
/// # Safety
///
/// `peer` is that of a live lookup's upstream, whose `input_filter_ctx` is the lookup.
unsafe fn lookup_of<'l>(peer: *mut ngx_peer_connection_t) -> (&'l Lookup, &'l Shell) {
    // SAFETY: the caller's; `init` has told the lookup its shell, which lives as long as the configuration.
    unsafe {
        let lookup = &*(*upstream_of(peer)).input_filter_ctx.cast::<Lookup>();
        (lookup, &*lookup.peer.get().shell)
    }
}

/// Sets a peer up for a lookup's upstream.
unsafe extern "C" fn init(
    child: *mut ngx_http_request_t,
    shown: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    guard::guard(Status::NGX_ERROR.0, || {
        // SAFETY: nginx calls with the live subrequest of a lookup and the group that its configuration names: a shell.
        let (lookup, shell) = unsafe { (Lookup::of(child), &*shown.cast_const().cast::<Shell>()) };
        // SAFETY: the group lives as long as the shell, and its own function sets the peer up.
        let set_up = unsafe {
            match (*shell.group).peer.init {
                Some(init) => init(child, shell.group),
                None => Status::NGX_ERROR.0,
            }
        };
        if set_up == OK {
            // SAFETY: the group's function has returned, so nothing else refers to the upstream.
            let peer = &mut unsafe { ngx_upstream::of_callback(child) }.peer;
            lookup.peer.set(Peer {
                shell,
                get: peer.get.replace(self::get),
                #[cfg(peer_connects)]
                connect: peer.connect,
                free: peer.free.replace(self::free),
            });
            #[cfg(peer_connects)]
            if peer.connect.is_some() {
                peer.connect = Some(connect);
            }
            #[cfg(ngx_feature = "http_ssl")]
            {
                peer.set_session = Some(set_session);
                peer.save_session = Some(save_session);
            }
        }
        set_up
    })
}

/// Chooses a server, and a connection of ours to it if one was kept (`ngx_http_upstream_get_keepalive_peer`).
unsafe extern "C" fn get(peer: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    guard::guard(Status::NGX_ERROR.0, || {
        // SAFETY: the peer is that of a live lookup, set up by `init`.
        let (lookup, shell) = unsafe { lookup_of(peer) };
        let (get, free) = (lookup.peer.get().get, lookup.peer.get().free);
        let Some(get) = get else {
            return Status::NGX_ERROR.0;
        };
        loop {
            // SAFETY: the group's own function, with its own data.
            let body = || unsafe { get(peer, data) };
            let got = shell.kept.with_group_list_hidden(body);
            // SAFETY: the balancer has returned, so nothing else refers to the peer.
            let chosen = unsafe { &mut *peer };
            if got == DONE {
                kept::refuse(chosen);
            } else if got != OK {
                return got;
            }
            // SAFETY: the balancer has chosen a server.
            let server = unsafe { Address::of(chosen) };
            match free.filter(|_| chosen.tries > 1 && shell.avoids(&server)) {
                // SAFETY: the group's own function; the server is given back as one that nothing is known of.
                Some(free) => unsafe { free(peer, data, 0) },
                None if shell.kept.take(chosen, &server) => return DONE,
                None => return OK,
            }
        }
    })
}

/// Makes a connection to the server that [`get`] chose. Angie's keepalive module looks for one in the group's list here, and
/// not while a server is chosen.
#[cfg(peer_connects)]
unsafe extern "C" fn connect(peer: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    guard::guard(Status::NGX_ERROR.0, || {
        // SAFETY: the peer is that of a live lookup, set up by `init`.
        let (lookup, shell) = unsafe { lookup_of(peer) };
        let Some(connect) = lookup.peer.get().connect else {
            return Status::NGX_ERROR.0;
        };
        loop {
            // SAFETY: the group's own function, with its own data.
            let body = || unsafe { connect(peer, data) };
            let got = shell.kept.with_group_list_hidden(body);
            // SAFETY: the group's function has returned, so nothing else refers to the peer.
            let connected = unsafe { &mut *peer };
            if got != OK || connected.cached() == 0 {
                return got;
            }
            kept::refuse(connected);
        }
    })
}

/// A peer is done with: keeps its connection if it may be used again, and passes on whether it failed.
unsafe extern "C" fn free(peer: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    guard::guard((), || {
        // SAFETY: the peer is that of a live lookup, set up by `init`; nothing else refers to its upstream now.
        let (lookup, shell, upstream) = unsafe {
            let (lookup, shell) = lookup_of(peer);
            (lookup, shell, &mut *upstream_of(peer))
        };
        let state = judge(lookup, shell, upstream, state);
        if let Some(free) = lookup.peer.get().free {
            // SAFETY: the group's own function, with its own data.
            unsafe { free(peer, data, state) };
        }
    });
}

/// What a lookup learns from a peer that it is done with, and what the group is told of it.
fn judge(
    lookup: &Lookup,
    shell: &Shell,
    upstream: &mut ngx_http_upstream_t,
    state: ngx_uint_t,
) -> ngx_uint_t {
    // A lookup that was given up is, for nginx, one whose connection was closed before anything went wrong.
    let failed = state & FAILED != 0 || lookup.is_overdue.get();
    // SAFETY: the balancer has chosen this server.
    let server = unsafe { Address::of(&upstream.peer) };
    let hung = has_hung(lookup, &upstream.peer);
    lookup.has_hung.set(lookup.has_hung.get() || hung);
    if !failed || hung {
        shell.remember(server, failed);
    }
    #[cfg(ngx_feature = "http_ssl")]
    if failed && upstream.request_sent() == 0 {
        lookup.tls_error.set(super::sessions::error_of(upstream));
        shell.sessions.forget(&server);
    }
    #[cfg(ngx_feature = "http_ssl")]
    wipe_tls_buffer(&upstream.peer);
    if !failed {
        shell.kept.keep(upstream, server);
    }
    // The group keeps no connection of ours.
    upstream.set_keepalive(0);
    match failed && !was_connected(upstream) {
        true => state | FAILED,
        false => state & !FAILED,
    }
}

/// Overwrites what nginx has gathered for TLS: it holds the token, and may stay as long as the connection.
#[cfg(ngx_feature = "http_ssl")]
fn wipe_tls_buffer(peer: &ngx_peer_connection_t) {
    // SAFETY: a peer's connection, if there is one, is open; the buffer of its TLS is NULL or in its pool.
    unsafe {
        if let Some(tls) = peer
            .connection
            .as_ref()
            .and_then(|found| found.ssl.as_ref())
        {
            buffer::wipe(tls.buf);
        }
    }
}

/// Whether the server let the time go by after it was connected to.
fn has_hung(lookup: &Lookup, peer: &ngx_peer_connection_t) -> bool {
    let connection = ngx_upstream::connection_of_peer(peer);
    connection.is_some_and(|connection| lookup.is_overdue.get() || connection.timed_out())
}

/// Whether the server accepted the connection: the request was sent on it, or TLS began.
fn was_connected(upstream: &ngx_http_upstream_t) -> bool {
    // SAFETY: a peer's connection, if there is one, is live.
    let Some(connection) = (unsafe { upstream.peer.connection.as_ref() }) else {
        return false;
    };
    #[cfg(ngx_feature = "http_ssl")]
    if !connection.ssl.is_null() {
        return true;
    }
    #[cfg(not(ngx_feature = "http_ssl"))]
    let _ = connection;
    upstream.request_sent() != 0
}

/// Offers the server a session that a lookup had with it (`ngx_event_set_peer_session_pt`).
#[cfg(ngx_feature = "http_ssl")]
unsafe extern "C" fn set_session(
    peer: *mut ngx_peer_connection_t,
    _data: *mut c_void,
) -> ngx_int_t {
    guard::guard(OK, || {
        // SAFETY: the peer is that of a live lookup, set up by `init`, with a connection that TLS begins on.
        unsafe {
            let (_, shell) = lookup_of(peer);
            let server = Address::of(peer);
            shell.sessions.offer(&server, (*peer).connection)
        }
    })
}

/// Keeps the session that the server gave (`ngx_event_save_peer_session_pt`).
#[cfg(ngx_feature = "http_ssl")]
unsafe extern "C" fn save_session(peer: *mut ngx_peer_connection_t, _data: *mut c_void) {
    guard::guard((), || {
        // SAFETY: the peer is that of a live lookup, set up by `init`, with a connection that has TLS.
        unsafe {
            let (_, shell) = lookup_of(peer);
            shell.sessions.keep(Address::of(peer), (*peer).connection);
        }
    });
}
