//! Saves zones to their state files: at intervals by one worker, and when nginx ends by whoever ends last.
//!
//! Encoding a large zone and waiting for the disk takes longer than an event loop may stand still, so a worker does it in
//! a thread, which only reads the zone's atomics and touches nothing of nginx.

use core::ffi::c_void;
use core::{mem, ptr};
use std::io;
use std::thread::{self, JoinHandle};

use matrix_user_hash_core::notice::Notice;
use nginx_sys::{NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_cycle_t};
use ngx::http::HttpModuleMainConf;

use crate::conf::MainConf;
use crate::event::{Alarm, Ring};
use crate::zone::SharedZone;
use crate::{Module, guard, log};

/// How often a zone is saved, in milliseconds. What a crash of the whole machine may cost is that much of new answers.
const EVERY: usize = 60_000;

/// A zone that this worker saves at intervals.
struct Saver {
    zone: &'static SharedZone,
    alarm: Option<Alarm>,
    /// The save that is under way.
    running: Option<JoinHandle<io::Result<()>>>,
}

/// Sets the intervals, in the first worker.
pub fn start(main: &MainConf) {
    // SAFETY: nginx sets both before it calls a worker's init_process.
    let (process, worker) = unsafe { (nginx_sys::ngx_process as u32, nginx_sys::ngx_worker) };
    if !(process == NGX_PROCESS_SINGLE || process == NGX_PROCESS_WORKER && worker == 0) {
        return;
    }
    for zone in main
        .zones
        .iter()
        .copied()
        .filter(|zone| zone.state.is_some())
    {
        // For the rest of the process's life, as the alarm's subject.
        let saver = Box::leak(Box::new(Saver {
            zone,
            alarm: None,
            running: None,
        }));
        // SAFETY: the saver is never freed; the zone and the cycle's log live as long as the worker serves the cycle.
        let alarm = unsafe {
            Alarm::new(
                log::cycle_log(),
                true,
                interval,
                ptr::from_mut(saver).cast(),
            )
        };
        alarm.set(EVERY);
        saver.alarm = Some(alarm);
    }
}

/// The interval is over.
unsafe fn interval(subject: *mut c_void, _why: Ring) {
    guard::guard((), || {
        // SAFETY: as in `start`; nothing else refers to the saver.
        let saver = unsafe { &mut *subject.cast::<Saver>() };
        saver.tick();
        if let Some(alarm) = &saver.alarm {
            alarm.set(EVERY);
        }
    });
}

impl Saver {
    /// Sees how the last save went, and begins the next. One that still runs is left to run.
    fn tick(&mut self) {
        if self
            .running
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            return;
        }
        if let Some(Ok(Err(error))) = self.running.take().map(JoinHandle::join) {
            complain(self.zone, &error);
        }
        let Some(job) = self.zone.save_job() else {
            return;
        };
        let begun = thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                block_signals();
                job()
            });
        match begun {
            Ok(thread) => self.running = Some(thread),
            Err(error) => complain(self.zone, &error),
        }
    }
}

/// nginx's signals are for its own thread, whose handlers expect to run there (ngx_thread_pool_cycle does the same).
fn block_signals() {
    // SAFETY: the set is filled before it is used, and only this thread's mask is changed.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

/// Says that a zone could not be saved, once a minute over all processes.
fn complain(zone: &'static SharedZone, error: &io::Error) {
    let due = zone
        .with_local(|local| local.is_due(Notice::State))
        .unwrap_or(true);
    if due {
        log::warning!(
            log::cycle_log(),
            "matrix_user_hash: zone \"{}\": cannot write state file \"{}\": {error}; its directory must be writable for \
             the user that nginx's workers run as",
            zone.name,
            zone.state
                .as_deref()
                .unwrap_or(std::path::Path::new(""))
                .display()
        );
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
        for zone in &main.zones {
            if let Some(Err(error)) = zone.save_job().map(|job| job()) {
                complain(zone, &error);
            }
        }
    });
}
