//! Saves zones to their state files: at intervals by one worker, and when nginx ends by whoever ends last.

use core::ffi::c_void;
use core::ptr;

use matrix_user_hash_core::notice::Notice;
use nginx_sys::{NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_cycle_t};
use ngx::http::HttpModuleMainConf;

use crate::conf::MainConf;
use crate::event::{Alarm, Ring};
use crate::zone::SharedZone;
use crate::{Module, guard, log};

/// How often a zone is saved, in milliseconds. What a crash of the whole machine may cost is that much of new answers.
const EVERY: usize = 60_000;

/// Sets the intervals, in the first worker.
pub fn start(main: &MainConf) {
    // SAFETY: nginx sets both before it calls a worker's init_process.
    let (process, worker) = unsafe { (nginx_sys::ngx_process as u32, nginx_sys::ngx_worker) };
    if !(process == NGX_PROCESS_SINGLE || process == NGX_PROCESS_WORKER && worker == 0) {
        return;
    }
    for zone in main.zones.iter().filter(|zone| zone.state.is_some()) {
        // SAFETY: the zone and the cycle's log live as long as the worker serves the cycle.
        let alarm = unsafe {
            Alarm::new(
                log::cycle_log(),
                true,
                interval,
                ptr::from_ref(*zone).cast_mut().cast(),
            )
        };
        alarm.set(EVERY);
        zone.set_saver(alarm);
    }
}

/// The interval is over.
unsafe fn interval(subject: *mut c_void, _why: Ring) {
    guard::guard((), || {
        // SAFETY: as in `start`.
        let zone: &'static SharedZone = unsafe { &*subject.cast::<SharedZone>() };
        save(zone);
        zone.with_saver(|alarm| alarm.set(EVERY));
    });
}

fn save(zone: &'static SharedZone) {
    if let Err(error) = zone.save() {
        let due = zone
            .with_local(|local| local.is_due(Notice::State))
            .unwrap_or(true);
        if due {
            log::warning!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{}\": cannot write state file \"{}\": {error}; its directory must be writable \
                 for the user that nginx's workers run as",
                zone.name,
                zone.state
                    .as_deref()
                    .unwrap_or(std::path::Path::new(""))
                    .display()
            );
        }
    }
}

/// A single process ends: there is no master to save after it.
pub unsafe extern "C" fn exit_process(cycle: *mut ngx_cycle_t) {
    // SAFETY: nginx sets it at start.
    if unsafe { nginx_sys::ngx_process as u32 } == NGX_PROCESS_SINGLE {
        save_all(cycle);
    }
}

/// The master ends, after all of its workers.
pub unsafe extern "C" fn exit_master(cycle: *mut ngx_cycle_t) {
    save_all(cycle);
}

fn save_all(cycle: *mut ngx_cycle_t) {
    guard::guard((), || {
        // SAFETY: nginx passes the cycle that ends, still whole.
        let Some(main) = Module::main_conf(unsafe { &*cycle }) else {
            return;
        };
        main.zones.iter().for_each(|zone| save(zone));
    });
}
