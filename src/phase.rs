//! A request's life with us, from its arrival in the phase to its variables.
//!
//! ```text
//!             ┌ no token ────────────────────────────────────────────────┐
//!  arrival ───┤                                                          ├─→ resolved
//!             └ token ─→ known? ─ yes ─→ (masquerades? its user known?) ─┤
//!                          │ no                                          │
//!                          └─→ waiting ─→ answer, refusal or failure ────┘
//!                                 └────→ time is up, or the client left
//! ```
//!
//! The phase is PRECONTENT. It comes after access control and rate limits, so a request that is refused there costs no
//! lookup. With `matrix_user_hash_phase preaccess` it is PREACCESS, before the handlers of limits, so that these know the
//! user. The handler returns DECLINED when done, never OK, which would skip the other handlers of the phase (`try_files`
//! and `mirror`, or limits); AGAIN while waiting. Only the client's own request is resolved; its subrequests share the
//! result.

use core::ptr::NonNull;

use matrix_user_hash_core::engine::{Resolution, Step};
use matrix_user_hash_core::metrics::Counter;
use nginx_sys::{ngx_http_request_t, ngx_int_t};
use ngx::core::Status as Code;
use ngx::http::HttpModuleLocationConf;

use crate::Module;
use crate::conf::phase::Phase;
use crate::fault::{self, Place};
use crate::location::{Location, parts};
use crate::ngx::guard;
use crate::ngx::request::Request;
use crate::variables::{self, indexes};
use crate::waiter::Waiter;
use crate::worker;
use crate::zone::now;

/// nginx's handler in the phase in which all requests are resolved that are not yet.
pub(crate) unsafe extern "C" fn resolve(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes the live request.
    handle(unsafe { Request::from_ptr(r) })
}

/// nginx's handler in the PREACCESS phase, where some locations have `matrix_user_hash_phase preaccess` and others not.
pub(crate) unsafe extern "C" fn resolve_if_early(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes the live request, which has the configurations of its location.
    let (request, conf) = unsafe { (Request::from_ptr(r), Module::location_conf(&*r)) };
    match conf {
        Some(conf) if conf.phase == Phase::PreAccess => handle(request),
        _ => Code::NGX_DECLINED.0,
    }
}

fn handle(request: Request) -> ngx_int_t {
    const DECLINED: ngx_int_t = Code::NGX_DECLINED.0;
    guard::guard_or(|| after_panic(request), || run(request).unwrap_or(DECLINED))
}

/// The fallback of a request in whose handling we panicked.
#[cold]
fn after_panic(request: Request) -> ngx_int_t {
    guard::guard((), || {
        worker::discard(request);
        let Some(location) = Location::of(request) else {
            return;
        };
        let fallback = location.zone.with_process(|process| {
            process.engine.count(Counter::Panics);
            process.engine.fall_back(parts(request))
        });
        let resolution = fallback.unwrap_or(Resolution::ANONYMOUS);
        variables::write(request, indexes(request), &resolution, None);
    });
    Code::NGX_DECLINED.0
}

/// One pass of the phase. `None` where there is nothing to do.
fn run(request: Request) -> Option<ngx_int_t> {
    if !request.is_main() {
        return None;
    }
    let waiter = parked(request);
    let (location, step) = if let Some(waiter) = waiter {
        let Some(next) = resume(request, waiter) else {
            return Some(Code::NGX_AGAIN.0);
        };
        next
    } else {
        let location = Location::of(request)?;
        if variables::is_resolved(request, indexes(request)) {
            return None;
        }
        fault::at(Place::Arrive, request.user_agent());
        let terms = location.conf.terms();
        let step = location
            .zone
            .with_process(|process| process.engine.arrive(parts(request), &terms, now()))?;
        (location, step)
    };
    let resolution = match step {
        Step::Done(resolution) => resolution,
        Step::Ask(question) => {
            if worker::ask(request, &location, question) {
                return Some(Code::NGX_AGAIN.0);
            }
            fall_back(request, &location)
        }
    };
    let held = waiter.map(|waiter| {
        // SAFETY: the waiter of a live request lives until `worker::discard`.
        let held = unsafe { waiter.as_ref() }.held();
        worker::discard(request);
        held
    });
    variables::write(request, indexes(request), &resolution, held);
    if let Some(question) = resolution.refresh {
        worker::refresh(request, &location, question);
    }
    None
}

/// A request for which there is no memory to wait in goes on.
#[cold]
fn fall_back(request: Request, location: &Location) -> Resolution {
    let fallback = location.zone.with_process(|process| {
        let resolution = process.engine.fall_back(parts(request));
        process.engine.count(resolution.status.counter());
        resolution
    });
    fallback.unwrap_or(Resolution::ANONYMOUS)
}

/// The waiter of a request that was parked here. One that was sent elsewhere meanwhile is no waiter any more.
fn parked(request: Request) -> Option<NonNull<Waiter>> {
    let waiter = Waiter::of(request, &worker::CALLBACKS)?;
    // SAFETY: the waiter of a live request lives until `worker::discard`.
    if unsafe { waiter.as_ref() }.is_parked() {
        return Some(waiter);
    }
    worker::discard(request);
    None
}

/// A request that waited goes on. `None` if it still has no outcome.
fn resume(request: Request, mut waiter: NonNull<Waiter>) -> Option<(Location, Step)> {
    // SAFETY: the waiter of a live request lives until `worker::discard`, and nothing else refers to it now.
    let waiter = unsafe { waiter.as_mut() };
    let location = waiter.location;
    fault::at(Place::Settle, request.user_agent());
    let (question, outcome) = (waiter.question, waiter.outcome.take()?);
    let terms = location.conf.terms();
    let step = location.zone.with_process(|process| {
        let parts = parts(request);
        process
            .engine
            .resume(parts, &terms, question, outcome, now())
    });
    // Its outcome is taken, so nothing would wake it once more.
    Some((location, step.unwrap_or(Step::Done(Resolution::ANONYMOUS))))
}
