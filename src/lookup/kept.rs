//! Connections that lookups leave open for the next lookup. Nothing else uses them.
//!
//! A group with `keepalive` keeps the connections of all who use it in one list, found by the server's address. Those of
//! `proxy_pass https://…` are not verified unless the operator says so, those of `grpc_pass` and of `proxy_http_version 2`
//! speak HTTP/2, and ours speak HTTP/1.1. So lookups take none out of that list and put none into it. They have a list of
//! their own in each worker process for each set of directives, as long as the group's, and with the group's `keepalive_requests`,
//! `keepalive_time` and `keepalive_timeout`. What it does with a connection is what `ngx_http_upstream_keepalive_module`
//! does.

use core::cell::RefCell;
use core::ptr::{self, NonNull};

use nginx_sys::{
    ngx_conf_t, ngx_connection_t, ngx_event_t, ngx_http_upstream_srv_conf_t, ngx_http_upstream_t,
    ngx_peer_connection_t,
};

use super::address::Address;
use crate::ngx::compat::GroupKeepalive;
use crate::ngx::connection::Connection;
use crate::ngx::{guard, keepalive, log, process, upstream as ngx_upstream};
use crate::zone::now;

/// The most connections that one list has, whatever `keepalive` says.
const LONGEST: usize = 1024;

/// The list.
pub(super) struct Kept {
    /// The group's own list, and its limits.
    group: Option<NonNull<GroupKeepalive>>,
    /// How many connections may be in ours.
    limit: usize,
    /// Ours, the longest unused first.
    idle: RefCell<Vec<(Address, Connection)>>,
}

impl Kept {
    /// An empty list beside that of `group`; one that stays empty if the group has none, or if `keeps` is false.
    ///
    /// # Safety
    ///
    /// The group is that of the configuration that nginx is reading, and the list lives no longer than that.
    pub(super) unsafe fn beside(
        cf: &ngx_conf_t,
        group: *const ngx_http_upstream_srv_conf_t,
        keeps: bool,
    ) -> Self {
        // SAFETY: the caller's.
        let group = unsafe { keepalive::of_group(cf, group) };
        let mut kept = Self {
            group,
            limit: 0,
            idle: RefCell::default(),
        };
        if keeps {
            kept.limit = kept
                .group()
                .map_or(0, |group| group.max_cached.min(LONGEST));
        }
        kept
    }

    /// What the group says of its kept connections.
    fn group(&self) -> Option<&GroupKeepalive> {
        // SAFETY: the configuration of the keepalive module lives as long as ours, and nothing changes what is read of it.
        self.group.map(|group| unsafe { group.as_ref() })
    }

    /// Calls the group's balancer, which sees an empty list meanwhile.
    pub(super) fn with_group_list_hidden<T>(&self, body: impl FnOnce() -> T) -> T {
        match self.group {
            // SAFETY: it is the group's list, and the balancer only looks for a connection in it, in this one thread.
            Some(group) => unsafe { keepalive::with_list_hidden(group, body) },
            None => body(),
        }
    }

    /// Gives `peer` a connection to `server` that a lookup left open; false if there is none.
    pub(super) fn take(&self, peer: &mut ngx_peer_connection_t, server: &Address) -> bool {
        let connection = loop {
            let Some(connection) = self.remove_latest(server) else {
                return false;
            };
            // What has come, and nginx has not told us yet, would be read as the answer to the next question.
            if connection.is_silent() {
                break connection;
            }
            // SAFETY: what is not in the list any more is used by nobody.
            unsafe { connection.close() };
        };
        connection.make_used();
        connection.log_to(peer.log);
        peer.connection = connection.as_ptr();
        peer.set_cached(1);
        true
    }

    /// Takes the connection to `server` that was used last out of the list.
    fn remove_latest(&self, server: &Address) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let at = idle.iter().rposition(|(address, _)| address == server)?;
        Some(idle.remove(at).1)
    }

    /// Keeps the connection of a lookup that has ended, if it can be used again.
    pub(super) fn keep(&self, upstream: &mut ngx_http_upstream_t, server: Address) {
        let Some(connection) = ngx_upstream::connection(upstream) else {
            return;
        };
        if !self.is_usable(upstream, connection)
            || self.idle.borrow_mut().try_reserve(1).is_err()
            || !connection.watch()
        {
            return;
        }
        upstream.peer.connection = ptr::null_mut();
        let timeout = self.group().map_or(0, |group| group.timeout);
        let owner = ptr::from_ref(self).cast_mut().cast();
        connection.make_idle(timeout, Some(woken), owner);
        connection.log_to(log::cycle_log());
        if let Some(oldest) = self.add(server, connection) {
            // SAFETY: what is not in the list any more is used by nobody.
            unsafe { oldest.close() };
        }
        // What has come already may be its end.
        if connection.is_ready() {
            // SAFETY: it is in the list.
            unsafe { look_at(connection, false) };
        }
    }

    /// Adds a connection to the list, and takes the oldest out if the list is full.
    fn add(&self, server: Address, connection: Connection) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let is_full = idle.len() >= self.limit;
        let oldest = is_full.then(|| idle.remove(0).1);
        idle.push((server, connection));
        oldest
    }

    /// Whether the connection of an upstream may be used once more (`ngx_http_upstream_free_keepalive_peer`).
    fn is_usable(&self, upstream: &ngx_http_upstream_t, connection: Connection) -> bool {
        let Some(group) = self.group() else {
            return false;
        };
        let (requests, opened) = connection.uses();
        let age = now().get().wrapping_sub(opened as u64);
        self.limit > 0
            && !connection.is_broken()
            && upstream.keepalive() != 0
            && upstream.request_body_sent() != 0
            && requests < group.requests
            && age <= group.time as u64
            && !process::is_terminating()
            && !process::is_exiting()
    }

    fn remove(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|(_, other)| *other != connection);
    }
}

/// Closes a kept connection that the balancer gave all the same; the peer connects anew.
pub(super) fn refuse(peer: &mut ngx_peer_connection_t) {
    peer.set_cached(0);
    if let Some(connection) = ngx_upstream::take_connection(peer) {
        // SAFETY: the balancer gave it to the peer, and nothing else uses it.
        unsafe { connection.close() };
    }
}

/// The event of a connection that waits: its time is up, the server has closed it, or the worker process ends.
unsafe extern "C" fn woken(event: *mut ngx_event_t) {
    guard::guard((), || {
        // SAFETY: nginx calls for a connection that `keep` has put into the list.
        unsafe {
            let connection = (*event).data.cast::<ngx_connection_t>();
            if let Some(connection) = Connection::from_ptr(connection) {
                look_at(connection, (*event).timedout() != 0);
            }
        }
    });
}

/// Closes a connection that waits, unless nothing has happened to it.
///
/// # Safety
///
/// It is in the list that is its owner.
unsafe fn look_at(connection: Connection, is_over: bool) {
    if !connection.is_to_be_closed() && !is_over && connection.is_silent() {
        connection.set_unready();
        if connection.watch() {
            return;
        }
    }
    // SAFETY: a list lives as long as a connection waits in it, and nothing else uses such a connection.
    unsafe {
        (*connection.owner().cast::<Kept>()).remove(connection);
        connection.close();
    }
}
