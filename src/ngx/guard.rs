//! The fence at the border: no panic leaves Rust.
//!
//! nginx's callbacks are C; unwinding into them aborts the worker process with all its connections. Each of our
//! callbacks runs inside [`guard`]: a panic becomes one log line and the value that means "go on without us".

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};

use crate::ngx::{log, reserve};

thread_local! {
    /// Where the last panic began; the hook writes it, [`guard_or`] reads it.
    static ORIGIN: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `body`; if it panics, logs where and returns what `fallback` gives.
pub(crate) fn guard_or<T>(fallback: impl FnOnce() -> T, body: impl FnOnce() -> T) -> T {
    match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(_) => {
            let origin = ORIGIN.take();
            log::alert!(
                log::cycle_log(),
                "matrix_user_hash: panic at {origin}, going on by the fallback"
            );
            fallback()
        }
    }
}

/// Runs `body`; if it panics, logs where and returns `fallback`.
pub(crate) fn guard<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    guard_or(|| fallback, body)
}

/// As [`guard`], for what reads or makes a configuration. Without memory it fails, and so does that configuration: a reload leaves
/// the process as it is, where an abort of the master process would leave its workers without one.
pub(crate) fn configuring<T>(failed: T, body: impl FnOnce() -> T) -> T {
    let taken = reserve::taken();
    let made = reserve::within(|| guard_or(|| None, || Some(body())));
    match made {
        Some(made) if reserve::taken() == taken => made,
        None => failed,
        Some(_) => {
            log::at!(
                nginx_sys::NGX_LOG_EMERG,
                log::cycle_log(),
                "matrix_user_hash: there is no memory for the configuration"
            );
            failed
        }
    }
}

/// Keeps the place of a panic for the log line, instead of the standard library's message on stderr.
///
/// The payload is dropped unread: it could quote bytes of a request.
pub(crate) fn install_hook() {
    panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map(|l| format!("{}:{}", l.file(), l.line()));
        ORIGIN.replace(place.unwrap_or_default());
    }));
}
