//! The URL of a server, as `proxy_pass` takes them.

use core::ffi::CStr;
use core::mem;

use nginx_sys::{
    ngx_conf_t, ngx_http_upstream_add, ngx_http_upstream_srv_conf_t, ngx_parse_url, ngx_url_t,
};
use ngx::core::Status;

use super::conf::Invalid;
use super::pool;
use super::request::{bytes, string};

/// A URL that nginx has parsed. Its parts live as long as the configuration.
pub(crate) struct Url(ngx_url_t);

impl Url {
    /// What nginx parses, as `ngx_http_proxy_pass` prepares it: a URL behind its scheme.
    fn unparsed(url: &[u8], default_port: u16) -> Self {
        // SAFETY: an `ngx_url_t` of zeros is one with nothing set.
        let mut unparsed: ngx_url_t = unsafe { mem::zeroed() };
        unparsed.url = string(url);
        unparsed.default_port = default_port;
        unparsed.set_uri_part(1);
        unparsed.set_no_resolve(1);
        Self(unparsed)
    }

    /// Whether nginx can read a URL.
    ///
    /// # Errors
    ///
    /// The reason why it cannot, without a line in the log.
    pub(crate) fn check(
        cf: &ngx_conf_t,
        url: &[u8],
        default_port: u16,
    ) -> Result<(), &'static str> {
        let Self(mut url) = Self::unparsed(url, default_port);
        // SAFETY: the pool is that of the configuration, to which the URL's bytes belong.
        if unsafe { ngx_parse_url(cf.pool, &raw mut url) } == Status::NGX_OK.0 {
            return Ok(());
        }
        // SAFETY: a reason is NULL or a static C string.
        let reason = unsafe { url.err.as_ref().map(|reason| CStr::from_ptr(reason)) };
        let reason = reason.and_then(|reason| reason.to_str().ok());
        Err(reason.unwrap_or("nginx cannot read it"))
    }

    /// Adds the server of a URL to the configuration, or finds the `upstream {}` of that name.
    ///
    /// # Errors
    ///
    /// nginx refused, and has logged why.
    pub(crate) fn add(
        cf: &mut ngx_conf_t,
        url: &[u8],
        default_port: u16,
    ) -> Result<(Self, *mut ngx_http_upstream_srv_conf_t), Invalid> {
        let mut added = Self::unparsed(url, default_port);
        // SAFETY: the URL's bytes belong to the configuration's pool, where nginx may keep pointers to them.
        let server = unsafe { ngx_http_upstream_add(cf, &raw mut added.0, 0) };
        match server.is_null() {
            true => Err(Invalid),
            false => Ok((added, server)),
        }
    }

    /// The path, with a query if it has one.
    pub(crate) fn path(&self) -> &[u8] {
        // SAFETY: nginx's parts of the URL point into the configuration's pool.
        unsafe { bytes(&self.0.uri) }
    }

    /// The name of the host; `None` for a Unix socket.
    pub(crate) fn host(&self) -> Option<&[u8]> {
        // SAFETY: nginx's parts of the URL point into the configuration's pool.
        (self.0.family != libc::AF_UNIX).then(|| unsafe { bytes(&self.0.host) })
    }

    /// The port, if the URL names another one than the default.
    pub(crate) fn other_port(&self) -> Option<&[u8]> {
        let is_other = self.0.no_port() == 0 && self.0.port != self.0.default_port;
        // SAFETY: nginx's parts of the URL point into the configuration's pool.
        is_other.then(|| unsafe { bytes(&self.0.port_text) })
    }
}

/// Lets the line in which nginx says, once all of the configuration is read, that it does not find the host of a URL
/// ("host not found in upstream ... in FILE:LINE", `ngx_http_upstream_init_round_robin`) name the directive as well.
///
/// # Safety
///
/// `server` is what [`Url::add`] gave for the directive that nginx is reading.
///
/// # Errors
///
/// There is no memory.
pub(crate) unsafe fn name_directive(
    cf: &ngx_conf_t,
    server: *mut ngx_http_upstream_srv_conf_t,
    directive: &str,
) -> Result<(), Invalid> {
    // SAFETY: the server and the file are nginx's, and nothing else refers to the server now.
    let (file, server) = unsafe { (cf.conf_file.as_ref(), &mut *server) };
    let Some(file) = file else {
        return Ok(());
    };
    if server.file_name != file.file.name.data || server.line != file.line {
        // An `upstream {}`, or made by an earlier directive.
        return Ok(());
    }
    // SAFETY: nginx keeps the file's name. The text lives in the configuration's pool, as the server does.
    let text = unsafe {
        let file = bytes(&file.file.name);
        let prefix = format!("\"{directive}\" directive in ");
        pool::adopt(cf.pool, [prefix.as_bytes(), file, b"\0"].concat())
    };
    server.file_name = text.ok_or(Invalid)?.as_mut_ptr();
    Ok(())
}
