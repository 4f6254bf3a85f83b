//! One whoami request, from order to report, over nginx's own upstream machinery.
//!
//! A lookup belongs to no client. It runs on a connection and a request of its own that no socket stands behind, as
//! nginx makes them for an HTTP/2 stream (`ngx_http_v2_create_stream`): a main request, and below it a subrequest that
//! carries the upstream and reports to us when it is finalized, before anything would be sent to a client. So
//!
//! - an answer that was asked for is kept even if whoever asked has left, and the background needs no client at all;
//! - what it needs is freed when it ends, not with a long poll that goes on for minutes;
//! - nginx's error lines about it show its own request line, not the client's with `?access_token=` in it;
//! - nothing it does can finalize, close or delay a client's connection.
//!
//! `docs/architecture.md` compares this with the other ways.

use core::ffi::c_void;
use core::mem;
use core::ptr::{self, NonNull};
use std::borrow::Cow;
use std::time::{Duration, Instant};

use matrix_user_hash_core::engine::Job;
use matrix_user_hash_core::shm::throttle::Notice;
use matrix_user_hash_core::whoami::{FailureKind, LookupError, LookupResult, Response};
use matrix_user_hash_core::wipe::Wiped;
use nginx_sys::{
    ngx_buf_t, ngx_connection_t, ngx_event_t, ngx_http_connection_t, ngx_http_create_request,
    ngx_http_free_request, ngx_http_log_ctx_t, ngx_http_post_subrequest_t, ngx_http_request_t,
    ngx_http_upstream_handler_pt, ngx_int_t, ngx_log_t, ngx_recv_pt,
};
use ngx::core::Status;
use ngx::http::HttpModule;

use crate::Module;
use crate::conf::Pass;
use crate::location::Location;
use crate::ngx::event::{Alarm, Ring};
use crate::ngx::request::Request;
use crate::ngx::{compat, guard, log, memory};
use crate::zone::now;

mod detached;
mod kept;
pub(crate) mod peer;
mod question;
#[cfg(ngx_feature = "http_ssl")]
mod sessions;
mod upstream;

/// A homeserver that did not answer within that time has failed; one that had less, because the request had not more left
/// or the operator gives it less, has not.
const FAIR: Duration = Duration::from_millis(250);

/// How often a lookup looks whether the worker's time to shut down is over, in milliseconds.
const TICK: u64 = 200;

/// A lookup that is to be sent.
pub(crate) struct Order {
    /// For whom.
    pub site: Location,
    /// What is asked, and by when.
    pub job: Job,
    /// When it was ordered.
    pub sent: Instant,
    /// Whether its failure would be the homeserver's.
    pub is_fair: bool,
    /// Takes what came of it.
    done: fn(Order, LookupResult),
}

impl Order {
    /// A lookup for a location; `done` is called when it has ended, if [`send`] does not give it back.
    pub(crate) fn new(location: &Location, job: Job, done: fn(Self, LookupResult)) -> Self {
        Self {
            site: *location,
            job,
            sent: Instant::now(),
            is_fair: true,
            done,
        }
    }
}

/// There was no answer.
const fn failed(kind: FailureKind) -> LookupResult {
    Err(LookupError::Failed(kind))
}

/// A lookup on its way.
#[repr(C)]
struct Lookup {
    connection: ngx_connection_t,
    read: ngx_event_t,
    write: ngx_event_t,
    log: ngx_log_t,
    log_context: ngx_http_log_ctx_t,
    http: ngx_http_connection_t,
    done: ngx_http_post_subrequest_t,
    /// The main request; NULL once it is freed.
    request: *mut ngx_http_request_t,
    /// The request's bytes, until they are handed to the upstream.
    bytes: Wiped,
    /// Where nginx has them: overwritten when the lookup ends.
    sent: *const ngx_buf_t,
    /// The subrequest.
    child: *mut ngx_http_request_t,
    /// Copies of the location's further logs, where their levels are changed.
    logs: Vec<ngx_log_t>,
    /// The user that an application service asks for.
    asked: Option<String>,
    #[cfg(feature = "faults")]
    agent: Option<Vec<u8>>,
    order: Option<Order>,
    report: Option<LookupResult>,
    deadline: Option<Alarm>,
    /// Frees the lookup in the next turn, when no frame of nginx uses its connection any more.
    retirement: Option<Alarm>,
    /// What stands between the upstream and the balancer; see [`peer`].
    peer: peer::Peer,
    /// Why TLS with the last server came to nothing.
    #[cfg(ngx_feature = "http_ssl")]
    tls_error: Option<sessions::TlsError>,
    /// What nginx reads a response with, and what it receives with, while [`upstream`] reads one to its end.
    nginx_reads: ngx_http_upstream_handler_pt,
    recv: ngx_recv_pt,
    /// It was given up after a time in which the homeserver should have answered.
    overdue: bool,
    /// A server let the time go by.
    hung: bool,
}

/// Sends a lookup, built from what the client's request gives. The order comes back if there is no memory for it.
#[allow(
    clippy::result_large_err,
    reason = "it comes back where memory is lacking: there is none for a box, either"
)]
pub(crate) fn send(client: Request, order: Order) -> Result<(), Order> {
    let Pass::On(target) = order.site.conf.pass else {
        return Err(order);
    };
    let Some(question) = question::write(client, &order, target) else {
        return Err(order);
    };
    let Some(lookup) = Lookup::create(client, question) else {
        return Err(order);
    };
    // SAFETY: the lookup is new, and lives until its retirement.
    unsafe { Lookup::launch(lookup, client, order) }
}

impl Lookup {
    fn create(client: Request, question: question::Written) -> Option<NonNull<Self>> {
        // SAFETY: zeros are what nginx begins these structures with (ngx_pcalloc, ngx_memzero); the client's connection
        // and log live while the client's request does.
        let lookup = unsafe {
            Self {
                connection: mem::zeroed(),
                read: mem::zeroed(),
                write: mem::zeroed(),
                log: *client.log(),
                log_context: mem::zeroed(),
                http: mem::zeroed(),
                done: mem::zeroed(),
                request: ptr::null_mut(),
                bytes: question.bytes,
                sent: ptr::null(),
                child: ptr::null_mut(),
                logs: Vec::new(),
                asked: question.asked,
                #[cfg(feature = "faults")]
                agent: question.agent,
                order: None,
                report: None,
                deadline: None,
                retirement: None,
                peer: peer::Peer::NONE,
                #[cfg(ngx_feature = "http_ssl")]
                tls_error: None,
                nginx_reads: None,
                recv: None,
                overdue: false,
                hung: false,
            }
        };
        let lookup = NonNull::from(Box::leak(memory::boxed(lookup)?));
        // SAFETY: the log of the cycle outlives a lookup, and both alarms are dropped with it.
        unsafe {
            let alarm = |call| Alarm::new(log::cycle_log(), false, call, lookup.as_ptr().cast());
            let (deadline, retirement) = (alarm(overdue), alarm(retired));
            let whole = deadline.is_some() && retirement.is_some();
            (*lookup.as_ptr()).deadline = deadline;
            (*lookup.as_ptr()).retirement = retirement;
            if !whole {
                drop(Box::from_raw(lookup.as_ptr()));
                return None;
            }
        }
        Some(lookup)
    }

    /// Connects the parts, and lets nginx start.
    ///
    /// # Safety
    ///
    /// `this` is what [`Self::create`] made, and `client` is live.
    #[allow(
        clippy::result_large_err,
        reason = "it comes back where memory is lacking: there is none for a box, either"
    )]
    unsafe fn launch(this: NonNull<Self>, client: Request, order: Order) -> Result<(), Order> {
        let lookup = this.as_ptr();
        // SAFETY: the lookup lives, does not move, and nothing else refers to it. The client's connection, its
        // addresses and its configuration are live; what is kept of them is copied, but for the listening socket and
        // the configuration, which belong to the cycle.
        unsafe {
            let deadline = order.job.deadline.since(now());
            (*lookup).order = Some(order);
            Self::connect(lookup, client);
            let log = (*lookup).log;
            let parent = ngx_http_create_request(&raw mut (*lookup).connection);
            if parent.is_null() {
                return Err(Self::cancel(lookup));
            }
            // It has put the default server's log there; the location's is the client's.
            (*lookup).log = log;
            (*lookup).request = parent;
            // As ngx_http_v2_run_request: the request that the connection's events are for.
            (*lookup).connection.data = parent.cast();
            compat::uncount_request(parent);
            compat::set_logged(parent);
            if Self::dress(lookup, parent, client).is_none() {
                return Err(Self::cancel(lookup));
            }
            let Some(child) = Self::subrequest(lookup, parent) else {
                return Err(Self::cancel(lookup));
            };
            let Some(location) = detached::unlogged(child, (*client.as_ptr()).loc_conf) else {
                return Err(Self::cancel(lookup));
            };
            (*child).loc_conf = location;
            (*lookup).child = child;
            (*child).read_event_handler = Some(nginx_sys::ngx_http_block_reading);
            (*child).write_event_handler = Some(upstream::run);
            if let Some(alarm) = &(*lookup).deadline {
                alarm.set(pause(deadline));
            }
            log::debug!(
                &raw mut (*lookup).log,
                "matrix_user_hash: lookup, timeout {deadline} ms"
            );
            nginx_sys::ngx_http_run_posted_requests(&raw mut (*lookup).connection);
        }
        Ok(())
    }

    /// Undoes what there is of a lookup that nginx never saw.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`]; no event of the lookup is set, and no frame of nginx uses it.
    unsafe fn cancel(lookup: *mut Self) -> Order {
        // SAFETY: the caller vouches that nothing refers to it; `create` made the box, with an order.
        unsafe {
            if !(*lookup).request.is_null() {
                memory::wipe_buffer((*lookup).sent);
                ngx_http_free_request((*lookup).request, 0);
            }
            let mut lookup = Box::from_raw(lookup);
            lookup
                .order
                .take()
                .expect("a lookup that was not sent has its order")
        }
    }

    /// The lookup of a subrequest of ours.
    ///
    /// # Safety
    ///
    /// `child` is the subrequest of a lookup that was not concluded.
    unsafe fn of(child: *mut ngx_http_request_t) -> *mut Self {
        // SAFETY: `subrequest` left it there.
        unsafe { (*(*child).ctx.add(Module::module().ctx_index)).cast() }
    }

    /// Ends a lookup: frees its requests, with the upstream if that is still at work, and reports.
    ///
    /// # Safety
    ///
    /// `lookup` lives. Frames of nginx may still use its connection, but only to see that it is destroyed.
    unsafe fn conclude(lookup: *mut Self, otherwise: FailureKind) {
        // SAFETY: the caller's; the order is there until the first conclusion.
        unsafe {
            let Some(order) = (*lookup).order.take() else {
                return;
            };
            memory::wipe_buffer((*lookup).sent);
            ngx_http_free_request((*lookup).request, 0);
            (*lookup).request = ptr::null_mut();
            (*lookup).deadline = None;
            if let Some(alarm) = &(*lookup).retirement {
                alarm.post();
            }
            let report = (*lookup).report.unwrap_or(failed(otherwise));
            if let Err(LookupError::Failed(kind)) = report {
                Self::complain(lookup, &order, kind);
            }
            (order.done)(order, report);
        }
    }

    /// Says that a lookup failed, once per kind and minute over all workers.
    ///
    /// # Safety
    ///
    /// `lookup` lives.
    unsafe fn complain(lookup: *const Self, order: &Order, kind: FailureKind) {
        let due = order
            .site
            .zone
            .with_local(|local| local.engine.is_due(Notice::Failure(kind), now()))
            .unwrap_or(false);
        let Pass::On(target) = order.site.conf.pass else {
            return;
        };
        if due {
            // SAFETY: the caller's.
            let reason = unsafe { Self::reason(lookup, kind) };
            log::error!(
                log::cycle_log(),
                "matrix_user_hash: lookup at \"{}\" failed: {reason}; requests go on by the fallback (said once a minute)",
                String::from_utf8_lossy(&target.host),
            );
        }
    }

    /// Why a lookup failed, in an operator's words.
    ///
    /// # Safety
    ///
    /// `lookup` lives.
    unsafe fn reason(lookup: *const Self, kind: FailureKind) -> Cow<'static, str> {
        #[cfg(ngx_feature = "http_ssl")]
        if matches!(kind, FailureKind::Connect | FailureKind::Timeout) {
            // SAFETY: the caller's.
            if let Some(error) = unsafe { (*lookup).tls_error } {
                return error.to_string().into();
            }
        }
        #[cfg(not(ngx_feature = "http_ssl"))]
        let _ = lookup;
        kind.to_string().into()
    }

    /// Whether `worker_shutdown_timeout` is over: nginx has marked every connection of the worker, and would wait for those
    /// of lookups all the same (`ngx_shutdown_timer_handler`).
    ///
    /// # Safety
    ///
    /// `child` is the subrequest of a lookup that was not concluded.
    unsafe fn is_abandoned(child: *const ngx_http_request_t) -> bool {
        // SAFETY: the caller's; an upstream's connection is live.
        unsafe {
            let upstream = (*child).upstream.as_ref();
            let connection = upstream.and_then(|upstream| upstream.peer.connection.as_ref());
            nginx_sys::ngx_exiting != 0 && connection.is_some_and(|found| found.close() != 0)
        }
    }

    /// What a complete response says.
    fn judge(&mut self, response: &Response<'_>) -> LookupResult {
        #[cfg(feature = "faults")]
        crate::fault::at(crate::fault::Place::Answer, self.agent.as_deref());
        response.result(self.asked.as_deref())
    }
}

/// The subrequest is finalized, whatever the upstream made of it. NGX_OK lets it end without a response.
unsafe extern "C" fn finalized(
    _child: *mut ngx_http_request_t,
    _data: *mut c_void,
    _rc: ngx_int_t,
) -> ngx_int_t {
    Status::NGX_OK.0
}

/// The main request is woken: its subrequest has ended.
unsafe extern "C" fn concluded(parent: *mut ngx_http_request_t) {
    guard::guard((), || {
        // SAFETY: the request's connection is the first field of its lookup.
        unsafe { Lookup::conclude((*parent).connection.cast(), FailureKind::Head) }
    });
}

/// How long to wait until a lookup is looked after, in milliseconds, with so much time left.
fn pause(left: u64) -> usize {
    usize::try_from(left.clamp(1, TICK)).unwrap_or(1)
}

/// The lookup's time may be up.
unsafe fn overdue(subject: *mut c_void, _why: Ring) {
    guard::guard((), || {
        let lookup = subject.cast::<Lookup>();
        // SAFETY: the alarm is dropped when the lookup concludes.
        unsafe {
            if let Some(order) = &mut (*lookup).order {
                let left = order.job.deadline.since(now());
                let ends = Lookup::is_abandoned((*lookup).child);
                if left > 0 && !ends {
                    if let Some(alarm) = &(*lookup).deadline {
                        alarm.set(pause(left));
                    }
                    return;
                }
                order.is_fair = !ends && order.sent.elapsed() >= FAIR;
                (*lookup).overdue = order.is_fair;
            }
            (*lookup).report.get_or_insert(failed(FailureKind::Timeout));
            Lookup::conclude(lookup, FailureKind::Timeout);
        }
    });
}

/// Nothing uses the lookup any more.
unsafe fn retired(subject: *mut c_void, _why: Ring) {
    guard::guard((), || {
        // SAFETY: `create` made the box, and this is posted once, when it is concluded.
        drop(unsafe { Box::from_raw(subject.cast::<Lookup>()) });
    });
}
