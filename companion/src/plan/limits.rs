//! Limits of requests as nginx has to be told them: how a request's group is found, zones, and when to come again.
//!
//! In come the limits of the deployment, out come the lines of maps and zones. The keys of all zones are empty for what they
//! do not count, so every location includes the same lines.

use serde::Serialize;

use crate::model::{LimitGroup, Rate, RequestLimits};
use crate::table::{ROUTES, Section, VERSIONS};

/// A sync that is refused because others wait: one of these ends within half a minute, and there may be several.
const RETRY_PARALLEL_MS: u32 = 5000;

/// Everything that the templates say about limits.
#[derive(Debug, Serialize)]
pub(crate) struct Limits {
    /// Which group a request belongs to: expressions for `METHOD:PATH`.
    pub groups: Vec<Group>,
    /// Rates by user.
    pub zones: Vec<Zone>,
    /// Syncs of one user at a time.
    pub parallel_syncs: Option<u32>,
    /// Hashes of users without limits.
    pub exempt: Vec<String>,
    /// Addresses without limits.
    pub exempt_addresses: Vec<String>,
    /// The rate by address.
    pub address: Option<Zone>,
    /// When to come again.
    pub retries: Vec<Retry>,
}

/// A line of the map that finds a request's group.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    /// A regular expression.
    pub key: String,
    /// The group.
    pub name: &'static str,
}

/// A `limit_req_zone` and its `limit_req`.
#[derive(Debug, Serialize)]
pub(crate) struct Zone {
    /// The group.
    pub name: &'static str,
    /// `rate=`.
    pub rate: String,
    /// `burst=`.
    pub burst: u32,
}

/// A line of the map that says when to come again.
#[derive(Debug, Serialize)]
pub(crate) struct Retry {
    /// A regular expression for `REASON/GROUP`.
    pub key: String,
    /// Milliseconds.
    pub ms: u32,
    /// That time in seconds, rounded up as Synapse does.
    pub seconds: u32,
}

impl Retry {
    fn new(key: String, ms: u32) -> Self {
        Self {
            key,
            ms,
            seconds: ms.div_ceil(1000),
        }
    }
}

/// Whether limits hold in a section: in the client API and the media repository. Other servers have Synapse's own limits
/// (`rc_federation`), and administration is closed to strangers anyway.
pub(super) const fn hold_in(section: Section) -> bool {
    matches!(section, Section::Client | Section::LegacyMedia)
}

impl Limits {
    /// Lays out the limits of a deployment.
    pub(crate) fn new(limits: &RequestLimits) -> Self {
        let zone = |name, rate: Rate| Zone {
            name,
            rate: rate.nginx(),
            burst: rate.burst,
        };
        Self {
            groups: LimitGroup::ALL.into_iter().flat_map(rows).collect(),
            zones: limits
                .rates
                .iter()
                .map(|(group, rate)| zone(group.name(), *rate))
                .collect(),
            parallel_syncs: limits.parallel_syncs,
            exempt: limits.exempt.clone(),
            exempt_addresses: limits.exempt_addresses.clone(),
            address: limits.address.map(|rate| zone("address", rate)),
            retries: retries(limits),
        }
    }
}

/// How a group's requests are known.
fn rows(group: LimitGroup) -> Vec<Group> {
    let of = |method: &str, pattern: &str| Group {
        key: format!("~^{method}:{}", pattern.trim_start_matches('^')),
        name: group.name(),
    };
    let routes = |ids: &[&str]| {
        ROUTES
            .iter()
            .filter(|route| ids.contains(&route.id))
            .map(|route| of("[A-Z]+", &route.pattern()))
            .collect()
    };
    match group {
        LimitGroup::Sync => routes(&["sync", "events", "initial_sync"]),
        LimitGroup::SlidingSync => routes(&["sliding_sync"]),
        LimitGroup::Send => vec![of(
            "(?:PUT|POST)",
            &format!("/_matrix/client/{VERSIONS}/rooms/[^/]+/(?:send|state|redact)(?:/|$)"),
        )],
        LimitGroup::Media => routes(&["media_client", "media_legacy"]),
        LimitGroup::Everything => vec![],
    }
}

/// nginx does not say which of two limits refused, so a client waits for the slower one.
fn retries(limits: &RequestLimits) -> Vec<Retry> {
    let rate = |wanted: LimitGroup| {
        let found = limits.rates.iter().find(|(group, _)| *group == wanted);
        found.map(|(_, rate)| rate.retry_ms())
    };
    let by_user = LimitGroup::ALL.into_iter().filter_map(|group| {
        let ms = rate(group).max(rate(LimitGroup::Everything))?;
        Some(Retry::new(format!("~^user_rate/{}$", group.name()), ms))
    });
    let parallel = limits
        .parallel_syncs
        .map(|_| Retry::new("~^user_parallel/".to_owned(), RETRY_PARALLEL_MS));
    let address = limits
        .address
        .map(|rate| Retry::new("~^address_rate/".to_owned(), rate.retry_ms()));
    by_user.chain(parallel).chain(address).collect()
}
