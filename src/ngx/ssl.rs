//! The TLS context of an upstream's connections.

use core::ptr;

use nginx_sys::{
    ngx_conf_t, ngx_int_t, ngx_pcalloc, ngx_pool_cleanup_add, ngx_ssl_ciphers, ngx_ssl_cleanup_ctx,
    ngx_ssl_client_session_cache, ngx_ssl_create, ngx_ssl_t, ngx_ssl_trusted_certificate,
    ngx_str_t, ngx_uint_t,
};
use ngx::core::Status;

use super::conf::Invalid;

const OK: ngx_int_t = Status::NGX_OK.0;

/// A context in the configuration's pool, which frees what OpenSSL has in it. It is made as ngx_http_proxy_set_ssl does.
pub(crate) struct Context(*mut ngx_ssl_t);

impl Context {
    /// A context for these protocols.
    ///
    /// # Errors
    ///
    /// There is no memory, or OpenSSL refused, which has been logged.
    pub(crate) fn create(cf: &ngx_conf_t, protocols: ngx_uint_t) -> Result<Self, Invalid> {
        // SAFETY: the pool is that of the configuration that nginx is reading.
        let ssl = unsafe { ngx_pcalloc(cf.pool, size_of::<ngx_ssl_t>()).cast::<ngx_ssl_t>() };
        if ssl.is_null() {
            return Err(Invalid);
        }
        // SAFETY: it is new, and zeroed as nginx wants it.
        unsafe {
            (*ssl).log = cf.log;
            if ngx_ssl_create(ssl, protocols, ptr::null_mut()) != OK {
                return Err(Invalid);
            }
        }
        // SAFETY: the cleanup is allocated from the pool; without it, the context is cleaned up at once.
        unsafe {
            let Some(cleanup) = ngx_pool_cleanup_add(cf.pool, 0).as_mut() else {
                ngx_ssl_cleanup_ctx(ssl.cast());
                return Err(Invalid);
            };
            cleanup.handler = Some(ngx_ssl_cleanup_ctx);
            cleanup.data = ssl.cast();
        }
        Ok(Self(ssl))
    }

    /// Sets the list of ciphers. False if it is wrong, which has been logged.
    pub(crate) fn set_ciphers(&self, cf: &mut ngx_conf_t, ciphers: &mut ngx_str_t) -> bool {
        // SAFETY: `create` made the context; nginx only reads the list.
        unsafe { ngx_ssl_ciphers(cf, self.0, ciphers, 0) == OK }
    }

    /// Trusts the certificates in a file, up to that many behind one. False if the file is wrong, which has been logged.
    pub(crate) fn trust(
        &self,
        cf: &mut ngx_conf_t,
        file: &mut ngx_str_t,
        depth: ngx_int_t,
    ) -> bool {
        // SAFETY: `create` made the context; nginx completes the file's name in the configuration's pool.
        unsafe { ngx_ssl_trusted_certificate(cf, self.0, file, depth) == OK }
    }

    /// Lets sessions be used again. False if that failed, which has been logged.
    pub(crate) fn keep_sessions(&self, cf: &mut ngx_conf_t) -> bool {
        // SAFETY: `create` made the context.
        unsafe { ngx_ssl_client_session_cache(cf, self.0, 1) == OK }
    }

    /// For the configuration of an upstream.
    pub(crate) fn as_ptr(&self) -> *mut ngx_ssl_t {
        self.0
    }
}
