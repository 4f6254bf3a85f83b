//! `matrix_user_hash`: whom to ask.

use core::cell::Cell;
use core::ffi::{CStr, c_char, c_void};
use core::mem;

use nginx_sys::{
    ngx_command_t, ngx_conf_t, ngx_http_upstream_add, ngx_http_upstream_srv_conf_t, ngx_str_t,
    ngx_url_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK, Status};

use super::{LocationConf, Pass, args, place, pool};
use crate::ngx::log;
use crate::ngx::request::bytes;
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
    /// Whether a loop was spoken of.
    loop_noted: Cell<bool>,
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
    pub fn note_loop(&self) {
        if !self.loop_noted.replace(true) {
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
        Err(Some((word, reason))) => {
            let word = String::from_utf8_lossy(word);
            emerg!(
                cf,
                "invalid parameter \"{word}\" in \"matrix_user_hash\" directive: {reason}"
            );
            NGX_CONF_ERROR
        }
    }
}

/// A word and what is wrong with it; nothing if nginx has logged the mistake itself.
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
        loop_noted: Cell::new(false),
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
        // SAFETY: the URL's bytes belong to the configuration's pool, where nginx may keep pointers to them; a reason
        // that nginx gives is a C string that lives for ever.
        unsafe {
            // Parsed on its own first, for an error line that names the directive.
            let mut trial = unparsed(url, secure);
            if nginx_sys::ngx_parse_url(cf.pool, &raw mut trial) != Status::NGX_OK.0 {
                let reason = trial.err.as_ref().map(|err| CStr::from_ptr(err));
                return Err(reason
                    .and_then(|reason| reason.to_str().ok())
                    .or(Some("nginx cannot read it")));
            }
            let mut parsed = unparsed(url, secure);
            let conf = ngx_http_upstream_add(cf, &raw mut parsed, 0);
            if conf.is_null() {
                return Err(Some("nginx refuses it, see the line before"));
            }
            name_directive(cf, conf)?;
            let path = bytes(&parsed.uri);
            Ok(Self {
                conf,
                host: host(&parsed, secure),
                path: match path {
                    [] => WHOAMI.to_vec(),
                    // Arguments alone, which nginx takes for a path.
                    [b'?', ..] => [WHOAMI, path].concat(),
                    _ => path.to_vec(),
                },
            })
        }
    }
}

/// Lets the line in which nginx says, once all of the configuration is read, that it does not find the host of a URL
/// ("host not found in upstream ... in FILE:LINE", `ngx_http_upstream_init_round_robin`) name the directive as well.
///
/// # Safety
///
/// `group` is what `ngx_http_upstream_add` gave for the directive that nginx is reading.
unsafe fn name_directive(
    cf: &mut ngx_conf_t,
    group: *mut ngx_http_upstream_srv_conf_t,
) -> Result<(), Option<&'static str>> {
    // SAFETY: the group and the file are nginx's; the text lives in the configuration's pool, as the group does.
    unsafe {
        let Some(file) = cf.conf_file.as_ref() else {
            return Ok(());
        };
        if (*group).file_name != file.file.name.data || (*group).line != file.line {
            // An `upstream {}`, or made by an earlier directive.
            return Ok(());
        }
        let text = [
            b"\"matrix_user_hash\" directive in ",
            bytes(&file.file.name),
            b"\0",
        ]
        .concat();
        let text = pool::adopt(cf.pool, text).ok_or(None)?;
        (*group).file_name = text.as_mut_ptr();
        Ok(())
    }
}

/// What nginx parses, as `ngx_http_proxy_pass` prepares it.
fn unparsed(url: &[u8], secure: bool) -> ngx_url_t {
    // SAFETY: an `ngx_url_t` of zeros is one with nothing set.
    let mut unparsed: ngx_url_t = unsafe { mem::zeroed() };
    unparsed.url = ngx_str_t {
        len: url.len(),
        data: url.as_ptr().cast_mut(),
    };
    unparsed.default_port = default_port(secure);
    unparsed.set_uri_part(1);
    unparsed.set_no_resolve(1);
    unparsed
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

/// The `Host` header that `$proxy_host` would give (`ngx_http_proxy_set_vars`).
fn host(url: &ngx_url_t, secure: bool) -> Vec<u8> {
    if url.family == libc::AF_UNIX {
        return b"localhost".to_vec();
    }
    // SAFETY: nginx's parts of the URL point into the configuration's pool.
    let (mut host, port) = unsafe { (bytes(&url.host).to_vec(), bytes(&url.port_text)) };
    if url.no_port() == 0 && url.port != default_port(secure) {
        host.push(b':');
        host.extend_from_slice(port);
    }
    host
}
