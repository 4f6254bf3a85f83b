//! A request that waits for an answer.
//!
//! It has a seat in the flight of its key, an alarm for its own deadline, and a cleanup handler for the case that its
//! client goes away. Whoever has the outcome puts it here and rings the alarm; the phase takes it from there. All of
//! it is freed as soon as the request goes on: a long poll behind us should hold nothing that the lookup needed.

use core::ffi::c_void;
use core::ptr::NonNull;

use matrix_user_hash_core::metrics::Counter;
use matrix_user_hash_core::negative::Verdict;
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::user::UserHash;
use nginx_sys::ngx_http_cleanup_t;

use crate::ngx::event::{Alarm, Ring};
use crate::ngx::guard;
use crate::ngx::log;
use crate::ngx::memory;
use crate::ngx::request::{Place, Request};
use crate::phase::{Question, Site};
use crate::status::Status;
use crate::worker;
use crate::zone::now;

/// Whose a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The user.
    pub user: UserHash,
    /// Whether it may speak for others.
    pub masquerade: Masquerade,
}

/// What a request waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, and how this request came by it.
    User(Answer, Status),
    /// No answer.
    Verdict(Verdict),
    /// Its own time is up.
    TimeIsUp,
}

/// A waiting request.
pub struct Waiter {
    /// Who waits.
    pub request: Request,
    /// Where it asked.
    pub site: Site,
    /// What it asks.
    pub question: Question,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// Its seat in the flight of its key.
    pub seat: Option<usize>,
    since: Millis,
    /// Where in its phases the request was parked.
    place: Place,
    alarm: Option<Alarm>,
    cleanup: NonNull<ngx_http_cleanup_t>,
}

impl Waiter {
    /// The waiter of a request, if it waits. It is found by its cleanup handler and not in the request's context, which
    /// internal redirects clear (ngx_http_internal_redirect): also that of `post_action` after a client has left.
    pub fn of(request: Request) -> Option<NonNull<Self>> {
        Some(request.subject_of(abandoned)?.cast())
    }

    /// Makes a request wait for the answer to `question`, from the moment it first waited on. Nothing without memory.
    pub fn seat(request: Request, site: &Site, question: Question) -> Option<NonNull<Self>> {
        let waiter = match Self::of(request) {
            Some(mut waiter) => {
                // SAFETY: it lives, and nothing else refers to it now.
                unsafe { waiter.as_mut() }.ask_again(question);
                waiter
            }
            None => Self::create(request, site, question)?,
        };
        request.park();
        Some(waiter)
    }

    /// A second question, for which the time that is left must do.
    fn ask_again(&mut self, question: Question) {
        self.question = question;
        match self.deadline().since(now()) {
            0 => self.deliver(Outcome::TimeIsUp),
            left => {
                if let Some(alarm) = &self.alarm {
                    alarm.set(usize::try_from(left).unwrap_or(usize::MAX));
                }
            }
        }
    }

    /// Whether the request still is where it was parked, and nothing else has taken it on.
    pub fn is_parked(&self) -> bool {
        self.request.place() == self.place
    }

    fn create(request: Request, site: &Site, question: Question) -> Option<NonNull<Self>> {
        let cleanup = request.add_cleanup()?;
        let waiter = Box::into_raw(memory::boxed(Self {
            request,
            site: *site,
            question,
            outcome: None,
            seat: None,
            since: now(),
            place: request.place(),
            alarm: None,
            cleanup,
        })?);
        // SAFETY: the connection's log outlives its request, and the alarm is dropped with the waiter, which is a box of
        // ours. The new cleanup entry is ours to set.
        unsafe {
            let Some(alarm) = Alarm::new(request.log(), false, rung, waiter.cast()) else {
                drop(Box::from_raw(waiter));
                return None;
            };
            alarm.set(site.conf.timeout);
            (*waiter).alarm = Some(alarm);
            (*cleanup.as_ptr()).data = waiter.cast();
            (*cleanup.as_ptr()).handler = Some(abandoned);
        }
        NonNull::new(waiter)
    }

    /// Tells the request what came of its question; it goes on in this turn of the event loop.
    pub fn deliver(&mut self, outcome: Outcome) {
        self.seat = None;
        if self.outcome.is_none() {
            self.outcome = Some(outcome);
            if let Some(alarm) = &self.alarm {
                alarm.post();
            }
        }
    }

    /// For how long it has waited, in milliseconds.
    pub fn held(&self) -> u64 {
        now().since(self.since)
    }

    /// When its own time is up.
    pub fn deadline(&self) -> Millis {
        self.since.plus(self.site.conf.hold())
    }

    /// Frees what a request waited with, if it did.
    pub fn discard(request: Request) {
        if let Some(waiter) = Self::of(request) {
            // SAFETY: it lives, and nothing refers to it but its flight.
            let was_parked = unsafe {
                let was_parked = waiter.as_ref().is_parked();
                Self::free(waiter);
                was_parked
            };
            if was_parked {
                request.unpark();
            }
        }
    }

    /// # Safety
    ///
    /// It lives, and nothing refers to it any more but its flight and its request.
    unsafe fn free(waiter: NonNull<Self>) {
        // SAFETY: `create` made the box, and the cleanup entry lives as long as the request; the caller vouches for the
        // rest.
        let mut waiter = unsafe {
            (*waiter.as_ref().cleanup.as_ptr()).handler = None;
            Box::from_raw(waiter.as_ptr())
        };
        waiter.leave();
    }

    /// Gives its seat back, if it has one. True if it had not even had a turn.
    fn leave(&mut self) -> bool {
        let Some(seat) = self.seat.take() else {
            return false;
        };
        self.site
            .zone
            .with_local(|local| local.leave(self.question.key(), seat))
            .unwrap_or(false)
    }

    /// Its time is up.
    fn give_up(&mut self) {
        if self.leave() {
            worker::overloaded(&self.site);
        }
        self.outcome = Some(Outcome::TimeIsUp);
    }
}

/// The alarm of a waiting request: its time is up, or it has an outcome.
unsafe fn rung(subject: *mut c_void, why: Ring) {
    guard::guard((), || {
        // SAFETY: the alarm is dropped with its waiter.
        let waiter = unsafe { &mut *subject.cast::<Waiter>() };
        if waiter.outcome.is_none() {
            if why == Ring::Posted {
                return;
            }
            waiter.give_up();
        }
        let request = waiter.request;
        if !waiter.is_parked() {
            // It was sent elsewhere meanwhile (`post_action`, after its client has left), and must not be sent on from there.
            Waiter::discard(request);
            return;
        }
        log::debug!(
            request.log(),
            "matrix_user_hash: goes on after {} ms",
            waiter.held()
        );
        request.resume();
    });
}

/// The cleanup of a request that was waiting: its client went away.
unsafe extern "C" fn abandoned(data: *mut c_void) {
    guard::guard((), || {
        let Some(waiter) = NonNull::new(data.cast::<Waiter>()) else {
            return;
        };
        // SAFETY: `discard` would have taken this handler back, so the waiter lives; nginx frees the request next.
        unsafe {
            waiter
                .as_ref()
                .site
                .zone
                .with_local(|local| local.count(Counter::Abandoned));
            Waiter::free(waiter);
        }
    });
}
