//! One place for logging: macros with nginx's level names over those of the `ngx` crate.
//!
//! No line that passes here holds a token, a part of one, or bytes of a whoami answer.

/// Logs a mistake in the configuration, with file and line, as nginx does.
macro_rules! emerg {
    ( $cf:expr, $($arg:tt)+ ) => { ::ngx::ngx_conf_log_error!(::nginx_sys::NGX_LOG_EMERG, $cf, $($arg)+) };
}

/// Logs something in the configuration that works and is hardly meant, with file and line.
macro_rules! warn {
    ( $cf:expr, $($arg:tt)+ ) => { ::ngx::ngx_conf_log_error!(::nginx_sys::NGX_LOG_WARN, $cf, $($arg)+) };
}

/// Logs something that should not be possible.
macro_rules! alert {
    ( $log:expr, $($arg:tt)+ ) => { $crate::ngx::log::at!(::nginx_sys::NGX_LOG_ALERT, $log, $($arg)+) };
}

/// Logs something that the operator should mend.
macro_rules! error {
    ( $log:expr, $($arg:tt)+ ) => { $crate::ngx::log::at!(::nginx_sys::NGX_LOG_ERR, $log, $($arg)+) };
}

/// Logs something that the operator should look at.
macro_rules! warning {
    ( $log:expr, $($arg:tt)+ ) => { $crate::ngx::log::at!(::nginx_sys::NGX_LOG_WARN, $log, $($arg)+) };
}

/// Logs something normal that is worth a line.
macro_rules! notice {
    ( $log:expr, $($arg:tt)+ ) => { $crate::ngx::log::at!(::nginx_sys::NGX_LOG_NOTICE, $log, $($arg)+) };
}

/// Logs for someone who follows one request; present only where nginx has `--with-debug`.
macro_rules! debug {
    ( $log:expr, $($arg:tt)+ ) => {{
        // SAFETY: the log of a live connection, request or cycle.
        #[allow(unused_unsafe, reason = "the macro of `ngx` has its own block in some arms")]
        unsafe { ::ngx::ngx_log_debug!(mask: ::ngx::log::DebugMask::Http, $log, $($arg)+); }
    }};
}

/// Logs at a level, if the log takes it.
macro_rules! at {
    ( $level:expr, $log:expr, $($arg:tt)+ ) => {{
        // SAFETY: the log of a live connection, request or cycle.
        #[allow(unused_unsafe, reason = "the macro of `ngx` has its own block in some arms")]
        unsafe { ::ngx::ngx_log_error!($level, $log, $($arg)+); }
    }};
}

#[allow(
    unused_imports,
    reason = "each macro is used where its level is needed"
)]
pub(crate) use {alert, at, debug, emerg, error, notice, warning};

/// The log of the current cycle, for what belongs to no request.
pub(crate) fn cycle_log() -> *mut nginx_sys::ngx_log_t {
    ngx::log::ngx_cycle_log().as_ptr()
}
