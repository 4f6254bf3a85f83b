//! What is known goes from one library of the module to another, when a reload brings another file of it.
//!
//! A zone's tag is an address in the library that declared it, so nginx never gives one library's memory to another: the
//! new one begins with new memory, however either lays it out. It asks the old one, which is still loaded, for what the
//! zone of that name knows, in the form of a state file, whose version tells whether it can be read.
//!
//! The old library is found among the modules of the cycle that runs, by its name. Where it answers stands in its command
//! `matrix_user_hash_zone`, in the member `post` that nginx leaves to a module. Both stay so in every version, and so does
//! [`Handover`].

use core::ffi::{CStr, c_void};
use core::ptr;

use matrix_user_hash_core::state;
use nginx_sys::{ngx_command_t, ngx_int_t, ngx_module_t, ngx_str_t};
use ngx::core::Status;
use ngx::http::HttpModule;

use super::{now, previous};
use crate::Module;
use crate::ngx::built_for::ABOUT;
use crate::ngx::request::bytes;
use crate::ngx::{clock, guard, log, memory};

const MAGIC: [u8; 8] = *b"MUHgive1";
const MODULE_NAME: &CStr = c"ngx_http_matrix_user_hash_module";
const COMMAND_NAME: &[u8] = b"matrix_user_hash_zone";

/// What one library shows another.
#[repr(C)]
pub(crate) struct Handover {
    magic: [u8; 8],
    /// What it is.
    about: ngx_str_t,
    give: Give,
}

/// Calls `take` with the state of the zone of that name, once, and returns `NGX_OK`; else it returns something else.
type Give = unsafe extern "C" fn(name: *const ngx_str_t, take: Take, to: *mut c_void) -> ngx_int_t;
type Take = unsafe extern "C" fn(to: *mut c_void, state: *const ngx_str_t);

// SAFETY: nothing changes it, nor what it points to.
unsafe impl Sync for Handover {}

/// What this library shows another.
pub(crate) static HANDOVER: Handover = Handover {
    magic: MAGIC,
    about: ngx_str_t {
        len: ABOUT.len(),
        data: ABOUT.as_ptr().cast_mut(),
    },
    give,
};

unsafe extern "C" fn give(name: *const ngx_str_t, take: Take, to: *mut c_void) -> ngx_int_t {
    guard::configuring(Status::NGX_ERROR.0, || {
        // SAFETY: the caller passes a string.
        let name = unsafe { bytes(&*name) };
        let zone = core::str::from_utf8(name).ok().and_then(previous);
        let Some(zone) = zone.and_then(super::SharedZone::ready) else {
            return Status::NGX_DECLINED.0;
        };
        let Ok(state) = state::encode(&zone, now(), clock::unix_seconds()) else {
            return Status::NGX_ERROR.0;
        };
        let state = string(&state);
        // SAFETY: `take` is what the caller says it is, and the bytes are there until it returns.
        unsafe { take(to, &raw const state) };
        Status::NGX_OK.0
    })
}

/// The state of the zone of that name in the cycle that runs, and what library had it; `None` if no other library has one.
pub(crate) fn from_another(zone: &str) -> Option<(Vec<u8>, String)> {
    let handover = another()?;
    let mut state: Option<Vec<u8>> = None;
    let name = string(zone.as_bytes());
    // SAFETY: `give` is called as its type says, with a place that `keep` may write to.
    let given = unsafe { (handover.give)(&raw const name, keep, (&raw mut state).cast()) };
    // SAFETY: a library has its own description for as long as it is loaded.
    let about = String::from_utf8_lossy(unsafe { bytes(&handover.about) }).into_owned();
    match state {
        _ if given != Status::NGX_OK.0 => None,
        Some(state) => Some((state, about)),
        None => {
            log::warning!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{zone}\" is not taken over from another library ({about}): there was no memory for it"
            );
            None
        }
    }
}

unsafe extern "C" fn keep(to: *mut c_void, state: *const ngx_str_t) {
    guard::guard((), || {
        // SAFETY: `from_another` passes that place, and the other library a string.
        unsafe { *to.cast::<Option<Vec<u8>>>() = memory::copy(bytes(&*state)) };
    });
}

/// What another library of this module shows, if the cycle that runs has one.
fn another() -> Option<&'static Handover> {
    // SAFETY: while a cycle is made, `ngx_cycle` is the old one with its modules loaded, and their list ends with a null
    // pointer; at start it is a stub without a list.
    unsafe {
        let mut next = nginx_sys::ngx_cycle.as_ref()?.modules;
        while let Some(module) = next.as_ref()?.as_ref() {
            let named = !module.name.is_null() && CStr::from_ptr(module.name) == MODULE_NAME;
            if named && !ptr::eq(module, Module::module()) {
                return shown_by(module);
            }
            next = next.add(1);
        }
        None
    }
}

/// # Safety
///
/// `module` is one of this name, in whatever library.
unsafe fn shown_by(module: &ngx_module_t) -> Option<&'static Handover> {
    // SAFETY: a module's commands end with one without a name. What `post` of this one points to begins with a magic in
    // every version of the module, and is a static of its library.
    unsafe {
        let mut command: *const ngx_command_t = module.commands;
        while command.as_ref()?.name.len > 0 {
            if bytes(&(*command).name) == COMMAND_NAME {
                let handover = (*command).post.cast::<Handover>().as_ref()?;
                return (handover.magic == MAGIC).then_some(handover);
            }
            command = command.add(1);
        }
        None
    }
}

fn string(of: &[u8]) -> ngx_str_t {
    ngx_str_t {
        len: of.len(),
        data: of.as_ptr().cast_mut(),
    }
}
