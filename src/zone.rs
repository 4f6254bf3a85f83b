//! Shared memory: from a directive to a [`Zone`] that requests can use.
//!
//! A zone is configured when its directive is read, and ready once nginx has mapped its memory, which it does for all
//! zones together after the whole configuration is known. A reload hands the memory on; a changed size, a restart or a
//! binary upgrade begins with new memory, into which the answers are taken over where they can be had: from the old
//! zone, also if another library of the module has it ([`handover`]), or from the state file.

use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::state;
use matrix_user_hash_core::time::{Millis, Seconds};
use nginx_sys::{ngx_conf_t, ngx_int_t, ngx_shm_zone_t};
use ngx::core::Status;
use ngx::http::HttpModule;

use crate::Module;
use crate::ngx::clock;
use crate::ngx::conf::Invalid;
use crate::ngx::guard;
use crate::ngx::log;
use crate::ngx::pool;
use crate::ngx::shared::{self, Memory};
use crate::process_state::ProcessState;

pub(crate) mod handover;

/// The zone of a `matrix_user_hash` that names none.
pub(crate) const DEFAULT_ZONE: &str = "matrix_user_hash";
const DEFAULT_SIZE: usize = 4 << 20;

/// What `matrix_user_hash_zone` says.
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: usize,
    /// How long an entry lives unused.
    pub inactive: Seconds,
    /// Where it is saved.
    pub state: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: DEFAULT_ZONE.to_owned(),
            size: DEFAULT_SIZE,
            inactive: Seconds::new(24 * 3600),
            state: None,
        }
    }
}

/// Where a zone is in its life.
#[derive(Clone, Copy)]
enum Life {
    /// Its directive was read; it has no memory.
    Configured,
    /// Its memory is mapped and formatted.
    Ready(Zone<'static>),
}

/// A zone of one cycle's configuration.
pub struct SharedZone {
    /// Its name, which is also a label in the figures.
    pub name: String,
    /// How long an entry lives unused.
    pub inactive: Seconds,
    /// Where it is saved.
    pub state: Option<PathBuf>,
    life: Cell<Life>,
    /// What this worker process keeps beside the shared memory.
    process: RefCell<Option<ProcessState>>,
}

/// The moment that nginx's event loop has read for this turn.
#[inline]
pub(crate) fn now() -> Millis {
    Millis::new(clock::milliseconds())
}

impl SharedZone {
    /// The smallest size of a zone in bytes: what nginx asks of any, and room for some hundred tokens.
    pub fn smallest() -> usize {
        // SAFETY: nginx sets its page size before it reads the configuration (ngx_os_init).
        16 * unsafe { nginx_sys::ngx_pagesize }
    }

    /// Declares a zone to nginx.
    ///
    /// # Errors
    ///
    /// nginx refused, and has logged why.
    pub fn declare(cf: &mut ngx_conf_t, settings: Settings) -> Result<&'static Self, Invalid> {
        let zone = Self {
            name: settings.name,
            inactive: settings.inactive,
            state: settings.state,
            life: Cell::new(Life::Configured),
            process: RefCell::new(None),
        };
        // SAFETY: the zone and its name live in the cycle's pool, as long as nginx's own structure.
        unsafe {
            let zone: &'static Self = pool::adopt(cf.pool, zone).ok_or(Invalid)?;
            let data = ptr::from_ref(zone).cast_mut().cast();
            shared::declare(cf, &zone.name, settings.size, tag(), init, data)?;
            Ok(zone)
        }
    }

    /// Declares the zone that is there without a directive.
    ///
    /// # Errors
    ///
    /// nginx refused, and has logged why.
    pub fn default_zone(cf: &mut ngx_conf_t) -> Result<&'static Self, Invalid> {
        Self::declare(cf, Settings::default())
    }

    /// The zone's content; `None` before nginx has mapped it.
    pub fn ready(&self) -> Option<Zone<'static>> {
        match self.life.get() {
            Life::Configured => None,
            Life::Ready(zone) => Some(zone),
        }
    }

    /// Runs `body` with what this worker process keeps beside the zone. `None` if the zone is not ready, or `body` is called
    /// from within `body`.
    pub fn with_process<T>(&'static self, body: impl FnOnce(&mut ProcessState) -> T) -> Option<T> {
        let mut process = self.process.try_borrow_mut().ok()?;
        if process.is_none() {
            *process = Some(ProcessState::new(self.ready()?, self.inactive));
        }
        process.as_mut().map(body)
    }

    /// Gives the zone its memory.
    fn set_up(&self, shared: &ngx_shm_zone_t, previous: Option<&Self>) -> Result<(), String> {
        let memory = Memory::of(shared);
        if let Some(found) = memory.found {
            // Processes that serve may use it: it is this library's, or it is left alone.
            let zone = Zone::attach(found).map_err(|reason| reason.to_string())?;
            self.life.set(Life::Ready(zone));
            return Ok(());
        }
        let words = memory.allocate()?;
        let zone = Zone::format(words, &random_secret()?).map_err(|reason| reason.to_string())?;
        if !self.take_over(&zone, previous) {
            self.restore(&zone);
        }
        self.life.set(Life::Ready(zone));
        Ok(())
    }

    /// Takes over the answers of the zone that a reload replaces: by one of another size, or by that of another library.
    /// False if there is nothing to take over.
    fn take_over(&self, zone: &Zone<'static>, previous: Option<&Self>) -> bool {
        let (bytes, from) = if let Some(old) = previous.and_then(Self::ready) {
            match state::encode(&old, now(), clock::unix_seconds()) {
                Ok(bytes) => (bytes, None),
                Err(_) => {
                    log::warning!(
                        log::cycle_log(),
                        "matrix_user_hash: zone \"{}\" starts empty: there was no memory to take the old one over",
                        self.name
                    );
                    return true;
                }
            }
        } else if let Some((bytes, library)) = handover::from_another(&self.name) {
            (bytes, Some(library))
        } else {
            return false;
        };
        let loaded = state::load(&bytes, zone, now(), clock::unix_seconds(), self.inactive);
        match (&loaded, from) {
            (Ok(entries), None) => log::notice!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{}\" resized with {entries} entries",
                self.name
            ),
            (Ok(entries), Some(library)) => log::notice!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{}\" taken over from another library ({library}) with {entries} entries",
                self.name
            ),
            (Err(reason), _) => log::warning!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{}\" cannot be taken over from the one before: {reason}",
                self.name
            ),
        }
        loaded.is_ok()
    }

    /// Reads the state file, if there is one. Whatever is wrong with it, the zone is empty then, and says so once.
    fn restore(&self, zone: &Zone<'static>) {
        let Some(path) = &self.state else { return };
        state::sweep(path);
        let Some(bytes) = self.read_state() else {
            return;
        };
        match state::load(&bytes, zone, now(), clock::unix_seconds(), self.inactive) {
            Ok(entries) => log::notice!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{}\" restored {entries} entries from \"{}\"",
                self.name,
                path.display()
            ),
            Err(reason) => log::warning!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{}\" starts empty: state file \"{}\": {reason}",
                self.name,
                path.display()
            ),
        }
    }

    /// The bytes of the state file; `None` if there is none, or if it cannot be read, which is said.
    fn read_state(&self) -> Option<Vec<u8>> {
        let path = self.state.as_ref()?;
        match read_file(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    log::warning!(
                        log::cycle_log(),
                        "matrix_user_hash: zone \"{}\" starts empty: cannot read state file \"{}\": {error}",
                        self.name,
                        path.display()
                    );
                }
                None
            }
        }
    }

    /// What writes the state file, if the zone has one; it may run in any thread.
    pub fn save_job(&self) -> Option<impl FnOnce() -> std::io::Result<()> + Send + 'static> {
        let (path, zone) = (self.state.clone()?, self.ready()?);
        let (now, unix_seconds) = (now(), clock::unix_seconds());
        Some(move || state::write_file(&path, &state::encode(&zone, now, unix_seconds)?))
    }
}

/// All of a regular file. What would keep the reader waiting, such as a pipe, is refused.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// nginx's callback once the memory is mapped; `old` is our data of the previous cycle when the memory is handed on.
unsafe extern "C" fn init(shared: *mut ngx_shm_zone_t, _old: *mut c_void) -> ngx_int_t {
    guard::configuring(Status::NGX_ERROR.0, || {
        // SAFETY: nginx calls with the zone that `declare` filled in.
        let (shared, zone) = unsafe { (&*shared, &*(*shared).data.cast::<SharedZone>()) };
        // SAFETY: nginx sets it before it reads the configuration.
        if unsafe { nginx_sys::ngx_test_config } != 0 {
            // `nginx -t`: the memory is given back at once, and touching all of it would take as much of the machine.
            zone.read_state();
            return Status::NGX_OK.0;
        }
        match zone.set_up(shared, previous(&zone.name)) {
            Ok(()) => Status::NGX_OK.0,
            Err(reason) => {
                log::alert!(
                    log::cycle_log(),
                    "matrix_user_hash: zone \"{}\": {reason}",
                    zone.name
                );
                Status::NGX_ERROR.0
            }
        }
    })
}

/// What tells our zones from those of other modules, and those of this very library from those of another file of it.
fn tag() -> *mut c_void {
    ptr::from_ref(Module::module()).cast_mut().cast()
}

/// The zone of that name in the cycle that runs while a new one is made, if this very library made it. A reload may name
/// another file of the module: its structures are another library's, and nothing of them can be read.
fn previous(name: &str) -> Option<&'static SharedZone> {
    // SAFETY: while a cycle is made, `ngx_cycle` is the old one (ngx_init_cycle), with its zones still mapped.
    let cycle = unsafe { nginx_sys::ngx_cycle.as_ref()? };
    if cycle.conf_ctx.is_null() {
        // At start it is a stub without a configuration.
        return None;
    }
    // SAFETY: a zone with our tag was declared by `SharedZone::declare`, whose `data` it keeps.
    let of = |shared: &ngx_shm_zone_t| unsafe { &*shared.data.cast::<SharedZone>() };
    let mut zones = shared::with_tag(cycle, tag()).map(of);
    zones.find(|zone| zone.name == name)
}

fn random_secret() -> Result<Secret, String> {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer has the length that is said; 16 bytes are given whole or not at all (getrandom(2)).
    let given = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(given) != Ok(bytes.len()) {
        return Err(format!(
            "getrandom() failed: {}",
            std::io::Error::last_os_error()
        ));
    }
    Ok(Secret::from_bytes(bytes))
}
