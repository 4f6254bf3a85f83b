//! Processes: this one, and whether another one lives.

/// This worker process: its number, and its process id.
pub(crate) fn this() -> (usize, u32) {
    // SAFETY: nginx sets both before a worker process serves requests.
    let (number, pid) = unsafe { (nginx_sys::ngx_worker, nginx_sys::ngx_pid) };
    (number, u32::try_from(pid).unwrap_or(1))
}

/// Whether a process exists, whoever's it is.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else {
        return false;
    };
    // SAFETY: signal 0 is sent to nobody; it only asks (kill(2)).
    let missing = unsafe { libc::kill(pid, 0) } != 0
        && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    !missing
}

/// Whether this worker process is shutting down, gracefully or not.
pub(crate) fn is_exiting() -> bool {
    // SAFETY: nginx's signal handling sets it, in this one thread (ngx_worker_process_cycle).
    unsafe { nginx_sys::ngx_exiting != 0 }
}

/// Whether this worker process ends at once.
pub(crate) fn is_terminating() -> bool {
    // SAFETY: nginx's signal handler sets it; it is a word that is read whole.
    unsafe { nginx_sys::ngx_terminate != 0 }
}
