//! The table of directives: one row says where a directive is valid, who reads it, and what holds without it.

use core::ffi::{c_char, c_void};
use core::mem::offset_of;
use core::ptr;

#[cfg(ngx_feature = "http_ssl")]
use nginx_sys::ngx_conf_set_str_slot;
use nginx_sys::ngx_http_set_complex_value_slot;
use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_FLAG, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_CONF_TAKE4, NGX_CONF_TAKE5,
    NGX_CONF_TAKE12, NGX_CONF_TAKE123, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET,
    NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF, ngx_command_t, ngx_conf_t,
    ngx_str_t, ngx_uint_t,
};
use ngx::core::NGX_CONF_ERROR;
use ngx::ngx_string;

use super::phase::Phase;
use super::slot::{self, Setting};
#[cfg(ngx_feature = "http_ssl")]
use super::ssl;
use super::{LocationConf, Pass, metrics, phase, shift, target, upstream, valid, zone};
use crate::ngx::guard;
use crate::zone::handover::HANDOVER;

/// `http`, `server` and `location`.
const ANYWHERE: u32 = NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF;
const HTTP: u32 = NGX_HTTP_MAIN_CONF;
const LOCATION: u32 = NGX_HTTP_LOC_CONF;

/// Makes of the table nginx's commands, and how a block inherits.
///
/// - `handlers`: a handler keeps what it reads, and no block inherits it.
/// - `settings`: a field of [`LocationConf`], and its value where neither the block nor an enclosing one says anything.
/// - `upstream`: likewise; a block that sets none of these shares the enclosing block's `ngx_http_upstream_conf_t`.
macro_rules! directives {
    (
        handlers { $($handler:literal, $handler_contexts:expr, $handler_args:expr, $read:path;)* }
        settings { $($name:literal, $contexts:expr, $args:expr, $set:path, $($field:ident).+ = $default:expr;)* }
        upstream { $($(#[$cfg:meta])* $u_name:literal, $u_contexts:expr, $u_args:expr, $u_set:path,
            $($u_field:ident).+ = $u_default:expr;)* }
    ) => {
        const TABLE: &[ngx_command_t] = &[
            $(command(ngx_string!($handler), $handler_contexts, $handler_args, $read, 0),)*
            $(command(ngx_string!($name), $contexts, $args, $set, offset_of!(LocationConf, $($field).+)),)*
            $($(#[$cfg])* command(
                ngx_string!($u_name), $u_contexts, $u_args, $u_set, offset_of!(LocationConf, $($u_field).+)
            ),)*
        ];

        impl LocationConf {
            /// Marks each setting as not set.
            pub(super) fn unset(&mut self) {
                $(self.$($field).+ = Setting::UNSET;)*
                $($(#[$cfg])* { self.$($u_field).+ = Setting::UNSET; })*
            }

            /// Takes each setting that is not set from the enclosing block, or by default.
            pub(super) fn inherit_settings(&mut self, outer: &Self) {
                $(self.$($field).+.inherit(outer.$($field).+, $default);)*
                $($(#[$cfg])* { self.$($u_field).+.inherit(outer.$($u_field).+, $u_default); })*
            }

            /// Whether no setting of the upstream family is set in this block.
            pub(super) fn adds_nothing_upstream(&self) -> bool {
                $($(#[$cfg])* if !self.$($u_field).+.is_unset() { return false; })*
                true
            }
        }
    };
}

directives! {
    handlers {
        "matrix_user_hash_zone", HTTP, NGX_CONF_TAKE123, zone::set;
        "matrix_user_hash_shift", HTTP, NGX_CONF_TAKE4 | NGX_CONF_TAKE5, shift::set;
        "matrix_user_hash_metrics", LOCATION, NGX_CONF_NOARGS | NGX_CONF_TAKE1, metrics::set;
    }
    settings {
        "matrix_user_hash", ANYWHERE, NGX_CONF_TAKE12, target::set, pass = Pass::Off;
        "matrix_user_hash_phase", ANYWHERE, NGX_CONF_TAKE1, phase::set, phase = Phase::PreContent;
        "matrix_user_hash_valid", ANYWHERE, NGX_CONF_1MORE, valid::set, valid = valid::DEFAULT;
        "matrix_user_hash_stale", ANYWHERE, NGX_CONF_FLAG, slot::flag, stale = 1;
        "matrix_user_hash_timeout", ANYWHERE, NGX_CONF_TAKE1, slot::positive_milliseconds, timeout = 2000;
        "matrix_user_hash_max_lookups", ANYWHERE, NGX_CONF_TAKE1, slot::lookups, max_lookups = 64;
        "matrix_user_hash_forwarded_for", ANYWHERE, NGX_CONF_TAKE1, ngx_http_set_complex_value_slot,
            forwarded_for = ptr::null_mut();
        "matrix_user_hash_limited", ANYWHERE, NGX_CONF_TAKE1, ngx_http_set_complex_value_slot,
            limited = ptr::null_mut();
    }
    // As ngx_http_memcached_merge_loc_conf, but for the timeouts: a lookup holds up a request, so they are 1 s.
    upstream {
        "matrix_user_hash_bind", ANYWHERE, NGX_CONF_TAKE12, slot::bind,
            own_upstream.local = ptr::null_mut();
        "matrix_user_hash_socket_keepalive", ANYWHERE, NGX_CONF_FLAG, slot::flag,
            own_upstream.socket_keepalive = 0;
        "matrix_user_hash_connect_timeout", ANYWHERE, NGX_CONF_TAKE1, slot::positive_milliseconds,
            own_upstream.connect_timeout = 1000;
        "matrix_user_hash_send_timeout", ANYWHERE, NGX_CONF_TAKE1, slot::positive_milliseconds,
            own_upstream.send_timeout = 1000;
        "matrix_user_hash_read_timeout", ANYWHERE, NGX_CONF_TAKE1, slot::positive_milliseconds,
            own_upstream.read_timeout = 1000;
        "matrix_user_hash_buffer_size", ANYWHERE, NGX_CONF_TAKE1, slot::buffer_size,
            own_upstream.buffer_size = upstream::page_size();
        "matrix_user_hash_next_upstream", ANYWHERE, NGX_CONF_1MORE, upstream::next,
            own_upstream.next_upstream = upstream::DEFAULT_CASES;
        "matrix_user_hash_next_upstream_tries", ANYWHERE, NGX_CONF_TAKE1, slot::number,
            own_upstream.next_upstream_tries = 0;
        "matrix_user_hash_next_upstream_timeout", ANYWHERE, NGX_CONF_TAKE1, slot::milliseconds,
            own_upstream.next_upstream_timeout = 0;
        #[cfg(ngx_feature = "http_ssl")]
        "matrix_user_hash_ssl_verify", ANYWHERE, NGX_CONF_FLAG, slot::flag, ssl.verify = 1;
        #[cfg(ngx_feature = "http_ssl")]
        "matrix_user_hash_ssl_verify_depth", ANYWHERE, NGX_CONF_TAKE1, slot::depth, ssl.verify_depth = 4;
        #[cfg(ngx_feature = "http_ssl")]
        "matrix_user_hash_ssl_trusted_certificate", ANYWHERE, NGX_CONF_TAKE1, ngx_conf_set_str_slot,
            ssl.trusted_certificate = ngx_str_t::empty();
        #[cfg(ngx_feature = "http_ssl")]
        "matrix_user_hash_ssl_name", ANYWHERE, NGX_CONF_TAKE1, ngx_http_set_complex_value_slot,
            ssl.name = ptr::null_mut();
        #[cfg(ngx_feature = "http_ssl")]
        "matrix_user_hash_ssl_server_name", ANYWHERE, NGX_CONF_FLAG, slot::flag, ssl.server_name = 1;
        #[cfg(ngx_feature = "http_ssl")]
        "matrix_user_hash_ssl_protocols", ANYWHERE, NGX_CONF_1MORE, ssl::protocols,
            ssl.protocols = ssl::DEFAULT_PROTOCOLS;
        #[cfg(ngx_feature = "http_ssl")]
        "matrix_user_hash_ssl_ciphers", ANYWHERE, NGX_CONF_TAKE1, ngx_conf_set_str_slot,
            ssl.ciphers = ngx_string!("DEFAULT");
    }
}

/// The setter of every command: that of its row, under guard.
unsafe extern "C" fn set(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    guard::configuring(NGX_CONF_ERROR, || {
        // SAFETY: nginx calls with a member of `COMMANDS`, whose rows are those of the table, and with the arguments that the
        // row's setter takes.
        unsafe {
            let row = command.offset_from(&raw const COMMANDS[0]).unsigned_abs();
            match TABLE.get(row).and_then(|row| row.set) {
                Some(set) => set(cf, command, conf),
                None => NGX_CONF_ERROR,
            }
        }
    })
}

/// The commands, ended by an empty one as nginx wants them.
pub(crate) static mut COMMANDS: [ngx_command_t; TABLE.len() + 1] = {
    let mut all = [ngx_command_t::empty(); TABLE.len() + 1];
    let mut i = 0;
    while i < TABLE.len() {
        all[i] = TABLE[i];
        all[i].set = Some(set);
        i += 1;
    }
    // The first row is `matrix_user_hash_zone`.
    all[0].post = ptr::addr_of!(HANDOVER).cast_mut().cast();
    all
};

type Setter = unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

const fn command(
    name: ngx_str_t,
    contexts: u32,
    arguments: u32,
    set: Setter,
    offset: usize,
) -> ngx_command_t {
    ngx_command_t {
        name,
        type_: (contexts | arguments) as ngx_uint_t,
        set: Some(set),
        // What is valid in `http` alone belongs to the whole cycle.
        conf: if contexts == HTTP {
            NGX_HTTP_MAIN_CONF_OFFSET
        } else {
            NGX_HTTP_LOC_CONF_OFFSET
        },
        offset,
        post: ptr::null_mut(),
    }
}
