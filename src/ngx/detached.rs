//! A connection without a socket, and a request on it that is of no client.
//!
//! Both are made as nginx makes those of an HTTP/2 stream (`ngx_http_v2_create_stream`, `ngx_http_v2_run_request`): a main
//! request, and below it a subrequest that does the work. What nginx, its log lines and an operator's group may read of a request is
//! copied from a client's, since that may end first.

use core::cell::{RefCell, UnsafeCell};
use core::ffi::{CStr, c_void};
use core::{mem, ptr};

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_SUBREQUEST_IN_MEMORY, NGX_HTTP_SUBREQUEST_WAITED, NGX_LOG_CRIT,
    NGX_LOG_DEBUG_FIRST, ngx_connection_local_sockaddr, ngx_connection_t, ngx_event_t,
    ngx_http_connection_t, ngx_http_core_loc_conf_t, ngx_http_create_request,
    ngx_http_event_handler_pt, ngx_http_free_request, ngx_http_log_ctx_t,
    ngx_http_post_subrequest_pt, ngx_http_post_subrequest_t, ngx_http_request_t,
    ngx_http_subrequest, ngx_log_t, ngx_module_t, ngx_str_t, sockaddr, socklen_t,
};
use ngx::core::Status;

use super::request::Request;
use super::{compat, pool};

/// The connection and its requests. It stays where it is from [`Self::open`] on.
pub(crate) struct Detached {
    parts: UnsafeCell<Parts>,
    /// Copies of the location's further logs, where their levels are changed.
    logs: RefCell<Vec<ngx_log_t>>,
}

/// The parts point to each other, and nginx to them.
struct Parts {
    connection: ngx_connection_t,
    read: ngx_event_t,
    write: ngx_event_t,
    log: ngx_log_t,
    log_context: ngx_http_log_ctx_t,
    http: ngx_http_connection_t,
    done: ngx_http_post_subrequest_t,
    /// The main request; NULL before it is made, and once it is freed.
    request: *mut ngx_http_request_t,
}

/// What nginx's log lines and the operator's upstream group find in the request.
pub(crate) struct Description {
    /// What nginx does with it.
    pub action: &'static CStr,
    /// Its request line.
    pub request_line: ngx_str_t,
    /// Its path.
    pub uri: ngx_str_t,
}

impl Detached {
    /// The parts, not connected.
    pub(crate) fn new() -> Self {
        Self {
            // SAFETY: zeros are what nginx begins these structures with (ngx_pcalloc, ngx_memzero).
            parts: UnsafeCell::new(unsafe { mem::zeroed() }),
            logs: RefCell::default(),
        }
    }

    /// Makes the connection and the main request, in the location of `client`'s request. `ended` is called when the subrequest has
    /// ended. `None` without memory; [`Self::free_requests`] is to be called then, too.
    pub(crate) fn open(
        &self,
        client: Request,
        description: &Description,
        ended: ngx_http_event_handler_pt,
    ) -> Option<Request> {
        self.connect_http(client);
        self.connect_log(client, description.action);
        self.connect_events();
        let request = self.create_request()?;
        self.copy_addresses(client, request)?;
        describe(request, client, description, ended);
        Some(request)
    }

    fn connect_http(&self, client: Request) {
        let (from, parts) = (client.connection(), self.parts.get());
        // SAFETY: the client's request and connection are live; what is kept of them is the listening socket and the
        // configuration, which belong to the cycle.
        unsafe {
            (*parts).http.conf_ctx = (*(*client.as_ptr()).http_connection).conf_ctx;
            (*parts).http.addr_conf = (*(*client.as_ptr()).http_connection).addr_conf;
            (*parts).connection.data = (&raw mut (*parts).http).cast();
            (*parts).connection.fd = -1;
            (*parts).connection.number = (*from).number;
            (*parts).connection.listening = (*from).listening;
        }
    }

    fn connect_log(&self, client: Request, action: &'static CStr) {
        let parts = self.parts.get();
        // SAFETY: a client's log is live, and the copy refers to files of the cycle. Nothing else refers to the parts now.
        unsafe {
            (*parts).log = *client.log();
            (*parts).log_context.connection = &raw mut (*parts).connection;
            (*parts).log.data = (&raw mut (*parts).log_context).cast();
            (*parts).log.action = action.as_ptr().cast_mut();
            (*parts).connection.log = &raw mut (*parts).log;
        }
    }

    /// Makes the events as a stream's are: always ready to write, never to read.
    fn connect_events(&self) {
        let parts = self.parts.get();
        // SAFETY: nothing else refers to the parts now.
        let (connection, read, write, log) = unsafe {
            (*parts).connection.read = &raw mut (*parts).read;
            (*parts).connection.write = &raw mut (*parts).write;
            let log = &raw mut (*parts).log;
            let connection = &raw mut (*parts).connection;
            (connection, &mut (*parts).read, &mut (*parts).write, log)
        };
        // "Active" and "ready": ngx_http_upstream_init then adds no event for a descriptor that is none.
        write.set_active(1);
        write.set_ready(1);
        write.set_write(1);
        for event in [read, write] {
            event.data = connection.cast();
            event.log = log;
            event.handler = Some(nginx_sys::ngx_http_empty_handler);
        }
    }

    fn create_request(&self) -> Option<Request> {
        let parts = self.parts.get();
        // SAFETY: the connection is whole. It has the default server's log afterwards; the location's, which is the client's, is
        // put back. As in ngx_http_v2_run_request, the connection's events are for the request.
        unsafe {
            let log = (*parts).log;
            let request = ngx_http_create_request(&raw mut (*parts).connection).as_mut()?;
            (*parts).log = log;
            (*parts).request = request;
            (*parts).connection.data = (*parts).request.cast();
            (*parts).connection.pool = (*(*parts).request).pool;
        }
        // SAFETY: the request was just created.
        unsafe {
            compat::uncount_request((*parts).request);
            compat::set_logged((*parts).request);
            compat::set_blocked((*parts).request);
            Some(Request::from_ptr((*parts).request))
        }
    }

    /// Copies the client's addresses into the request's pool, which lives as long as the connection is used.
    fn copy_addresses(&self, client: Request, request: Request) -> Option<()> {
        // SAFETY: the client's connection is live and another one than ours, to which nothing else refers now.
        let (from, to) = unsafe {
            (
                &mut *client.connection(),
                &mut (*self.parts.get()).connection,
            )
        };
        // A group may be hashed by $server_addr, which is asked of the socket where nginx listens on all addresses.
        if from.fd != -1 {
            // SAFETY: the connection has that socket.
            unsafe { ngx_connection_local_sockaddr(from, ptr::null_mut(), 0) };
        }
        (to.socklen, to.local_socklen) = (from.socklen, from.local_socklen);
        // SAFETY: nginx sets an address and its length together; the text lives as long as the client's request.
        unsafe {
            to.sockaddr = copy_address(request, from.sockaddr, from.socklen)?;
            to.local_sockaddr = copy_address(request, from.local_sockaddr, from.local_socklen)?;
            to.addr_text = pool::copy_text(request.pool(), client.address())?;
        }
        Some(())
    }

    /// Lowers the level of each log of the location, so that nginx's lines about failures are left out; but of those that
    /// somebody debugs with. The first is a copy already; the others belong to the configuration, so they are copied as well.
    pub(crate) fn lower_log_levels(&self) {
        let mut logs = self.logs.borrow_mut();
        let first = self.log();
        // SAFETY: the logs of a location live as long as the cycle, and each names the next or NULL.
        let further =
            unsafe { core::iter::successors((*first).next.as_ref(), |log| log.next.as_ref()) };
        for log in further {
            if logs.try_reserve(1).is_err() {
                logs.clear();
                return;
            }
            logs.push(*log);
        }
        // The vector does not grow any more, so its members stay where they are.
        let mut next = ptr::null_mut();
        for log in logs.iter_mut().rev() {
            lower_level(log);
            log.next = next;
            next = log;
        }
        // SAFETY: nothing else refers to our log now.
        unsafe {
            lower_level(&mut *first);
            (*first).next = next;
        }
    }

    /// Makes the subrequest, for which `module` keeps `context`. `run` is called first, and `finalized` last, with `context`. `None`
    /// without memory.
    pub(crate) fn create_subrequest(
        &self,
        client: Request,
        module: &ngx_module_t,
        context: *mut c_void,
        run: ngx_http_event_handler_pt,
        finalized: ngx_http_post_subrequest_pt,
    ) -> Option<Request> {
        let (parts, mut made) = (self.parts.get(), ptr::null_mut());
        // SAFETY: the main request is live, and what ends the subrequest lives with it.
        let child = unsafe {
            (*parts).done.handler = finalized;
            (*parts).done.data = context;
            let (parent, done) = ((*parts).request, &raw mut (*parts).done);
            let (uri, flags) = (&raw mut (*parent).uri, FLAGS as usize);
            let code =
                ngx_http_subrequest(parent, uri, ptr::null_mut(), &raw mut made, done, flags);
            (code == Status::NGX_OK.0).then(|| Request::from_ptr(made))?
        };
        child.set_context(module, context);
        // SAFETY: the client's location has the configurations of all modules, and the subrequest is live.
        unsafe {
            let location = without_subrequest_log(child, (*client.as_ptr()).loc_conf)?;
            (*child.as_ptr()).loc_conf = location;
            (*child.as_ptr()).read_event_handler = Some(nginx_sys::ngx_http_block_reading);
            (*child.as_ptr()).write_event_handler = run;
        }
        Some(child)
    }

    /// Lets nginx run the subrequest.
    pub(crate) fn start(&self) {
        // SAFETY: the connection is whole, and its main request has the subrequest posted.
        unsafe { nginx_sys::ngx_http_run_posted_requests(&raw mut (*self.parts.get()).connection) }
    }

    /// The connection's log.
    pub(crate) fn log(&self) -> *mut ngx_log_t {
        // SAFETY: only the address is taken.
        unsafe { &raw mut (*self.parts.get()).log }
    }

    /// Frees the requests, with an upstream that is still at work.
    ///
    /// # Safety
    ///
    /// Frames of nginx may still use the connection, but only to see that it is destroyed.
    pub(crate) unsafe fn free_requests(&self) {
        let parts = self.parts.get();
        // SAFETY: the caller's; a request that was freed is forgotten.
        unsafe {
            if !(*parts).request.is_null() {
                ngx_http_free_request((*parts).request, 0);
                (*parts).request = ptr::null_mut();
            }
        }
    }
}

/// How the subrequest is made: nothing of it is sent to a client.
const FLAGS: u32 = NGX_HTTP_SUBREQUEST_IN_MEMORY | NGX_HTTP_SUBREQUEST_WAITED;

fn describe(
    request: Request,
    client: Request,
    description: &Description,
    ended: ngx_http_event_handler_pt,
) {
    // SAFETY: both requests are live, and nothing else refers to the new one now.
    let (request, client) = unsafe { (&mut *request.as_ptr(), &*client.as_ptr()) };
    request.srv_conf = client.srv_conf;
    request.loc_conf = client.loc_conf;
    request.method = NGX_HTTP_GET as usize;
    request.request_line = description.request_line;
    request.uri = description.uri;
    request.unparsed_uri = description.uri;
    request.write_event_handler = ended;
}

fn lower_level(log: &mut ngx_log_t) {
    if log.log_level < NGX_LOG_DEBUG_FIRST as usize {
        log.log_level = log.log_level.min(NGX_LOG_CRIT as usize);
    }
}

/// A location's configuration, in which subrequests are not logged: with `log_subrequest on`, each would be a line in the
/// access log. nginx allows no other way of leaving one subrequest out (ngx_http_finalize_request).
///
/// # Safety
///
/// `location` is the configuration of a location.
unsafe fn without_subrequest_log(
    child: Request,
    location: *mut *mut c_void,
) -> Option<*mut *mut c_void> {
    // SAFETY: a location's configuration has a place for each module of the http type, and the core module's is an
    // `ngx_http_core_loc_conf_t`.
    let (core, logged) = unsafe {
        let core = (*ptr::addr_of!(nginx_sys::ngx_http_core_module)).ctx_index;
        (
            core,
            &*(*location.add(core)).cast::<ngx_http_core_loc_conf_t>(),
        )
    };
    if logged.log_subrequest == 0 {
        return Some(location);
    }
    // SAFETY: as above. The copies live as long as the subrequest, and are only read.
    unsafe {
        let places = pool::copy(child.pool(), location, nginx_sys::ngx_http_max_module)?;
        let unlogged = pool::copy(child.pool(), logged, 1)?;
        (*unlogged.as_ptr()).log_subrequest = 0;
        *places.add(core).as_ptr() = unlogged.as_ptr().cast();
        Some(places.as_ptr())
    }
}

/// Copies an address into a request's pool; a missing one becomes an address of no family.
///
/// # Safety
///
/// `address` is NULL or has `len` bytes.
unsafe fn copy_address(
    request: Request,
    address: *const sockaddr,
    len: socklen_t,
) -> Option<*mut sockaddr> {
    let room = (len as usize).max(size_of::<libc::sockaddr_storage>());
    // SAFETY: the caller's; the request is live, and there is room for `len` bytes.
    unsafe {
        let copy = pool::zeroed(request.pool(), room)?;
        if !address.is_null() {
            ptr::copy_nonoverlapping(address.cast(), copy.as_ptr(), len as usize);
        }
        Some(copy.as_ptr().cast())
    }
}
