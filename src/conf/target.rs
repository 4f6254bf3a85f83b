//! `matrix_user_hash`: whom to ask.

use core::cell::Cell;
use core::ffi::{c_char, c_void};

use nginx_sys::{ngx_command_t, ngx_conf_t, ngx_http_upstream_srv_conf_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};

use super::{Invalid, LocationConf, Pass, args, place, pool, refuse};
use crate::ngx::log;
use crate::ngx::url::{Url, name_directive};
use crate::zone::{DEFAULT_ZONE, SharedZone};

/// The endpoint that says whose a token is (Matrix specification, Client-Server API, "Current account information").
const WHOAMI: &[u8] = b"/_matrix/client/v3/account/whoami";

/// One `matrix_user_hash URL [zone=NAME]`.
pub struct Target {
    /// Whether it is asked over TLS.
    pub secure: bool,
    /// The path, with a query if the operator wrote one.
    pub path: Vec<u8>,
    /// How much of it is before the query.
    uri_len: usize,
    /// Whether the log has a line about a loop.
    loop_logged: Cell<bool>,
    /// The `Host` header.
    pub host: Vec<u8>,
    /// The servers behind the name: an `upstream {}`, or one that nginx makes of the name.
    pub server: *mut ngx_http_upstream_srv_conf_t,
    /// `zone=`.
    pub zone_name: Option<String>,
    /// Where the directive stands.
    pub place: String,
    /// The zone, once all of the configuration is known.
    pub zone: Cell<Option<&'static SharedZone>>,
}

impl Target {
    /// The name of its zone, said or not.
    pub fn zone_name(&self) -> &str {
        self.zone_name.as_deref().unwrap_or(DEFAULT_ZONE)
    }

    /// The path alone, as nginx has that of a request.
    pub fn uri(&self) -> &[u8] {
        &self.path[..self.uri_len]
    }

    /// Says once in a worker process that a request for whoami came where the directive is on.
    pub fn log_loop(&self) {
        if !self.loop_logged.replace(true) {
            log::notice!(
                log::cycle_log(),
                "matrix_user_hash: a request for \"{}\" is not resolved, for it may be a lookup of this very nginx: \
                 \"matrix_user_hash\" in {} should name the homeserver",
                String::from_utf8_lossy(self.uri()),
                self.place
            );
        }
    }

    /// Its zone; every target has one when requests are served.
    pub fn zone(&self) -> Option<&'static SharedZone> {
        self.zone.get()
    }
}

/// Reads `matrix_user_hash URL [zone=NAME]` or `off`.
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
    let (cf, location) = unsafe { (&mut *cf, &mut *conf.cast::<LocationConf>()) };
    let words = args(cf);
    if !matches!(location.pass, Pass::Unset) {
        return c"is duplicate".as_ptr().cast_mut();
    }
    if words[1] == b"off" && words.len() == 2 {
        location.pass = Pass::Off;
        return NGX_CONF_OK;
    }
    match read(cf, &words) {
        Ok(target) => {
            crate::main_conf(cf).targets.push(target);
            location.pass = Pass::On(target);
            NGX_CONF_OK
        }
        Err(None) => NGX_CONF_ERROR,
        Err(Some((word, reason))) => refuse(cf, word, reason),
    }
}

/// A word and what is wrong with it; `None` if nginx has logged the mistake itself.
type Mistake<'a> = Option<(&'a [u8], &'static str)>;

fn read<'a>(cf: &mut ngx_conf_t, words: &[&'a [u8]]) -> Result<&'static Target, Mistake<'a>> {
    let zone_name = words.get(2).map(|word| zone_name(word)).transpose()?;
    let url = words[1];
    let wrong = |reason| Some((url, reason));
    let (secure, rest) = if let Some(rest) = strip_scheme(url, b"http://") {
        (false, rest)
    } else if let Some(rest) = strip_scheme(url, b"https://") {
        (true, rest)
    } else {
        return Err(wrong(
            "it must be \"off\" or begin with \"http://\" or \"https://\"",
        ));
    };
    if secure && cfg!(not(ngx_feature = "http_ssl")) {
        return Err(wrong(
            "https:// needs an nginx built with --with-http_ssl_module",
        ));
    }
    if rest.contains(&b'$') {
        return Err(wrong(
            "variables are not supported, name an upstream{} (with \"server ... resolve\" if its address changes)",
        ));
    }
    if rest.is_empty() || rest.starts_with(b"/") {
        return Err(wrong("it names no host"));
    }
    if !rest
        .iter()
        .all(|&byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err(wrong(
            "it must be of visible ASCII characters, without a fragment",
        ));
    }
    let server = Server::add(cf, rest, secure).map_err(|reason| reason.and_then(wrong))?;
    if server.path == b"/" {
        warn!(
            cf,
            "\"matrix_user_hash\" asks for \"/\", which is no whoami endpoint: leave the slash out of \"{}\"",
            String::from_utf8_lossy(url)
        );
    }
    let target = Target {
        secure,
        uri_len: server
            .path
            .iter()
            .position(|&byte| byte == b'?')
            .unwrap_or(server.path.len()),
        loop_logged: Cell::new(false),
        path: server.path,
        host: server.host,
        server: server.conf,
        zone_name,
        place: place(cf),
        zone: Cell::new(None),
    };
    // SAFETY: `cf` is live; its pool lives as long as the cycle, as does everything that uses the target.
    unsafe { pool::adopt(cf.pool, target) }
        .map(|target| &*target)
        .ok_or(None)
}

fn zone_name(word: &[u8]) -> Result<String, Mistake<'_>> {
    match word.strip_prefix(b"zone=").map(core::str::from_utf8) {
        Some(Ok(name)) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Some((word, "it must be \"zone=NAME\""))),
    }
}

fn strip_scheme<'u>(url: &'u [u8], scheme: &[u8]) -> Option<&'u [u8]> {
    let (head, rest) = url.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// What nginx makes of the URL behind the scheme.
struct Server {
    conf: *mut ngx_http_upstream_srv_conf_t,
    host: Vec<u8>,
    path: Vec<u8>,
}

impl Server {
    fn add(cf: &mut ngx_conf_t, url: &[u8], secure: bool) -> Result<Self, Option<&'static str>> {
        let port = if secure { 443 } else { 80 };
        // Parsed on its own first, for an error line that names the directive.
        Url::check(cf, url, port).map_err(Some)?;
        let (parsed, conf) = Url::add(cf, url, port)
            .map_err(|Invalid| Some("nginx refuses it, see the line before"))?;
        // SAFETY: it is the server of this directive.
        unsafe { name_directive(cf, conf, "matrix_user_hash") }.map_err(|Invalid| None)?;
        Ok(Self {
            conf,
            host: host(&parsed),
            path: match parsed.path() {
                [] => WHOAMI.to_vec(),
                // Arguments alone, which nginx takes for a path.
                arguments @ [b'?', ..] => [WHOAMI, arguments].concat(),
                path => path.to_vec(),
            },
        })
    }
}

/// The `Host` header that `$proxy_host` would give (`ngx_http_proxy_set_vars`).
fn host(url: &Url) -> Vec<u8> {
    match (url.host(), url.other_port()) {
        (None, _) => b"localhost".to_vec(),
        (Some(host), None) => host.to_vec(),
        (Some(host), Some(port)) => [host, b":", port].concat(),
    }
}
