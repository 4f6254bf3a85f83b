//! One place for logging: macros with nginx's level names.
//!
//! Those of the crate `ngx` call `ngx_log_error_core` as nginx declares it. Angie 1.12 declares it otherwise, so lines go
//! through [`compat::log_line`].
//!
//! No line that passes here holds a token, a part of one, or bytes of a whoami answer.

use core::fmt;
use core::mem::MaybeUninit;

use nginx_sys::{ngx_log_t, ngx_uint_t};

use crate::ngx::compat::{self, LogForm};

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
        let log: *mut ::nginx_sys::ngx_log_t = $log;
        // SAFETY: the log of a live connection, request or cycle.
        #[allow(unused_unsafe, reason = "some callers have a block of their own")]
        unsafe {
            if ::ngx::log::DEBUG && (*log).log_level & ::nginx_sys::NGX_LOG_DEBUG_HTTP as usize != 0 {
                $crate::ngx::log::write($crate::ngx::compat::LogForm::OURS, ::nginx_sys::NGX_LOG_DEBUG as usize, log, format_args!($($arg)+));
            }
        }
    }};
}

/// Logs at a level, if the log takes it.
macro_rules! at {
    ( $level:expr, $log:expr, $($arg:tt)+ ) => {{
        let log: *mut ::nginx_sys::ngx_log_t = $log;
        let level = $level as usize;
        // SAFETY: the log of a live connection, request or cycle.
        #[allow(unused_unsafe, reason = "some callers have a block of their own")]
        unsafe {
            if level <= (*log).log_level {
                $crate::ngx::log::write($crate::ngx::compat::LogForm::OURS, level, log, format_args!($($arg)+));
            }
        }
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

/// Writes a line, whatever level the log takes. It is cut where nginx cuts its own.
///
/// # Safety
///
/// The log is that of a live connection, request or cycle, and the form is the server's.
#[cold]
pub(crate) unsafe fn write(
    form: LogForm,
    level: ngx_uint_t,
    log: *mut ngx_log_t,
    line: fmt::Arguments<'_>,
) {
    let mut room = [const { MaybeUninit::<u8>::uninit() }; ngx::log::LOG_BUFFER_SIZE];
    let line = ngx::log::write_fmt(&mut room, line);
    // SAFETY: the caller's.
    unsafe { compat::log_line(form, level, log, line) }
}
