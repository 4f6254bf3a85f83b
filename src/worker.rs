//! Carries out what the engine decides: lookups are sent, requests woken, timers set and lines logged.
//!
//! Nothing here calls nginx while the engine is borrowed: a lookup may end before its start has returned.

use core::ffi::c_void;
use core::ptr::NonNull;

use matrix_user_hash_core::engine::{
    Client, Command, Ended, Event, Job, Joined, Outcome, Question,
};
use matrix_user_hash_core::metrics::Counter;
use matrix_user_hash_core::whoami::{FailureKind, LookupError};

use crate::location::Location;
use crate::lookup::{self, Unsent};
use crate::ngx::event::WakeReason;
use crate::ngx::request::Request;
use crate::ngx::{guard, log};
use crate::process_state::Handle;
use crate::waiter::{Callbacks, Waiter};
use crate::zone::{SharedZone, now};

/// What nginx calls for a waiting request.
pub(crate) static CALLBACKS: Callbacks = Callbacks {
    woken: resumed,
    abandoned,
};

/// Lets a request wait for the answer to `question`, and sends a lookup if nobody has. False without memory to wait in.
pub(crate) fn ask(request: Request, location: &Location, question: Question) -> bool {
    let is_new = Waiter::of(request, &CALLBACKS).is_none();
    let Some(mut waiter) = waiter_of(request, location, question) else {
        return false;
    };
    // SAFETY: it lives, and nothing else refers to it now.
    let waiter = unsafe { waiter.as_mut() };
    if waiter.outcome.is_some() {
        return true;
    }
    let (ask, zone) = (waiter.ask(), location.zone);
    let joined = zone.with_process(|process| {
        let subject = core::ptr::from_ref(zone).cast_mut().cast();
        // SAFETY: the zone lives as long as the cycle, and its timer no longer; `polled` guards itself.
        let can_poll = unsafe { process.make_poll(polled, subject) };
        can_poll.then(|| process.engine.join(&ask, now()).ok())?
    });
    match joined.flatten() {
        None => {
            if is_new {
                discard(request);
            }
            return false;
        }
        Some(Joined::Settled(outcome)) => waiter.deliver(outcome),
        Some(Joined::Waits(slot, waits_for)) => {
            log::debug!(
                request.log(),
                "matrix_user_hash: waits for {waits_for}, at most {} ms",
                ask.deadline.since(now())
            );
            waiter.slot = Some(slot);
        }
    }
    carry_out(zone);
    true
}

/// Parks a request, and gives its waiter: the one that it has already, whose time goes on, or a new one. `None` without
/// memory.
fn waiter_of(request: Request, location: &Location, question: Question) -> Option<NonNull<Waiter>> {
    let waiter = match Waiter::of(request, &CALLBACKS) {
        Some(mut waiter) => {
            // SAFETY: it lives, and nothing else refers to it now.
            unsafe { waiter.as_mut() }.ask_again(question);
            waiter
        }
        None => Waiter::create(request, location, question, &CALLBACKS)?,
    };
    request.park();
    Some(waiter)
}

/// Frees what a request waited with, if it did.
pub(crate) fn discard(request: Request) {
    if let Some(waiter) = Waiter::of(request, &CALLBACKS) {
        // SAFETY: it lives, and nothing refers to it but its flight.
        let was_parked = unsafe {
            let was_parked = waiter.as_ref().is_parked();
            Waiter::free(waiter);
            was_parked
        };
        if was_parked {
            request.unpark();
        }
    }
}

/// Refreshes what is stale in the background, if it can be done at once; if not, the next request tries again.
pub(crate) fn refresh(request: Request, location: &Location, question: Question) {
    let (terms, client) = (location.conf.terms(), Client::of_address(request.address()));
    let job = location
        .zone
        .with_process(|process| process.engine.refresh(question, &terms, client, now()));
    if let Some(Some(job)) = job {
        send(request, location, job);
    }
    carry_out(location.zone);
}

/// Carries out all that is to be done.
fn carry_out(zone: &'static SharedZone) {
    while let Some(Some(command)) = zone.with_process(|process| process.engine.next_command()) {
        match command {
            Command::Send(job, waiter) => send_for(zone, job, waiter),
            Command::Wake(waiter, outcome) => wake(waiter, outcome),
            Command::PollIn(milliseconds) => {
                zone.with_process(|process| process.poll_in(milliseconds));
            }
            Command::Log(event) => say(zone, event),
        }
    }
}

fn wake(waiter: Handle, outcome: Outcome) {
    // SAFETY: a waiter leaves its slot before it is freed, and takes its commands with it.
    unsafe { waiter.cast::<Waiter>().as_mut() }.deliver(outcome);
}

/// Sends a lookup for a request that waits, if that still asks the same.
fn send_for(zone: &'static SharedZone, job: Job, handle: Handle) {
    // SAFETY: a waiter leaves its slot before it is freed, and takes its commands with it.
    let waiter = unsafe { handle.cast::<Waiter>().as_mut() };
    if !waiter.is_parked() {
        // It was sent elsewhere (`post_action`), where it may have other arguments.
        let slot = waiter.slot.take();
        zone.with_process(|process| process.engine.give_back(job, slot, handle, now()));
        return;
    }
    match lookup::send(waiter.request, &waiter.location, job, done) {
        Ok(()) => {}
        Err(Unsent::NoMemory(job)) => not_sent(&waiter.location, job),
        Err(Unsent::Changed(job)) => {
            // It keeps the number of its slot until it is woken: so it takes that command with it if it leaves before.
            let slot = waiter.slot;
            zone.with_process(|process| process.engine.reject(job, slot, handle, now()));
        }
    }
}

/// Sends a lookup in the background, with what the request gives to build it from.
fn send(request: Request, location: &Location, job: Job) {
    if let Err(Unsent::NoMemory(job) | Unsent::Changed(job)) =
        lookup::send(request, location, job, done)
    {
        not_sent(location, job);
    }
}

/// There was no memory for a lookup.
fn not_sent(location: &Location, job: Job) {
    let ended = Ended {
        result: Err(LookupError::Failed(FailureKind::Local)),
        micros: 0,
        is_fair: true,
    };
    done(location, job, &ended);
}

/// A lookup of ours has ended.
fn done(location: &Location, job: Job, ended: &Ended) {
    let zone = location.zone;
    zone.with_process(|process| process.engine.done(job, ended, now()));
    carry_out(zone);
}

/// The timer of a worker process's poll; posted, when a lookup has made room.
unsafe fn polled(subject: *mut c_void, _why: WakeReason) {
    guard::guard((), || {
        // SAFETY: the zone lives as long as the cycle, and its timer no longer.
        let zone: &'static SharedZone = unsafe { &*subject.cast::<SharedZone>() };
        zone.with_process(|process| process.engine.poll(now()));
        carry_out(zone);
    });
}

/// The timer of a waiting request: its time is up, or it has an outcome.
unsafe fn resumed(subject: *mut c_void, why: WakeReason) {
    guard::guard((), || {
        // SAFETY: the timer is dropped with its waiter.
        let waiter = unsafe { &mut *subject.cast::<Waiter>() };
        let zone = waiter.location.zone;
        if waiter.outcome.is_none() {
            if why == WakeReason::Posted {
                return;
            }
            waiter.give_up();
        }
        let request = waiter.request;
        if waiter.is_parked() {
            log::debug!(
                request.log(),
                "matrix_user_hash: goes on after {} ms: {}",
                waiter.held(),
                waiter.end()
            );
            request.resume();
        } else {
            // It was sent elsewhere meanwhile (`post_action`, after its client has left), and must not be sent on from there.
            discard(request);
        }
        carry_out(zone);
    });
}

/// The cleanup of a request that was waiting: its client went away.
unsafe extern "C" fn abandoned(data: *mut c_void) {
    guard::guard((), || {
        let Some(waiter) = NonNull::new(data.cast::<Waiter>()) else {
            return;
        };
        // SAFETY: `discard` would have taken this handler back, so the waiter lives; nginx frees the request next.
        let zone = unsafe { waiter.as_ref() }.location.zone;
        zone.with_process(|process| process.engine.count(Counter::Abandoned));
        // SAFETY: as above; nothing but its flight and its request refers to it.
        unsafe { Waiter::free(waiter) };
        carry_out(zone);
    });
}

/// Tells the operator.
fn say(zone: &SharedZone, event: Event) {
    let (log, name) = (log::cycle_log(), &zone.name);
    match event {
        Event::Suspended => log::error!(
            log,
            "matrix_user_hash: whoami fails repeatedly, zone \"{name}\" asks less often until it answers"
        ),
        Event::Resumed => {
            log::notice!(
                log,
                "matrix_user_hash: whoami answers again, zone \"{name}\""
            );
        }
        Event::ZoneSmall => log::notice!(
            log,
            "matrix_user_hash: zone \"{name}\" is full and evicts tokens in use, enlarge it"
        ),
        Event::Overloaded { limit } => log::warning!(
            log,
            "matrix_user_hash: zone \"{name}\": {limit} lookups are in flight and requests go on without a place; whoami is \
             slow, or matrix_user_hash_max_lookups is low"
        ),
    }
}
