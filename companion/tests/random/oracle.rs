//! What each Synapse process can serve, from Synapse's sources. It shares no code with the program.
//!
//! The files and lines are those of matrix-synapse 1.163.2:
//! - a worker's listener: synapse/app/generic_worker.py 182–275, `GenericWorkerServer._listen_http`;
//! - main's listener: synapse/app/homeserver.py 91–268, `_listener_http` and `_configure_named_resource`;
//! - who has the media repository: synapse/config/repository.py 183–191;
//! - what only main registers: synapse/rest/__init__.py 171–206 and `endpoints.tsv`, which nginx/registry.py asks of Synapse;
//! - who may write: typing, synapse/rest/client/room.py 1459; push rules, synapse/rest/client/push_rule.py 72 and 145; to-device,
//!   synapse/storage/databases/main/deviceinbox.py 756; receipts, …/receipts.py 928; device lists, …/devices.py 988;
//!   threads, …/thread_subscriptions.py 192; quarantine, …/room.py 1424. Account data and presence are forwarded
//!   (synapse/handlers/account_data.py, synapse/handlers/presence.py), so any process takes them.

use std::collections::BTreeMap;
use std::path::Path;

use regex_syntax::hir::{Class, Hir, HirKind};

use crate::generator::{Deployment, Listener, Place, Process};

/// An endpoint of Synapse's, with paths that stand for all that it matches.
pub(crate) struct Endpoint {
    pub method: String,
    /// `main`, `worker` or `media`.
    pub registered: String,
    pub paths: Vec<String>,
}

/// Why a process cannot serve a request, and the words that a warning about it must have.
pub(crate) struct Reason {
    pub text: String,
    pub words: Vec<String>,
}

/// Every endpoint of `nginx/endpoints.tsv`, and syncs that go on.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nginx/endpoints.tsv");
    let text = std::fs::read_to_string(file).unwrap();
    // The page of consent is a resource of its own, which few have.
    let rows = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("/_matrix/consent"));
    let mut endpoints: Vec<Endpoint> = rows
        .map(|row| {
            let columns: Vec<&str> = row.split('\t').collect();
            // Every process registers these. The table has them as main's, because a worker that is no writer refuses them
            // (`WORKERS_DENIED_METHODS` in synapse/rest/client/push_rule.py).
            let everywhere = columns[3].contains("pushrules");
            Endpoint {
                method: columns[0].to_owned(),
                registered: if everywhere { "worker" } else { columns[1] }.to_owned(),
                paths: samples(columns[3]),
            }
        })
        .collect();
    for endpoint in &mut endpoints {
        if endpoint.paths.iter().any(|path| path.ends_with("/v3/sync")) {
            endpoint
                .paths
                .push("/_matrix/client/v3/sync?since=s1".to_owned());
        }
    }
    assert!(endpoints.len() > 300, "{}", endpoints.len());
    endpoints
}

fn samples(pattern: &str) -> Vec<String> {
    let hir = regex_syntax::parse(pattern).unwrap();
    let mut paths = expanded(&hir);
    paths.sort();
    paths.dedup();
    paths
}

fn expanded(hir: &Hir) -> Vec<String> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => vec![String::new()],
        HirKind::Literal(literal) => vec![String::from_utf8(literal.0.to_vec()).unwrap()],
        // A dot of an identifier that Synapse did not escape.
        HirKind::Class(Class::Unicode(class))
            if class.ranges().len() > 1 && class.is_any_but_newline() =>
        {
            vec![".".to_owned()]
        }
        HirKind::Class(_) => vec!["x".to_owned()],
        HirKind::Repetition(repetition) => {
            let mut all = expanded(&repetition.sub);
            if repetition.min == 0 && repetition.max == Some(1) {
                all.push(String::new());
            }
            all
        }
        HirKind::Capture(capture) => match capture.name.as_deref() {
            Some("room_id" | "room_identifier") => {
                vec!["!uzLBTLkGVZKdvvBcGi:example.org".to_owned()]
            }
            Some("user_id" | "target_user_id") => vec!["@alice:example.org".to_owned()],
            Some("event_id" | "parent_id" | "thread_root_id") => vec!["$acR1l0raoZnm60".to_owned()],
            Some("path") => vec!["pushrules/global/override/.m.rule.master".to_owned()],
            _ => expanded(&capture.sub),
        },
        HirKind::Concat(parts) => parts.iter().fold(vec![String::new()], |heads, part| {
            let tails = expanded(part);
            heads
                .iter()
                .flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}")))
                .collect()
        }),
        HirKind::Alternation(parts) => parts.iter().flat_map(expanded).collect(),
    }
}

trait IsAnyButNewline {
    fn is_any_but_newline(&self) -> bool;
}

impl IsAnyButNewline for regex_syntax::hir::ClassUnicode {
    fn is_any_but_newline(&self) -> bool {
        let excluded = |c: char| self.ranges().iter().all(|r| c < r.start() || c > r.end());
        excluded('\n') && !excluded('/') && !excluded('x')
    }
}

/// Whether the process at an address serves a request.
pub(crate) fn serves(
    deployment: &Deployment,
    server: &str,
    endpoint: &Endpoint,
    path: &str,
) -> Result<(), Reason> {
    let path = path.split('?').next().unwrap_or(path);
    let is_media = endpoint.registered == "media";
    let Some((process, listener)) = deployment.at(server) else {
        return Err(Reason {
            text: "nobody is there".to_owned(),
            words: vec!["nowhere".to_owned()],
        });
    };
    let is_main = process.app == "synapse.app.homeserver";
    let because = |text: &str, words: &[&str]| {
        Err(Reason {
            text: format!("{} {text}", process.name),
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        })
    };
    if listener.tls {
        return because("speaks TLS there", &[&process.name, "TLS"]);
    }
    if endpoint.registered == "main" && !is_main {
        return because("does not register it", &[&process.name]);
    }
    let tree = tree(deployment, process, listener);
    let prefix = tree
        .keys()
        .filter(|prefix| path.starts_with(**prefix))
        .max_by_key(|prefix| prefix.len());
    let Some(prefix) = prefix else {
        return match path {
            _ if path.starts_with("/_matrix/federation") || path.starts_with("/_matrix/key") => {
                because("has no federation there", &["federation"])
            }
            _ if is_media => because("has no media there", &["media"]),
            _ => because("has no such resource there", &[&process.name]),
        };
    };
    let servlets = tree[prefix];
    let admin = path.starts_with("/_synapse/admin");
    let group = match path {
        _ if admin && is_media => "media",
        _ if admin => "client",
        _ if path.starts_with("/_matrix/client/v1/media") => "media",
        _ if path.starts_with("/_matrix/federation/v1/media") => "media",
        _ if path.contains("/openid/userinfo") => "openid",
        _ if path.starts_with("/_matrix/client") => "client",
        _ if path.starts_with("/_matrix/federation") => "federation",
        _ => "all",
    };
    if !servlets.contains(&group) && group != "all" {
        let word = match group {
            _ if path.starts_with("/_matrix/federation") && !servlets.contains(&"federation") => {
                "federation"
            }
            "media" => "media",

            _ => process.name.as_str(),
        };
        return because(&format!("has only {servlets:?} of it there"), &[word]);
    }
    if let Some(stream) = stream_of(&endpoint.method, path) {
        let writers = deployment.writers_of(stream);
        let own = if is_main { "master" } else { &process.name };
        if !writers.iter().any(|writer| writer == own) {
            return because(&format!("does not write {stream}"), &[stream]);
        }
    }
    Ok(())
}

/// The stream that a request writes, where only a writer can.
fn stream_of(method: &str, path: &str) -> Option<&'static str> {
    let writes = matches!(method, "PUT" | "POST" | "DELETE");
    let has = |part: &str| path.contains(part);
    let client = path.starts_with("/_matrix/client");
    match () {
        () if !writes => None,
        () if client && has("/rooms/") && has("/typing/") => Some("typing"),
        () if client && has("/sendToDevice/") => Some("to_device"),
        () if client && has("/rooms/") && (has("/receipt/") || has("/read_markers")) => {
            Some("receipts")
        }
        () if client && has("/pushrules/") => Some("push_rules"),
        () if client
            && (has("/keys/upload")
                || has("/keys/device_signing/upload")
                || has("/keys/signatures/upload")) =>
        {
            Some("device_lists")
        }
        () if client && (has("/delete_devices") || has("/devices/")) => Some("device_lists"),
        () if client && has("/thread/") && has("/subscription") => Some("thread_subscriptions"),
        () if path.starts_with("/_synapse/admin") && has("quarantine") => {
            Some("quarantined_media_changes")
        }
        () => None,
    }
}

/// What hangs at which path of a listener, with the groups of servlets there.
fn tree(
    deployment: &Deployment,
    process: &Process,
    listener: &Listener,
) -> BTreeMap<&'static str, &'static [&'static str]> {
    let mut tree: BTreeMap<&'static str, &'static [&'static str]> = BTreeMap::new();
    if listener.kind != "http" {
        return tree;
    }
    tree.insert("/health", &["all"]);
    let is_main = process.app == "synapse.app.homeserver";
    let repository = process.app == "synapse.app.media_repository"
        || process
            .own_media
            .or(deployment.shared_media)
            .unwrap_or(true);
    let all_client: &'static [&str] = if repository {
        &["client", "media"]
    } else {
        &["client"]
    };
    let all_federation: &'static [&str] = if repository {
        &["federation", "openid", "media"]
    } else {
        &["federation", "openid"]
    };
    for block in &listener.resources {
        for name in block {
            let has = |other: &str| block.contains(&other);
            match *name {
                "client" => {
                    tree.insert("/_matrix/client", all_client);
                    tree.insert("/_synapse/client", &["client"]);
                    tree.insert("/_synapse/mas", &["client"]);
                    tree.insert("/.well-known", &["client"]);
                    if is_main {
                        tree.insert("/_matrix/static", &["client"]);
                    }
                    if is_main {
                        tree.insert("/_synapse/admin", all_client);
                    } else {
                        let known = tree.get("/_synapse/admin").copied().unwrap_or_default();
                        let media = known.contains(&"media");
                        tree.insert(
                            "/_synapse/admin",
                            if media {
                                &["client", "media"]
                            } else {
                                &["client"]
                            },
                        );
                    }
                    if is_main && repository {
                        tree.insert("/_matrix/media", &["media"]);
                    }
                }
                "federation" => {
                    tree.insert("/_matrix/federation", all_federation);
                    tree.insert("/_matrix/key", &["federation"]);
                    if is_main && repository {
                        tree.insert("/_matrix/media", &["media"]);
                    }
                }
                "keys" => {
                    tree.insert("/_matrix/key", &["federation"]);
                }
                "openid" if !has("federation") => {
                    tree.insert("/_matrix/federation", &["openid"]);
                }
                "media" if is_main && (has("federation") || has("client")) => {}
                "media" if repository => {
                    tree.insert("/_matrix/media", &["media"]);
                    if is_main || !has("federation") {
                        tree.insert("/_matrix/federation", &["media"]);
                    }
                    if is_main || !has("client") {
                        tree.insert("/_matrix/client", &["media"]);
                    }
                    if !is_main {
                        let known = tree.get("/_synapse/admin").copied().unwrap_or_default();
                        let client = known.contains(&"client");
                        tree.insert(
                            "/_synapse/admin",
                            if client {
                                &["client", "media"]
                            } else {
                                &["media"]
                            },
                        );
                    }
                }
                _ => {}
            }
        }
    }
    tree
}

impl Deployment {
    /// The process that listens at an address of nginx's, and its listener.
    fn at(&self, server: &str) -> Option<(&Process, &Listener)> {
        self.processes.iter().find_map(|process| {
            let listener = process
                .listeners
                .iter()
                .find(|listener| match &listener.place {
                    Place::Socket(path) => server.strip_prefix("unix:") == Some(path),
                    Place::Port(port) => server.rsplit_once(':').is_some_and(|(host, at)| {
                        at == port.to_string() && process.hosts.iter().any(|known| known == host)
                    }),
                })?;
            Some((process, listener))
        })
    }

    fn writers_of(&self, stream: &str) -> Vec<String> {
        self.writers
            .get(stream)
            .cloned()
            .unwrap_or_else(|| vec!["master".to_owned()])
    }
}
