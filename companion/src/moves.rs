//! Users who are not where their group's ring alone would send them: on the move, in a canary, pinned.
//!
//! In come a deployment and what is installed, out comes a [`Plan`] in which each group that changes has a [`Moving`]: the
//! group as it was, and when each user leaves it. A group that comes or goes is compared with the one that served its
//! requests without it, so that adding the first worker of a type moves users as gently as adding the second.

mod chosen;
mod installed;
mod rollout;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use matrix_user_hash_core::shift::Span;
use serde::Serialize;

pub(crate) use chosen::{Chosen, Single};
use installed::Group;
pub(crate) use installed::Installed;
pub(crate) use rollout::{Rollout, Users};

use crate::diagnostic::{Diagnostic, nearest};
use crate::hash::Circle;
use crate::log::time;
use crate::model::{Deployment, Process, Role};
use crate::plan::{Key, Plan, Server, Upstream};

/// How long an nginx has to get the new configuration before users begin to move, in milliseconds, unless `--start` says so.
const NOTICE: u64 = 60_000;

/// The longest shift that the module takes, in milliseconds.
const LONGEST: u64 = 365 * 86_400_000;

/// A group, some of whose users are elsewhere.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Moving {
    /// The group.
    pub group: String,
    /// The variable that has the upstream of a user in the end.
    pub variable: String,
    /// The shift from the group as it was.
    pub shift: Option<Shift>,
    /// Users who are not on the ring, of those who have moved if there is a shift.
    pub chosen: Chosen,
}

/// A shift to a group from what it was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shift {
    /// The variable of the directive.
    pub variable: String,
    /// The upstream of those who have not moved.
    pub before: String,
    /// That upstream, as it is written.
    pub text: String,
    /// When it begins, as RFC 3339.
    pub start: String,
    /// When it ends, likewise.
    pub end: String,
    /// How many seconds it takes.
    pub over: u64,
    /// Users who are not on the ring, of those who have not moved.
    pub chosen: Chosen,
    /// The servers of that upstream.
    #[serde(skip)]
    pub servers: Vec<Server>,
    /// What it is spread by, if it is.
    #[serde(skip)]
    pub hash: Option<Key>,
    /// When.
    #[serde(skip)]
    pub span: Span,
}

impl Moving {
    /// A group without a shift.
    fn new(chosen: Chosen) -> Self {
        Self {
            group: chosen.base.clone(),
            variable: chosen.target.clone(),
            shift: None,
            chosen,
        }
    }

    /// This group with a shift.
    fn with(self, shift: Shift) -> Self {
        let is_plain = shift.chosen.is_empty() && self.chosen.is_empty();
        Self {
            variable: if is_plain {
                shift.variable.clone()
            } else {
                format!("${}_place", self.group)
            },
            shift: Some(shift),
            ..self
        }
    }
}

/// What an operator wants of a change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    /// Over how many seconds users move.
    pub gradually: Option<u64>,
    /// From when on, in milliseconds since 1970.
    pub start: Option<u64>,
    /// Whatever is on the way ends now.
    pub now: bool,
}

impl Wish {
    /// Whether it is for another time than this one.
    fn is_other_than(&self, span: Span) -> bool {
        let length = (span.end() - span.start()) / 1000;
        let is_start = |start: u64| start.next_multiple_of(1000) == span.start();
        self.gradually.is_some_and(|over| over != length)
            || self.start.is_some_and(|start| !is_start(start))
    }
}

/// Milliseconds since 1970.
pub(crate) fn clock() -> u64 {
    let passed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

/// Lays a deployment out, with its canary and its pins.
pub(crate) fn laid_out(deployment: &Deployment) -> Plan {
    let mut plan = Plan::new(deployment);
    chosen::apply(&mut plan, deployment);
    plan
}

/// Lays a deployment out, with its users on the move if they are or shall be.
///
/// # Errors
/// Users are on the move to other groups than these, or nothing is installed that they could move from.
pub(crate) fn plan(
    deployment: &Deployment,
    installed: Option<&Installed>,
    wish: &Wish,
    now: u64,
) -> Result<(Plan, Vec<Diagnostic>), Diagnostic> {
    let plain = laid_out(deployment);
    let Some(installed) = installed else {
        return match wish.gradually {
            Some(_) => Err(Diagnostic::error("nothing of synapse-companion's is installed that users could move from")
                .fix("name the folder of the installed nginx.conf with --installed; or render without --gradually")),
            None => Ok((plain, Vec::new())),
        };
    };
    if wish.now {
        return Ok((plain, Vec::new()));
    }
    let changes = changes(deployment, &plain, installed);
    if installed.is_moving(now) {
        return kept(deployment, plain, installed, &changes, wish, now);
    }
    let mut notes = Vec::new();
    if !installed.shifts.is_empty() {
        notes.push(Diagnostic::note(format!(
            "all users of {} have moved: the shift ended at {}, so the configuration is rendered without it",
            names(installed.shifts.keys()),
            moment(installed.end().unwrap_or_default())
        )));
    }
    let Some(over) = wish.gradually else {
        return Ok((plain, notes));
    };
    if changes.is_empty() {
        notes.push(Diagnostic::note(
            "no group that is spread by user changes, so nobody has to move",
        ));
        return Ok((plain, notes));
    }
    let span = span(over, wish.start, now)?;
    let names: BTreeSet<Role> = changes.iter().map(|change| change.role).collect();
    let mut plan = standing_in(deployment, &plain, &names);
    for change in changes {
        let before = format!("{}_before", name(&plan, change.role));
        let chosen = change.chosen.renamed(&before);
        move_users(
            &mut plan,
            change.role,
            &change.before.renamed(&before),
            chosen,
            span,
        );
    }
    for moving in plan.moving.iter().filter(|moving| moving.shift.is_some()) {
        notes.push(Diagnostic::note(format!(
            "users of {} move from {} to {}; nginx must have this configuration before",
            moving.group,
            moment(span.start()),
            moment(span.end())
        )));
    }
    Ok((plan, notes))
}

/// Looks whether the same workers are installed under another name, with users on the move: under a new one nobody would know.
///
/// # Errors
/// They are.
pub(crate) fn refuse_another_name(plan: &Plan, folder: &Path, now: u64) -> Result<(), Diagnostic> {
    let servers = plan.upstreams.iter().flat_map(|group| &group.servers);
    let addresses: BTreeSet<&str> = servers.map(|server| server.address.as_str()).collect();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Another homeserver's files are none of our business, whatever state they are in.
        let Ok(Some(other)) = Installed::read(folder, &name) else {
            continue;
        };
        let mut servers = other.groups.values().flat_map(|group| &group.servers);
        if name != plan.name
            && other.is_moving(now)
            && servers.any(|server| addresses.contains(server.address.as_str()))
        {
            return Err(Diagnostic::error(format!(
                "these workers are installed under the name {name}, and users are on the move there until {}; under the name {} all of them would move at once",
                moment(other.end().unwrap_or_default()),
                plan.name
            ))
            .fix(format!("keep name = \"{name}\" until then; or say --now, which moves everybody at once")));
        }
    }
    Ok(())
}

/// What is on the way goes on, if it leads to where the deployment wants everybody.
fn kept(
    deployment: &Deployment,
    plain: Plan,
    installed: &Installed,
    changes: &[Change],
    wish: &Wish,
    now: u64,
) -> Result<(Plan, Vec<Diagnostic>), Diagnostic> {
    let end = installed.end().unwrap_or_default();
    let moving = names(installed.shifts.keys());
    let left = length(end.saturating_sub(now).div_ceil(1000));
    let roles: BTreeSet<Role> = Role::all()
        .filter(|role| installed.shifts.contains_key(&name(&plain, *role)))
        .collect();
    let mut plan = standing_in(deployment, &plain, &roles);
    // Who has moved would not stay on their worker in a group that is spread by another thing than before.
    let is_spread_otherwise = |role: &Role| {
        let name = name(&plan, *role);
        let is = plan
            .upstream(&name)
            .map(|group| group.hash == Some(Key::User));
        let was = installed.groups.get(&name).map(Group::is_by_user);
        is != was
    };
    let otherwise = roles.iter().copied().find(is_spread_otherwise);
    if let Some(other) = changes.first().map(|change| change.role).or(otherwise) {
        let fix = if installed.has_begun(now) {
            "wait until then; or say --now, which ends the shift and moves everybody at once"
        } else {
            "wait until then; or, since nobody has moved yet: render the deployment as it was with --now, which takes the shift back"
        };
        return Err(Diagnostic::error(format!(
            "users of {moving} are on the move until {}, another {left}; until then {} cannot change again",
            moment(end),
            name(&plain, other)
        ))
        .fix(fix));
    }
    for role in roles {
        let shift = &installed.shifts[&name(&plan, role)];
        let chosen = installed.chosen(&shift.before.name);
        move_users(&mut plan, role, &shift.before, chosen, shift.span);
    }
    let mut notes = vec![Diagnostic::note(format!(
        "users of {moving} are on the move until {}, another {left}; the shift goes on",
        moment(end)
    ))];
    if installed
        .shifts
        .values()
        .any(|shift| wish.is_other_than(shift.span))
    {
        notes.push(
            Diagnostic::warning("a shift that is on the way keeps its start and its length: --gradually and --start change nothing")
                .fix("leave them out, or say --now and begin anew"),
        );
    }
    Ok((plan, notes))
}

/// A group whose users have to move.
struct Change {
    role: Role,
    /// What served its users.
    before: Group,
    /// Those of them who were not on its ring.
    chosen: Chosen,
}

/// The groups spread by user that are other than what is installed.
fn changes(deployment: &Deployment, plain: &Plan, installed: &Installed) -> Vec<Change> {
    // What is spread by other things than users has no moment for each; and who was not spread by user has no ring to leave.
    let is_by_user = |role: &Role| {
        let name = name(plain, *role);
        let before = installed.groups.get(&name);
        let after = plain.upstream(&name);
        match (before, after) {
            (None, None) => false,
            (Some(before), Some(after)) => before.is_by_user() && after.hash == Some(Key::User),
            (None, Some(after)) => role.waits() && after.hash == Some(Key::User),
            (Some(before), None) => role.waits() && before.is_by_user(),
        }
    };
    Role::all()
        .filter(is_by_user)
        .filter_map(|role| {
            let before = served_before(plain, installed, role)?;
            let after = served(deployment, plain, role)?;
            let was = installed.chosen(&before.name);
            let is_same = same_ring(&before.servers, &after.servers)
                && was.is_same(&chosen_of(plain, &after.name));
            (!is_same).then(|| Change {
                role,
                before: before.clone(),
                chosen: was,
            })
        })
        .collect()
}

/// The installed group that serves the requests of a role.
fn served_before<'a>(plan: &Plan, installed: &'a Installed, role: Role) -> Option<&'a Group> {
    let own = installed.groups.get(&name(plan, role));
    own.or_else(|| match fallback(role) {
        Some(other) => served_before(plan, installed, other),
        None => installed.groups.get(&plan.main).filter(|_| role.waits()),
    })
}

/// The group that shall serve the requests of a role.
fn served<'a>(deployment: &Deployment, plan: &'a Plan, role: Role) -> Option<&'a Upstream> {
    let upstream = plan.upstream(&name(plan, role));
    let own = upstream.filter(|_| deployment.has(role));
    match (own, fallback(role)) {
        (Some(upstream), _) => Some(upstream),
        (None, Some(other)) => served(deployment, plan, other),
        (None, None) => plan.upstream(&plan.main),
    }
}

/// Users of a group who shall not be on its ring.
fn chosen_of(plan: &Plan, group: &str) -> Chosen {
    let moving = plan.moving.iter().find(|moving| moving.group == group);
    moving.map_or_else(|| Chosen::nobody(group), |moving| moving.chosen.clone())
}

/// The role that serves the requests of another, where nobody has that.
fn fallback(role: Role) -> Option<Role> {
    (role.waits() && role != Role::Sync).then_some(Role::Sync)
}

fn name(plan: &Plan, role: Role) -> String {
    format!("{}_{}", plan.name, role.name())
}

/// Whether two groups send every user to a server of the same name.
fn same_ring(one: &[Server], other: &[Server]) -> bool {
    let is_service = |servers: &[Server]| servers.iter().any(|server| server.service.is_some());
    if is_service(one) || is_service(other) {
        let lines = |servers: &[Server]| -> BTreeSet<(String, Option<String>, u16)> {
            servers
                .iter()
                .map(|s| (s.address.clone(), s.service.clone(), s.weight))
                .collect()
        };
        return lines(one) == lines(other);
    }
    if let ([one], [other]) = (one, other) {
        return one.address == other.address;
    }
    circle(one).is_same(
        &circle(other),
        |index| &one[index].address,
        |index| &other[index].address,
    )
}

/// nginx's ring over servers.
pub(crate) fn circle(servers: &[Server]) -> Circle {
    let lines = servers
        .iter()
        .map(|server| (server.address.as_str(), usize::from(server.weight)));
    Circle::new(lines)
}

/// The plan in which groups that are no more go on until their users have left: the workers that serve their requests
/// without them stand in. All else is as in the plain plan.
fn standing_in(deployment: &Deployment, plain: &Plan, roles: &BTreeSet<Role>) -> Plan {
    let mut deployment = deployment.clone();
    for role in Role::SYNCS {
        if !roles.contains(&role) || deployment.has(role) {
            continue;
        }
        let other = fallback(role).filter(|other| deployment.has(*other));
        match other {
            Some(other) => deployment
                .workers
                .iter_mut()
                .filter(|worker| worker.roles.contains(&other))
                .for_each(|worker| {
                    worker.roles.insert(role);
                }),
            None => deployment.workers.push(Process {
                roles: BTreeSet::from([role]),
                ..deployment.main.clone()
            }),
        }
    }
    let mut plan = laid_out(&deployment);
    for upstream in &mut plan.upstreams {
        if let Some(same) = plain.upstream(&upstream.name) {
            *upstream = same.clone();
        }
    }
    plan
}

/// Puts a shift before a group.
fn move_users(plan: &mut Plan, role: Role, before: &Group, chosen: Chosen, span: Span) {
    let group = name(plan, role);
    let shift = Shift {
        variable: format!("${group}_moving"),
        before: before.name.clone(),
        text: before.text.clone(),
        start: moment(span.start()),
        end: moment(span.end()),
        over: (span.end() - span.start()) / 1000,
        chosen,
        servers: before.servers.clone(),
        hash: before.is_by_user().then_some(Key::User),
        span,
    };
    match plan.moving.iter_mut().find(|moving| moving.group == group) {
        Some(moving) => *moving = moving.clone().with(shift),
        None => plan
            .moving
            .push(Moving::new(Chosen::nobody(&group)).with(shift)),
    }
    plan.choose_late();
}

fn span(over: u64, start: Option<u64>, now: u64) -> Result<Span, Diagnostic> {
    // A whole minute is easier to remember, and to say to others.
    let start = start.unwrap_or_else(|| (now + NOTICE).next_multiple_of(60_000));
    // The configuration has whole seconds.
    let start = start.next_multiple_of(1000);
    if start < now {
        return Err(Diagnostic::error(format!(
            "{} is over: all whose moment has passed would move at once",
            moment(start)
        ))
        .fix("choose a --start that leaves time for every nginx to get the configuration, or leave it out"));
    }
    let over = over
        .checked_mul(1000)
        .filter(|over| *over <= LONGEST)
        .ok_or_else(|| {
            Diagnostic::error("a shift takes at most 365 days").fix("say --gradually 30m")
        })?;
    Span::new(start, over).ok_or_else(|| {
        Diagnostic::error("the shift would end after the year 9999")
            .fix("say --start 2026-11-25T15:00:00Z")
    })
}

/// Takes a worker out, as if the deployment did not have it.
///
/// # Errors
/// There is no such worker, or nobody can take what it has.
pub(crate) fn drain(deployment: &mut Deployment, worker: &str) -> Result<(), Diagnostic> {
    let named = |process: &&Process| process.name == worker;
    let Some(leaving) = deployment.workers.iter().find(named) else {
        let known = deployment.workers.iter().map(|known| known.name.as_str());
        let fix = match nearest(worker, known.clone()) {
            Some(near) => format!("write {near}"),
            None => format!("name one of {}", known.collect::<Vec<_>>().join(", ")),
        };
        return Err(Diagnostic::error(format!("no worker is called {worker}")).fix(fix));
    };
    // A canary has a share of the users, and nobody else's.
    let canary = deployment.settings.canary.as_ref();
    let is_canary = |process: &Process| canary.is_some_and(|canary| canary.worker == process.name);
    let is_last = |role: &&Role| {
        let others = |other: &Process| {
            let serves = other.name != worker && other.roles.contains(role);
            serves && !(role.waits() && is_canary(other))
        };
        !is_canary(leaving) && !deployment.workers.iter().any(others)
    };
    for role in leaving.roles.iter().filter(is_last) {
        // What a writer writes nobody else may write, whoever gets the request.
        if let Role::Writer(stream) = role {
            return Err(Diagnostic::error(format!(
                "{worker} is the only writer of {}, which no other process could take over",
                stream.name()
            ))
            .fix("give Synapse another writer of the stream first, in stream_writers"));
        }
        let canary_is_left = deployment
            .workers
            .iter()
            .any(|other| is_canary(other) && other.roles.contains(role));
        if matches!(role, Role::Sync) || role.waits() && canary_is_left {
            return Err(Diagnostic::error(format!(
                "{worker} is the only worker of the type {}",
                role.name()
            ))
            .fix("add another first; or take it out of the deployment, so that the main process gets its requests"));
        }
    }
    deployment.workers.retain(|process| process.name != worker);
    let settings = &mut deployment.settings;
    settings.canary.take_if(|canary| canary.worker == worker);
    settings.pins.retain(|pin| pin.worker != worker);
    Ok(())
}

/// As RFC 3339 has it.
pub(crate) fn moment(milliseconds: u64) -> String {
    time::format(i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX))
}

/// Seconds as an operator says them.
pub(crate) fn length(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let parts = [(hours, "h"), (minutes, "m"), (rest, "s")];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if shown.is_empty() {
        "0s".to_owned()
    } else {
        shown.join(" ")
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(" and ")
}
