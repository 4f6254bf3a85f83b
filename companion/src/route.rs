//! `route`: what nginx does with a request, found by walking the plan as nginx walks its locations.
//!
//! In come a method, a path and what else decides (user, origin), out comes the location, the upstream, the reason, and
//! the worker where a hash names one. It follows ngx_http_core_find_location(): the path is decoded first; a `^~` prefix
//! keeps its patterns to itself; patterns are tried in their order; `/` is last.

use std::fmt;

use matrix_user_hash_core::shift::Shift;
use matrix_user_hash_core::user::{UserHash, UserId};
use regex::Regex;

use crate::moves::{self, Chosen, Single, circle};
use crate::plan::{Key, Location, NO_GROUP, Plan, Prefix, Server, Target, Upstream};
use crate::table::Section;

/// What is asked.
#[derive(Debug, Default)]
pub(crate) struct Question {
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
    /// When, in milliseconds since 1970: where users are on the move it decides.
    pub at: u64,
}

/// What nginx does.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The location as it is written.
    pub location: String,
    /// The file that it stands in.
    pub file: String,
    /// Where the request goes.
    pub outcome: Outcome,
    /// Who may ask at all, where that is not everybody.
    pub access: Option<String>,
    /// The reason.
    pub why: String,
}

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Outcome {
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
        /// Where users of the group are on the move: what it means for this one.
        move_: Option<Box<Move>>,
    },
}

/// What a shift means for a user.
#[derive(Debug)]
pub(crate) struct Move {
    /// Whether the moment is over.
    is_over: bool,
    /// The moment; the end of the shift where the user is not known.
    moment: String,
    /// The worker before, and the one after. `None` where the user is not known.
    workers: Option<(Server, Server)>,
}

/// Answers for the listener of the client API.
///
/// # Errors
/// The question is not one that nginx would take: a path without a slash, a user id that is none.
pub(crate) fn route(plan: &Plan, question: &Question) -> Result<Answer, String> {
    let (raw, query) = question
        .target
        .split_once('?')
        .unwrap_or((&question.target, ""));
    let path = normalized(raw).ok_or_else(|| {
        format!("nginx answers 400 to the path {raw}: it must begin with / and every % must have two hex digits")
    })?;
    let file = |name: &str| format!("{}/{name}.conf", plan.name);
    let edge = |location: String, name, status, why: &str| Answer {
        location,
        file: file(name),
        outcome: Outcome::Edge(status),
        access: None,
        why: why.to_owned(),
    };
    let hidden = &plan.edge.hidden;
    if is_match(hidden.pattern, &question.target) && !is_match(hidden.unless, &question.target) {
        return Ok(edge(
            format!("if (${}_hidden)", plan.name),
            "server",
            hidden.status,
            "nginx resolves the /../ of its path and Synapse does not, so it could be a way around allow",
        ));
    }
    if question.method == "OPTIONS" {
        return Ok(edge(
            "if ($request_method = OPTIONS)".into(),
            "errors",
            plan.edge.preflight,
            "a preflight: nginx answers it with Synapse's own CORS headers",
        ));
    }
    if let Some(closed) = plan.edge.closed.iter().find(|c| path.starts_with(*c)) {
        return Ok(edge(
            format!("^~ {closed}"),
            "errors",
            plan.edge.closed_status,
            "nobody outside has any business there",
        ));
    }
    let prefix = plan
        .prefixes
        .iter()
        .find(|prefix| prefix.client && path.starts_with(prefix.path));
    let section = prefix.map_or(Section::Client, |prefix| prefix.section);
    let location = plan
        .section(section)
        .find(|location| matches(location, &path));
    let (pattern, file, why, name) = match (location, prefix) {
        (Some(location), _) => {
            let (name, refined) = chosen(&location.target, &question.method, query);
            let why = refined.map_or_else(
                || location.why.clone(),
                |r| format!("{}; {r}", location.why),
            );
            (
                format!("~ {}", location.pattern),
                file(section.file()),
                why,
                name,
            )
        }
        (None, Some(prefix)) => (
            format!("^~ {}", prefix.path),
            file("servers"),
            NO_GROUP.into(),
            prefix.upstream.as_str(),
        ),
        (None, None) => (
            "/".into(),
            file("servers"),
            NO_GROUP.into(),
            plan.main.as_str(),
        ),
    };
    let upstream = plan
        .upstream(name)
        .ok_or_else(|| format!("no upstream is called {name}"))?;
    let outcome = upstream_outcome(upstream, question, plan, &path)?;
    Ok(Answer {
        location: pattern,
        file,
        outcome,
        access: prefix.and_then(access),
        why,
    })
}

/// Who may call what a prefix is closed for.
fn access(prefix: &Prefix) -> Option<String> {
    match prefix.allow.as_deref()? {
        [] => Some(format!("403 for everybody: {} opens it", prefix.opened_by)),
        allow => Some(format!(
            "from {}, as {} says; 403 for all others",
            allow.join(", "),
            prefix.opened_by
        )),
    }
}

fn matches(location: &Location, path: &str) -> bool {
    is_match(&location.pattern, path)
}

fn is_match(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
}

/// The upstream of a target, and what decided where more than the path did.
fn chosen<'a>(target: &'a Target, method: &str, query: &str) -> (&'a str, Option<&'a str>) {
    let (source, rows, default, default_why) = match target {
        Target::Upstream { name } => return (name, None),
        Target::Mapped {
            source,
            rows,
            default,
            default_why,
            ..
        } => (source, rows, default, default_why),
    };
    let value = expanded(source, method, query);
    // nginx looks for texts first, whatever their case, then tries the expressions in their order.
    let text = rows.iter().find(|row| row.key.eq_ignore_ascii_case(&value));
    let row = text.or_else(|| {
        rows.iter().find(|row| {
            let pattern = row.key.strip_prefix('~').map(Regex::new);
            pattern.is_some_and(|pattern| pattern.is_ok_and(|pattern| pattern.is_match(&value)))
        })
    });
    match row {
        Some(row) => (&row.name, Some(&row.why)),
        None => (default, Some(default_why)),
    }
}

/// What a map reads, with this question's values.
fn expanded(source: &str, method: &str, query: &str) -> String {
    let mut parts = source.split('$');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        text += match name.strip_prefix("arg_") {
            Some(argument_name) => argument(query, argument_name),
            None => method,
        };
        text += rest;
    }
    text
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
    plan: &Plan,
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
        .map(|key| key_of(key, question, plan, path))
        .transpose()?
        .flatten();
    let moving = plan
        .moving
        .iter()
        .find(|moving| moving.group == upstream.name);
    let user = key
        .as_deref()
        .filter(|_| upstream.hash == Some(Key::User))
        .and_then(|key| key.as_bytes().try_into().ok())
        .map(UserHash::from_hex);
    let after = Side {
        name: &upstream.name,
        servers: &servers,
        variable: upstream.hash_variable.as_deref(),
        known,
        chosen: moving.map(|moving| &moving.chosen),
    };
    let Some(shift) = moving.and_then(|moving| moving.shift.as_ref()) else {
        return Ok(after.outcome(key.as_deref(), user, None));
    };
    let before = Side {
        name: &shift.before,
        servers: &shift.servers,
        variable: shift.hash.and(upstream.hash_variable.as_deref()),
        known: shift.servers.iter().all(|server| server.service.is_none()),
        chosen: Some(&shift.chosen),
    };
    // A request without a user goes to the new group.
    let moment = user.and_then(|user| Shift::Over(shift.span).moment(user));
    let is_over = moment.is_none_or(|moment| moment <= question.at);
    let workers = before
        .server(key.as_deref(), user)
        .zip(after.server(key.as_deref(), user));
    let move_ = Box::new(Move {
        is_over,
        moment: moves::moment(moment.unwrap_or_else(|| shift.span.end())),
        workers: workers.filter(|_| user.is_some()),
    });
    let side = if is_over { after } else { before };
    Ok(side.outcome(key.as_deref(), user, Some(move_)))
}

/// Where users of a group are: those who have moved, or those who have not.
struct Side<'a> {
    /// The upstream.
    name: &'a str,
    /// Its servers.
    servers: &'a [Server],
    /// What they are spread by.
    variable: Option<&'a str>,
    /// Whether the servers are all that there are: not if DNS has them.
    known: bool,
    /// Users who are not on the ring.
    chosen: Option<&'a Chosen>,
}

impl Side<'_> {
    fn chosen(&self, user: Option<UserHash>) -> Option<(&Single, String)> {
        self.chosen?.of_user(user?)
    }

    /// The index of the server that the ring has for a key.
    fn picked(&self, key: Option<&str>) -> Option<usize> {
        let key = key.filter(|_| self.known && self.variable.is_some())?;
        circle(self.servers).pick(key)
    }

    /// The server of a user, if there is one.
    fn server(&self, key: Option<&str>, user: Option<UserHash>) -> Option<Server> {
        let chosen = self.chosen(user).map(|(single, _)| &single.server);
        let ring = || match self.servers {
            [only] if self.known => Some(only),
            servers => self.picked(key).map(|index| &servers[index]),
        };
        chosen.or_else(ring).cloned()
    }

    fn outcome(
        &self,
        key: Option<&str>,
        user: Option<UserHash>,
        move_: Option<Box<Move>>,
    ) -> Outcome {
        if let Some((single, why)) = self.chosen(user) {
            return Outcome::Upstream {
                name: single.upstream.clone(),
                balance: why,
                servers: vec![single.server.clone()],
                picked: None,
                move_,
            };
        }
        // One server is the one that it is, whatever the key.
        let is_one = self.servers.len() == 1 && self.known;
        let picked = self.picked(key).filter(|_| !is_one);
        Outcome::Upstream {
            name: self.name.to_owned(),
            balance: match self.variable {
                Some(variable) => format!("hash {variable} consistent"),
                None => "round-robin".into(),
            },
            servers: self.servers.to_vec(),
            picked: key.map(str::to_owned).zip(picked),
            move_,
        }
    }
}

/// The key of this question; `None` where the question does not say.
fn key_of(
    key: Key,
    question: &Question,
    plan: &Plan,
    path: &str,
) -> Result<Option<String>, String> {
    match key {
        Key::User => question
            .user
            .as_deref()
            .map(|user| {
                let id = UserId::try_from(user).map_err(|_| {
                    format!("{user} is not a user id: write it whole, as @alice:example.org")
                })?;
                Ok(String::from_utf8_lossy(&UserHash::of_user(&id).hex()).into_owned())
            })
            .transpose(),
        Key::Room => {
            let Some(room) = &plan.room else {
                return Ok(None);
            };
            let room = Regex::new(&format!("{}({})", room.before, room.id))
                .map_err(|error| error.to_string())?;
            Ok(room.captures(path).map(|found| found[1].to_owned()))
        }
        Key::Origin => Ok(question.origin.clone()),
    }
}

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
        if let Some(access) = &self.access {
            writeln!(f, "access    {access}")?;
        }
        match &self.outcome {
            Outcome::Edge(status) => writeln!(f, "answer    {status}, by nginx itself")?,
            Outcome::Upstream {
                name,
                balance,
                servers,
                picked,
                ..
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
        if let Outcome::Upstream {
            move_: Some(move_), ..
        } = &self.outcome
        {
            writeln!(f, "{move_}")?;
        }
        writeln!(f, "why       {}", self.why)
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            is_over,
            moment,
            workers,
        } = self;
        match (workers, is_over) {
            (None, _) => write!(
                f,
                "moves     users of the group are on the move until {moment}; --user says who when"
            ),
            (Some((before, after)), _) if before.address == after.address => {
                write!(
                    f,
                    "moves     others of the group do; this user's worker stays the same"
                )
            }
            (Some((_, after)), false) => write!(f, "moves     at {moment} to {}", named(after)),
            (Some((before, _)), true) => write!(f, "moved     at {moment} from {}", named(before)),
        }
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
