//! A request that waits for an answer.
//!
//! It has a slot in the flight of its key, a timer for its own deadline, and a cleanup handler for the case that its
//! client goes away. Its outcome is put here and its timer posted; the phase takes it from there. All of it is freed as
//! soon as the request goes on: a long poll behind us should hold nothing that the lookup needed.

use core::ffi::c_void;
use core::fmt;
use core::ptr::NonNull;

use matrix_user_hash_core::engine::{Ask, Client, Outcome, Question, WaitsFor};
use matrix_user_hash_core::time::Millis;
use nginx_sys::ngx_http_cleanup_t;

use crate::location::Location;
use crate::ngx::event::{Callback, Timer};
use crate::ngx::memory;
use crate::ngx::request::{Place, Request};
use crate::process_state::Handle;
use crate::zone::now;

/// What is called for a waiting request, with its waiter.
pub(crate) struct Callbacks {
    /// Its time is up, or it has an outcome.
    pub woken: Callback,
    /// Its client has left.
    pub abandoned: unsafe extern "C" fn(*mut c_void),
}

/// What ended a wait.
pub(crate) struct End(Option<Outcome>);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("nothing"),
            Some(outcome) if outcome == Outcome::TIME_IS_UP => f.write_str("its time is up"),
            Some(outcome) => match outcome.result {
                Ok(_) => write!(f, "the user is known, {}", outcome.status.as_str()),
                Err(error) => error.fmt(f),
            },
        }
    }
}

/// A waiting request.
pub(crate) struct Waiter {
    /// Who waits.
    pub request: Request,
    /// Where it asked.
    pub location: Location,
    /// What it asks.
    pub question: Question,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// Its slot in the flight of its key.
    pub slot: Option<usize>,
    since: Millis,
    /// Where in its phases the request was parked.
    place: Place,
    timer: Option<Timer>,
    cleanup: NonNull<ngx_http_cleanup_t>,
}

impl Waiter {
    /// The waiter of a request, if it waits. It is found by its cleanup handler and not in the request's context, which
    /// internal redirects clear (ngx_http_internal_redirect): also that of `post_action` after a client has left.
    pub(crate) fn of(request: Request, callbacks: &Callbacks) -> Option<NonNull<Self>> {
        Some(request.subject_of(callbacks.abandoned)?.cast())
    }

    /// Makes a request wait for the answer to `question`. `None` without memory.
    pub(crate) fn create(
        request: Request,
        location: &Location,
        question: Question,
        callbacks: &Callbacks,
    ) -> Option<NonNull<Self>> {
        let cleanup = request.add_cleanup()?;
        let waiter = memory::boxed(Self {
            request,
            location: *location,
            question,
            outcome: None,
            slot: None,
            since: now(),
            place: request.place(),
            timer: None,
            cleanup,
        })?;
        let waiter = NonNull::from(Box::leak(waiter));
        // SAFETY: the connection's log outlives its request, and the timer is dropped with the waiter.
        let timer = unsafe {
            Timer::new(
                request.log(),
                false,
                callbacks.woken,
                waiter.as_ptr().cast(),
            )
        };
        let Some(timer) = timer else {
            // SAFETY: nothing else refers to the box.
            drop(unsafe { Box::from_raw(waiter.as_ptr()) });
            return None;
        };
        timer.set(location.conf.timeout);
        // SAFETY: nothing else refers to the box, and the new cleanup entry is ours to set.
        unsafe {
            (*waiter.as_ptr()).timer = Some(timer);
            (*cleanup.as_ptr()).data = waiter.as_ptr().cast();
            (*cleanup.as_ptr()).handler = Some(callbacks.abandoned);
        }
        Some(waiter)
    }

    /// A second question, for which the time that is left must do.
    pub(crate) fn ask_again(&mut self, question: Question) {
        self.question = question;
        match self.deadline().since(now()) {
            0 => self.deliver(Outcome::TIME_IS_UP),
            left => {
                if let Some(timer) = &self.timer {
                    timer.set(usize::try_from(left).unwrap_or(usize::MAX));
                }
            }
        }
    }

    /// What the engine is asked.
    pub(crate) fn ask(&mut self) -> Ask<Handle> {
        Ask {
            waiter: self.handle(),
            question: self.question,
            terms: self.location.conf.terms(),
            client: Client::of_address(self.request.address()),
            deadline: self.deadline(),
        }
    }

    fn handle(&mut self) -> Handle {
        NonNull::from(self).cast()
    }

    /// Whether the request still is where it was parked, and nothing else has taken it on.
    pub(crate) fn is_parked(&self) -> bool {
        self.request.place() == self.place
    }

    /// Tells the request what came of its question; it goes on in this turn of the event loop.
    pub(crate) fn deliver(&mut self, outcome: Outcome) {
        self.slot = None;
        if self.outcome.is_none() {
            self.outcome = Some(outcome);
            if let Some(timer) = &self.timer {
                timer.post();
            }
        }
    }

    /// For how long it has waited, in milliseconds.
    pub(crate) fn held(&self) -> u64 {
        now().since(self.since)
    }

    /// What ended its wait, for the debug log.
    pub(crate) fn end(&self) -> End {
        End(self.outcome)
    }

    /// When its own time is up.
    fn deadline(&self) -> Millis {
        self.since.plus(self.location.conf.terms().timeout)
    }

    /// Gives its slot back, if it has one; tells what it waited for.
    pub(crate) fn leave(&mut self) -> Option<WaitsFor> {
        let (key, handle, slot) = (*self.question.key(), self.handle(), self.slot.take()?);
        let zone = self.location.zone;
        zone.with_process(|process| process.engine.leave(&key, slot, handle, now()))?
    }

    /// Its time is up.
    pub(crate) fn give_up(&mut self) {
        let (key, handle) = (*self.question.key(), self.handle());
        let limit = self.location.conf.terms().max_lookups;
        if let Some(slot) = self.slot.take() {
            let zone = self.location.zone;
            zone.with_process(|process| process.engine.give_up(&key, slot, handle, limit, now()));
        }
        self.outcome = Some(Outcome::TIME_IS_UP);
    }

    /// Frees a waiter. Its request goes on, or is freed next.
    ///
    /// # Safety
    ///
    /// It lives, and nothing refers to it any more but its flight and its request.
    pub(crate) unsafe fn free(waiter: NonNull<Self>) {
        // SAFETY: `create` made the box, and the cleanup entry lives as long as the request; the caller vouches for the
        // rest.
        let mut waiter = unsafe {
            (*waiter.as_ref().cleanup.as_ptr()).handler = None;
            Box::from_raw(waiter.as_ptr())
        };
        waiter.leave();
    }
}
