//! What an installed configuration says of its groups, and of users who are on the move.
//!
//! In comes the folder of an installed `nginx.conf`, out come the groups of `upstreams.conf` and the shifts of
//! `moving.conf`, both as this program wrote them. Their text is kept, so that a group can be written again as it was.

use std::collections::BTreeMap;
use std::path::Path;

use matrix_user_hash_core::shift::{Span, parse_percent, parse_time};

use super::chosen::{Canary, Chosen, Pinned, Single};
use crate::diagnostic::Diagnostic;
use crate::log::time;
use crate::plan::Server;

/// What to do about files that somebody has changed.
const ANEW: &str = "put the file back as it was; or render with --now, which writes everything anew and moves everybody at once";

/// What is installed.
#[derive(Debug, Default)]
pub(crate) struct Installed {
    /// Every group, by name; of one whose users move, what they move to.
    pub groups: BTreeMap<String, Group>,
    /// Users on the move, by the group that they move to.
    pub shifts: BTreeMap<String, Shift>,
    /// Users who are not on the ring of their group, by that, as it is and as it was.
    chosen: BTreeMap<String, Chosen>,
}

/// An `upstream {}`.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Its name.
    pub name: String,
    /// All of it, as it is written.
    pub text: String,
    /// Its `server` lines.
    pub servers: Vec<Server>,
}

/// A shift of a group's users.
#[derive(Clone, Debug)]
pub(crate) struct Shift {
    /// The group as it was before.
    pub before: Group,
    /// When.
    pub span: Span,
}

impl Installed {
    /// Reads what is installed. `None` if this program has written nothing there.
    ///
    /// # Errors
    /// A file is there and cannot be read, or somebody has changed it so that it cannot be understood.
    pub(crate) fn read(folder: &Path, name: &str) -> Result<Option<Self>, Diagnostic> {
        let Some((upstreams, moving)) = texts(&folder.join(name), name)? else {
            return Ok(None);
        };
        let path = folder.join(name).join("moving.conf");
        let groups = groups(&upstreams);
        let before = self::groups(&moving);
        let mut shifts = BTreeMap::new();
        let mut canaries = BTreeMap::new();
        for line in moving
            .lines()
            .filter_map(|line| line.strip_prefix("matrix_user_hash_shift "))
        {
            let words: Vec<&str> = line.trim_end_matches(';').split(' ').collect();
            let strange = || {
                Diagnostic::error(format!(
                    "{} has a shift that synapse-companion did not write: {line}",
                    path.display()
                ))
                .fix(ANEW)
            };
            // A fixed share of the users has no end: it is a canary.
            if let [variable, "ring", "canary", at] = words[..] {
                let (group, canary) = canary(variable, at, &before).ok_or_else(strange)?;
                canaries.insert(group, canary);
            } else {
                let shift = shift(&words, &before).ok_or_else(strange)?;
                shifts.insert(words[2].to_owned(), shift);
            }
        }
        let names = groups.keys().chain(before.keys());
        let chosen = names.map(|name| {
            let pins = pins(name, &moving, &before);
            let chosen = Chosen::new(name, canaries.remove(name), pins);
            (name.clone(), chosen)
        });
        let chosen = chosen.filter(|(_, chosen)| !chosen.is_empty()).collect();
        let installed = Self {
            groups,
            shifts,
            chosen,
        };
        match before.keys().find(|name| !installed.sends_users_to(name)) {
            Some(unused) => Err(Diagnostic::error(format!(
                "{} has the group {unused}, and no users there that synapse-companion sent",
                path.display()
            ))
            .fix(ANEW)),
            None => Ok(Some(installed)),
        }
    }

    /// Whether a group of `moving.conf` is somebody's: of who has not moved, in the canary, or pinned.
    fn sends_users_to(&self, group: &str) -> bool {
        let is_left = |(name, shift): (&String, &Shift)| {
            shift.before.name == group && self.groups.contains_key(name)
        };
        let is_chosen = |chosen: &Chosen| {
            let canary = chosen.canary.iter().map(|canary| &canary.single);
            let pinned = chosen.pins.iter().filter(|pinned| !pinned.users.is_empty());
            canary
                .chain(pinned.map(|pinned| &pinned.single))
                .any(|single| single.upstream == group)
        };
        self.shifts.iter().any(is_left) || self.chosen.values().any(is_chosen)
    }

    /// Users of a group who are not on its ring.
    pub(crate) fn chosen(&self, group: &str) -> Chosen {
        let chosen = self.chosen.get(group);
        chosen.cloned().unwrap_or_else(|| Chosen::nobody(group))
    }

    /// The moment from which on nobody is on the move, in milliseconds since 1970.
    pub(crate) fn end(&self) -> Option<u64> {
        self.shifts.values().map(|shift| shift.span.end()).max()
    }

    /// Whether somebody may have moved at a moment.
    pub(crate) fn has_begun(&self, now: u64) -> bool {
        self.shifts.values().any(|shift| shift.span.start() <= now)
    }

    /// Whether users are on the move at a moment, or will be.
    pub(crate) fn is_moving(&self, now: u64) -> bool {
        self.end().is_some_and(|end| now < end)
    }
}

impl Group {
    /// Whether its requests are spread by user.
    pub(crate) fn is_by_user(&self) -> bool {
        self.text
            .lines()
            .any(|line| line.trim_start().starts_with("hash $matrix_user_hash "))
    }

    /// This group under another name.
    pub(crate) fn renamed(&self, name: &str) -> Self {
        let old = &self.name;
        Self {
            name: name.to_owned(),
            text: self
                .text
                .replacen(
                    &format!("upstream {old} {{"),
                    &format!("upstream {name} {{"),
                    1,
                )
                .replacen(&format!("zone {old} "), &format!("zone {name} "), 1),
            servers: self.servers.clone(),
        }
    }
}

/// `upstreams.conf` and `moving.conf`, the latter empty if nobody is on the move. `None` if nothing is installed.
///
/// Who has lost one of them has lost where users are. To render as if nobody were on the move would move them all at once.
fn texts(folder: &Path, name: &str) -> Result<Option<(String, String)>, Diagnostic> {
    let [http, upstreams, moving] = ["http.conf", "upstreams.conf", "moving.conf"];
    let read = |file| ours(&folder.join(file));
    let lost = |file: &str| {
        let path = folder.join(file);
        Diagnostic::error(format!(
            "{} is not there as synapse-companion wrote it, so nobody knows where users are",
            path.display()
        ))
        .fix(ANEW)
    };
    match (read(http)?, read(upstreams)?, read(moving)?) {
        (None, None, None) => Ok(None),
        (None, _, _) => Err(lost(http)),
        (_, None, _) => Err(lost(upstreams)),
        (Some(http), Some(upstreams), text) => {
            let includes_it = http.contains(&format!("include {name}/{moving};"));
            match text.filter(|_| includes_it) {
                None if includes_it => Err(lost(moving)),
                text => Ok(Some((upstreams, text.unwrap_or_default()))),
            }
        }
    }
}

/// A file, if it is there and this program wrote it.
fn ours(path: &Path) -> Result<Option<String>, Diagnostic> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text
            .starts_with("# Rendered by synapse-companion")
            .then_some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(
            Diagnostic::error(format!("cannot read {}: {error}", path.display()))
                .fix("name the folder of the installed nginx.conf with --installed"),
        ),
    }
}

fn groups(text: &str) -> BTreeMap<String, Group> {
    let mut groups = BTreeMap::new();
    let mut open: Option<Group> = None;
    for line in text.lines() {
        if let Some(name) = line
            .strip_prefix("upstream ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            open = Some(Group {
                name: name.to_owned(),
                text: String::new(),
                servers: Vec::new(),
            });
        }
        let Some(group) = &mut open else { continue };
        group.text += line;
        group.text.push('\n');
        group.servers.extend(server(line));
        if line == "}" {
            groups.insert(group.name.clone(), group.clone());
            open = None;
        }
    }
    groups
}

fn server(line: &str) -> Option<Server> {
    let (parameters, comment) = line.trim_start().strip_prefix("server ")?.split_once(';')?;
    let mut words = parameters.split(' ');
    let address = words.next()?.to_owned();
    let mut server = Server {
        worker: comment
            .trim_start()
            .strip_prefix("# ")
            .unwrap_or(&address)
            .to_owned(),
        address,
        service: None,
        weight: 1,
        max_conns: None,
        resolve: false,
    };
    for word in words {
        match word.split_once('=') {
            Some(("service", service)) => server.service = Some(service.to_owned()),
            Some(("weight", weight)) => server.weight = weight.parse().ok()?,
            Some(("max_conns", most)) => server.max_conns = most.parse().ok(),
            None if word == "resolve" => server.resolve = true,
            _ => {}
        }
    }
    Some(server)
}

/// The canary of a group by the variable of its share.
fn canary(variable: &str, at: &str, groups: &BTreeMap<String, Group>) -> Option<(String, Canary)> {
    let group = variable.strip_prefix('$')?.strip_suffix("_share")?;
    let percent = at.strip_prefix("at=")?;
    let canary = Canary {
        single: single(groups.get(&format!("{group}_canary"))?)?,
        percent: percent.to_owned(),
        share: parse_percent(percent.as_bytes())?,
    };
    Some((group.to_owned(), canary))
}

/// The pins of a group: a line of a map for each user.
fn pins(group: &str, text: &str, groups: &BTreeMap<String, Group>) -> Vec<Pinned> {
    let numbered = (1..).map(|number| format!("{group}_pin_{number}"));
    let upstreams = numbered.map_while(|name| groups.get(&name));
    let pinned = upstreams.filter_map(|upstream| {
        let users = text.lines().filter_map(|line| {
            let (user, name) = line.trim().strip_suffix(';')?.split_once(' ')?;
            (name == upstream.name).then(|| user.to_owned())
        });
        Some(Pinned {
            single: single(upstream)?,
            users: users.collect(),
        })
    });
    pinned.collect()
}

fn single(group: &Group) -> Option<Single> {
    Some(Single {
        upstream: group.name.clone(),
        server: group.servers.first()?.clone(),
        spare: group.servers.get(1).cloned(),
        resolver: group.text.lines().find_map(|line| {
            let resolver = line.trim_start().strip_prefix("resolver ")?;
            resolver.strip_suffix(';').map(str::to_owned)
        }),
    })
}

fn shift(words: &[&str], before: &BTreeMap<String, Group>) -> Option<Shift> {
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
    let length = time::parse_length(value("over=")?).ok()?;
    Some(Shift {
        before: before.get(*words.get(1)?)?.clone(),
        span: Span::new(
            parse_time(value("start=")?.as_bytes())?,
            length.checked_mul(1000)?,
        )?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: &str = "upstream a_sync {\n    zone a_sync 256k;\n    hash $matrix_user_hash consistent;\n    \
        server sync1:8083 resolve weight=3 max_conns=9 max_fails=0; # sync1\n    server [::1]:8084 max_fails=0;\n}\n";

    #[test]
    fn a_group_is_read_as_it_was_written() {
        let groups = groups(&format!(
            "# Rendered\n\n# why\n{UPSTREAM}\nupstream a_main {{\n}}\n"
        ));
        let sync = &groups["a_sync"];
        assert_eq!(sync.text, UPSTREAM);
        let shown: Vec<_> = sync
            .servers
            .iter()
            .map(|s| {
                (
                    s.worker.as_str(),
                    s.address.as_str(),
                    s.weight,
                    s.max_conns,
                    s.resolve,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("sync1", "sync1:8083", 3, Some(9), true),
                ("[::1]:8084", "[::1]:8084", 1, None, false)
            ]
        );
        let renamed = sync.renamed("a_sync_before").text;
        assert!(
            renamed.starts_with("upstream a_sync_before {\n    zone a_sync_before 256k;\n"),
            "{renamed}"
        );
        assert_eq!(renamed.replace("a_sync_before", "a_sync"), UPSTREAM);
    }
}
