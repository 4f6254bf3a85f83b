//! `matrix_user_hash_metrics`: a location that answers with the figures of all zones and shifts.

use matrix_user_hash_core::metrics::{Snapshot, render};
use nginx_sys::{ngx_http_request_t, ngx_int_t};
use ngx::http::{HttpModuleLocationConf, HttpModuleMainConf};

use crate::Module;
use crate::conf::MainConf;
use crate::conf::metrics::Format;
use crate::ngx::request::Request;
use crate::ngx::response::{self, INTERNAL_SERVER_ERROR};
use crate::ngx::{clock, guard, memory, process};
use crate::zone::now;

/// nginx's content handler.
pub(crate) unsafe extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    const NOT_ALLOWED: ngx_int_t = 405;
    guard::guard(INTERNAL_SERVER_ERROR, || {
        // SAFETY: nginx calls with the live request of a location that `set` prepared.
        let request = unsafe { Request::from_ptr(r) };
        if !response::is_read(request) {
            return NOT_ALLOWED;
        }
        if let Err(code) = response::discard_body(request) {
            return code;
        }
        // SAFETY: a live request has the configurations of its location and its cycle.
        let (location, main) = unsafe { (Module::location_conf(&*r), Module::main_conf(&*r)) };
        let format = location.and_then(|conf| conf.metrics);
        let Some(main) = main else {
            return INTERNAL_SERVER_ERROR;
        };
        match figures(main, format.unwrap_or(Format::Json)) {
            Some((text, kind)) => response::send(request, &text, kind),
            None => INTERNAL_SERVER_ERROR,
        }
    })
}

/// The figures of the zones and shifts, and their Content-Type. `None` without memory.
fn figures(main: &MainConf, format: Format) -> Option<(Vec<u8>, &'static str)> {
    let mut snapshots = memory::with_capacity(main.zones.len())?;
    snapshots.extend(main.zones.iter().filter_map(|shared| {
        let zone = shared.ready()?;
        Some((
            &*shared.name,
            Snapshot::read(&zone, now(), shared.inactive, process::is_alive),
        ))
    }));
    let mut shifts = memory::with_capacity(main.shifts.len())?;
    shifts.extend(main.shifts.iter().map(|words| render::Moves {
        variable: &words.variable,
        shift: words.shift,
        now: clock::unix_milliseconds(),
    }));
    Some(match format {
        Format::Json => (render::json(&snapshots, &shifts)?, render::JSON_TYPE),
        Format::Prometheus => (
            render::prometheus(&snapshots, &shifts)?,
            render::PROMETHEUS_TYPE,
        ),
    })
}
