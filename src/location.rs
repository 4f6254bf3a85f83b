//! The location that a request is in, as lookups see it.

use ngx::http::HttpModuleLocationConf;

use matrix_user_hash_core::engine::Parts;

use crate::Module;
use crate::conf::{LocationConf, Pass};
use crate::ngx::request::Request;
use crate::zone::SharedZone;

/// A location that asks, and the zone where it remembers.
#[derive(Clone, Copy)]
pub(crate) struct Location {
    /// The directives there.
    pub conf: &'static LocationConf,
    /// Its zone.
    pub zone: &'static SharedZone,
}

impl Location {
    /// The location of a request; `None` where the directive is off.
    #[inline(always)] // every request; callgrind counted 24 instructions fewer so
    pub(crate) fn of(request: Request) -> Option<Self> {
        // SAFETY: a live request has the configurations of its location; our module's is a `LocationConf`.
        let conf = Module::location_conf(unsafe { &*request.as_ptr() })?;
        match conf.pass {
            // A lookup that came back to this nginx, or a client's own request, for which any Synapse worker will do.
            Pass::On(target) if request.uri() == target.uri() => {
                target.log_loop();
                None
            }
            Pass::On(target) => Some(Self {
                conf,
                zone: target.zone()?,
            }),
            Pass::Off | Pass::Unset => None,
        }
    }
}

/// The parts of a request in which a token can be.
#[inline]
pub(crate) fn parts<'r>(request: Request) -> Parts<'r> {
    Parts {
        authorization: request.authorization(),
        args: request.args(),
    }
}
