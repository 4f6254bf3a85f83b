//! The configuration that nginx is reading.

use nginx_sys::{ngx_conf_t, ngx_str_t};

use super::request::bytes;

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
