//! What a Synapse process listens on, and what each listener serves, as Synapse builds it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::yaml::At;
use crate::diagnostic::{Diagnostic, Diagnostics, nearest};
use crate::input::facts::{Bound, ListenerFacts, Statement, Unusable};
use crate::input::values;
use crate::model::{Address, Resource};

/// `KNOWN_LISTENER_TYPES` of synapse/config/server.py.
const TYPES: [&str; 3] = ["http", "metrics", "manhole"];
/// `KNOWN_RESOURCES` of synapse/config/server.py.
const RESOURCES: [&str; 10] = [
    "client",
    "consent",
    "federation",
    "health",
    "keys",
    "media",
    "metrics",
    "openid",
    "replication",
    "static",
];

/// Which process a listener belongs to: they build their resources differently.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Main,
    Worker,
}

/// Reads a list of listeners. The second value is `true` if there is an error in it, which has been said.
pub(super) fn read(
    listeners: Option<&At<'_>>,
    of: Of,
    has_repository: bool,
    found: &mut Diagnostics,
) -> (Vec<ListenerFacts>, bool) {
    let before = found.errors();
    let items = listeners.map(|at| at.list(found)).unwrap_or_default();
    let facts = items
        .iter()
        .filter_map(|at| listener(at, of, has_repository, found))
        .collect();
    (facts, found.errors() > before)
}

fn listener(
    at: &At<'_>,
    of: Of,
    has_repository: bool,
    found: &mut Diagnostics,
) -> Option<ListenerFacts> {
    if !at.is_map() {
        at.entries(found);
        return None;
    }
    let Some(kind) = at.get("type") else {
        found.push(
            at.statement().below("type").on(Diagnostic::error(
                "this listener has no type, and Synapse refuses it",
            )
            .fix("add type: http")),
        );
        return None;
    };
    let kind_at = kind.statement();
    let kind = kind.text(found)?;
    if !TYPES.contains(&kind) {
        let near = nearest(&kind.to_lowercase(), TYPES).unwrap_or("http");
        found.push(
            kind_at.on(Diagnostic::warning(format!(
                "Synapse has no listener of type {kind}, so nothing listens here"
            ))
            .fix(format!("write {near}"))),
        );
        return Some(ListenerFacts {
            at: at.statement(),
            serves: BTreeSet::new(),
            unusable: Some(Unusable::Mistyped),
            bound: Bound::Nowhere,
            x_forwarded: true,
        });
    }
    let is_http = kind == "http";
    let resources = resources(at, found);
    let serves = match of {
        _ if !is_http => BTreeSet::new(),
        Of::Main => built_by_main(&resources, has_repository),
        Of::Worker => built_by_worker(&resources, has_repository),
    };
    let tls = at.get("path").is_none() && at.get("tls").is_some_and(|tls| tls.truth());
    let unusable = match () {
        () if tls && is_http => Some(Unusable::Tls),
        () if is_http && resources.iter().all(Vec::is_empty) => Some(Unusable::NoResources),
        () if serves.is_empty() => Some(Unusable::Other),
        () => None,
    };
    if unusable.is_none() {
        warn_of_replaced(at, &resources, &serves, found);
    }
    Some(ListenerFacts {
        at: at.statement(),
        serves,
        bound: if unusable.is_none() {
            bound(at, found)
        } else {
            Bound::Nowhere
        },
        unusable,
        x_forwarded: at
            .get("x_forwarded")
            .map_or(at.get("path").is_some(), |value| value.truth()),
    })
}

/// The names of each entry of `resources`.
fn resources<'a>(at: &At<'a>, found: &mut Diagnostics) -> Vec<Vec<&'a str>> {
    let Some(entries) = at.get("resources") else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for entry in entries.list(found) {
        let names = entry.get("names").map(|names| names.list(found));
        let mut own = Vec::new();
        for name_at in names.unwrap_or_default() {
            let Some(name) = name_at.text(found) else {
                continue;
            };
            if RESOURCES.contains(&name) {
                own.push(name);
                continue;
            }
            let fix = nearest(name, RESOURCES)
                .map_or_else(|| "take it away".to_owned(), |near| format!("write {near}"));
            found.push(
                name_at.statement().on(Diagnostic::error(format!(
                    "Synapse has no resource {name}, and will not start"
                ))
                .fix(fix)),
            );
        }
        all.push(own);
    }
    all
}

/// What stands behind the path of an API on one listener. A later entry of `resources` replaces an earlier one.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Built {
    #[default]
    Nothing,
    All,
    MediaOnly,
    OpenIdOnly,
}

#[derive(Default)]
struct Tree {
    client: Built,
    federation: Built,
    repository: bool,
    media_admin: bool,
}

impl Tree {
    fn serves(&self, of: Of) -> BTreeSet<Resource> {
        // Other servers' media goes to the port of a worker that has the repository, and to that of main's federation.
        let to_servers = matches!(self.federation, Built::All | Built::MediaOnly);
        let media = self.repository
            && self.media_admin
            && self.client != Built::Nothing
            && (of == Of::Main || to_servers);
        [
            (Resource::Client, self.client == Built::All),
            (Resource::Federation, self.federation == Built::All),
            (Resource::Media, media),
        ]
        .into_iter()
        .filter_map(|(resource, serves)| serves.then_some(resource))
        .collect()
    }
}

/// As `GenericWorkerServer._listen_http` in synapse/app/generic_worker.py builds its resources.
fn built_by_worker(resources: &[Vec<&str>], has_repository: bool) -> BTreeSet<Resource> {
    let mut tree = Tree::default();
    for names in resources {
        let has = |name| names.contains(&name);
        for name in names {
            match *name {
                "client" => tree.client = Built::All,
                "federation" => tree.federation = Built::All,
                "media" if has_repository => {
                    tree.repository = true;
                    tree.media_admin = true;
                    if !has("federation") {
                        tree.federation = Built::MediaOnly;
                    }
                    if !has("client") {
                        tree.client = Built::MediaOnly;
                    }
                }
                "openid" if !has("federation") => tree.federation = Built::OpenIdOnly,
                _ => {}
            }
        }
    }
    tree.serves(Of::Worker)
}

/// As `SynapseHomeServer._listener_http` and `_configure_named_resource` in synapse/app/homeserver.py build theirs.
fn built_by_main(resources: &[Vec<&str>], has_repository: bool) -> BTreeSet<Resource> {
    let mut tree = Tree::default();
    for names in resources {
        let has = |name| names.contains(&name);
        for name in names {
            match *name {
                "client" => {
                    tree.client = Built::All;
                    tree.repository |= has_repository;
                    tree.media_admin |= has_repository;
                }
                "federation" => {
                    tree.federation = Built::All;
                    tree.repository |= has_repository;
                }
                "openid" if !has("federation") => tree.federation = Built::OpenIdOnly,
                "media" if !has("federation") && !has("client") => {
                    tree.repository |= has_repository;
                    tree.federation = Built::MediaOnly;
                    tree.client = Built::MediaOnly;
                }
                _ => {}
            }
        }
    }
    tree.serves(Of::Main)
}

/// `resources: [{names: [client]}, {names: [media]}]` leaves nothing of the client API but its media.
fn warn_of_replaced(
    at: &At<'_>,
    resources: &[Vec<&str>],
    serves: &BTreeSet<Resource>,
    found: &mut Diagnostics,
) {
    for resource in [Resource::Client, Resource::Federation] {
        let listed = resources
            .iter()
            .flatten()
            .any(|name| *name == resource.name());
        if listed && !serves.contains(&resource) {
            let message = format!(
                "a later entry of resources replaces {} here, so Synapse serves only a part of it",
                resource.name()
            );
            found.push(at.statement().below("resources").on(
                Diagnostic::warning(message).fix(
                    "write all of them into one entry: [{names: [client, federation, media]}]",
                ),
            ));
        }
    }
}

/// Where it says that it listens.
fn bound(at: &At<'_>, found: &mut Diagnostics) -> Bound {
    let path = at.get("path");
    let port = at.get("port");
    if let (Some(path), Some(_)) = (&path, &port) {
        found.push(
            path.statement().on(Diagnostic::error(
                "this listener has a port and a path, and Synapse refuses that",
            )
            .fix("leave one of the two")),
        );
        return Bound::Nowhere;
    }
    if let Some(path) = path {
        return path.text(found).map_or(Bound::Nowhere, |text| {
            socket(text, &path.statement(), found)
        });
    }
    let Some(port) = port else {
        found.push(
            at.statement().on(Diagnostic::error(
                "a listener has no port or path that nginx could be given",
            )
            .fix("add port: 8083, or path: /run/synapse/sync1.sock")),
        );
        return Bound::Nowhere;
    };
    let Some(port) = port.port(found) else {
        return Bound::Nowhere;
    };
    let mut names = Vec::new();
    if let Some(one) = at.get("bind_address") {
        names.push(one);
    }
    if let Some(many) = at.get("bind_addresses") {
        names.extend(many.list(found));
    }
    let mut hosts = Vec::new();
    for name in &names {
        let Some(text) = name.text(found) else {
            return Bound::Nowhere;
        };
        if !text.is_empty() && !values::is_host(text) {
            found.push(
                name.statement().on(
                    Diagnostic::error("not an address that nginx could be given")
                        .fix("write an address, as 127.0.0.1 or ::"),
                ),
            );
            return Bound::Nowhere;
        }
        hosts.push(text);
    }
    match host_of(&hosts) {
        Some(host) => Bound::Address(Address::Tcp { host, port }),
        None => Bound::Port(port),
    }
}

fn socket(path: &str, at: &Statement, found: &mut Diagnostics) -> Bound {
    if path.starts_with('/') && values::is_one_word(path) {
        return Bound::Address(Address::Unix(path.into()));
    }
    found.push(
        at.on(
            Diagnostic::error("nginx needs the absolute path of the socket, without blanks")
                .fix("write path: /run/synapse/sync1.sock"),
        ),
    );
    Bound::Nowhere
}

/// The host that bound addresses name: an address of its own says where it is; loopback alone, that nginx has to be
/// there too; a wildcard says nothing.
fn host_of(bound: &[&str]) -> Option<String> {
    let is_loopback = |text: &&str| {
        *text == "localhost" || text.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    let is_wildcard =
        |text: &&str| text.is_empty() || text.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let own = bound
        .iter()
        .find(|text| !is_loopback(text) && !is_wildcard(text));
    if let Some(own) = own {
        return Some((*own).to_owned());
    }
    if bound.is_empty() || !bound.iter().all(is_loopback) {
        return None;
    }
    let v4 = bound.iter().find(|text| !text.contains(':'));
    let host = *v4.unwrap_or(&bound[0]);
    Some(
        if host == "localhost" {
            "127.0.0.1"
        } else {
            host
        }
        .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use Resource::{Client, Federation, Media};

    #[test]
    fn a_later_entry_replaces_an_earlier_one_as_in_synapse() {
        let all = |resources: &[Vec<&str>]| built_by_worker(resources, true);
        assert_eq!(
            all(&[vec!["client", "federation", "media"]]),
            BTreeSet::from([Client, Federation, Media])
        );
        assert_eq!(
            all(&[vec!["client"], vec!["media"]]),
            BTreeSet::from([Media])
        );
        assert_eq!(
            all(&[vec!["media"], vec!["client"]]),
            BTreeSet::from([Client, Media])
        );
        assert_eq!(all(&[vec!["federation"], vec!["openid"]]), BTreeSet::new());
        assert_eq!(built_by_worker(&[vec!["media"]], false), BTreeSet::new());
    }

    #[test]
    fn main_has_its_repository_with_the_client_api() {
        assert_eq!(
            built_by_main(&[vec!["client", "federation"]], true),
            BTreeSet::from([Client, Federation, Media])
        );
        assert_eq!(
            built_by_main(&[vec!["client", "federation"]], false),
            BTreeSet::from([Client, Federation])
        );
        assert_eq!(
            built_by_main(&[vec!["client"]], true),
            BTreeSet::from([Client, Media])
        );
        assert_eq!(
            built_by_main(&[vec!["client"], vec!["media"]], true),
            BTreeSet::from([Media])
        );
    }

    #[test]
    fn a_bound_address_says_where_a_process_is_unless_it_is_every_one() {
        for (bound, expected) in [
            (vec!["127.0.0.1"], Some("127.0.0.1")),
            (vec!["::1", "127.0.0.1"], Some("127.0.0.1")),
            (vec!["localhost"], Some("127.0.0.1")),
            (vec!["127.0.0.1", "10.0.0.5"], Some("10.0.0.5")),
            (vec!["127.0.0.1", "::"], None),
            (vec![""], None),
            (vec![], None),
        ] {
            assert_eq!(host_of(&bound).as_deref(), expected, "{bound:?}");
        }
    }
}
