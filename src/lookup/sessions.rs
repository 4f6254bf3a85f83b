//! TLS sessions of lookups, and what went wrong with TLS.
//!
//! nginx keeps one session for each server of a group, whoever had it. One that an unverified `proxy_pass` had says, when it
//! is resumed, that its certificate was not verified, and so fails every lookup. One that a lookup had would vouch for
//! requests with other rules. So lookups have their own, in each worker process for each set of directives.

use core::cell::RefCell;
use core::ffi::CStr;

use nginx_sys::{
    SSL_SESSION, SSL_SESSION_free, SSL_get_verify_result, X509_verify_cert_error_string,
    ngx_connection_t, ngx_http_upstream_t, ngx_int_t, ngx_ssl_get_session, ngx_ssl_set_session,
};
use ngx::core::Status;

use super::address::Address;
use crate::ngx::upstream as ngx_upstream;

/// For how many servers a session is kept; the oldest goes.
const MOST: usize = 16;

/// A certificate that was verified (`X509_V_OK`).
const VERIFIED: core::ffi::c_long = 0;

/// The sessions.
#[derive(Default)]
pub(super) struct Sessions(RefCell<Vec<(Address, Session)>>);

/// A session that is ours.
struct Session(*mut SSL_SESSION);

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: `ngx_ssl_get_session` counted a reference for us.
        unsafe { SSL_SESSION_free(self.0) }
    }
}

impl Sessions {
    /// Has a new connection offer the last session with `server`, if there is one.
    ///
    /// # Safety
    ///
    /// TLS begins on the connection.
    pub(super) unsafe fn offer(
        &self,
        server: &Address,
        connection: *mut ngx_connection_t,
    ) -> ngx_int_t {
        let sessions = self.0.borrow();
        match sessions.iter().find(|(address, _)| address == server) {
            // SAFETY: the caller's; OpenSSL counts a reference of its own.
            Some((_, session)) => unsafe { ngx_ssl_set_session(connection, session.0) },
            None => Status::NGX_OK.0,
        }
    }

    /// Keeps the session of a connection for the next one.
    ///
    /// # Safety
    ///
    /// The connection has TLS.
    pub(super) unsafe fn keep(&self, server: Address, connection: *mut ngx_connection_t) {
        // SAFETY: the caller's; the result is NULL, or a reference that is ours.
        let session = unsafe { ngx_ssl_get_session(connection) };
        if session.is_null() {
            return;
        }
        let session = Session(session);
        self.forget(&server);
        let mut sessions = self.0.borrow_mut();
        if sessions.len() == MOST {
            sessions.remove(0);
        }
        if sessions.try_reserve(1).is_ok() {
            sessions.push((server, session));
        }
    }

    /// Offers no session with `server` any more.
    pub(super) fn forget(&self, server: &Address) {
        self.0.borrow_mut().retain(|(address, _)| address != server);
    }
}

/// Why no request could be sent on a connection to which TLS belongs; `None` if TLS is not why.
pub(super) fn error_of(upstream: &ngx_http_upstream_t) -> Option<TlsError> {
    let connection = ngx_upstream::connection(upstream)?;
    // SAFETY: an open connection with TLS has this structure, and a session of OpenSSL's in it.
    let (has_handshaked, verified) = unsafe {
        let tls = (*connection.as_ptr()).ssl.as_ref()?;
        (tls.handshaked() != 0, SSL_get_verify_result(tls.connection))
    };
    Some(if connection.read_timed_out() {
        TlsError::Slow
    } else if !has_handshaked {
        TlsError::Handshake
    } else if verified == VERIFIED {
        TlsError::Name
    } else {
        // SAFETY: OpenSSL has a static text for each number.
        TlsError::Certificate(unsafe { CStr::from_ptr(X509_verify_cert_error_string(verified)) })
    })
}

/// What was wrong with TLS.
#[derive(Clone, Copy, Debug)]
pub(super) enum TlsError {
    /// The handshake took too long.
    Slow,
    /// There was no handshake: no TLS there, or no protocol or cipher in common.
    Handshake,
    /// The certificate is for another name.
    Name,
    /// The certificate is not to be trusted, and why.
    Certificate(&'static CStr),
}

impl core::fmt::Display for TlsError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Slow => f.write_str("the TLS handshake took too long"),
            Self::Handshake => f.write_str("the TLS handshake failed"),
            Self::Name => f.write_str(
                "its certificate is for another name than the one in \"matrix_user_hash_ssl_name\" or in the URL",
            ),
            Self::Certificate(why) => write!(
                f,
                "its certificate cannot be trusted: {}",
                why.to_string_lossy()
            ),
        }
    }
}
