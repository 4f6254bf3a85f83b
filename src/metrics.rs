//! `matrix_user_hash_metrics`: a location that answers with the figures of all zones and shifts.

use core::ptr;

use matrix_user_hash_core::metrics::{Snapshot, render};
use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, ngx_alloc_chain_link, ngx_create_temp_buf,
    ngx_http_discard_request_body, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_str_t,
};
use ngx::core::Status;
use ngx::http::{HttpModuleLocationConf, HttpModuleMainConf};

use crate::Module;
use crate::conf::MainConf;
use crate::conf::metrics::Format;
use crate::ngx::{clock, guard, process};
use crate::variables::Words;
use crate::zone::now;

/// nginx's content handler.
pub(crate) unsafe extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    const NOT_ALLOWED: ngx_int_t = 405;
    const INTERNAL_SERVER_ERROR: ngx_int_t = 500;
    guard::guard(INTERNAL_SERVER_ERROR, || {
        // SAFETY: nginx calls with the live request of a location that `set` prepared.
        unsafe {
            if (*r).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize == 0 {
                return NOT_ALLOWED;
            }
            let discarded = ngx_http_discard_request_body(r);
            if discarded != Status::NGX_OK.0 {
                return discarded;
            }
            let format = Module::location_conf(&*r)
                .and_then(|conf| conf.metrics)
                .unwrap_or(Format::Json);
            let Some(main) = Module::main_conf(&*r) else {
                return INTERNAL_SERVER_ERROR;
            };
            let (text, kind) = figures(main, format);
            send(r, text.as_bytes(), kind)
        }
    })
}

/// The figures of the zones and shifts, and their Content-Type.
fn figures(main: &MainConf, format: Format) -> (String, &'static str) {
    let snapshots: Vec<_> = main
        .zones
        .iter()
        .filter_map(|shared| {
            let zone = shared.ready()?;
            Some((
                &*shared.name,
                Snapshot::read(&zone, now(), shared.inactive, process::is_alive),
            ))
        })
        .collect();
    let moves = |words: &&'static Words| render::Moves {
        variable: &words.variable,
        shift: words.shift,
        now: clock::unix_milliseconds(),
    };
    let shifts: Vec<_> = main.shifts.iter().map(moves).collect();
    match format {
        Format::Json => (render::json(&snapshots, &shifts), render::JSON_TYPE),
        Format::Prometheus => (
            render::prometheus(&snapshots, &shifts),
            render::PROMETHEUS_TYPE,
        ),
    }
}

/// Sends a whole response.
///
/// # Safety
///
/// `r` is live, and nothing was sent to it.
unsafe fn send(r: *mut ngx_http_request_t, body: &[u8], kind: &'static str) -> ngx_int_t {
    // SAFETY: the caller's; the buffer is as long as what is copied into it.
    unsafe {
        let kind = ngx_str_t {
            len: kind.len(),
            data: kind.as_ptr().cast_mut(),
        };
        (*r).headers_out.status = 200;
        (*r).headers_out.content_length_n = i64::try_from(body.len()).unwrap_or(0);
        (*r).headers_out.content_type = kind;
        (*r).headers_out.content_type_len = kind.len;
        let sent = ngx_http_send_header(r);
        if sent == Status::NGX_ERROR.0
            || sent > Status::NGX_OK.0
            || (*r).method == NGX_HTTP_HEAD as usize
        {
            return sent;
        }
        let buffer = ngx_create_temp_buf((*r).pool, body.len());
        let link = ngx_alloc_chain_link((*r).pool);
        if buffer.is_null() || link.is_null() {
            return Status::NGX_ERROR.0;
        }
        ptr::copy_nonoverlapping(body.as_ptr(), (*buffer).last, body.len());
        (*buffer).last = (*buffer).last.add(body.len());
        // In a subrequest (SSI) the page goes on behind it.
        (*buffer).set_last_buf(((*r).main == r).into());
        (*buffer).set_last_in_chain(1);
        (*link).buf = buffer;
        (*link).next = ptr::null_mut();
        ngx_http_output_filter(r, link)
    }
}
