//! `matrix_user_hash_shift`: a variable that changes from one word to another, user by user.

use core::ffi::{c_char, c_void};

use matrix_user_hash_core::shift::{Shift, Span, parse_percent, parse_time};
use nginx_sys::{ngx_command_t, ngx_conf_t};
use ngx::core::NGX_CONF_OK;

use super::{args, refuse};
use crate::ngx::{conf, pool};
use crate::variables::{self, Words};

/// The longest shift, in milliseconds: 365 days.
const LONGEST: u64 = 365 * 24 * 3600 * 1000;

/// A word of the directive, and what is wrong with it.
type Mistake<'a> = (&'a [u8], &'static str);

/// Reads `matrix_user_hash_shift $VARIABLE OLD NEW start=TIME over=TIME` or `… at=PERCENT`.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(super) unsafe extern "C" fn set(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    _conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx is reading the directive.
    let cf = unsafe { &mut *cf };
    let words = args(cf);
    match read(&words).and_then(|words| declare(cf, words)) {
        Ok(()) => NGX_CONF_OK,
        Err((word, reason)) => refuse(cf, word, reason),
    }
}

/// What the directive says, with the word that names the variable.
fn read<'a>(words: &[&'a [u8]]) -> Result<(&'a [u8], Words), Mistake<'a>> {
    let variable = name(words[1])?;
    let (old, new) = (group(words[2])?, group(words[3])?);
    if old == new {
        return Err((words[3], "it is what the old one is: nobody would move"));
    }
    let shift = when(words)?;
    let words_of = Words {
        variable,
        old,
        new,
        shift,
    };
    Ok((words[1], words_of))
}

/// The variable's name without the `$`.
fn name(word: &[u8]) -> Result<String, Mistake<'_>> {
    let name = word.strip_prefix(b"$").unwrap_or_default();
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    if name.is_empty() || !name.iter().all(fits) {
        return Err((word, "it must be a variable such as \"$sync_group\""));
    }
    Ok(String::from_utf8_lossy(name).to_ascii_lowercase())
}

/// OLD or NEW.
fn group(word: &[u8]) -> Result<Vec<u8>, Mistake<'_>> {
    if word.is_empty() {
        return Err((word, "it is empty"));
    }
    if word.contains(&b'$') {
        return Err((word, "variables are not evaluated here"));
    }
    if word.contains(&b'=') {
        return Err((word, "it must be a word: \"$VARIABLE OLD NEW\" comes first"));
    }
    Ok(word.to_vec())
}

fn when<'a>(words: &[&'a [u8]]) -> Result<Shift, Mistake<'a>> {
    const START: &str = "it must be a time such as \"2026-11-25T15:00:00Z\", or seconds since 1970";
    const OVER: &str = "it must be a time of more than 0 and at most 365d, such as \"30m\"";
    const AT: &str = "it must be from \"0%\" to \"100%\", with at most two digits behind the point";
    const ALONE: &str = "it must be \"start=TIME over=TIME\" or \"at=PERCENT\"";
    let (mut start, mut over, mut at) = (None, None, None);
    for &word in &words[4..] {
        let is_duplicate = if let Some(time) = word.strip_prefix(b"start=") {
            start
                .replace(parse_time(time).ok_or((word, START))?)
                .is_some()
        } else if let Some(time) = word.strip_prefix(b"over=") {
            over.replace(milliseconds(time).ok_or((word, OVER))?)
                .is_some()
        } else if let Some(share) = word.strip_prefix(b"at=") {
            at.replace(parse_percent(share).ok_or((word, AT))?)
                .is_some()
        } else {
            return Err((word, ALONE));
        };
        if is_duplicate {
            return Err((word, "it is a duplicate"));
        }
    }
    let last = words[words.len() - 1];
    match (start, over, at) {
        (None, None, Some(share)) => Ok(Shift::At(share)),
        (Some(start), Some(over), None) => Span::new(start, over)
            .map(Shift::Over)
            .ok_or((last, "it would end after the year 9999")),
        (Some(_), None, None) => Err((last, "\"over=TIME\" is missing")),
        (None, Some(_), None) => Err((last, "\"start=TIME\" is missing")),
        _ => Err((last, ALONE)),
    }
}

/// How long a shift takes, in milliseconds.
fn milliseconds(time: &[u8]) -> Option<u64> {
    conf::milliseconds(time).filter(|time| (1..=LONGEST).contains(time))
}

/// Adds the variable to the configuration.
fn declare<'a>(cf: &mut ngx_conf_t, (word, words): (&'a [u8], Words)) -> Result<(), Mistake<'a>> {
    let main = crate::main_conf(cf);
    if main
        .shifts
        .iter()
        .any(|other| other.variable == words.variable)
    {
        return Err((word, "it is a duplicate"));
    }
    // SAFETY: `cf` is live; requests that read the variable are of this cycle.
    let words = unsafe { pool::adopt(cf.pool, words) }.ok_or((word, "there is no memory"))?;
    if variables::add_shift(cf, words).is_err() {
        return Err((word, "there is such a variable already"));
    }
    main.shifts.push(words);
    Ok(())
}
