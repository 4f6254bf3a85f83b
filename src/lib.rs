//! `ngx_http_matrix_user_hash_module`: keeps every device of a Matrix user on the same Synapse sync worker.
//!
//! The directive `matrix_user_hash` asks the homeserver's whoami endpoint whose the token of a request is, remembers
//! the answer in shared memory, and sets the variable that the upstream's `hash … consistent` takes. Here, nginx and
//! Rust meet: every file below does things with nginx's structures and decides nothing that the crate
//! `matrix-user-hash-core` could decide without them.
//!
//! A request comes in through `phase`, waits, if it must, in `waiter`, shares lookups through `worker`, which `lookup`
//! sends, and leaves with its `variables`. Answers live in `zone`; what the operator writes is read by `conf`.

use core::ptr;

use ::ngx::core::Status;
use ::ngx::http::{HttpModule, HttpModuleLocationConf, HttpModuleMainConf};
use nginx_sys::{
    NGX_HTTP_MODULE, ngx_conf_t, ngx_cycle_t, ngx_http_module_t,
    ngx_http_phases_NGX_HTTP_LOG_PHASE, ngx_http_phases_NGX_HTTP_PREACCESS_PHASE,
    ngx_http_phases_NGX_HTTP_PRECONTENT_PHASE, ngx_int_t, ngx_module_t, ngx_uint_t,
};

use crate::conf::phase::Phase;
use crate::conf::{COMMANDS, LocationConf, MainConf};
use crate::ngx::{built_for, compat, guard, library, log, phases};

#[macro_use]
mod ngx;

mod conf;
mod fault;
mod limited;
mod location;
mod lookup;
mod metrics;
mod phase;
mod process_state;
mod saver;
mod variables;
mod waiter;
mod worker;
mod zone;

/// This module, for typed access to its configuration.
#[derive(Debug)]
pub struct Module;

static CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(preconfiguration),
    postconfiguration: Some(postconfiguration),
    create_main_conf: Some(MainConf::create),
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(LocationConf::create),
    merge_loc_conf: Some(LocationConf::merge),
};

/// The table by which nginx finds the module in the library (what nginx's build generates as `ngx_modules.c`).
#[cfg(feature = "export-modules")]
mod exported {
    use super::ngx_http_matrix_user_hash_module;

    ::ngx::ngx_modules!(ngx_http_matrix_user_hash_module);
}

/// What nginx looks for in the library. The table that nginx's own build generates refers to it by this name.
#[used]
#[cfg_attr(not(feature = "export-modules"), unsafe(no_mangle))]
#[allow(non_upper_case_globals, reason = "nginx finds it by this name")]
pub static mut ngx_http_matrix_user_hash_module: ngx_module_t = ngx_module_t {
    ctx: ptr::addr_of!(CONTEXT).cast_mut().cast(),
    // SAFETY: the address of a static; nothing is read.
    commands: unsafe { ptr::addr_of_mut!(COMMANDS[0]) },
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_module: Some(init_module),
    init_process: Some(init_process),
    exit_process: Some(saver::exit_process),
    exit_master: Some(saver::exit_master),
    spare1: compat::MODULE_SIGN,
    version: compat::MODULE_VERSION,
    ..ngx_module_t::default()
};

impl HttpModule for Module {
    fn module() -> &'static ngx_module_t {
        // SAFETY: nginx writes to it (its index) only before it reads the configuration.
        unsafe { &*ptr::addr_of!(ngx_http_matrix_user_hash_module) }
    }
}

// SAFETY: `CONTEXT` creates the main configuration with this type.
unsafe impl HttpModuleMainConf for Module {
    type MainConf = MainConf;
}

// SAFETY: `CONTEXT` creates the location configuration with this type.
unsafe impl HttpModuleLocationConf for Module {
    type LocationConf = LocationConf;
}

/// The main configuration of the cycle that nginx is reading.
fn main_conf(cf: &mut ngx_conf_t) -> &'static mut MainConf {
    Module::main_conf_mut(cf).expect("nginx creates it before it reads a directive")
}

/// Before the configuration is read: the variables.
unsafe extern "C" fn preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guard::configuring(Status::NGX_ERROR.0, || {
        // SAFETY: nginx passes the configuration that it begins to read.
        let cf = unsafe { &mut *cf };
        if let Some(file) = library::replaced() {
            log::warning!(
                cf.log,
                "matrix_user_hash: the file \"{}\" was replaced or removed after it was loaded: this nginx goes on with the \
                 library that it has, {}, until it is restarted or upgraded",
                file.display(),
                built_for::ABOUT
            );
        }
        match variables::add(cf) {
            Ok(indexes) => {
                let main = main_conf(cf);
                main.indexes = indexes;
                main.metrics_handler = Some(metrics::handler);
                Status::NGX_OK.0
            }
            Err(code) => code,
        }
    })
}

/// Once all of the configuration is read: what refers to other parts of it, and the phase, if anything needs it.
unsafe extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    const ERROR: ngx_int_t = Status::NGX_ERROR.0;
    guard::configuring(ERROR, || {
        // SAFETY: nginx passes the configuration that it has read.
        let cf = unsafe { &mut *cf };
        let main = main_conf(cf);
        if main.finish(cf, lookup::peer::shell).is_err() {
            return ERROR;
        }
        if main.targets.is_empty() {
            return Status::NGX_OK.0;
        }
        if variables::find(cf, &mut main.indexes).is_err() {
            return ERROR;
        }
        let early = ngx_http_phases_NGX_HTTP_PREACCESS_PHASE;
        let late = ngx_http_phases_NGX_HTTP_PRECONTENT_PHASE;
        let has_early = main.uses(Phase::PreAccess);
        if has_early && phases::add(cf, early, early_handler(main)).is_err() {
            return ERROR;
        }
        if main.uses(Phase::PreContent) && phases::add(cf, late, phase::resolve).is_err() {
            return ERROR;
        }
        let log = ngx_http_phases_NGX_HTTP_LOG_PHASE;
        if main.names_limits() && phases::add(cf, log, limited::count).is_err() {
            return ERROR;
        }
        Status::NGX_OK.0
    })
}

/// The handler in the PREACCESS phase: it need not look which phase a location has if all have the same.
fn early_handler(main: &MainConf) -> phases::Handler {
    if main.uses(Phase::PreContent) {
        phase::resolve_if_early
    } else {
        phase::resolve
    }
}

/// nginx calls it once it has laid out the phases, before any worker process runs them.
unsafe extern "C" fn init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    guard::guard(Status::NGX_OK.0, || {
        // SAFETY: nginx passes the cycle that it has prepared.
        let cycle = unsafe { &*cycle };
        let is_first = Module::main_conf(cycle).is_none_or(|main| {
            !main.uses(Phase::PreAccess)
                || phases::put_first_in_preaccess(cycle, early_handler(main))
        });
        if is_first {
            return Status::NGX_OK.0;
        }
        log::alert!(
            cycle.log,
            "matrix_user_hash: \"matrix_user_hash_phase preaccess\" may have no effect on limits: this nginx orders its \
             phases in another way"
        );
        // Only a test fails: an error here would end the master process of an nginx that serves.
        // SAFETY: nginx sets it when it reads its arguments.
        match unsafe { nginx_sys::ngx_test_config } {
            0 => Status::NGX_OK.0,
            _ => Status::NGX_ERROR.0,
        }
    })
}

/// nginx calls it in each new worker process.
unsafe extern "C" fn init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    guard::guard(Status::NGX_OK.0, || {
        // SAFETY: nginx passes the cycle that the process serves.
        if let Some(main) = Module::main_conf(unsafe { &*cycle }) {
            saver::start(main);
        }
        Status::NGX_OK.0
    })
}
