//! What does not depend on a group: prefixes, which keep their patterns to themselves, and what nginx answers itself.

use serde::Serialize;

use super::{Location, Names, limited_in, main_federation, main_federation_apart};
use crate::model::Deployment;
use crate::table::Section;

/// Sections with a prefix of their own, which keeps their patterns to itself. Without a slash at the end, for nginx would
/// redirect to one. In the order in which they are written.
pub(super) const PREFIXES: [(&str, Section); 5] = [
    ("/_matrix/federation", Section::Federation),
    ("/_matrix/key", Section::Key),
    ("/_matrix/media", Section::LegacyMedia),
    ("/_synapse/admin", Section::Admin),
    ("/_synapse/mas", Section::Mas),
];

/// Prefixes that nobody outside has any business with.
const CLOSED: [&str; 2] = ["/_synapse/metrics", "/_synapse/replication"];

/// What nginx answers itself.
#[derive(Debug, Serialize)]
pub(crate) struct Edge {
    /// The status of a preflight.
    pub preflight: u16,
    /// Prefixes that are closed.
    pub closed: [&'static str; 2],
    /// What these are answered.
    pub closed_status: u16,
    /// Paths that nginx takes for others than Synapse does.
    pub hidden: Hidden,
}

/// Paths with `/../`, decoded or not: nginx resolves it and Synapse does not, so they could be a way around `allow`. Both are
/// expressions for the path and query as they came.
#[derive(Debug, Serialize)]
pub(crate) struct Hidden {
    /// Below `/_matrix` it leads to nothing that is closed.
    pub unless: &'static str,
    /// Such a path.
    pub pattern: &'static str,
    /// What it is answered.
    pub status: u16,
}

/// It is the same for all deployments.
pub(super) const EDGE: Edge = Edge {
    preflight: 204,
    closed: CLOSED,
    closed_status: 404,
    hidden: Hidden {
        unless: "(?i)^/_matrix/",
        pattern: r"(?i)^/+[^?]*(?:/|%2f)(?:\.|%2e)(?:\.|%2e)(?:/|%2f|[?]|#|$)",
        status: 403,
    },
};

/// A prefix location.
#[derive(Debug, Serialize)]
pub(crate) struct Prefix {
    /// The prefix.
    pub path: &'static str,
    /// What stands below it.
    #[serde(skip)]
    pub section: Section,
    /// The file of its patterns, if there are any.
    pub file: Option<&'static str>,
    /// Where the rest goes.
    pub upstream: String,
    /// Who may call it. `None` is everybody, and an empty list is nobody.
    pub allow: Option<Vec<String>>,
    /// What opens it, as an explanation says it.
    pub opened_by: &'static str,
    /// Whether limits by user and by address hold there.
    pub limited: bool,
    /// Whether its answers may be cached.
    pub cached: bool,
    /// Whether it takes the bodies of other servers.
    pub federation_body: bool,
    /// Whether the listeners of clients have it.
    pub client: bool,
    /// Whether listeners of other servers alone have it.
    pub federation: bool,
}

pub(super) fn prefixes(
    deployment: &Deployment,
    names: &Names<'_>,
    locations: &[Location],
) -> Vec<Prefix> {
    let settings = &deployment.settings;
    let prefix = |(path, section): (&'static str, Section)| {
        let has_patterns = locations.iter().any(|l| l.section == section);
        let of_federation = matches!(section, Section::Federation | Section::Key);
        let cached = section == Section::LegacyMedia && settings.media_cache.is_some();
        let apart = main_federation_apart(deployment);
        Prefix {
            path,
            section,
            file: has_patterns.then(|| section.file()),
            upstream: if of_federation {
                main_federation(deployment, names)
            } else {
                names.main()
            },
            allow: match section {
                Section::Admin => Some(settings.admin_allow.clone()),
                Section::Mas => {
                    let mas = deployment.mas.as_ref();
                    Some(mas.map(|mas| mas.allow.clone()).unwrap_or_default())
                }
                _ => None,
            },
            opened_by: match section {
                Section::Mas => "allow under [mas]",
                _ => "admin_allow under [listen]",
            },
            limited: limited_in(deployment, section),
            cached,
            federation_body: section == Section::Federation,
            client: match section {
                // Closed or not, they are said: what is not written would be open.
                Section::Federation | Section::Admin | Section::Mas => true,
                Section::Key => has_patterns || apart,
                _ => has_patterns || cached,
            },
            federation: of_federation || section == Section::LegacyMedia,
        }
    };
    PREFIXES.into_iter().map(prefix).collect()
}
