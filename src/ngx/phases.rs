//! The phases that a request goes through: handlers, and their order.

use core::slice;

use nginx_sys::{
    ngx_array_push, ngx_conf_t, ngx_cycle_t, ngx_http_core_main_conf_t, ngx_http_handler_pt,
    ngx_http_phase_handler_t, ngx_http_phases_NGX_HTTP_POST_READ_PHASE,
    ngx_http_phases_NGX_HTTP_PREACCESS_PHASE, ngx_http_request_t, ngx_int_t,
};
use ngx::http::{HttpModuleMainConf, NgxHttpCoreModule};

use super::conf::Invalid;

/// A handler of a phase.
pub(crate) type Handler = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;

/// Adds a handler to a phase, for a module's postconfiguration.
///
/// # Errors
///
/// There is no memory.
pub(crate) fn add(cf: &mut ngx_conf_t, phase: u32, handler: Handler) -> Result<(), Invalid> {
    let core = NgxHttpCoreModule::main_conf_mut(cf).expect("nginx creates it first");
    // SAFETY: the array holds handlers, and is nginx's to grow.
    unsafe {
        let handlers = &raw mut core.phases[phase as usize].handlers;
        let place = ngx_array_push(handlers).cast::<ngx_http_handler_pt>();
        *place.as_mut().ok_or(Invalid)? = Some(handler);
    }
    Ok(())
}

/// Puts a handler of the PREACCESS phase before all others there, but for those of modules that work in the POST_READ phase
/// too: the real IP module says who the client is. False if the handler is not in that phase.
///
/// nginx runs the handlers of a phase in the reverse order of their modules, which is the order of configure arguments and
/// of `load_module`. For a module's `init_module`: then nginx has laid out the phases (`ngx_http_init_phase_handlers`), and
/// no worker process runs them yet.
pub(crate) fn put_first_in_preaccess(cycle: &ngx_cycle_t, handler: Handler) -> bool {
    let Some(core) = NgxHttpCoreModule::main_conf(cycle) else {
        return false;
    };
    let post_read = registered(core, ngx_http_phases_NGX_HTTP_POST_READ_PHASE);
    let count = registered(core, ngx_http_phases_NGX_HTTP_PREACCESS_PHASE).len();
    // SAFETY: nginx made the array when it read the configuration, and nothing else refers to it now.
    let Some(phase) = (unsafe { find(core.phase_engine.handlers, handler, count) }) else {
        return false;
    };
    let is = |one: &ngx_http_handler_pt, other: Handler| {
        one.is_some_and(|one| core::ptr::fn_addr_eq(one, other))
    };
    let rank = |entry: &ngx_http_phase_handler_t| {
        let comes_first = entry
            .handler
            .is_some_and(|one| post_read.iter().any(|other| is(other, one)));
        match comes_first {
            true => 0,
            false if is(&entry.handler, handler) => 1,
            false => 2,
        }
    };
    // All entries of a phase have the same checker and successor, so they can change places.
    phase.sort_by_key(rank);
    true
}

/// The handlers that modules have added to a phase.
fn registered(core: &ngx_http_core_main_conf_t, phase: u32) -> &[ngx_http_handler_pt] {
    let handlers = &core.phases[phase as usize].handlers;
    if handlers.elts.is_null() {
        return &[];
    }
    // SAFETY: the array holds `nelts` handlers, and lives as long as the cycle.
    unsafe { slice::from_raw_parts(handlers.elts.cast(), handlers.nelts) }
}

/// The entries of the phase engine, which begins at `first`, that belong to the phase of a handler; there are `count`.
///
/// # Safety
///
/// The engine is laid out, and nothing else refers to it.
unsafe fn find<'c>(
    first: *mut ngx_http_phase_handler_t,
    handler: Handler,
    count: usize,
) -> Option<&'c mut [ngx_http_phase_handler_t]> {
    if first.is_null() {
        return None;
    }
    // SAFETY: the array ends with an entry without a checker.
    let all = unsafe {
        let mut length = 0;
        while (*first.add(length)).checker.is_some() {
            length += 1;
        }
        slice::from_raw_parts_mut(first, length)
    };
    let set = |entry: &ngx_http_phase_handler_t| entry.handler;
    let ours = all
        .iter()
        .position(|entry| set(entry).is_some_and(|set| core::ptr::fn_addr_eq(set, handler)))?;
    let next = all[ours].next;
    let start = all.iter().position(|entry| entry.next == next)?;
    let phase = all.get_mut(start..start + count)?;
    (phase.iter().all(|entry| entry.next == next)).then_some(phase)
}
