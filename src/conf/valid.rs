//! `matrix_user_hash_valid`: how long an answer is fresh.

use core::ffi::{c_char, c_void};

use matrix_user_hash_core::time::Seconds;
use nginx_sys::{ngx_command_t, ngx_conf_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};

use super::slot::Setting;
use super::{LocationConf, args};
use crate::ngx::conf;

/// How long each kind of answer is fresh; `None` is not set.
#[derive(Clone, Copy, PartialEq)]
pub struct Valid {
    /// 200: whose token it is.
    known: Option<Seconds>,
    /// 401 with `M_UNKNOWN_TOKEN`: nobody's. In milliseconds.
    refused: Option<u64>,
    /// Whatever else went wrong, in milliseconds, since it is at most a second.
    failed: Option<u32>,
}

/// The longest freshness, in milliseconds: 365 days. The table counts seconds modulo 2^26 (776 days).
const LONGEST: u64 = 365 * 24 * 3600 * 1000;
/// The longest that a failure may be remembered, in milliseconds (docs/directives.md, matrix_user_hash_valid).
const LONGEST_FAILURE: u64 = 1000;

/// `200 1h; 401 30s; any 1s`.
pub(crate) const DEFAULT: Valid = Valid {
    known: Some(Seconds::new(3600)),
    refused: Some(30_000),
    failed: Some(1000),
};

impl Setting for Valid {
    const UNSET: Self = Self {
        known: None,
        refused: None,
        failed: None,
    };

    fn is_unset(&self) -> bool {
        *self == Self::UNSET
    }

    /// Each kind for itself.
    fn inherit(&mut self, outer: Self, default: Self) {
        self.known = self.known.or(outer.known).or(default.known);
        self.refused = self.refused.or(outer.refused).or(default.refused);
        self.failed = self.failed.or(outer.failed).or(default.failed);
    }
}

impl Valid {
    /// How long the table's answer is fresh.
    pub fn known(&self) -> Seconds {
        self.known.unwrap_or_default()
    }

    /// How long a refusal is remembered, in milliseconds.
    pub fn refused(&self) -> u64 {
        self.refused.unwrap_or_default()
    }

    /// How long a failure is remembered, in milliseconds.
    pub fn failed(&self) -> u64 {
        u64::from(self.failed.unwrap_or_default())
    }
}

/// Reads `matrix_user_hash_valid [CODE ...] TIME`; may stand several times in a block, for different codes.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(crate) unsafe extern "C" fn set(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    block: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx's arguments; `block` is one of ours.
    let (words, valid) = unsafe { (args(&*cf), &mut (*block.cast::<LocationConf>()).valid) };
    let (time, codes) = words[1..]
        .split_last()
        .expect("nginx wants at least one argument");
    let Some(milliseconds) = conf::milliseconds(time).filter(|time| *time <= LONGEST) else {
        emerg!(
            cf,
            "invalid time \"{}\" in \"matrix_user_hash_valid\" directive, it must be a time of at most 365d",
            String::from_utf8_lossy(time)
        );
        return NGX_CONF_ERROR;
    };
    // As proxy_cache_valid: without a code, the time is that of the good answers.
    let codes = if codes.is_empty() {
        &[&b"200"[..]]
    } else {
        codes
    };
    for code in codes {
        if !set_code(cf, valid, code, time, milliseconds) {
            return NGX_CONF_ERROR;
        }
    }
    NGX_CONF_OK
}

fn set_code(
    cf: *mut ngx_conf_t,
    valid: &mut Valid,
    code: &[u8],
    time: &[u8],
    milliseconds: u64,
) -> bool {
    // The table counts in seconds; less than one is one, not none.
    let seconds = Seconds::new(u32::try_from(milliseconds.div_ceil(1000)).unwrap_or(u32::MAX));
    let duplicate = match code {
        b"200" => valid.known.replace(seconds).is_some(),
        b"401" => valid.refused.replace(milliseconds).is_some(),
        b"any" if milliseconds > LONGEST_FAILURE => {
            emerg!(
                cf,
                "invalid time \"{}\" in \"matrix_user_hash_valid\" directive, \"any\" may be at most 1s: a failure is \
                 no fact about a token",
                String::from_utf8_lossy(time)
            );
            return false;
        }
        b"any" => valid
            .failed
            .replace(u32::try_from(milliseconds).unwrap_or(1000))
            .is_some(),
        other => {
            emerg!(
                cf,
                "invalid code \"{}\" in \"matrix_user_hash_valid\" directive, it must be \"200\", \"401\" or \"any\"",
                String::from_utf8_lossy(other)
            );
            return false;
        }
    };
    if duplicate {
        emerg!(
            cf,
            "duplicate code \"{}\" in \"matrix_user_hash_valid\" directive",
            String::from_utf8_lossy(code)
        );
    }
    !duplicate
}
