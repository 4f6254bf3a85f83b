//! What counts as a failure of a whoami server.
//!
//! nginx takes a server out of its group after `max_fails` failures, and takes every unusable answer for one. But some
//! of those a client can bring about with a token of its choice: 400, 403, 500 and 503 answers, and connections closed
//! without a byte. If they counted, a client could take the homeserver out. What counts is what no client can cause:
//! no connection, and no answer in time.
//!
//! To decide that, we stand between the upstream and the balancer of the operator's group: each set of directives gets
//! a [`Shell`], a copy of the group's structure with an `init` of ours, which lets the group's own set the peer up and
//! then takes the place of its `free`.

use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;

use nginx_sys::{
    NGX_PEER_FAILED, ngx_conf_t, ngx_http_request_t, ngx_http_upstream_srv_conf_t,
    ngx_http_upstream_t, ngx_int_t, ngx_peer_connection_t, ngx_uint_t,
};
use ngx::core::Status;

use super::Lookup;
use crate::ngx::guard;

const FAILED: ngx_uint_t = NGX_PEER_FAILED as ngx_uint_t;

/// `ngx_event_free_peer_pt`.
pub type Free = Option<unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void, ngx_uint_t)>;

/// A group's structure with our `init`, and the group.
#[repr(C)]
struct Shell {
    shown: ngx_http_upstream_srv_conf_t,
    group: *mut ngx_http_upstream_srv_conf_t,
}

/// A shell around `group`; nothing without memory. For when every group has been initialised.
pub fn shell(
    cf: &mut ngx_conf_t,
    group: *mut ngx_http_upstream_srv_conf_t,
) -> Option<*mut ngx_http_upstream_srv_conf_t> {
    // SAFETY: the group and the shell live in the configuration's pool. The copy is never changed but for `init`; what
    // nginx changes in the group later (its peers move to shared memory) is only read by the group's own `init`.
    unsafe {
        let shell = nginx_sys::ngx_palloc(cf.pool, size_of::<Shell>()).cast::<Shell>();
        if shell.is_null() {
            return None;
        }
        ptr::write(&raw mut (*shell).shown, ptr::read(group));
        (*shell).shown.peer.init = Some(init);
        (*shell).group = group;
        Some(&raw mut (*shell).shown)
    }
}

/// Sets a peer up for a lookup's upstream.
unsafe extern "C" fn init(
    child: *mut ngx_http_request_t,
    shown: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    guard::guard(Status::NGX_ERROR.0, || {
        // SAFETY: nginx calls with the live subrequest of a lookup and the group that its configuration names: a shell.
        unsafe {
            let group = (*shown.cast::<Shell>()).group;
            let Some(init) = (*group).peer.init else {
                return Status::NGX_ERROR.0;
            };
            let set_up = init(child, group);
            if set_up == Status::NGX_OK.0 {
                let peer = &mut (*(*child).upstream).peer;
                (*Lookup::of(child)).free_peer = peer.free;
                peer.free = Some(free);
            }
            set_up
        }
    })
}

/// A peer is done with: passes that on, as a failure only if it counts as one.
unsafe extern "C" fn free(peer: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    guard::guard((), || {
        // SAFETY: the peer is a field of the upstream of a live lookup, whose `input_filter_ctx` is the lookup.
        unsafe {
            let upstream = peer
                .byte_sub(offset_of!(ngx_http_upstream_t, peer))
                .cast::<ngx_http_upstream_t>();
            let lookup = (*upstream).input_filter_ctx.cast::<Lookup>();
            let state = if (*lookup).overdue {
                // For nginx it was closed before anything went wrong.
                state | FAILED
            } else if counts(&*upstream) {
                state
            } else {
                state & !FAILED
            };
            if let Some(free) = (*lookup).free_peer {
                free(peer, data, state);
            }
        }
    });
}

/// Whether what ended is something that no client can bring about: it was not connected, or took too long.
unsafe fn counts(upstream: &ngx_http_upstream_t) -> bool {
    // SAFETY: a peer's connection, if there is one, has both events.
    unsafe {
        match upstream.peer.connection.as_ref() {
            None => true,
            Some(_) if upstream.request_sent() == 0 => true,
            Some(connection) => {
                (*connection.read).timedout() != 0 || (*connection.write).timedout() != 0
            }
        }
    }
}
