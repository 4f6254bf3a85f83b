//! `route`: what nginx does with a request, found by walking the plan as nginx walks its locations.
//!
//! In come a method, a path and what else decides (user, origin), out comes the location, the upstream, the reason, and
//! the worker where a hash names one. It follows ngx_http_core_find_location(): the path is decoded first; a `^~` prefix
//! keeps its patterns to itself; patterns are tried in their order; `/` is last.

use std::fmt;

use matrix_user_hash_core::user::{UserHash, UserId};
use regex::Regex;

use crate::hash::Circle;
use crate::model::Deployment;
use crate::plan::{Location, MAIN, PREFIXES, Plan, Server, Target, Upstream};
use crate::table::Section;

/// What is asked.
#[derive(Debug, Default)]
pub struct Question {
    /// The method, in capitals.
    pub method: String,
    /// The path, with its query.
    pub target: String,
    /// A user id.
    pub user: Option<String>,
    /// The server that asks, for federation.
    pub origin: Option<String>,
    /// Names that a DNS service has now, in place of the one `server` line.
    pub members: Vec<String>,
}

/// What nginx does.
#[derive(Debug)]
pub struct Answer {
    /// The location as it is written.
    pub location: String,
    /// The file that it stands in.
    pub file: String,
    /// Where the request goes.
    pub outcome: Outcome,
    /// The reason.
    pub why: String,
}

/// Where a request goes.
#[derive(Debug)]
pub enum Outcome {
    /// nginx answers itself.
    Edge(u16),
    /// To an upstream.
    Upstream {
        /// Its name.
        name: String,
        /// How its servers take turns.
        balance: String,
        /// Its `server` lines.
        servers: Vec<Server>,
        /// The key of the hash and the index of the server that it picks.
        picked: Option<(String, usize)>,
    },
}

/// Answers for the listener of the client API.
///
/// # Errors
/// The question is not one that nginx would take: a path without a slash, a user id that is none.
pub fn route(deployment: &Deployment, plan: &Plan, question: &Question) -> Result<Answer, String> {
    let (raw, query) = question
        .target
        .split_once('?')
        .unwrap_or((&question.target, ""));
    let path = normalized(raw).ok_or_else(|| {
        format!("nginx answers 400 to the path {raw}: it must begin with / and every % must have two hex digits")
    })?;
    if question.method == "OPTIONS" {
        return Ok(Answer {
            location: "if ($request_method = OPTIONS)".into(),
            file: "synapse/errors.conf".into(),
            outcome: Outcome::Edge(204),
            why: "a preflight: nginx answers it with Synapse's own CORS headers".into(),
        });
    }
    for closed in ["/_synapse/metrics", "/_synapse/replication"] {
        if path.starts_with(closed) {
            return Ok(Answer {
                location: format!("^~ {closed}"),
                file: "synapse/errors.conf".into(),
                outcome: Outcome::Edge(404),
                why: "nobody outside has any business there".into(),
            });
        }
    }
    let prefix = PREFIXES.iter().find(|(prefix, section, _)| {
        path.starts_with(prefix) && is_rendered(deployment, plan, *section)
    });
    let section = prefix.map_or(Section::Client, |(_, section, _)| *section);
    let location = plan
        .section(section)
        .find(|location| matches(location, &path));
    let (pattern, file, why, name) = match (location, prefix) {
        (Some(location), _) => {
            let (name, refined) = chosen(&location.target, &question.method, query);
            let file = prefix.map_or("client", |(_, _, file)| file);
            let why = refined.map_or_else(
                || location.why.clone(),
                |r| format!("{}; {r}", location.why),
            );
            (
                format!("~ {}", location.pattern),
                format!("synapse/{file}.conf"),
                why,
                name,
            )
        }
        (None, Some((prefix, section, _))) => {
            let federation = matches!(section, Section::Federation | Section::Key);
            let name = if federation {
                plan.main_federation.as_str()
            } else {
                MAIN
            };
            (
                format!("^~ {prefix}"),
                "synapse/servers.conf".into(),
                NO_GROUP.into(),
                name,
            )
        }
        (None, None) => (
            "/".into(),
            "synapse/servers.conf".into(),
            NO_GROUP.into(),
            MAIN,
        ),
    };
    let upstream = plan
        .upstream(name)
        .ok_or_else(|| format!("no upstream is called {name}"))?;
    let outcome = upstream_outcome(upstream, question, &path)?;
    Ok(Answer {
        location: pattern,
        file,
        outcome,
        why,
    })
}

const NO_GROUP: &str = "no group of workers serves it, so the main process does";

/// Whether `servers.conf` has the prefix, by the same conditions as its template.
fn is_rendered(deployment: &Deployment, plan: &Plan, section: Section) -> bool {
    let settings = &deployment.settings;
    plan.section(section).next().is_some()
        || match section {
            Section::Federation => true,
            Section::Key => plan.main_federation != MAIN,
            Section::LegacyMedia => settings.media_cache.is_some(),
            Section::Admin => !settings.admin_allow.is_empty(),
            Section::Client | Section::Mas => false,
        }
}

fn matches(location: &Location, path: &str) -> bool {
    Regex::new(&location.pattern).is_ok_and(|pattern| pattern.is_match(path))
}

/// The upstream of a target, and what decided where more than the path did.
fn chosen<'a>(target: &'a Target, method: &str, query: &str) -> (&'a str, Option<String>) {
    match target {
        Target::Upstream { name } => (name, None),
        Target::Methods { name, methods, .. } => {
            if methods.iter().any(|known| known == method) {
                (name, None)
            } else {
                (
                    MAIN,
                    Some(format!("{method} is not among {}", methods.join(", "))),
                )
            }
        }
        Target::Since { name, initial, .. } => {
            if argument(query, "full_state") == "true" {
                (
                    initial,
                    Some("full_state=true makes it an initial one".into()),
                )
            } else if argument(query, "since").is_empty() {
                (initial, Some("without since it is an initial one".into()))
            } else {
                (name, Some("since says where to go on".into()))
            }
        }
        Target::From { name, initial, .. } => {
            if argument(query, "from").is_empty() {
                (initial, Some("without from it is an initial one".into()))
            } else {
                (name, Some("from says where to go on".into()))
            }
        }
    }
}

/// `$arg_name`: the first argument of that name, undecoded; its name in any case (ngx_http_arg()).
fn argument<'q>(query: &'q str, name: &str) -> &'q str {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map_or("", |(_, value)| value)
}

fn upstream_outcome(
    upstream: &Upstream,
    question: &Question,
    path: &str,
) -> Result<Outcome, String> {
    let service = upstream.servers.iter().find(|s| s.service.is_some());
    let known = service.is_none() || !question.members.is_empty();
    // The members of a service stand where its line stands, each with the line's weight.
    let servers: Vec<Server> = match service {
        Some(line) if known => question
            .members
            .iter()
            .map(|name| Server {
                worker: name.clone(),
                address: name.trim_end_matches('.').to_owned(),
                ..line.clone()
            })
            .collect(),
        _ => upstream.servers.clone(),
    };
    let key = upstream
        .hash
        .map(|variable| key_of(variable, question, path))
        .transpose()?
        .flatten();
    let picked = key.filter(|_| known).and_then(|key| {
        let lines = servers
            .iter()
            .map(|server| (server.address.as_str(), usize::from(server.weight)));
        let index = Circle::new(lines).pick(&key)?;
        Some((key, index))
    });
    Ok(Outcome::Upstream {
        name: upstream.name.clone(),
        balance: match upstream.hash {
            Some(variable) => format!("hash {variable} consistent"),
            None => "round-robin".into(),
        },
        // One server is the one that it is, whatever the key.
        picked: if servers.len() == 1 && known {
            None
        } else {
            picked
        },
        servers,
    })
}

/// What a variable holds for this question; `None` where the question does not say.
fn key_of(variable: &str, question: &Question, path: &str) -> Result<Option<String>, String> {
    match variable {
        "$matrix_user_hash" => question
            .user
            .as_deref()
            .map(|user| {
                let id = UserId::try_from(user).map_err(|_| {
                    format!("{user} is not a user id: write it whole, as @alice:example.org")
                })?;
                Ok(String::from_utf8_lossy(&UserHash::of_user(&id).hex()).into_owned())
            })
            .transpose(),
        "$synapse_room" => {
            let room = Regex::new(ROOM).map_err(|error| error.to_string())?;
            Ok(room.captures(path).map(|found| found[1].to_owned()))
        }
        _ => Ok(question.origin.clone()),
    }
}

/// The pattern of the map for `$synapse_room` in `maps.conf`.
const ROOM: &str = "^/_matrix/client/.+?/(?:rooms|join|knock|room_summary|summary)/([^/]+)";

/// As ngx_http_parse_complex_uri() makes `$uri`: decoded, slashes merged, dots resolved.
fn normalized(raw: &str) -> Option<String> {
    let mut bytes = raw.bytes();
    let mut decoded = Vec::with_capacity(raw.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            _ => byte,
        });
    }
    let decoded = String::from_utf8_lossy(&decoded).into_owned();
    let rest = decoded.strip_prefix('/')?;
    let mut parts: Vec<&str> = Vec::new();
    let mut ends_in_slash = rest.is_empty();
    for part in rest.split('/') {
        ends_in_slash = matches!(part, "" | "." | "..");
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    let slash = if ends_in_slash && !parts.is_empty() {
        "/"
    } else {
        ""
    };
    Some(format!("/{}{slash}", parts.join("/")))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "location  {}  ({})", self.location, self.file)?;
        match &self.outcome {
            Outcome::Edge(status) => writeln!(f, "answer    {status}, by nginx itself")?,
            Outcome::Upstream {
                name,
                balance,
                servers,
                picked,
            } => {
                let count = servers.len();
                let servers_word = if count == 1 { "server" } else { "servers" };
                writeln!(f, "upstream  {name}, {count} {servers_word}, {balance}")?;
                match (picked, servers.as_slice()) {
                    (Some((key, index)), _) => {
                        writeln!(f, "key       {key}")?;
                        writeln!(f, "worker    {}", named(&servers[*index]))?;
                    }
                    (None, [only]) => writeln!(f, "worker    {}", named(only))?,
                    (None, _) => {}
                }
            }
        }
        writeln!(f, "why       {}", self.why)
    }
}

fn named(server: &Server) -> String {
    format!("{}  {}", server.worker, server.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_seen_as_nginx_sees_it() {
        assert_eq!(
            normalized("/_matrix//client/v3/rooms/%21abc%3Aexample.org/./messages").as_deref(),
            Some("/_matrix/client/v3/rooms/!abc:example.org/messages")
        );
        assert_eq!(normalized("/a/b/../c/").as_deref(), Some("/a/c/"));
        assert_eq!(normalized("/").as_deref(), Some("/"));
        assert_eq!(normalized("/../etc"), None);
        assert_eq!(normalized("/%zz"), None);
    }

    #[test]
    fn an_argument_is_the_first_of_its_name_and_not_decoded() {
        assert_eq!(
            argument("timeout=0&since=s72594_4483_1934&since=s1", "since"),
            "s72594_4483_1934"
        );
        assert_eq!(argument("timeout=0", "since"), "");
    }
}
