//! `matrix_user_hash_limited`: requests that a limit of nginx refused are counted by the name of the limit.
//!
//! nginx's own limits know nothing of figures. So the operator says by a variable which of them refused a request, and it is
//! counted when it ends, in nginx's LOG phase.

use core::ptr::NonNull;

use matrix_user_hash_core::metrics::Counter;
use nginx_sys::{ngx_http_request_t, ngx_int_t};
use ngx::core::Status as Code;
use ngx::http::HttpModuleLocationConf;

use crate::Module;
use crate::conf::Pass;
use crate::ngx::guard;
use crate::ngx::request::Request;

/// nginx's handler in the LOG phase.
pub(crate) unsafe extern "C" fn count(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes the live request.
    let request = unsafe { Request::from_ptr(r) };
    guard::guard((), || {
        let _ = count_in_its_zone(request);
    });
    Code::NGX_OK.0
}

/// `None` if no limit has refused the request.
fn count_in_its_zone(request: Request) -> Option<()> {
    if !request.is_main() {
        return None;
    }
    // SAFETY: a live request has the configurations of its location; our module's is a `LocationConf`.
    let conf = Module::location_conf(unsafe { &*request.as_ptr() })?;
    let value = NonNull::new(conf.limited)?;
    let Pass::On(target) = conf.pass else {
        return None;
    };
    // SAFETY: the value is of the configuration that the request is served by.
    let counter = Counter::of_limit(unsafe { request.evaluate(value) }?)?;
    let zone = target.zone()?;
    zone.with_process(|process| process.engine.count(counter))
}
