//! Which nginx this library was built for: in its bytes, and said when another nginx loads it.
//!
//! nginx refuses a module whose version or signature is not its own (`ngx_add_module`), with two numbers or with "is
//! not binary compatible"; what the module was built for, it never says. So [`check`] makes the same two comparisons
//! and says it. The linker's table has it run while the library is being opened, before nginx looks into it.
//!
//! What it touches there is of a foreign nginx: the version and the signature of `ngx_core_module`, which stand where
//! nginx itself looks for them in any module, and the log of `ngx_cycle`, whose first members have been the same since
//! long before the oldest nginx that we build for.

use core::ffi::CStr;
use core::fmt;

use nginx_sys::{NGX_LOG_ALERT, ngx_core_module, ngx_cycle, ngx_uint_t};

use crate::ngx::compat::{ANGIE_SIGN, LogForm};
use crate::ngx::{library, log};
use crate::ngx_http_matrix_user_hash_module;

/// `nginx/1.30.6 (Debian nginx 1.30.6-2)`: `build.rs` makes it of nginx's headers and of what `scripts/build` says.
const BUILT_FOR: &str = env!("MATRIX_USER_HASH_BUILT_FOR");

/// The same in the file, on a line of its own, for `grep -a` (docs/compatibility.md).
#[used]
static STAMP: Stamp = Stamp(*LINE.as_bytes().first_chunk().expect("its own length"));

const LINE: &str = concat!(
    "\nngx_http_matrix_user_hash_module ",
    env!("CARGO_PKG_VERSION"),
    " built for ",
    env!("MATRIX_USER_HASH_BUILT_FOR"),
    "\n"
);

/// This library's version, and which nginx it was built for.
pub(crate) const ABOUT: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " built for ",
    env!("MATRIX_USER_HASH_BUILT_FOR")
);

struct Stamp(#[allow(dead_code, reason = "read in the file")] [u8; LINE.len()]);

/// What the dynamic linker calls when the library is opened.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_OPENING: extern "C" fn() = check;

/// Notes where the library came from, and says which nginx would fit, if this one does not.
extern "C" fn check() {
    library::opened();
    // No guard: its log line reads nothing that this does not read. A panic could only come out of formatting.
    // SAFETY: `ngx_core_module` is a static of every nginx; nothing changes its version and signature. Ours is not
    // written to while the library is being opened.
    let (theirs, ours, sign) = unsafe {
        let ours = &raw const ngx_http_matrix_user_hash_module;
        let theirs = &raw const ngx_core_module;
        (
            ((*theirs).version, CStr::from_ptr((*theirs).signature)),
            ((*ours).version, CStr::from_ptr((*ours).signature)),
            (*theirs).spare1,
        )
    };
    // SAFETY: nginx sets it before it reads the configuration, which is what opens the library.
    if theirs == ours || unsafe { ngx_cycle.is_null() || (*ngx_cycle).log.is_null() } {
        return;
    }
    let (server, form) = (server(sign), LogForm::of(sign, theirs.0));
    if theirs.0 != ours.0 {
        say(
            form,
            format_args!(
                "matrix_user_hash: this library was built for {BUILT_FOR} and cannot be used by {server} {}",
                Version(theirs.0)
            ),
        );
    } else {
        say(
            form,
            format_args!(
                "matrix_user_hash: this library was built for {BUILT_FOR}, configured with other arguments than this {server} \
                 (signature {}, not {})",
                ours.1.to_str().unwrap_or_default(),
                theirs.1.to_str().unwrap_or_default()
            ),
        );
    }
}

/// Logs to the server that opens the library, which may be another than it was built for.
fn say(form: LogForm, line: fmt::Arguments<'_>) {
    // SAFETY: the caller found a cycle with a log, and `form` is the server's.
    unsafe { log::write(form, NGX_LOG_ALERT as ngx_uint_t, log::cycle_log(), line) }
}

/// The name of the server whose own modules have that sign.
const fn server(sign: ngx_uint_t) -> &'static str {
    if sign == ANGIE_SIGN { "Angie" } else { "nginx" }
}

/// nginx's number of a version, 1030006, as people write it.
struct Version(ngx_uint_t);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        write!(
            f,
            "{}.{}.{}",
            number / 1_000_000,
            number / 1000 % 1000,
            number % 1000
        )
    }
}
