//! `matrix_user_hash_metrics`: which locations answer with the figures.

use core::ffi::{c_char, c_void};

use nginx_sys::{ngx_command_t, ngx_conf_t};
use ngx::core::NGX_CONF_OK;
use ngx::http::{HttpModuleLocationConf, NgxHttpCoreModule};

use super::{LocationConf, args, slot};

/// How the figures are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    Json,
    /// The Prometheus text format 0.0.4.
    Prometheus,
}

/// Reads `matrix_user_hash_metrics [json|prometheus]`.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(crate) unsafe extern "C" fn set(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments; `conf` is a block of ours.
    let (words, location) = unsafe { (args(&*cf), &mut *conf.cast::<LocationConf>()) };
    if location.metrics.is_some() {
        return c"is duplicate".as_ptr().cast_mut();
    }
    location.metrics = Some(match words.get(1).copied() {
        None | Some(b"json") => Format::Json,
        Some(b"prometheus") => Format::Prometheus,
        Some(_) => return slot::refuse(cf, "\"json\" or \"prometheus\""),
    });
    // SAFETY: nginx reads the directives of a location, whose core configuration is there already.
    let (core, main) = unsafe {
        (
            NgxHttpCoreModule::location_conf_mut(&*cf),
            crate::main_conf(&mut *cf),
        )
    };
    core.expect("a location has a core configuration").handler = main.metrics_handler;
    NGX_CONF_OK
}
