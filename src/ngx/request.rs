//! A client's request as nginx holds it, seen through what we read of it and write to it.
//!
//! [`Request`] is a pointer that is known to be live while a callback of nginx runs. Its methods are the only places
//! where the fields of `ngx_http_request_t` are touched on behalf of the request's own life; what they return borrows
//! nginx's buffers.

use core::ffi::{CStr, c_void};
use core::iter::successors;
use core::ptr::{self, NonNull};
use core::slice;

use nginx_sys::{
    ngx_connection_t, ngx_http_cleanup_add, ngx_http_cleanup_t, ngx_http_complex_value,
    ngx_http_complex_value_t, ngx_http_get_indexed_variable, ngx_http_log_ctx_t,
    ngx_http_request_t, ngx_http_upstream_conf_t, ngx_http_variable_value_t, ngx_int_t, ngx_log_t,
    ngx_module_t, ngx_pnalloc, ngx_pool_t, ngx_str_t, ngx_uint_t,
};

use super::modules;

/// A live request. Copies are cheap and dangle once nginx frees the request: keep one only where a cleanup handler
/// (see [`Self::add_cleanup`]) takes it away in time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request(NonNull<ngx_http_request_t>);

/// Where in its phases a request is: the phase, and the location.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(ngx_int_t, *mut *mut c_void);

type EventHandler = unsafe extern "C" fn(*mut ngx_http_request_t);

/// nginx's modules that pass a request to another server.
const PASSING: [&CStr; 6] = [
    c"ngx_http_proxy_module",
    c"ngx_http_grpc_module",
    c"ngx_http_fastcgi_module",
    c"ngx_http_uwsgi_module",
    c"ngx_http_scgi_module",
    c"ngx_http_memcached_module",
];

/// The bytes of an `ngx_str_t`.
///
/// # Safety
///
/// `s` describes memory that stays unchanged as long as the result is used.
pub(crate) unsafe fn bytes<'a>(s: &ngx_str_t) -> &'a [u8] {
    if s.data.is_null() {
        return &[];
    }
    // SAFETY: nginx keeps `len` readable bytes behind a `data` that is not NULL; the caller vouches for their life.
    unsafe { slice::from_raw_parts(s.data, s.len) }
}

/// A text as nginx takes it; it points to `text`.
pub(crate) fn string(text: &[u8]) -> ngx_str_t {
    ngx_str_t {
        len: text.len(),
        data: text.as_ptr().cast_mut(),
    }
}

impl Request {
    /// # Safety
    ///
    /// `r` is the live request of the callback that nginx is running, and is not NULL.
    pub(crate) unsafe fn from_ptr(r: *mut ngx_http_request_t) -> Self {
        // SAFETY: the caller vouches that it is not NULL.
        Self(unsafe { NonNull::new_unchecked(r) })
    }

    /// For calls into nginx.
    pub(crate) fn as_ptr(self) -> *mut ngx_http_request_t {
        self.0.as_ptr()
    }

    /// Whether this is the client's own request, not a subrequest of it.
    pub(crate) fn is_main(self) -> bool {
        // SAFETY: live by construction.
        unsafe { (*self.as_ptr()).main == self.as_ptr() }
    }

    /// Its pool, which lives as long as it.
    pub(crate) fn pool(self) -> *mut ngx_pool_t {
        // SAFETY: live by construction.
        unsafe { (*self.as_ptr()).pool }
    }

    /// What a module keeps with the request.
    pub(crate) fn context(self, module: &ngx_module_t) -> *mut c_void {
        // SAFETY: live by construction, with a place for each module of the http type.
        unsafe { *(*self.as_ptr()).ctx.add(module.ctx_index) }
    }

    /// Has a module keep something with the request.
    pub(crate) fn set_context(self, module: &ngx_module_t, context: *mut c_void) {
        // SAFETY: live by construction, with a place for each module of the http type.
        unsafe { *(*self.as_ptr()).ctx.add(module.ctx_index) = context }
    }

    /// The connection, real or (HTTP/2, HTTP/3) made up for the stream.
    pub(crate) fn connection(self) -> *mut ngx_connection_t {
        // SAFETY: live by construction; nginx sets it when it makes the request.
        unsafe { (*self.as_ptr()).connection }
    }

    /// The log of the connection.
    pub(crate) fn log(self) -> *mut ngx_log_t {
        // SAFETY: a connection with a request has a log.
        unsafe { (*self.connection()).log }
    }

    /// The value of the `Authorization` header. nginx itself refuses a request that has two
    /// (`ngx_http_process_unique_header_line`).
    pub(crate) fn authorization<'r>(self) -> Option<&'r [u8]> {
        // SAFETY: live by construction; the header's value lives in the request's buffers.
        unsafe {
            let header = (*self.as_ptr()).headers_in.authorization.as_ref()?;
            Some(bytes(&header.value))
        }
    }

    /// The value of the `User-Agent` header.
    pub(crate) fn user_agent<'r>(self) -> Option<&'r [u8]> {
        // SAFETY: live by construction; the header's value lives in the request's buffers.
        unsafe {
            let header = (*self.as_ptr()).headers_in.user_agent.as_ref()?;
            Some(bytes(&header.value))
        }
    }

    /// The client's address as text, as `$remote_addr` gives it.
    pub(crate) fn address<'r>(self) -> &'r [u8] {
        // SAFETY: live by construction; the text lives as long as the connection, or the request that changed it.
        unsafe { bytes(&(*self.connection()).addr_text) }
    }

    /// The path, decoded, without the query.
    pub(crate) fn uri<'r>(self) -> &'r [u8] {
        // SAFETY: live by construction; the path lives in the request's pool.
        unsafe { bytes(&(*self.as_ptr()).uri) }
    }

    /// The query, without the `?`.
    pub(crate) fn args<'r>(self) -> &'r [u8] {
        // SAFETY: live by construction; the query lives in the request's buffers.
        unsafe { bytes(&(*self.as_ptr()).args) }
    }

    /// The variable of that index; `None` if it has no value.
    pub(crate) fn variable<'r>(self, index: ngx_uint_t) -> Option<&'r [u8]> {
        // SAFETY: live by construction; an index that `ngx_http_get_variable_index` gave for this configuration.
        unsafe {
            let value = ngx_http_get_indexed_variable(self.as_ptr(), index).as_ref()?;
            if value.not_found() != 0 || value.data.is_null() {
                return None;
            }
            Some(slice::from_raw_parts(value.data, value.len() as usize))
        }
    }

    /// What a text of the configuration, perhaps with variables, is for this request; `None` without memory.
    ///
    /// # Safety
    ///
    /// `value` belongs to the configuration that the request is served by.
    pub(crate) unsafe fn evaluate<'r>(
        self,
        value: NonNull<ngx_http_complex_value_t>,
    ) -> Option<&'r [u8]> {
        let mut text = ngx_str_t::default();
        // SAFETY: live by construction, and the caller's; the text lives as long as the request or the configuration.
        unsafe {
            let made = ngx_http_complex_value(self.as_ptr(), value.as_ptr(), &raw mut text);
            (made == ngx::core::Status::NGX_OK.0).then(|| bytes(&text))
        }
    }

    /// The place of an indexed variable, filled or not. It is shared with subrequests and survives internal
    /// redirects, which `r->ctx` does not (`ngx_http_internal_redirect`).
    pub(crate) fn variable_slot<'r>(self, index: ngx_uint_t) -> &'r mut ngx_http_variable_value_t {
        // SAFETY: live by construction; `variables` has a place for each index of the configuration
        // (`ngx_http_alloc_request`), and nothing else holds a reference to it while we do.
        unsafe { &mut *(*self.as_ptr()).variables.add(index) }
    }

    /// Copies bytes into the request's pool: no call to the system unless the pool has to grow. `None` if there
    /// is no memory.
    pub(crate) fn copy<const N: usize>(self, source: &[u8; N]) -> Option<NonNull<u8>> {
        // SAFETY: live by construction; `ngx_pnalloc` gives `N` bytes or NULL.
        unsafe {
            let target = NonNull::new(ngx_pnalloc((*self.as_ptr()).pool, N).cast::<u8>())?;
            ptr::copy_nonoverlapping(source.as_ptr(), target.as_ptr(), N);
            Some(target)
        }
    }

    /// Where in its phases it is: the same again only if nothing has moved it meanwhile.
    pub(crate) fn place(self) -> Place {
        // SAFETY: live by construction.
        unsafe { Place((*self.as_ptr()).phase_handler, (*self.as_ptr()).loc_conf) }
    }

    /// What a handler that was added with [`Self::add_cleanup`] and is still set is to be called with.
    #[inline]
    pub(crate) fn subject_of(
        self,
        handler: unsafe extern "C" fn(*mut c_void),
    ) -> Option<NonNull<c_void>> {
        // SAFETY: live by construction; the entries live as long as the request, and each names the next or NULL.
        let mut entries = unsafe {
            successors((*self.as_ptr()).cleanup.as_ref(), |entry| {
                entry.next.as_ref()
            })
        };
        let is_set = |entry: &&ngx_http_cleanup_t| {
            entry
                .handler
                .is_some_and(|set| ptr::fn_addr_eq(set, handler))
        };
        NonNull::new(entries.find(is_set)?.data)
    }

    /// Adds a handler that nginx calls when the request ends, however it ends: also from `ngx_http_terminate_request`,
    /// where a pool's cleanup would come too late. The entry lives as long as the request; it does nothing while its
    /// handler is NULL.
    pub(crate) fn add_cleanup(self) -> Option<NonNull<ngx_http_cleanup_t>> {
        // SAFETY: live by construction; the entry is allocated from the request's pool.
        NonNull::new(unsafe { ngx_http_cleanup_add(self.as_ptr(), 0) })
    }

    /// Lets the request wait: the only thing that happens to it meanwhile is that its client may go away.
    ///
    /// As `ngx_http_limit_req_handler` does for a delayed request, so bodies, HTTP/2 and HTTP/3 are treated alike.
    pub(crate) fn park(self) {
        // SAFETY: live by construction; a connection has a read event. Events that wait already are seen now.
        unsafe {
            let read = &mut *(*self.connection()).read;
            if read.ready() != 0 {
                nginx_sys::ngx_post_event(read, &raw mut nginx_sys::ngx_posted_events);
            } else {
                nginx_sys::ngx_handle_read_event(read, 0);
            }
        }
        let reading = match self.ignores_client_abort() {
            true => nginx_sys::ngx_http_block_reading,
            false => nginx_sys::ngx_http_test_reading,
        };
        self.set_handlers(reading, nginx_sys::ngx_http_request_empty_handler);
    }

    fn set_handlers(self, read: EventHandler, write: EventHandler) {
        // SAFETY: live by construction.
        unsafe {
            (*self.as_ptr()).read_event_handler = Some(read);
            (*self.as_ptr()).write_event_handler = Some(write);
        }
    }

    /// Whether what answers in the location goes on when the client closes its side (`proxy_ignore_client_abort on`).
    fn ignores_client_abort(self) -> bool {
        // SAFETY: nginx serves requests with a cycle.
        let modules = modules::all(unsafe { &*nginx_sys::ngx_cycle });
        modules
            .filter(|module| modules::name(module).is_some_and(|name| PASSING.contains(&name)))
            .filter_map(|module| self.upstream_conf(module))
            .any(|conf| conf.ignore_client_abort == 1)
    }

    /// The configuration of one of the modules in [`PASSING`] in the request's location.
    fn upstream_conf<'r>(self, module: &ngx_module_t) -> Option<&'r ngx_http_upstream_conf_t> {
        // SAFETY: live by construction, with a place for each module of the http type in its location's configuration. Those
        // of the modules that are named begin with an `ngx_http_upstream_conf_t`.
        unsafe {
            let place = (*self.as_ptr()).loc_conf.add(module.ctx_index);
            (*place).cast::<ngx_http_upstream_conf_t>().as_ref()
        }
    }

    /// Ends [`Self::park`]: what happens to the request is its phases again (ngx_http_process_request).
    pub(crate) fn unpark(self) {
        self.set_handlers(
            nginx_sys::ngx_http_block_reading,
            nginx_sys::ngx_http_core_run_phases,
        );
    }

    /// Lets a parked request go on where it stopped. The request may be gone when this returns.
    pub(crate) fn resume(self) {
        let connection = self.connection();
        // SAFETY: live by construction. As `ngx_http_request_handler` and `ngx_http_limit_req_delay` together.
        unsafe {
            let context = (*(*connection).log).data.cast::<ngx_http_log_ctx_t>();
            (*context).current_request = self.as_ptr();
            nginx_sys::ngx_handle_read_event((*connection).read, 0);
            self.unpark();
            nginx_sys::ngx_http_core_run_phases(self.as_ptr());
            nginx_sys::ngx_http_run_posted_requests(connection);
        }
    }
}
