//! The configuration that nginx is reading.

use nginx_sys::{ngx_conf_t, ngx_parse_size, ngx_parse_time, ngx_str_t};

use super::request::{bytes, string};

/// A mistake in the configuration that has been logged.
#[derive(Debug)]
pub struct Invalid;

/// The arguments of the directive that nginx is reading; the first is its name.
pub(crate) fn args<'c>(cf: &ngx_conf_t) -> Vec<&'c [u8]> {
    // SAFETY: nginx keeps the words of the directive in an array of strings from the configuration's pool.
    unsafe {
        let words = &*cf.args;
        core::slice::from_raw_parts(words.elts.cast::<ngx_str_t>(), words.nelts)
            .iter()
            .map(|word| bytes(word))
            .collect()
    }
}

/// Where the directive that nginx is reading stands: `file:line`.
pub(crate) fn place(cf: &ngx_conf_t) -> String {
    // SAFETY: nginx has a configuration file open while it reads directives, or none (`-g`), and keeps its name.
    let name = unsafe {
        let file = cf.conf_file.as_ref();
        file.map(|file| (bytes(&file.file.name), file.line))
    };
    match name {
        Some((name, line)) if !name.is_empty() => {
            format!("{}:{line}", String::from_utf8_lossy(name))
        }
        _ => "the command line".to_owned(),
    }
}

/// A time as nginx writes it (`1h30m`), in milliseconds; `None` if it is none.
pub(crate) fn milliseconds(time: &[u8]) -> Option<u64> {
    // SAFETY: `ngx_parse_time` only reads the string.
    u64::try_from(unsafe { ngx_parse_time(&mut string(time), 0) }).ok()
}

/// A time as nginx writes it, in whole seconds; `None` if it is none.
pub(crate) fn seconds(time: &[u8]) -> Option<u64> {
    // SAFETY: `ngx_parse_time` only reads the string.
    u64::try_from(unsafe { ngx_parse_time(&mut string(time), 1) }).ok()
}

/// A size as nginx writes it (`4m`), in bytes; `None` if it is none.
pub(crate) fn size(size: &[u8]) -> Option<usize> {
    // SAFETY: `ngx_parse_size` only reads the string.
    usize::try_from(unsafe { ngx_parse_size(&mut string(size)) }).ok()
}
