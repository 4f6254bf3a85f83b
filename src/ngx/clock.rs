//! The clocks that nginx reads once in each turn of the event loop.

/// Milliseconds of CLOCK_MONOTONIC.
#[inline]
pub(crate) fn milliseconds() -> u64 {
    // SAFETY: nginx keeps it up to date in the one thread of a worker process (ngx_time_update).
    unsafe { nginx_sys::ngx_current_msec as u64 }
}

/// The time of day, in seconds.
pub(crate) fn unix_seconds() -> u64 {
    // SAFETY: nginx keeps its cached time up to date (ngx_time_update).
    u64::try_from(unsafe { (*nginx_sys::ngx_cached_time).sec }).unwrap_or(0)
}

/// The time of day, in milliseconds since 1970.
pub(crate) fn unix_milliseconds() -> u64 {
    // SAFETY: nginx keeps its cached time up to date (ngx_time_update).
    let (seconds, milliseconds) = unsafe {
        let time = &*nginx_sys::ngx_cached_time;
        (time.sec, time.msec)
    };
    u64::try_from(seconds).unwrap_or(0) * 1000 + milliseconds as u64
}
