//! Saves zones to their state files: one worker process does it at intervals, and the process that ends last does it when nginx ends.
//!
//! Encoding a large zone and waiting for the disk takes longer than an event loop may stand still, so it is done in
//! a thread, which only reads the zone's atomics and touches nothing of nginx.

use core::cell::RefCell;
use core::ffi::c_void;
use core::{mem, ptr};
use std::fs;
use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};

use matrix_user_hash_core::shm::throttle::LogLine;
use nginx_sys::{NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_cycle_t};
use ngx::http::HttpModuleMainConf;

use crate::Module;
use crate::conf::MainConf;
use crate::ngx::event::{Timer, WakeReason};
use crate::ngx::{guard, log, reserve};
use crate::zone::{SharedZone, now};

/// How often zones are saved, in milliseconds. A crash of the whole machine may cost the new answers of that time.
const EVERY: usize = 60_000;

thread_local! {
    /// What the process that saves has; `None` in all others.
    static SAVER: RefCell<Option<Saver>> = const { RefCell::new(None) };
}

struct Saver {
    timer: Timer,
    running: Vec<Save>,
}

/// A save that is under way.
struct Save {
    zone: String,
    path: std::path::PathBuf,
    thread: JoinHandle<io::Result<()>>,
}

/// Sets the interval, in the first worker process.
pub(crate) fn start(main: &MainConf) {
    // SAFETY: nginx sets both before it calls a process's init_process.
    let (process, worker) = unsafe { (nginx_sys::ngx_process as u32, nginx_sys::ngx_worker) };
    let saves = match process {
        // No init_process tells a single process of a reload, which may bring the first zone to be saved.
        NGX_PROCESS_SINGLE => true,
        NGX_PROCESS_WORKER => worker == 0 && main.zones.iter().any(|zone| zone.state.is_some()),
        _ => false,
    };
    if !saves {
        return;
    }
    // SAFETY: `interval` guards itself and has no subject; the log is renewed each time.
    if let Some(timer) = unsafe { Timer::new(log::cycle_log(), true, interval, ptr::null_mut()) } {
        timer.set(first(main));
        let running = Vec::new();
        SAVER.set(Some(Saver { timer, running }));
    }
}

/// How long the first save can wait, in milliseconds. The files tell when the last was, perhaps that of a process before a
/// reload: with reloads more often than once in [`EVERY`], nothing would be saved otherwise.
fn first(main: &MainConf) -> usize {
    const SOON: usize = 1000;
    let files = main.zones.iter().filter_map(|zone| zone.state.as_ref());
    let left = files.map(|file| {
        let written = fs::metadata(file).and_then(|found| found.modified());
        match written.map(|written| written.elapsed().unwrap_or_default().as_millis()) {
            Ok(age) => EVERY.saturating_sub(usize::try_from(age).unwrap_or(EVERY)),
            Err(_) => 0,
        }
    });
    left.min().unwrap_or(EVERY).max(SOON)
}

/// The interval is over.
unsafe fn interval(_subject: *mut c_void, _why: WakeReason) {
    guard::guard((), || {
        SAVER.with_borrow_mut(|saver| {
            if let Some(saver) = saver {
                // A thread takes memory, and cannot do without.
                reserve::within(|| saver.tick());
            }
        });
    });
}

impl Saver {
    /// Sees how the last saves went, and begins the next. One that still runs is left to run.
    fn tick(&mut self) {
        let (ended, running) = mem::take(&mut self.running)
            .into_iter()
            .partition(|save| save.thread.is_finished());
        self.running = running;
        Vec::into_iter(ended).for_each(Save::end);
        // SAFETY: nginx sets it when the process begins to shut down. A successor saves the zone now, perhaps another one.
        if unsafe { nginx_sys::ngx_exiting } != 0 {
            return;
        }
        for zone in zones() {
            if self.running.iter().all(|save| save.zone != zone.name) {
                self.running.extend(Save::begin(zone));
            }
        }
        self.timer.relog(log::cycle_log());
        self.timer.set(EVERY);
    }
}

impl Save {
    fn begin(zone: &'static SharedZone) -> Option<Self> {
        let job = zone.save_job()?;
        let path = zone.state.clone()?;
        let builder = thread::Builder::new().name("state".to_owned());
        let thread = builder.spawn(move || {
            block_signals();
            reserve::within(job)
        });
        match thread {
            Ok(thread) => Some(Self {
                zone: zone.name.clone(),
                path,
                thread,
            }),
            Err(error) => {
                complain(&zone.name, &path, &error);
                None
            }
        }
    }

    /// Waits until it has ended.
    fn end(self) {
        if let Ok(Err(error)) = self.thread.join() {
            complain(&self.zone, &self.path, &error);
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

/// The zones of the cycle that the process serves now.
fn zones() -> &'static [&'static SharedZone] {
    // SAFETY: `ngx_cycle` is the cycle that the process serves, which is whole.
    let main = unsafe { nginx_sys::ngx_cycle.as_ref() }.and_then(Module::main_conf);
    main.map_or(&[], |main| &main.zones)
}

/// Says that a zone could not be saved, once a minute over all processes.
fn complain(zone: &str, path: &Path, error: &io::Error) {
    let due = zones()
        .iter()
        .find(|shared| shared.name == zone)
        .and_then(|shared| {
            shared.with_process(|process| process.engine.is_due(LogLine::State, now()))
        })
        .unwrap_or(true);
    if due {
        log::warning!(
            log::cycle_log(),
            "matrix_user_hash: zone \"{zone}\": cannot write state file \"{}\": {error}; its directory, or the file if it \
             is a mount of its own, must be writable for the user that nginx's workers run as",
            path.display()
        );
    }
}

/// A process ends: a save that is under way is waited for, or it would leave half a file behind.
pub(crate) unsafe extern "C" fn exit_process(_cycle: *mut ngx_cycle_t) {
    guard::guard((), || {
        if let Some(saver) = SAVER.take() {
            saver.running.into_iter().for_each(Save::end);
        }
    });
}

/// nginx calls it when the master ends, after all worker processes, or when a single process ends.
pub(crate) unsafe extern "C" fn exit_master(cycle: *mut ngx_cycle_t) {
    guard::guard((), || {
        // SAFETY: nginx passes the cycle that ends, still whole.
        let Some(main) = Module::main_conf(unsafe { &*cycle }) else {
            return;
        };
        for zone in &main.zones {
            if let Some(Err(error)) = reserve::within(|| zone.save_job().map(|job| job())) {
                let path = zone.state.as_deref().unwrap_or(Path::new(""));
                complain(&zone.name, path, &error);
            }
        }
    });
}
