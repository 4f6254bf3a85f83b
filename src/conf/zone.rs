//! `matrix_user_hash_zone`: where answers are kept.

use core::ffi::{c_char, c_void};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use matrix_user_hash_core::time::Seconds;
use nginx_sys::{ngx_command_t, ngx_conf_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK, Status};

use super::{args, refuse};
use crate::ngx::conf;
use crate::ngx::request::{bytes, string};
use crate::zone::{Settings, SharedZone};

/// Reads `matrix_user_hash_zone NAME:SIZE [inactive=TIME] [state=FILE]`.
///
/// # Safety
///
/// As nginx calls a directive's setter.
pub(crate) unsafe extern "C" fn set(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    _conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx is reading the directive.
    let cf = unsafe { &mut *cf };
    let words = args(cf);
    let settings = match read(cf, &words) {
        Ok(settings) => settings,
        Err((word, reason)) => return refuse(cf, word, &reason),
    };
    if crate::main_conf(cf).zone(&settings.name).is_some() {
        emerg!(
            cf,
            "duplicate zone \"{}\" in \"matrix_user_hash_zone\" directive",
            settings.name
        );
        return NGX_CONF_ERROR;
    }
    if let Some(other) = shares_file(crate::main_conf(cf).zones.as_slice(), &settings) {
        emerg!(
            cf,
            "zone \"{}\" in \"matrix_user_hash_zone\" directive cannot have the state file of zone \"{other}\": each \
             would write over the other",
            settings.name
        );
        return NGX_CONF_ERROR;
    }
    let name = settings.name.clone();
    match SharedZone::declare(cf, settings) {
        Ok(zone) => {
            crate::main_conf(cf).zones.push(zone);
            NGX_CONF_OK
        }
        Err(_) => {
            // nginx has said why, but not who asked for it.
            emerg!(
                cf,
                "zone \"{name}\" in \"matrix_user_hash_zone\" directive cannot be declared"
            );
            NGX_CONF_ERROR
        }
    }
}

/// The name of a zone that is saved to the same file.
fn shares_file<'z>(zones: &[&'z SharedZone], settings: &Settings) -> Option<&'z str> {
    let file = settings.state.as_ref()?;
    let mut others = zones.iter();
    let other = others.find(|zone| zone.state.as_ref() == Some(file))?;
    Some(&other.name)
}

type Mistake<'a> = (&'a [u8], String);

fn read<'a>(cf: &mut ngx_conf_t, words: &[&'a [u8]]) -> Result<Settings, Mistake<'a>> {
    let (name, size) = name_and_size(words[1])?;
    let mut settings = Settings {
        name,
        size,
        ..Settings::default()
    };
    let (mut seen_inactive, mut seen_state) = (false, false);
    for &word in &words[2..] {
        let duplicate = if let Some(time) = word.strip_prefix(b"inactive=") {
            settings.inactive =
                inactive(time).ok_or((word, "it must be a time from 1s to 365d".to_owned()))?;
            core::mem::replace(&mut seen_inactive, true)
        } else if let Some(file) = word.strip_prefix(b"state=") {
            settings.state = Some(state(cf, file).map_err(|reason| (word, reason))?);
            core::mem::replace(&mut seen_state, true)
        } else {
            return Err((
                word,
                "it must be \"inactive=TIME\" or \"state=FILE\"".to_owned(),
            ));
        };
        if duplicate {
            return Err((word, "it is a duplicate".to_owned()));
        }
    }
    Ok(settings)
}

fn name_and_size(word: &[u8]) -> Result<(String, usize), Mistake<'_>> {
    let wrong = |reason: &str| (word, reason.to_owned());
    let mut parts = word.splitn(2, |&byte| byte == b':');
    let name = parts.next().unwrap_or_default();
    let size = parts
        .next()
        .ok_or_else(|| wrong("it must be NAME:SIZE, such as \"users:4m\""))?;
    let name = core::str::from_utf8(name)
        .ok()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| wrong("it has no name"))?;
    let bytes = conf::size(size)
        .ok_or_else(|| wrong("invalid zone size, it must be one such as \"4m\""))?;
    if bytes < SharedZone::smallest() {
        let smallest = SharedZone::smallest() / 1024;
        return Err((
            word,
            format!("zone \"{name}\" is too small, it must have at least {smallest}k"),
        ));
    }
    Ok((name.to_owned(), bytes))
}

fn inactive(time: &[u8]) -> Option<Seconds> {
    const LONGEST: u32 = 365 * 24 * 3600;
    let seconds = u32::try_from(conf::seconds(time)?).ok()?;
    (1..=LONGEST)
        .contains(&seconds)
        .then(|| Seconds::new(seconds))
}

/// The full name of the file, which need not exist. One that cannot be read is no mistake: it is said when it is read, and
/// the zone starts empty.
fn state(cf: &mut ngx_conf_t, file: &[u8]) -> Result<PathBuf, String> {
    if file.is_empty() {
        return Err("it names no file".to_owned());
    }
    let mut name = string(file);
    // SAFETY: nginx makes a new string in the cycle's pool if the name is relative; it does not write to ours.
    let full = unsafe {
        if nginx_sys::ngx_conf_full_name(cf.cycle, &raw mut name, 0) != Status::NGX_OK.0 {
            return Err("there is no memory".to_owned());
        }
        bytes(&name)
    };
    let path = PathBuf::from(OsStr::from_bytes(full));
    match (path.metadata(), path.parent()) {
        (Err(error), parent) if error.kind() == ErrorKind::NotFound => match parent {
            Some(parent) if parent.is_dir() => Ok(path),
            _ => Err("its directory does not exist".to_owned()),
        },
        _ => Ok(path),
    }
}
