//! The directives: what an operator can write, and where it is kept.
//!
//! nginx reads the configuration into one [`LocationConf`] per `http`, `server` and `location` block and one
//! [`MainConf`] per cycle, and merges the blocks from the outside in. One file below `conf/` per kind of value. Each
//! mistake is one `[emerg]` line that names the directive, the value and the reason.

use core::ffi::{c_char, c_void};
use core::mem::offset_of;
use core::ptr;

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_FLAG, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_CONF_TAKE12,
    NGX_CONF_TAKE123, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF,
    NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF, ngx_command_t, ngx_conf_t,
    ngx_http_upstream_conf_t, ngx_int_t, ngx_pool_t, ngx_str_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use ngx::ngx_string;

use crate::metrics::Format;
use crate::ngx::request::bytes;
use crate::variables::Indexes;
use crate::zone::SharedZone;

mod slot;
#[cfg(ngx_feature = "http_ssl")]
pub mod ssl;
pub mod target;
pub mod upstream;
pub mod valid;
pub mod zone;

use target::Target;
use valid::Valid;

/// What belongs to a whole cycle.
pub struct MainConf {
    /// What another version might have before all else.
    #[cfg(feature = "other-layout")]
    #[expect(dead_code, reason = "it only moves the rest")]
    other: [u64; 64],
    /// The zones, in the order in which they were declared.
    pub zones: Vec<&'static SharedZone>,
    /// Every `matrix_user_hash URL`, to be checked once all of the configuration is known.
    pub targets: Vec<&'static Target>,
    /// Every block that makes lookups, likewise.
    pub locations: Vec<*mut LocationConf>,
    /// Where each request keeps our variables.
    pub indexes: Indexes,
}

/// Whether, and of whom, a location asks who owns the token.
#[derive(Clone, Copy)]
pub enum Pass {
    /// Nothing is said here: as in the enclosing block.
    Unset,
    /// `matrix_user_hash off`.
    Off,
    /// `matrix_user_hash URL`.
    On(&'static Target),
}

/// What belongs to an `http`, `server` or `location` block.
#[repr(C)]
pub struct LocationConf {
    /// The values of the upstream family, as its directives set them and as they are merged.
    pub own_upstream: ngx_http_upstream_conf_t,
    /// What lookups use: `own_upstream`, or that of an enclosing block if nothing differs from it. Shared rather than
    /// copied, because nginx >= 1.29.7 may keep its idle connections by the address of this structure.
    pub upstream: *mut ngx_http_upstream_conf_t,
    /// `matrix_user_hash`.
    pub pass: Pass,
    /// `matrix_user_hash_next_upstream`, as it was written.
    pub retry_on: ngx_uint_t,
    /// `matrix_user_hash_valid`.
    pub valid: Valid,
    /// `matrix_user_hash_stale`.
    pub stale: ngx_int_t,
    /// `matrix_user_hash_timeout`, in milliseconds.
    pub timeout: ngx_uint_t,
    /// `matrix_user_hash_max_lookups`.
    pub max_lookups: ngx_int_t,
    /// `matrix_user_hash_metrics`.
    pub metrics: Option<Format>,
    /// What `matrix_user_hash_ssl_*` say.
    #[cfg(ngx_feature = "http_ssl")]
    pub ssl: ssl::Settings,
}

/// Where the directives of the upstream family are valid.
const ANYWHERE: u32 = NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF;

type Setter = unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

const fn command(name: ngx_str_t, kind: u32, set: Setter, offset: usize) -> ngx_command_t {
    ngx_command_t {
        name,
        type_: kind as ngx_uint_t,
        set: Some(set),
        conf: NGX_HTTP_LOC_CONF_OFFSET,
        offset,
        post: ptr::null_mut(),
    }
}

/// A directive of the upstream family: a field of `own_upstream`.
macro_rules! upstream {
    ($name:literal, $kind:expr, $set:path, $field:ident) => {
        command(
            ngx_string!($name),
            ANYWHERE | $kind,
            $set,
            offset_of!(LocationConf, own_upstream) + offset_of!(ngx_http_upstream_conf_t, $field),
        )
    };
}

const PLAIN: usize = 16;
#[cfg(ngx_feature = "http_ssl")]
const SSL: usize = ssl::COMMANDS.len();
#[cfg(not(ngx_feature = "http_ssl"))]
const SSL: usize = 0;

/// The commands, ended by an empty one as nginx wants them.
pub static mut COMMANDS: [ngx_command_t; PLAIN + SSL + 1] = commands();

const fn commands() -> [ngx_command_t; PLAIN + SSL + 1] {
    let mut all = [ngx_command_t::empty(); PLAIN + SSL + 1];
    let mut i = 0;
    while i < PLAIN {
        all[i] = PLAIN_COMMANDS[i];
        i += 1;
    }
    #[cfg(ngx_feature = "http_ssl")]
    while i < PLAIN + SSL {
        all[i] = ssl::COMMANDS[i - PLAIN];
        i += 1;
    }
    all
}

const PLAIN_COMMANDS: [ngx_command_t; PLAIN] = [
    ngx_command_t {
        conf: NGX_HTTP_MAIN_CONF_OFFSET,
        ..command(
            ngx_string!("matrix_user_hash_zone"),
            NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE123,
            zone::set,
            0,
        )
    },
    command(
        ngx_string!("matrix_user_hash"),
        ANYWHERE | NGX_CONF_TAKE12,
        target::set,
        0,
    ),
    command(
        ngx_string!("matrix_user_hash_valid"),
        ANYWHERE | NGX_CONF_1MORE,
        valid::set,
        0,
    ),
    command(
        ngx_string!("matrix_user_hash_stale"),
        ANYWHERE | NGX_CONF_FLAG,
        slot::flag,
        offset_of!(LocationConf, stale),
    ),
    command(
        ngx_string!("matrix_user_hash_timeout"),
        ANYWHERE | NGX_CONF_TAKE1,
        slot::positive_milliseconds,
        offset_of!(LocationConf, timeout),
    ),
    command(
        ngx_string!("matrix_user_hash_max_lookups"),
        ANYWHERE | NGX_CONF_TAKE1,
        slot::lookups,
        offset_of!(LocationConf, max_lookups),
    ),
    command(
        ngx_string!("matrix_user_hash_metrics"),
        NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS | NGX_CONF_TAKE1,
        crate::metrics::set,
        0,
    ),
    upstream!("matrix_user_hash_bind", NGX_CONF_TAKE12, slot::bind, local),
    upstream!(
        "matrix_user_hash_socket_keepalive",
        NGX_CONF_FLAG,
        slot::flag,
        socket_keepalive
    ),
    upstream!(
        "matrix_user_hash_connect_timeout",
        NGX_CONF_TAKE1,
        slot::positive_milliseconds,
        connect_timeout
    ),
    upstream!(
        "matrix_user_hash_send_timeout",
        NGX_CONF_TAKE1,
        slot::positive_milliseconds,
        send_timeout
    ),
    upstream!(
        "matrix_user_hash_read_timeout",
        NGX_CONF_TAKE1,
        slot::positive_milliseconds,
        read_timeout
    ),
    upstream!(
        "matrix_user_hash_buffer_size",
        NGX_CONF_TAKE1,
        slot::buffer_size,
        buffer_size
    ),
    upstream!(
        "matrix_user_hash_next_upstream",
        NGX_CONF_1MORE,
        upstream::next,
        next_upstream
    ),
    upstream!(
        "matrix_user_hash_next_upstream_tries",
        NGX_CONF_TAKE1,
        slot::number,
        next_upstream_tries
    ),
    upstream!(
        "matrix_user_hash_next_upstream_timeout",
        NGX_CONF_TAKE1,
        slot::milliseconds,
        next_upstream_timeout
    ),
];

impl MainConf {
    /// Makes the structure for a cycle.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration that nginx is reading.
    pub unsafe extern "C" fn create(cf: *mut ngx_conf_t) -> *mut c_void {
        let conf = Self {
            #[cfg(feature = "other-layout")]
            other: [u64::MAX; 64],
            zones: Vec::new(),
            targets: Vec::new(),
            locations: Vec::new(),
            indexes: Indexes::default(),
        };
        // SAFETY: `cf` is live.
        unsafe { pool::adopt((*cf).pool, conf) }
            .map_or(ptr::null_mut(), |conf| ptr::from_mut(conf).cast())
    }

    /// The zone of that name, if it was declared.
    pub fn zone(&self, name: &str) -> Option<&'static SharedZone> {
        self.zones.iter().copied().find(|zone| zone.name == name)
    }

    /// Ties up what could not be known before all of the configuration was read.
    ///
    /// # Errors
    ///
    /// A mistake was found, and logged.
    pub fn finish(&mut self, cf: &mut ngx_conf_t) -> Result<(), Invalid> {
        for target in &self.targets {
            let zone = match (&target.zone_name, self.zone(target.zone_name())) {
                (_, Some(zone)) => zone,
                (None, None) => {
                    let zone = SharedZone::default_zone(cf)?;
                    self.zones.push(zone);
                    zone
                }
                (Some(name), None) => {
                    emerg!(
                        cf,
                        "unknown zone \"{name}\" in \"matrix_user_hash\" directive in {}: declare it with \
                        \"matrix_user_hash_zone {name}:4m\"",
                        target.place
                    );
                    return Err(Invalid);
                }
            };
            target.zone.set(Some(zone));
        }
        for &location in &self.locations {
            // SAFETY: blocks live as long as the cycle, and nothing else refers to one while the configuration is read.
            unsafe { (*location).finish(cf)? };
        }
        Ok(())
    }
}

/// A mistake in the configuration that has been logged.
#[derive(Debug)]
pub struct Invalid;

impl LocationConf {
    /// Makes the structure for a block, with nothing set.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration that nginx is reading.
    pub unsafe extern "C" fn create(cf: *mut ngx_conf_t) -> *mut c_void {
        let conf = Self {
            own_upstream: upstream::unset(),
            upstream: ptr::null_mut(),
            pass: Pass::Unset,
            retry_on: 0,
            valid: Valid::default(),
            stale: slot::UNSET,
            timeout: slot::UNSET_UINT,
            max_lookups: slot::UNSET,
            metrics: None,
            #[cfg(ngx_feature = "http_ssl")]
            ssl: ssl::Settings::default(),
        };
        // SAFETY: `cf` is live.
        unsafe { pool::adopt((*cf).pool, conf) }
            .map_or(ptr::null_mut(), |conf| ptr::from_mut(conf).cast())
    }

    /// Fills what a block leaves unset from the enclosing one, or by default.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration that nginx is reading; `outer` and `inner` are what [`Self::create`] made.
    pub unsafe extern "C" fn merge(
        cf: *mut ngx_conf_t,
        outer: *mut c_void,
        inner: *mut c_void,
    ) -> *mut c_char {
        // SAFETY: nginx calls with two different blocks of ours, and nothing else refers to them.
        let (cf, outer, inner) =
            unsafe { (&mut *cf, &*outer.cast::<Self>(), &mut *inner.cast::<Self>()) };
        match inner.inherit(cf, outer) {
            Ok(()) => NGX_CONF_OK,
            Err(Invalid) => NGX_CONF_ERROR,
        }
    }

    fn inherit(&mut self, cf: &mut ngx_conf_t, outer: &Self) -> Result<(), Invalid> {
        let inherits = matches!(self.pass, Pass::Unset);
        if inherits {
            self.pass = outer.pass;
        }
        self.valid.inherit(&outer.valid);
        slot::inherit(&mut self.stale, outer.stale, slot::UNSET, 1);
        slot::inherit(&mut self.timeout, outer.timeout, slot::UNSET_UINT, 2000);
        slot::inherit(&mut self.max_lookups, outer.max_lookups, slot::UNSET, 64);

        let shares = inherits && !outer.upstream.is_null() && self.adds_nothing_upstream();
        #[cfg(ngx_feature = "http_ssl")]
        self.ssl.inherit(&outer.ssl);
        upstream::inherit(&mut self.own_upstream, &outer.own_upstream);
        self.retry_on = self.own_upstream.next_upstream;
        if let Pass::On(target) = self.pass {
            self.own_upstream.upstream = target.server;
            self.upstream = if shares {
                outer.upstream
            } else {
                &raw mut self.own_upstream
            };
            let main = crate::main_conf(cf);
            main.locations.push(ptr::from_mut(self));
        }
        Ok(())
    }

    /// Whether nothing of the upstream family is set here.
    fn adds_nothing_upstream(&self) -> bool {
        #[cfg(ngx_feature = "http_ssl")]
        if !self.ssl.is_unset() {
            return false;
        }
        upstream::is_unset(&self.own_upstream)
    }

    /// Once all of the configuration is known, and every `upstream {}` with it.
    fn finish(&mut self, cf: &mut ngx_conf_t) -> Result<(), Invalid> {
        let Pass::On(target) = self.pass else {
            return Ok(());
        };
        if !ptr::eq(self.upstream, &self.own_upstream) {
            return Ok(());
        }
        #[cfg(ngx_feature = "http_ssl")]
        if target.secure {
            self.ssl.apply(cf, &mut self.own_upstream)?;
        }
        // The one way to have nginx try the next server for a reason of ours; see `lookup::upstream`.
        self.own_upstream.next_upstream |= upstream::INVALID_HEADER;
        // The server group stands in a shell of ours, which decides what counts as a failure of its peers.
        self.own_upstream.upstream =
            crate::lookup::peer::shell(cf, target.server, self.keeps_connections())
                .ok_or(Invalid)?;
        Ok(())
    }

    /// Whether a connection of one lookup may serve another: not where the name that a certificate must have may differ.
    fn keeps_connections(&self) -> bool {
        #[cfg(ngx_feature = "http_ssl")]
        return !self.ssl.name_varies();
        #[cfg(not(ngx_feature = "http_ssl"))]
        true
    }

    /// How long a request may be held, in milliseconds.
    pub fn hold(&self) -> u64 {
        self.timeout as u64
    }

    /// How many lookups may be in flight in the zone.
    pub fn most_lookups(&self) -> u32 {
        u32::try_from(self.max_lookups).unwrap_or(1)
    }

    /// Whether an answer past its freshness still answers.
    pub fn serves_stale(&self) -> bool {
        self.stale != 0
    }
}

/// The arguments of the directive that nginx is reading; the first is its name.
pub fn args<'c>(cf: &ngx_conf_t) -> Vec<&'c [u8]> {
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
pub fn place(cf: &ngx_conf_t) -> String {
    // SAFETY: nginx has a configuration file open while it reads directives, or none (`-g`).
    unsafe {
        match cf.conf_file.as_ref() {
            Some(file) if file.file.name.len > 0 => {
                format!(
                    "{}:{}",
                    String::from_utf8_lossy(bytes(&file.file.name)),
                    file.line
                )
            }
            _ => "the command line".to_owned(),
        }
    }
}

/// Memory of nginx's pools for values of ours.
pub mod pool {
    use super::*;

    /// Keeps `value` until the pool is destroyed, and drops it then. Nothing when there is no memory.
    ///
    /// # Safety
    ///
    /// `pool` is live, and nothing uses the result after it is destroyed.
    pub unsafe fn adopt<T>(pool: *mut ngx_pool_t, value: T) -> Option<&'static mut T> {
        // SAFETY: the cleanup entry is allocated from the pool, and gives the box back exactly once.
        unsafe {
            let cleanup = nginx_sys::ngx_pool_cleanup_add(pool, 0).as_mut()?;
            let value = Box::into_raw(Box::new(value));
            cleanup.handler = Some(release::<T>);
            cleanup.data = value.cast();
            Some(&mut *value)
        }
    }

    unsafe extern "C" fn release<T>(value: *mut c_void) {
        // SAFETY: `adopt` left a box of that type here, and nginx runs a cleanup once.
        crate::ngx::guard::guard((), || unsafe { drop(Box::from_raw(value.cast::<T>())) });
    }
}
