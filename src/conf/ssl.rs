//! The directives for `https://`: as `proxy_ssl_*`, but the server is verified, and told its name, unless switched off.

use core::ffi::{c_char, c_void};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nginx_sys::{
    NGX_SSL_TLSv1, NGX_SSL_TLSv1_1, NGX_SSL_TLSv1_2, NGX_SSL_TLSv1_3, ngx_command_t, ngx_conf_t,
    ngx_http_complex_value_t, ngx_http_upstream_conf_t, ngx_int_t, ngx_str_t, ngx_uint_t,
};
use ngx::ngx_string;

use super::slot::{self, Setting};
use super::{Invalid, LocationConf};
use crate::ngx::request::bytes;
use crate::ngx::ssl::Context;

/// Where systems keep the certificates of the authorities that they trust: Debian and Alpine, Red Hat, the BSDs. With the
/// NUL that OpenSSL looks for: it is given the name without its length.
const SYSTEM_AUTHORITIES: [ngx_str_t; 3] = [
    ngx_string!("/etc/ssl/certs/ca-certificates.crt"),
    ngx_string!("/etc/pki/tls/certs/ca-bundle.crt"),
    ngx_string!("/etc/ssl/cert.pem"),
];

const PROTOCOLS: [(&[u8], u32); 4] = [
    (b"TLSv1", NGX_SSL_TLSv1),
    (b"TLSv1.1", NGX_SSL_TLSv1_1),
    (b"TLSv1.2", NGX_SSL_TLSv1_2),
    (b"TLSv1.3", NGX_SSL_TLSv1_3),
];

/// `TLSv1.2 TLSv1.3`.
pub(crate) const DEFAULT_PROTOCOLS: ngx_uint_t = (NGX_SSL_TLSv1_2 | NGX_SSL_TLSv1_3) as ngx_uint_t;

/// What the directives of a block say.
#[repr(C)]
pub struct Settings {
    pub(super) verify: ngx_int_t,
    pub(super) verify_depth: ngx_int_t,
    pub(super) server_name: ngx_int_t,
    pub(super) protocols: ngx_uint_t,
    pub(super) trusted_certificate: ngx_str_t,
    pub(super) ciphers: ngx_str_t,
    pub(super) name: *mut ngx_http_complex_value_t,
}

impl Settings {
    /// Nothing set.
    pub const fn new() -> Self {
        Self {
            verify: Setting::UNSET,
            verify_depth: Setting::UNSET,
            server_name: Setting::UNSET,
            protocols: Setting::UNSET,
            trusted_certificate: Setting::UNSET,
            ciphers: Setting::UNSET,
            name: Setting::UNSET,
        }
    }

    /// Whether the name that a certificate must have depends on the request.
    pub fn name_varies(&self) -> bool {
        // SAFETY: nginx keeps a value that a directive gave in the cycle's pool; without variables it has no lengths.
        unsafe { self.name.as_ref() }.is_some_and(|name| !name.lengths.is_null())
    }

    /// Makes the TLS context of a block's lookups.
    ///
    /// # Errors
    ///
    /// A file or a list is wrong; it has been logged.
    pub fn apply(
        &mut self,
        cf: &mut ngx_conf_t,
        upstream: &mut ngx_http_upstream_conf_t,
    ) -> Result<(), Invalid> {
        let context = Context::create(cf, self.protocols)?;
        if !context.set_ciphers(cf, &mut self.ciphers) {
            return Err(blame(cf, "matrix_user_hash_ssl_ciphers", &self.ciphers));
        }
        if self.verify != 0 {
            let mut authorities = self.authorities(cf)?;
            if !context.trust(cf, &mut authorities, self.verify_depth) {
                let directive = "matrix_user_hash_ssl_trusted_certificate";
                return Err(blame(cf, directive, &authorities));
            }
        }
        if !context.keep_sessions(cf) {
            return Err(Invalid);
        }
        upstream.ssl = context.as_ptr();
        upstream.ssl_session_reuse = 1;
        upstream.ssl_name = self.name;
        upstream.ssl_server_name = self.server_name;
        upstream.ssl_verify = self.verify;
        Ok(())
    }

    /// The file of certificates that a server's is verified against: the operator's, or the system's.
    fn authorities(&self, cf: &mut ngx_conf_t) -> Result<ngx_str_t, Invalid> {
        if self.trusted_certificate.len > 0 {
            return Ok(self.trusted_certificate);
        }
        // SAFETY: the names are static.
        let is_file =
            |name: &ngx_str_t| Path::new(OsStr::from_bytes(unsafe { bytes(name) })).is_file();
        match SYSTEM_AUTHORITIES.into_iter().find(is_file) {
            Some(name) => Ok(name),
            None => {
                emerg!(
                    cf,
                    "no \"matrix_user_hash_ssl_trusted_certificate\" for \"matrix_user_hash_ssl_verify on\", and the \
                     system has no list of authorities (package ca-certificates)"
                );
                Err(Invalid)
            }
        }
    }
}

/// Says whose value it is that nginx has just refused without naming the directive.
fn blame(cf: &mut ngx_conf_t, directive: &str, value: &ngx_str_t) -> Invalid {
    // SAFETY: the value of a directive, or static.
    let value = String::from_utf8_lossy(unsafe { bytes(value) });
    emerg!(
        cf,
        "invalid value \"{value}\" in \"{directive}\" directive, see the line before"
    );
    Invalid
}

/// Reads `matrix_user_hash_ssl_protocols`.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(crate) unsafe extern "C" fn protocols(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments; `conf` is a block of ours.
    let mask = unsafe { &mut (*conf.cast::<LocationConf>()).ssl.protocols };
    slot::mask(cf, &PROTOCOLS, 0, mask)
}
