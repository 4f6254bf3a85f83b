//! The fence at the border: no panic leaves Rust.
//!
//! nginx's callbacks are C; unwinding into them aborts the worker process with all its connections. Each of our
//! callbacks runs inside [`guard`]: a panic becomes one log line and the value that means "go on without us".

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};

use crate::ngx::log;

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
