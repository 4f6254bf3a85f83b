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
use std::time::Instant;

use matrix_user_hash_core::breaker::Admit;
use matrix_user_hash_core::flight::Permit;
use matrix_user_hash_core::notice::Notice;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::user::UserHash;
use matrix_user_hash_core::whoami::{FailureKind, Response};
use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_SUBREQUEST_IN_MEMORY, NGX_HTTP_SUBREQUEST_WAITED, NGX_LOG_CRIT,
    NGX_LOG_DEBUG_FIRST, ngx_connection_t, ngx_event_t, ngx_http_connection_t,
    ngx_http_create_request, ngx_http_free_request, ngx_http_log_ctx_t, ngx_http_post_subrequest_t,
    ngx_http_request_t, ngx_http_subrequest, ngx_int_t, ngx_log_t, ngx_pcalloc, ngx_pnalloc,
    ngx_str_t, sockaddr,
};
use ngx::core::Status;
use ngx::http::HttpModule;
use ngx::ngx_string;

use crate::conf::Pass;
use crate::event::{Alarm, Ring};
use crate::phase::{Question, Site};
use crate::request::Request;
use crate::worker;
use crate::zone::now;
use crate::{Module, compat, guard, log};

pub mod peer;
mod question;
mod upstream;

/// A lookup that is to be sent.
pub struct Order {
    /// For whom.
    pub site: Site,
    /// What is asked.
    pub question: Question,
    /// The right to ask it.
    pub permit: Permit,
    /// Whether it finds out if a homeserver that failed is back, or is one of many.
    pub admitted: Admit,
    /// When it is given up.
    pub deadline: Millis,
    /// When it was ordered.
    pub sent: Instant,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A user.
    User {
        /// Whose the token is.
        user: UserHash,
        /// Whether the answer names a device.
        has_device: bool,
        /// Whether that is the user that the application service asked for.
        is_asked: bool,
    },
    /// The homeserver does not know the token.
    Refused,
    /// No answer.
    Failed(FailureKind),
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
    bytes: Vec<u8>,
    /// The user that an application service asks for.
    asked: Option<String>,
    #[cfg(feature = "faults")]
    agent: Option<Vec<u8>>,
    order: Option<Order>,
    report: Option<Report>,
    deadline: Option<Alarm>,
    /// Frees the lookup in the next turn, when no frame of nginx uses its connection any more.
    retirement: Option<Alarm>,
    /// What the upstream's balancer does when a peer is done with; see [`peer`].
    free_peer: peer::Free,
}

/// Sends a lookup, built from what the client's request gives. The order comes back if there is no memory for it.
pub fn send(client: Request, order: Order) -> Result<(), Order> {
    let Pass::On(target) = order.site.conf.pass else {
        return Err(order);
    };
    let Some(question) = question::write(client, &order, target) else {
        return Err(order);
    };
    let lookup = Lookup::create(client, order, question);
    // SAFETY: the lookup is new, and lives until its retirement.
    unsafe { Lookup::launch(lookup, client) }
}

impl Lookup {
    fn create(client: Request, order: Order, question: question::Written) -> NonNull<Self> {
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
                asked: question.asked,
                #[cfg(feature = "faults")]
                agent: question.agent,
                order: Some(order),
                report: None,
                deadline: None,
                retirement: None,
                free_peer: None,
            }
        };
        NonNull::from(Box::leak(Box::new(lookup)))
    }

    /// Connects the parts, and lets nginx start.
    ///
    /// # Safety
    ///
    /// `this` is what [`Self::create`] made, and `client` is live.
    unsafe fn launch(this: NonNull<Self>, client: Request) -> Result<(), Order> {
        let lookup = this.as_ptr();
        // SAFETY: the lookup lives, does not move, and nothing else refers to it. The client's connection, its
        // addresses and its configuration are live; what is kept of them is copied, but for the listening socket and
        // the configuration, which belong to the cycle.
        unsafe {
            let deadline = (*lookup)
                .order
                .as_ref()
                .map_or(0, |order| order.deadline.since(now()));
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
            compat::uncount_request();
            compat::set_logged(parent);
            if Self::dress(lookup, parent, client).is_none() {
                return Err(Self::cancel(lookup));
            }
            let Some(child) = Self::subrequest(lookup, parent) else {
                return Err(Self::cancel(lookup));
            };
            (*child).loc_conf = (*client.as_ptr()).loc_conf;
            (*child).read_event_handler = Some(nginx_sys::ngx_http_block_reading);
            (*child).write_event_handler = Some(upstream::run);
            (*lookup).deadline = Some(Alarm::new(log::cycle_log(), false, overdue, lookup.cast()));
            if let Some(alarm) = &(*lookup).deadline {
                alarm.set(usize::try_from(deadline.max(1)).unwrap_or(1));
            }
            log::debug!(
                &raw mut (*lookup).log,
                "matrix_user_hash: lookup, timeout {deadline} ms"
            );
            nginx_sys::ngx_http_run_posted_requests(&raw mut (*lookup).connection);
        }
        Ok(())
    }

    /// Makes the connection: as a stream's, with no descriptor, always ready to write, never to read.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`].
    unsafe fn connect(lookup: *mut Self, client: Request) {
        // SAFETY: as `launch`; field by field, without a reference to the whole, because the parts point to each other.
        unsafe {
            let from = client.connection();
            let to = &raw mut (*lookup).connection;
            (*lookup).http.conf_ctx = (*(*client.as_ptr()).http_connection).conf_ctx;
            (*lookup).http.addr_conf = (*(*client.as_ptr()).http_connection).addr_conf;
            (*lookup).log_context.connection = to;
            (*lookup).log.data = (&raw mut (*lookup).log_context).cast();
            (*lookup).log.action = c"looking up a user".as_ptr().cast_mut();
            (*to).fd = -1;
            (*to).data = (&raw mut (*lookup).http).cast();
            (*to).log = &raw mut (*lookup).log;
            (*to).read = &raw mut (*lookup).read;
            (*to).write = &raw mut (*lookup).write;
            (*to).number = (*from).number;
            (*to).listening = (*from).listening;
            for event in [&raw mut (*lookup).read, &raw mut (*lookup).write] {
                (*event).data = to.cast();
                (*event).log = &raw mut (*lookup).log;
                (*event).handler = Some(nginx_sys::ngx_http_empty_handler);
            }
            // "Active" and "ready": ngx_http_upstream_init then adds no event for a descriptor that is none.
            (*lookup).write.set_active(1);
            (*lookup).write.set_ready(1);
            (*lookup).write.set_write(1);
        }
    }

    /// Gives the request what nginx and the operator's upstream group may read of one: a line for the error log, the
    /// client's address, the location's configuration.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`]; `parent` is its main request.
    unsafe fn dress(
        lookup: *mut Self,
        parent: *mut ngx_http_request_t,
        client: Request,
    ) -> Option<()> {
        // SAFETY: as `launch`; addresses are copied into the request's pool, which lives as long as the connection is
        // used.
        unsafe {
            let from = client.connection();
            let to = &raw mut (*lookup).connection;
            (*to).pool = (*parent).pool;
            (*to).sockaddr = copy_address(parent, (*from).sockaddr, (*from).socklen)?;
            (*to).socklen = (*from).socklen;
            (*to).local_sockaddr =
                copy_address(parent, (*from).local_sockaddr, (*from).local_socklen)?;
            (*to).local_socklen = (*from).local_socklen;
            (*to).addr_text = copy_text(parent, &(*from).addr_text)?;

            (*parent).srv_conf = (*client.as_ptr()).srv_conf;
            (*parent).loc_conf = (*client.as_ptr()).loc_conf;
            (*parent).method = NGX_HTTP_GET as usize;
            (*parent).request_line = ngx_string!("matrix_user_hash lookup");
            (*parent).uri = ngx_string!("/matrix_user_hash");
            (*parent).unparsed_uri = (*parent).uri;
            (*parent).write_event_handler = Some(concluded);
            *(*parent).ctx.add(Module::module().ctx_index) = ptr::null_mut();
            Self::hush(lookup);
            Some(())
        }
    }

    /// nginx's own error lines about an upstream come once for each failure. While we have said lately that lookups
    /// fail, they are left out, unless somebody debugs.
    ///
    /// # Safety
    ///
    /// As [`Self::launch`].
    unsafe fn hush(lookup: *mut Self) {
        // SAFETY: as `launch`.
        unsafe {
            let Some(order) = &(*lookup).order else {
                return;
            };
            let level = (*lookup).log.log_level;
            let quiet = order
                .site
                .zone
                .with_local(|local| local.has_said_of_failures())
                .unwrap_or(false);
            if quiet && level < NGX_LOG_DEBUG_FIRST as usize {
                (*lookup).log.log_level = level.min(NGX_LOG_CRIT as usize);
            }
        }
    }

    /// Makes the subrequest that carries the upstream.
    ///
    /// # Safety
    ///
    /// As [`Self::dress`].
    unsafe fn subrequest(
        lookup: *mut Self,
        parent: *mut ngx_http_request_t,
    ) -> Option<*mut ngx_http_request_t> {
        // SAFETY: as `dress`; `done` lives in the lookup.
        unsafe {
            (*lookup).done.handler = Some(finalized);
            (*lookup).done.data = lookup.cast();
            let mut child: *mut ngx_http_request_t = ptr::null_mut();
            let flags = (NGX_HTTP_SUBREQUEST_IN_MEMORY | NGX_HTTP_SUBREQUEST_WAITED) as usize;
            let made = ngx_http_subrequest(
                parent,
                &raw mut (*parent).uri,
                ptr::null_mut(),
                &raw mut child,
                &raw mut (*lookup).done,
                flags,
            );
            if made != Status::NGX_OK.0 {
                return None;
            }
            *(*child).ctx.add(Module::module().ctx_index) = lookup.cast();
            Some(child)
        }
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
            ngx_http_free_request((*lookup).request, 0);
            (*lookup).request = ptr::null_mut();
            (*lookup).deadline = None;
            let alarm = Alarm::new(log::cycle_log(), false, retired, lookup.cast());
            alarm.post();
            (*lookup).retirement = Some(alarm);
            let report = (*lookup).report.unwrap_or(Report::Failed(otherwise));
            if let Report::Failed(kind) = report {
                complain(&order, kind);
            }
            worker::landed(order, &report);
        }
    }

    /// What a complete response says.
    fn judge(&mut self, response: &Response<'_>) -> Report {
        #[cfg(feature = "faults")]
        crate::fault::at(crate::fault::Place::Answer, self.agent.as_deref());
        question::judge(response, self.asked.as_deref())
    }
}

/// Says that a lookup failed, once per kind and minute over all workers.
fn complain(order: &Order, kind: FailureKind) {
    let due = order
        .site
        .zone
        .with_local(|local| local.is_due(Notice::Failure(kind)))
        .unwrap_or(false);
    if due {
        let Pass::On(target) = order.site.conf.pass else {
            return;
        };
        log::error!(
            log::cycle_log(),
            "matrix_user_hash: lookup at \"{}\" failed: {}; requests go on by the fallback (said once a minute)",
            String::from_utf8_lossy(&target.host),
            question::explain(kind)
        );
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

/// The lookup's time is up.
unsafe fn overdue(subject: *mut c_void, _why: Ring) {
    guard::guard((), || {
        let lookup = subject.cast::<Lookup>();
        // SAFETY: the alarm is dropped when the lookup concludes.
        unsafe {
            (*lookup)
                .report
                .get_or_insert(Report::Failed(FailureKind::Timeout));
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

/// Copies an address into a request's pool; a missing one becomes an address of no family.
///
/// # Safety
///
/// `address` is NULL or has `len` bytes.
unsafe fn copy_address(
    r: *mut ngx_http_request_t,
    address: *mut sockaddr,
    len: u32,
) -> Option<*mut sockaddr> {
    let room = (len as usize).max(size_of::<libc::sockaddr_storage>());
    // SAFETY: the pool gives as much as is asked for, or NULL.
    unsafe {
        let copy = NonNull::new(ngx_pcalloc((*r).pool, room).cast::<u8>())?;
        if !address.is_null() {
            ptr::copy_nonoverlapping(address.cast::<u8>(), copy.as_ptr(), len as usize);
        }
        Some(copy.as_ptr().cast())
    }
}

/// Copies a text into a request's pool.
///
/// # Safety
///
/// `text` is a valid string of nginx's.
unsafe fn copy_text(r: *mut ngx_http_request_t, text: &ngx_str_t) -> Option<ngx_str_t> {
    // SAFETY: the pool gives as much as is asked for, or NULL.
    unsafe {
        let copy = NonNull::new(ngx_pnalloc((*r).pool, text.len).cast::<u8>())?;
        if text.len > 0 {
            ptr::copy_nonoverlapping(text.data, copy.as_ptr(), text.len);
        }
        Some(ngx_str_t {
            len: text.len,
            data: copy.as_ptr(),
        })
    }
}
