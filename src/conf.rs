//! The directives: what an operator can write, and where it is kept.
//!
//! nginx reads the configuration into one [`LocationConf`] per `http`, `server` and `location` block and one
//! [`MainConf`] per cycle, and merges the blocks from the outside in. [`directives`] has the table of all directives, and
//! there is one file below `conf/` per kind of value. Each mistake is one `[emerg]` line that names the directive, the
//! value and the reason.

use core::ffi::{c_char, c_void};
use core::ptr;

use matrix_user_hash_core::engine::Terms;
use nginx_sys::{
    ngx_conf_t, ngx_http_complex_value_t, ngx_http_handler_pt, ngx_http_upstream_conf_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};

use crate::ngx::conf::{Invalid, args, place};
use crate::ngx::guard;
use crate::ngx::pool;
use crate::variables::{Indexes, Words};
use crate::zone::SharedZone;

mod directives;
pub(crate) mod metrics;
pub(crate) mod phase;
mod shift;
mod slot;
#[cfg(ngx_feature = "http_ssl")]
pub(crate) mod ssl;
pub(crate) mod target;
pub(crate) mod upstream;
pub(crate) mod valid;
pub(crate) mod zone;

pub(crate) use directives::COMMANDS;
use metrics::Format;
use phase::Phase;
use slot::Setting;
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
    /// Every `matrix_user_hash_shift`.
    pub shifts: Vec<&'static Words>,
    /// Where each request keeps our variables.
    pub indexes: Indexes,
    /// Answers in locations with `matrix_user_hash_metrics`.
    pub metrics_handler: ngx_http_handler_pt,
}

/// Says what is wrong with a word of the directive that nginx is reading, and gives what its setter is to return.
fn refuse(cf: &mut ngx_conf_t, word: &[u8], reason: &str) -> *mut c_char {
    let directive = args(cf)[0];
    emerg!(
        cf,
        "invalid parameter \"{}\" in \"{}\" directive: {reason}",
        String::from_utf8_lossy(word),
        String::from_utf8_lossy(directive)
    );
    NGX_CONF_ERROR
}

/// Makes the structure that stands before a server group for lookups, which may keep connections or not. `None` without
/// memory.
pub(crate) type Shell = fn(
    &mut ngx_conf_t,
    *mut ngx_http_upstream_srv_conf_t,
    bool,
) -> Option<*mut ngx_http_upstream_srv_conf_t>;

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

impl Setting for Pass {
    const UNSET: Self = Self::Unset;

    fn is_unset(&self) -> bool {
        matches!(self, Self::Unset)
    }
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
    /// `matrix_user_hash_phase`.
    pub phase: Phase,
    /// `matrix_user_hash_valid`.
    pub valid: Valid,
    /// `matrix_user_hash_stale`.
    pub stale: ngx_int_t,
    /// `matrix_user_hash_timeout`, in milliseconds.
    pub timeout: ngx_uint_t,
    /// `matrix_user_hash_max_lookups`.
    pub max_lookups: ngx_int_t,
    /// `matrix_user_hash_forwarded_for`; NULL for nginx's `$proxy_add_x_forwarded_for`.
    pub forwarded_for: *mut ngx_http_complex_value_t,
    /// `matrix_user_hash_limited`; NULL where it is not set.
    pub limited: *mut ngx_http_complex_value_t,
    /// `matrix_user_hash_metrics`.
    pub metrics: Option<Format>,
    /// What `matrix_user_hash_ssl_*` say.
    #[cfg(ngx_feature = "http_ssl")]
    pub ssl: ssl::Settings,
}

impl MainConf {
    /// Makes the structure for a cycle.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration that nginx is reading.
    pub unsafe extern "C" fn create(cf: *mut ngx_conf_t) -> *mut c_void {
        // The first of our code that a cycle runs.
        guard::install_hook();
        let create = || {
            let conf = Self {
                #[cfg(feature = "other-layout")]
                other: [u64::MAX; 64],
                zones: Vec::new(),
                targets: Vec::new(),
                locations: Vec::new(),
                shifts: Vec::new(),
                indexes: Indexes::default(),
                metrics_handler: None,
            };
            // SAFETY: `cf` is live.
            unsafe { pool::adopt((*cf).pool, conf) }
                .map_or(ptr::null_mut(), |conf| ptr::from_mut(conf).cast())
        };
        guard::configuring(ptr::null_mut(), create)
    }

    /// The zone of that name, if it was declared.
    pub fn zone(&self, name: &str) -> Option<&'static SharedZone> {
        self.zones.iter().copied().find(|zone| zone.name == name)
    }

    /// Whether any location resolves its requests in that phase.
    pub fn uses(&self, phase: Phase) -> bool {
        // SAFETY: blocks live as long as the cycle, and nothing changes one after it was merged.
        self.locations
            .iter()
            .any(|location| unsafe { (**location).phase } == phase)
    }

    /// Whether any location names the limits that refused its requests.
    pub fn names_limits(&self) -> bool {
        // SAFETY: as above.
        self.locations
            .iter()
            .any(|location| !unsafe { (**location).limited }.is_null())
    }

    /// Ties up what could not be known before all of the configuration was read.
    ///
    /// # Errors
    ///
    /// A mistake was found, and logged.
    pub fn finish(&mut self, cf: &mut ngx_conf_t, shell: Shell) -> Result<(), Invalid> {
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
            unsafe { (*location).finish(cf, shell)? };
        }
        Ok(())
    }
}

impl LocationConf {
    /// Makes the structure for a block, with nothing set.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration that nginx is reading.
    pub unsafe extern "C" fn create(cf: *mut ngx_conf_t) -> *mut c_void {
        let create = || {
            let mut conf = Self {
                own_upstream: upstream::new(),
                upstream: ptr::null_mut(),
                pass: Setting::UNSET,
                retry_on: 0,
                phase: Setting::UNSET,
                valid: Setting::UNSET,
                stale: Setting::UNSET,
                timeout: Setting::UNSET,
                max_lookups: Setting::UNSET,
                forwarded_for: Setting::UNSET,
                limited: Setting::UNSET,
                metrics: None,
                #[cfg(ngx_feature = "http_ssl")]
                ssl: ssl::Settings::new(),
            };
            conf.unset();
            // SAFETY: `cf` is live.
            unsafe { pool::adopt((*cf).pool, conf) }
                .map_or(ptr::null_mut(), |conf| ptr::from_mut(conf).cast())
        };
        guard::configuring(ptr::null_mut(), create)
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
        guard::configuring(NGX_CONF_ERROR, || match inner.inherit(cf, outer) {
            Ok(()) => NGX_CONF_OK,
            Err(Invalid) => NGX_CONF_ERROR,
        })
    }

    fn inherit(&mut self, cf: &mut ngx_conf_t, outer: &Self) -> Result<(), Invalid> {
        let inherits = self.pass.is_unset();
        // An `if` in the location has the handler of the location, which asks it for the format.
        self.metrics = self.metrics.or(outer.metrics);
        let shares = inherits && !outer.upstream.is_null() && self.adds_nothing_upstream();
        self.inherit_settings(outer);
        upstream::tidy(&mut self.own_upstream);
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

    /// Once all of the configuration is known, and every `upstream {}` with it.
    fn finish(&mut self, cf: &mut ngx_conf_t, shell: Shell) -> Result<(), Invalid> {
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
            shell(cf, target.server, self.keeps_connections()).ok_or(Invalid)?;
        Ok(())
    }

    /// Whether a connection of one lookup may serve another: not where the name that a certificate must have may differ.
    fn keeps_connections(&self) -> bool {
        #[cfg(ngx_feature = "http_ssl")]
        return !self.ssl.name_varies();
        #[cfg(not(ngx_feature = "http_ssl"))]
        true
    }

    /// What the engine has to know of it.
    #[inline]
    pub fn terms(&self) -> Terms {
        Terms {
            fresh: self.valid.known(),
            serves_stale: self.stale != 0,
            refused: self.valid.refused(),
            failed: self.valid.failed(),
            max_lookups: u32::try_from(self.max_lookups).unwrap_or(1),
            timeout: self.timeout as u64,
        }
    }
}
