//! What one worker process keeps beside a zone.

use core::ffi::c_void;
use core::ptr::NonNull;

use matrix_user_hash_core::engine::Engine;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::time::Seconds;

use crate::ngx::event::{Callback, Timer};
use crate::ngx::log;
use crate::ngx::process;

/// How the engine names a waiting request: by its `Waiter`.
pub(crate) type Handle = NonNull<c_void>;

/// What one worker process keeps beside a zone.
pub struct ProcessState {
    /// What it decides.
    pub engine: Engine<'static, Handle, fn(u32) -> bool>,
    /// The timer of its poll, from the first request on that waits.
    poll: Option<Timer>,
}

impl ProcessState {
    /// For the worker process that first uses the zone.
    pub fn new(zone: Zone<'static>, inactive: Seconds) -> Self {
        let (number, pid) = process::this();
        Self {
            engine: Engine::new(zone, inactive, number, pid, process::is_alive),
            poll: None,
        }
    }

    /// Makes the timer of the poll, if there is none. False without memory.
    ///
    /// # Safety
    ///
    /// `call` may be called with `subject` as long as this lives, and does not unwind.
    pub unsafe fn make_poll(&mut self, call: Callback, subject: *mut c_void) -> bool {
        if self.poll.is_none() {
            // SAFETY: the cycle's log outlives the zone; the caller vouches for the rest.
            self.poll = unsafe { Timer::new(log::cycle_log(), true, call, subject) };
        }
        self.poll.is_some()
    }

    /// Has the poll run in that many milliseconds; 0: at the end of this turn of the event loop.
    pub fn poll_in(&self, milliseconds: u64) {
        match &self.poll {
            Some(poll) if milliseconds == 0 => poll.post(),
            Some(poll) => poll.reset(usize::try_from(milliseconds).unwrap_or(1)),
            None => {}
        }
    }
}
