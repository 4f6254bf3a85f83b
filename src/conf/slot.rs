//! Setters for plain values: times, sizes, numbers, flags.
//!
//! nginx's own setters (`ngx_conf_set_msec_slot` and its kin) say "invalid value" and leave out which. These call
//! them, and add the value and what would have been right.

use core::ffi::{CStr, c_char, c_void};

use matrix_user_hash_core::shm::claims::MAX_LOOKUPS;
use nginx_sys::{
    ngx_command_t, ngx_conf_set_flag_slot, ngx_conf_set_msec_slot, ngx_conf_set_num_slot,
    ngx_conf_set_size_slot, ngx_conf_t, ngx_http_upstream_bind_set_slot, ngx_int_t, ngx_str_t,
    ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};

use super::args;

/// The value of a directive in one block, which may be not set there.
pub(super) trait Setting: Copy {
    /// What stands where a block says nothing. nginx's setters know it, and call a second directive a duplicate by it.
    const UNSET: Self;

    /// Whether the block says nothing.
    fn is_unset(&self) -> bool;

    /// Takes the enclosing block's value if this one is not set, and the default if that has none either.
    fn inherit(&mut self, outer: Self, default: Self) {
        if self.is_unset() {
            *self = if outer.is_unset() { default } else { outer };
        }
    }
}

/// nginx's `NGX_CONF_UNSET`.
impl Setting for ngx_int_t {
    const UNSET: Self = -1;

    fn is_unset(&self) -> bool {
        *self == Self::UNSET
    }
}

/// nginx's `NGX_CONF_UNSET_UINT`, `_MSEC` and `_SIZE`; also a mask of ours.
impl Setting for ngx_uint_t {
    const UNSET: Self = Self::MAX;

    fn is_unset(&self) -> bool {
        *self == Self::UNSET
    }
}

/// nginx's `NGX_CONF_UNSET_PTR`.
impl<T> Setting for *mut T {
    const UNSET: Self = core::ptr::without_provenance_mut(usize::MAX);

    fn is_unset(&self) -> bool {
        *self == Self::UNSET
    }
}

/// NULL. An empty string that was set is not.
impl Setting for ngx_str_t {
    const UNSET: Self = Self::empty();

    fn is_unset(&self) -> bool {
        self.data.is_null()
    }
}

type Setter = unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

/// Runs nginx's setter and words its complaint.
///
/// # Safety
///
/// As nginx calls a directive's setter.
unsafe fn set(
    setter: Setter,
    wanted: &str,
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's own setter, with nginx's own arguments.
    let result = unsafe { setter(cf, command, conf) };
    if result == NGX_CONF_OK {
        return result;
    }
    // SAFETY: a complaint is a C string that lives for ever.
    if result != NGX_CONF_ERROR && unsafe { CStr::from_ptr(result) } == c"is duplicate" {
        return result;
    }
    refuse(cf, wanted)
}

const A_TIME: &str = "a time such as \"500ms\" or \"2s\"";

macro_rules! setter {
    ($(#[$doc:meta])* $name:ident, $setter:path, $wanted:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// As nginx calls a directive's setter.
        pub(super) unsafe extern "C" fn $name(
            cf: *mut ngx_conf_t,
            command: *mut ngx_command_t,
            conf: *mut c_void,
        ) -> *mut c_char {
            // SAFETY: nginx's arguments, passed on.
            unsafe { set($setter, $wanted, cf, command, conf) }
        }
    };
}

setter!(/** A time in milliseconds; 0 where nginx takes it. */ milliseconds, ngx_conf_set_msec_slot, A_TIME);
setter!(/** `on` or `off`. */ flag, ngx_conf_set_flag_slot, "\"on\" or \"off\"");
setter!(/** A number. */ number, ngx_conf_set_num_slot, "a number");
setter!(/** A local address, `off`, or a variable. */ bind, ngx_http_upstream_bind_set_slot,
    "an address, \"off\" or a variable");
setter!(size, ngx_conf_set_size_slot, "a size such as \"4k\"");

/// The value that a setter has just written.
///
/// # Safety
///
/// As nginx calls a setter for a field of type `T`.
unsafe fn field<'c, T>(command: *mut ngx_command_t, conf: *mut c_void) -> &'c mut T {
    // SAFETY: `offset` is the place of a `T` in the structure at `conf`.
    unsafe { &mut *conf.cast::<u8>().add((*command).offset).cast::<T>() }
}

/// The longest `matrix_user_hash_timeout`, in milliseconds: well within what a flight's word can tell (`MAX_HOLD`).
const LONGEST_TIMEOUT: ngx_uint_t = 15 * 60 * 1000;

/// A time in milliseconds, more than 0 and at most [`LONGEST_TIMEOUT`].
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(super) unsafe extern "C" fn positive_milliseconds(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments, passed on; the field is an `ngx_msec_t`.
    let (result, value) = unsafe {
        (
            milliseconds(cf, command, conf),
            field::<ngx_uint_t>(command, conf),
        )
    };
    if result == NGX_CONF_OK && !(1..=LONGEST_TIMEOUT).contains(value) {
        return refuse(cf, "a time of more than 0 and at most 15m");
    }
    result
}

/// How many lookups may be in flight: as many as a zone can tell apart.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(super) unsafe extern "C" fn lookups(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments, passed on; the field is an `ngx_int_t`.
    let (result, value) = unsafe { (number(cf, command, conf), field::<ngx_int_t>(command, conf)) };
    if result == NGX_CONF_OK && !u32::try_from(*value).is_ok_and(|n| (1..=MAX_LOOKUPS).contains(&n))
    {
        return refuse(cf, &format!("a number from 1 to {MAX_LOOKUPS}"));
    }
    result
}

/// How many certificates may stand between a server's and a trusted one.
///
/// # Safety
///
/// As nginx calls a directive's setter.
#[cfg(ngx_feature = "http_ssl")]
pub(super) unsafe extern "C" fn depth(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments, passed on; the field is an `ngx_int_t`.
    let (result, value) = unsafe { (number(cf, command, conf), field::<ngx_int_t>(command, conf)) };
    if result == NGX_CONF_OK && !(0..=100).contains(value) {
        return refuse(cf, "a number from 0 to 100");
    }
    result
}

/// The size of the buffer for a whoami answer: at least what the smallest answer with its head takes.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(super) unsafe extern "C" fn buffer_size(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    const RANGE: std::ops::RangeInclusive<usize> = 512..=1 << 20;
    // SAFETY: nginx's arguments, passed on; the field is a `size_t`.
    let (result, value) = unsafe { (size(cf, command, conf), field::<usize>(command, conf)) };
    if result == NGX_CONF_OK && !RANGE.contains(value) {
        return refuse(cf, "a size from 512 to 1m");
    }
    result
}

/// Reads words of a list into a mask, which begins as `empty`.
pub(super) fn mask(
    cf: *mut ngx_conf_t,
    known: &[(&[u8], u32)],
    empty: ngx_uint_t,
    mask: &mut ngx_uint_t,
) -> *mut c_char {
    if !mask.is_unset() {
        return c"is duplicate".as_ptr().cast_mut();
    }
    *mask = empty;
    // SAFETY: nginx is reading the directive.
    let words = unsafe { args(&*cf) };
    for word in &words[1..] {
        let Some((_, bit)) = known.iter().find(|(name, _)| name == word) else {
            let names: Vec<_> = known
                .iter()
                .map(|(name, _)| String::from_utf8_lossy(name))
                .collect();
            emerg!(
                cf,
                "invalid value \"{}\" in \"{}\" directive, it must be of: {}",
                String::from_utf8_lossy(word),
                String::from_utf8_lossy(words[0]),
                names.join(", ")
            );
            return NGX_CONF_ERROR;
        };
        *mask |= *bit as ngx_uint_t;
    }
    NGX_CONF_OK
}

/// Says which values a directive takes, and gives what its setter is to return.
pub(super) fn refuse(cf: *mut ngx_conf_t, wanted: &str) -> *mut c_char {
    // SAFETY: nginx is reading the directive.
    let words = unsafe { args(&*cf) };
    emerg!(
        cf,
        "invalid value \"{}\" in \"{}\" directive, it must be {wanted}",
        String::from_utf8_lossy(&words[1..].join(&b' ')),
        String::from_utf8_lossy(words[0])
    );
    NGX_CONF_ERROR
}
