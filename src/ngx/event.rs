//! Timers and posted events of our own.
//!
//! nginx's events belong to connections; a [`Timer`] is one that belongs to anything. It can wait for a time, be posted
//! to run at the end of this turn of the event loop, or both, and it takes itself away when dropped.

use core::ffi::c_void;
use core::ptr;
use nginx_sys::{
    ngx_add_timer, ngx_del_timer, ngx_delete_posted_event, ngx_event_t, ngx_log_t, ngx_msec_t,
};

use crate::ngx::memory;

/// What `ngx_event_t.data` points to. nginx's debug log reads the descriptor of an `ngx_connection_t` there
/// (`ngx_event_ident`): the fourth word.
#[repr(C)]
struct Ident {
    unused: [usize; 3],
    fd: isize,
}

static IDENT: Ident = Ident {
    unused: [0; 3],
    fd: -1,
};

/// Why a timer calls its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// The time is up.
    Timeout,
    /// It was posted.
    Posted,
}

/// The function that a timer calls, with the timer's subject.
pub(crate) type Callback = unsafe fn(*mut c_void, WakeReason);

/// The event, and behind it what it calls; nginx links the event into its tree and queue, so it never moves.
#[repr(C)]
struct Inner {
    event: ngx_event_t,
    call: Callback,
    subject: *mut c_void,
}

/// An event that calls a function with a subject.
pub(crate) struct Timer(*mut Inner);

impl Timer {
    /// A timer that is not set; `None` without memory. `cancelable`: a worker process that shuts down does not wait for it.
    ///
    /// # Safety
    ///
    /// `log` outlives the timer. `call` may be called with `subject` until the timer is dropped; it must not unwind,
    /// and it may drop the timer.
    pub(crate) unsafe fn new(
        log: *mut ngx_log_t,
        cancelable: bool,
        call: Callback,
        subject: *mut c_void,
    ) -> Option<Self> {
        // SAFETY: an event of zeros is what nginx makes with ngx_pcalloc: nothing set, nothing linked.
        let mut event: ngx_event_t = unsafe { core::mem::zeroed() };
        event.data = ptr::from_ref(&IDENT).cast_mut().cast();
        event.handler = Some(handle);
        event.log = log;
        event.set_cancelable(cancelable.into());
        let inner = memory::boxed(Inner {
            event,
            call,
            subject,
        })?;
        Some(Self(Box::into_raw(inner)))
    }

    fn event(&self) -> *mut ngx_event_t {
        // SAFETY: the box lives until `drop`.
        unsafe { &raw mut (*self.0).event }
    }

    /// Calls its function in `milliseconds`, unless it is set already.
    pub(crate) fn set(&self, milliseconds: ngx_msec_t) {
        // SAFETY: the event lives until `drop`, which takes it out of the tree.
        unsafe {
            if (*self.event()).timer_set() == 0 {
                ngx_add_timer(self.event(), milliseconds);
            }
        }
    }

    /// Calls its function in `milliseconds`, whatever it was set to.
    pub(crate) fn reset(&self, milliseconds: ngx_msec_t) {
        self.unset();
        self.set(milliseconds);
    }

    /// Does not call its function when the time is up.
    pub(crate) fn unset(&self) {
        // SAFETY: the event lives until `drop`, and is in the tree when `timer_set` says so.
        unsafe {
            if (*self.event()).timer_set() != 0 {
                ngx_del_timer(self.event());
            }
        }
    }

    /// Has the debug lines about it go to another log, which outlives it.
    pub(crate) fn relog(&self, log: *mut ngx_log_t) {
        // SAFETY: the event lives until `drop`.
        unsafe { (*self.event()).log = log }
    }

    /// Calls its function once more in this turn of the event loop, after the callbacks that are running.
    pub(crate) fn post(&self) {
        // SAFETY: the event lives until `drop`, which takes it out of the queue.
        unsafe { nginx_sys::ngx_post_event(self.event(), &raw mut nginx_sys::ngx_posted_events) }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.unset();
        // SAFETY: the event is in the queue when `posted` says so; the box is ours, and nobody else has it now.
        unsafe {
            if (*self.event()).posted() != 0 {
                ngx_delete_posted_event(self.event());
            }
            drop(Box::from_raw(self.0));
        }
    }
}

/// nginx's event handler of every timer.
unsafe extern "C" fn handle(event: *mut ngx_event_t) {
    // SAFETY: the event is the first field of an `Inner` that lives: a dropped one is in no tree and no queue.
    let inner = unsafe { &mut *event.cast::<Inner>() };
    let reason = match inner.event.timedout() {
        0 => WakeReason::Posted,
        _ => WakeReason::Timeout,
    };
    inner.event.set_timedout(0);
    // Copied out first, since the call may drop the timer.
    let (call, subject) = (inner.call, inner.subject);
    // SAFETY: whoever made the timer vouches for the call until it is dropped.
    unsafe { call(subject, reason) }
}
