//! One whoami request, from its start to its result, over nginx's own upstream machinery.
//!
//! A lookup belongs to no client. It runs on a connection and a request of its own that no socket stands behind
//! ([`detached`](crate::ngx::detached)): a main request, and below it a subrequest that carries the upstream and is ours to end,
//! before anything would be sent to a client. So
//!
//! - an answer that was asked for is kept even if whoever asked has left, and a refresh in the background needs no client;
//! - what it needs is freed when it ends, not with a long poll that goes on for minutes;
//! - nginx's error lines about it show its own request line, not the client's with `?access_token=` in it;
//! - nothing it does can finalize, close or delay a client's connection.
//!
//! `docs/architecture.md` compares this with the other ways.

use core::cell::{Cell, OnceCell};
use core::ffi::c_void;
use core::fmt;
use core::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use matrix_user_hash_core::engine::{Ended, Job};
use matrix_user_hash_core::shm::throttle::LogLine;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::whoami::{FailureKind, LookupError, LookupResult, Response};
use matrix_user_hash_core::wipe::Wiped;
use nginx_sys::{
    ngx_buf_t, ngx_http_request_t, ngx_http_upstream_handler_pt, ngx_int_t, ngx_recv_pt,
};
use ngx::core::Status;
use ngx::http::HttpModule;
use ngx::ngx_string;

use crate::Module;
use crate::conf::Pass;
use crate::location::Location;
use crate::ngx::detached::{Description, Detached};
use crate::ngx::event::{Timer, WakeReason};
use crate::ngx::request::Request;
use crate::ngx::{buffer, guard, log, memory, process, reserve, upstream as ngx_upstream};
use crate::zone::now;

mod address;
mod kept;
pub(crate) mod peer;
mod question;
#[cfg(ngx_feature = "http_ssl")]
mod sessions;
mod upstream;

use question::NotWritten;

/// A homeserver that did not answer within that time has failed; one that had less, because the request had not more left
/// or the operator gives it less, has not.
const FAIR: Duration = Duration::from_millis(250);

/// How often a lookup looks whether the worker process's time to shut down is over, in milliseconds.
const TICK: u64 = 200;

/// Takes what came of a lookup.
pub(crate) type Done = fn(&Location, Job, &Ended);

/// Why a lookup was not sent.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// The request does not ask any more what the lookup is about.
    Changed(Job),
    /// There is no memory for it.
    NoMemory(Job),
}

/// There was no answer.
const fn failed(kind: FailureKind) -> LookupResult {
    Err(LookupError::Failed(kind))
}

/// A lookup that was sent. nginx and its own timers refer to it, so it does not move, and all that changes is in cells.
struct Lookup {
    detached: Detached,
    location: Location,
    /// What the engine knows it by; taken when it ends.
    job: Cell<Option<Job>>,
    /// When it is given up.
    deadline: Millis,
    started: Instant,
    done: Done,
    /// The request's bytes, until they are handed to the upstream.
    bytes: Cell<Wiped>,
    /// Where nginx has them: overwritten when the lookup ends.
    sent: Cell<*const ngx_buf_t>,
    /// The subrequest, while there is one.
    child: Cell<Option<Request>>,
    /// The user that an application service asks for.
    asked: Option<String>,
    #[cfg(feature = "faults")]
    agent: Option<Vec<u8>>,
    result: Cell<Option<LookupResult>>,
    /// Whether its failure would be the homeserver's.
    is_fair: Cell<bool>,
    /// Looks whether its time is up.
    timer: OnceCell<Timer>,
    /// Frees the lookup in the next turn of the event loop, when no frame of nginx uses its connection any more.
    retirement: OnceCell<Timer>,
    /// What stands between the upstream and the balancer; see [`peer`].
    peer: Cell<peer::Peer>,
    /// Why TLS with the last server failed.
    #[cfg(ngx_feature = "http_ssl")]
    tls_error: Cell<Option<sessions::TlsError>>,
    /// What nginx reads a response with, and what it receives with, while [`upstream`] reads one to its end.
    nginx_reads: Cell<ngx_http_upstream_handler_pt>,
    recv: Cell<ngx_recv_pt>,
    /// It was given up after a time in which the homeserver should have answered.
    is_overdue: Cell<bool>,
    /// A server let the time go by.
    has_hung: Cell<bool>,
}

/// Sends a lookup, built from what the client's request gives.
///
/// # Errors
///
/// It was not sent: `done` is not called, and the job is given back.
#[allow(
    clippy::result_large_err,
    reason = "it comes back where memory is lacking: there is none for a box, either"
)]
pub(crate) fn send(
    client: Request,
    location: &Location,
    job: Job,
    done: Done,
) -> Result<(), Unsent> {
    let Pass::On(target) = location.conf.pass else {
        return Err(Unsent::Changed(job));
    };
    let question = match question::write(client, location, &job.question, target) {
        Ok(question) => question,
        Err(NotWritten::Changed) => return Err(Unsent::Changed(job)),
        Err(NotWritten::NoMemory) => return Err(Unsent::NoMemory(job)),
    };
    let Some(lookup) = Lookup::create(location, job.deadline, question, done) else {
        return Err(Unsent::NoMemory(job));
    };
    // SAFETY: it lives until it is freed: here, or in a later turn of the event loop.
    let new = unsafe { lookup.as_ref() };
    if new.launch(client, lookup.as_ptr().cast()).is_none() {
        // SAFETY: nginx has not run the lookup, and nothing else refers to it.
        unsafe {
            new.free_requests();
            Lookup::free(lookup);
        }
        return Err(Unsent::NoMemory(job));
    }
    new.job.set(Some(job));
    new.detached.start();
    Ok(())
}

impl Lookup {
    /// A lookup with its timers, not connected. It lives until [`Self::free`].
    fn create(
        location: &Location,
        deadline: Millis,
        question: question::Written,
        done: Done,
    ) -> Option<NonNull<Self>> {
        let lookup = memory::boxed(Self {
            detached: Detached::new(),
            location: *location,
            job: Cell::new(None),
            deadline,
            started: Instant::now(),
            done,
            bytes: Cell::new(question.bytes),
            sent: Cell::new(ptr::null()),
            child: Cell::new(None),
            asked: question.asked,
            #[cfg(feature = "faults")]
            agent: question.agent,
            result: Cell::new(None),
            is_fair: Cell::new(true),
            timer: OnceCell::new(),
            retirement: OnceCell::new(),
            peer: Cell::new(peer::Peer::NONE),
            #[cfg(ngx_feature = "http_ssl")]
            tls_error: Cell::new(None),
            nginx_reads: Cell::new(None),
            recv: Cell::new(None),
            is_overdue: Cell::new(false),
            has_hung: Cell::new(false),
        })?;
        let lookup = NonNull::from(Box::leak(lookup));
        // SAFETY: it was just made.
        let made = unsafe { lookup.as_ref() }.make_timers(lookup.as_ptr().cast());
        if made.is_none() {
            // SAFETY: nothing else refers to it.
            unsafe { Self::free(lookup) };
            return None;
        }
        Some(lookup)
    }

    fn make_timers(&self, subject: *mut c_void) -> Option<()> {
        let make = |call| {
            // SAFETY: the cycle's log outlives a lookup, both timers are dropped with it, and the calls are guarded.
            unsafe { Timer::new(log::cycle_log(), false, call, subject) }
        };
        let (timer, retirement) = (make(tick)?, make(retire)?);
        let _ = (self.timer.set(timer), self.retirement.set(retirement));
        Some(())
    }

    /// Connects the parts, up to where nginx can start; `context` is this lookup. `None` without memory.
    fn launch(&self, client: Request, context: *mut c_void) -> Option<()> {
        let description = Description {
            action: c"looking up a user",
            request_line: ngx_string!("matrix_user_hash lookup"),
            uri: ngx_string!("/matrix_user_hash"),
        };
        let module = Module::module();
        let parent = self.detached.open(client, &description, Some(ended))?;
        parent.set_context(module, context);
        if self.is_failing() {
            self.detached.lower_log_levels();
        }
        let run = Some(upstream::run as unsafe extern "C" fn(_));
        let child =
            self.detached
                .create_subrequest(client, module, context, run, Some(finalized))?;
        self.child.set(Some(child));
        let left = self.deadline.since(now());
        if let Some(timer) = self.timer.get() {
            timer.set(pause(left));
        }
        log::debug!(
            self.detached.log(),
            "matrix_user_hash: lookup, timeout {left} ms"
        );
        Some(())
    }

    /// nginx's own error lines about an upstream come once for each failure. While we have said lately that lookups fail, they
    /// are left out.
    fn is_failing(&self) -> bool {
        let zone = self.location.zone;
        zone.with_process(|process| process.engine.is_failing(now()))
            .unwrap_or(false)
    }

    /// The lookup that a request is of.
    ///
    /// # Safety
    ///
    /// `request` is the main request or the subrequest of a lookup, and lives.
    unsafe fn of<'l>(request: *mut ngx_http_request_t) -> &'l Self {
        // SAFETY: `launch` left it there, and a lookup is freed in a turn of the event loop after its requests.
        unsafe { &*Request::from_ptr(request).context(Module::module()).cast() }
    }

    /// Whether it has told its result.
    fn has_ended(&self) -> bool {
        let job = self.job.take();
        let has_ended = job.is_none();
        self.job.set(job);
        has_ended
    }

    /// Ends a lookup: frees its requests, with the upstream if that is still at work, and tells the result.
    ///
    /// # Safety
    ///
    /// Frames of nginx may still use its connection, but only to see that it is destroyed.
    unsafe fn end(&self, otherwise: FailureKind) {
        let Some(job) = self.job.take() else {
            return;
        };
        // SAFETY: the caller's.
        unsafe { self.free_requests() };
        if let Some(timer) = self.timer.get() {
            timer.unset();
        }
        if let Some(retirement) = self.retirement.get() {
            retirement.post();
        }
        let result = self.result.get().unwrap_or(failed(otherwise));
        if let Err(LookupError::Failed(kind)) = result {
            self.log_failure(kind);
        }
        let ended = Ended {
            result,
            micros: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            is_fair: self.is_fair.get(),
        };
        (self.done)(&self.location, job, &ended);
    }

    /// Frees the requests, after the token was overwritten in what they sent.
    ///
    /// # Safety
    ///
    /// As [`Self::end`].
    unsafe fn free_requests(&self) {
        // SAFETY: the caller's; the buffer is in the subrequest's pool, which is freed next.
        unsafe {
            buffer::wipe(self.sent.replace(ptr::null()));
            self.detached.free_requests();
        }
        self.child.set(None);
    }

    /// Frees the lookup itself.
    ///
    /// # Safety
    ///
    /// Its requests are freed, and nothing refers to it.
    unsafe fn free(lookup: NonNull<Self>) {
        // SAFETY: `create` made the box.
        drop(unsafe { Box::from_raw(lookup.as_ptr()) });
    }

    /// Says that a lookup failed, once per kind and minute over all worker processes.
    fn log_failure(&self, kind: FailureKind) {
        let Pass::On(target) = self.location.conf.pass else {
            return;
        };
        let zone = self.location.zone;
        let due = zone.with_process(|process| process.engine.is_due(LogLine::Failure(kind), now()));
        if due == Some(true) {
            log::error!(
                log::cycle_log(),
                "matrix_user_hash: lookup at \"{}\" failed: {}; requests go on by the fallback (said once a minute)",
                target.host.escape_ascii(),
                self.reason(kind)
            );
        }
    }

    /// Why a lookup failed, in an operator's words. They take no memory, which may be what is lacking.
    fn reason(&self, kind: FailureKind) -> Reason {
        #[cfg(ngx_feature = "http_ssl")]
        let tls_error = match kind {
            FailureKind::Connect | FailureKind::Timeout => self.tls_error.get(),
            _ => None,
        };
        Reason {
            kind,
            #[cfg(ngx_feature = "http_ssl")]
            tls_error,
        }
    }

    /// Whether `worker_shutdown_timeout` is over: nginx has marked every connection of the worker process, and would wait for
    /// those of lookups all the same (`ngx_shutdown_timer_handler`).
    fn is_abandoned(&self) -> bool {
        // SAFETY: the subrequest is live as long as it is there.
        let upstream = self
            .child
            .get()
            .and_then(|child| unsafe { ngx_upstream::of(child) });
        let connection = upstream.and_then(ngx_upstream::connection);
        process::is_exiting() && connection.is_some_and(|connection| connection.is_to_be_closed())
    }

    /// What a complete response says.
    fn result_of(&self, response: &Response<'_>) -> LookupResult {
        #[cfg(feature = "faults")]
        crate::fault::at(crate::fault::Place::Answer, self.agent.as_deref());
        // serde_json takes memory where a text has escapes, where lists are nested, and for a mistake.
        reserve::within(|| response.result(self.asked.as_deref()))
    }

    /// Keeps a result, if there is none yet.
    fn set_result_once(&self, result: LookupResult) {
        self.result.set(self.result.get().or(Some(result)));
    }

    /// Looks whether its time is up, or the worker process's time to shut down.
    fn check_deadline(&self) {
        let left = self.deadline.since(now());
        let is_abandoned = self.is_abandoned();
        if left > 0 && !is_abandoned {
            if let Some(timer) = self.timer.get() {
                timer.set(pause(left));
            }
            return;
        }
        let is_fair = !is_abandoned && self.started.elapsed() >= FAIR;
        self.is_fair.set(is_fair);
        self.is_overdue.set(is_fair);
        self.set_result_once(failed(FailureKind::Timeout));
        // SAFETY: this is called by a timer of our own, so no frame of nginx uses the connection.
        unsafe { self.end(FailureKind::Timeout) };
    }
}

/// Why a lookup failed.
struct Reason {
    kind: FailureKind,
    #[cfg(ngx_feature = "http_ssl")]
    tls_error: Option<sessions::TlsError>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[cfg(ngx_feature = "http_ssl")]
        if let Some(error) = &self.tls_error {
            return error.fmt(f);
        }
        self.kind.fmt(f)
    }
}

/// The subrequest is finalized, whatever came of it. NGX_OK lets it end without a response, and nginx wakes the main request; for
/// that it takes memory (ngx_http_post_request). Where there is none, [`retire`] ends the lookup.
unsafe extern "C" fn finalized(
    _child: *mut ngx_http_request_t,
    lookup: *mut c_void,
    _code: ngx_int_t,
) -> ngx_int_t {
    const OK: ngx_int_t = Status::NGX_OK.0;
    guard::guard(OK, || {
        // SAFETY: `launch` has given the lookup, which lives longer than its requests.
        if let Some(retirement) = unsafe { &*lookup.cast::<Lookup>() }.retirement.get() {
            retirement.post();
        }
        OK
    })
}

/// The main request is woken: its subrequest has ended.
unsafe extern "C" fn ended(parent: *mut ngx_http_request_t) {
    // SAFETY: nginx calls with the live main request of a lookup, and after that only looks whether the connection is destroyed
    // (ngx_http_run_posted_requests).
    guard::guard((), || unsafe { Lookup::of(parent).end(FailureKind::Head) });
}

/// How long to wait until a lookup is looked after, in milliseconds, with so much time left.
fn pause(left: u64) -> usize {
    usize::try_from(left.clamp(1, TICK)).unwrap_or(1)
}

/// The lookup's time may be up.
unsafe fn tick(subject: *mut c_void, _reason: WakeReason) {
    guard::guard((), || {
        // SAFETY: the timer is unset when the lookup ends, and dropped with it.
        unsafe { &*subject.cast::<Lookup>() }.check_deadline();
    });
}

/// Nothing uses the lookup any more; or its subrequest has ended, and nginx had no memory to wake the main request.
unsafe fn retire(subject: *mut c_void, _reason: WakeReason) {
    guard::guard((), || {
        if let Some(lookup) = NonNull::new(subject.cast::<Lookup>()) {
            // SAFETY: this is posted when the subrequest has ended. No frame of nginx uses the connection any more; and when the
            // lookup has ended, its requests are freed and nothing else refers to it.
            unsafe {
                let has_ended = lookup.as_ref().has_ended();
                lookup.as_ref().end(FailureKind::Head);
                if has_ended {
                    Lookup::free(lookup);
                }
            }
        }
    });
}
