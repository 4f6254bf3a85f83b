//! `matrix_user_hash_phase`: when a request is resolved.

use core::ffi::{c_char, c_void};

use nginx_sys::{ngx_command_t, ngx_conf_t};
use ngx::core::NGX_CONF_OK;

use super::slot::{self, Setting};
use super::{LocationConf, args};

/// The phase in which a request is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is said here: as in the enclosing block.
    Unset,
    /// After access control and limits.
    PreContent,
    /// Before limits and access control.
    PreAccess,
}

impl Setting for Phase {
    const UNSET: Self = Self::Unset;

    fn is_unset(&self) -> bool {
        *self == Self::Unset
    }
}

/// Reads `matrix_user_hash_phase precontent | preaccess`.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(crate) unsafe extern "C" fn set(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments; `conf` is a block of ours.
    let (words, phase) = unsafe { (args(&*cf), &mut (*conf.cast::<LocationConf>()).phase) };
    if !phase.is_unset() {
        return c"is duplicate".as_ptr().cast_mut();
    }
    *phase = match words[1] {
        b"precontent" => Phase::PreContent,
        b"preaccess" => Phase::PreAccess,
        _ => return slot::refuse(cf, "\"precontent\" or \"preaccess\""),
    };
    NGX_CONF_OK
}
