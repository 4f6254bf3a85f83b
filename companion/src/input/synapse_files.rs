//! Synapse's own configuration: `homeserver.yaml`, in as many parts as it has, and the worker files.
//!
//! In come paths, out come processes with what each serves, as Synapse itself would decide it
//! (synapse/config/workers.py). Keys that say nothing about routing are not even kept, for these files hold secrets;
//! for the same reason no message shows a line of them, only its number.

mod duties;
mod listeners;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use self::duties::Duties;
use self::listeners::{host_of, process};
use self::schema::{NumberOrText, Yaml};
use super::{text_of, values};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, nearest};
use crate::model::{NoRequests, Process, Resource, Role};

/// What a deployment file adds to Synapse's files.
pub struct Options {
    /// Patterns of worker names with what these workers serve.
    pub roles: Vec<(String, BTreeSet<Role>)>,
    /// Worker names with the hosts that they run on.
    pub hosts: BTreeMap<String, String>,
    /// The host of a process whose files do not say it.
    pub host: String,
}

/// What Synapse's files say.
pub struct Found {
    /// The main process.
    pub main: Option<Process>,
    /// The workers that have files.
    pub workers: Vec<Process>,
    /// `max_upload_size`, in bytes.
    pub max_upload_size: Option<u64>,
}

/// The applications from before `generic_worker`, with what they were for; `None` is a generic worker.
const APPLICATIONS: [(&str, Option<Role>); 11] = [
    ("synapse.app.generic_worker", None),
    ("synapse.app.synchrotron", Some(Role::Sync)),
    ("synapse.app.client_reader", Some(Role::ClientReader)),
    ("synapse.app.event_creator", Some(Role::Room)),
    (
        "synapse.app.federation_reader",
        Some(Role::FederationReader),
    ),
    ("synapse.app.frontend_proxy", Some(Role::ClientReader)),
    ("synapse.app.media_repository", Some(Role::Media)),
    ("synapse.app.user_dir", Some(Role::UserDirectory)),
    (
        "synapse.app.federation_sender",
        Some(Role::Nothing(NoRequests::FederationSender)),
    ),
    (
        "synapse.app.pusher",
        Some(Role::Nothing(NoRequests::Pusher)),
    ),
    (
        "synapse.app.appservice",
        Some(Role::Nothing(NoRequests::Appservice)),
    ),
];

/// A parsed file and its path.
struct Part {
    path: PathBuf,
    yaml: Yaml,
}

/// Reads all of them.
pub fn read(
    homeserver: &[PathBuf],
    workers: &[PathBuf],
    options: &Options,
    found: &mut Diagnostics,
) -> Option<Found> {
    let shared: Vec<Part> = homeserver
        .iter()
        .filter_map(|path| parse(path, found))
        .collect();
    let paths: Vec<PathBuf> = workers
        .iter()
        .flat_map(|pattern| expand(pattern, found))
        .collect();
    let worker_parts: Vec<Part> = paths.iter().filter_map(|path| parse(path, found)).collect();
    if shared.is_empty() {
        return None;
    }
    let duties = Duties::of(&shared, found);
    let instances = instances(&shared);
    let main = main_process(&shared, &instances, options, found);
    let processes: Vec<Process> = worker_parts
        .iter()
        .filter_map(|part| worker(part, &duties, &instances, options, found))
        .collect();
    judge_media(&shared, &processes, found);
    judge_writers(&duties, &processes, found);
    let max_upload_size = last(&shared, |yaml| yaml.max_upload_size.as_ref())
        .and_then(|(part, size)| upload_size(part, size, found));
    Some(Found {
        main,
        workers: processes,
        max_upload_size,
    })
}

/// Without a worker that has the media repository, somebody must have it.
fn judge_media(shared: &[Part], processes: &[Process], found: &mut Diagnostics) {
    let Some((part, enabled)) = last(shared, |yaml| yaml.enable_media_repo.as_ref()) else {
        return;
    };
    if enabled.value || processes.iter().any(|p| p.roles.contains(&Role::Media)) {
        return;
    }
    found.push(
        Diagnostic::warning("main has no media repository and no worker is known to have one, so all media will be 404")
            .at(&place(part, enabled))
            .key("enable_media_repo")
            .fix("give the worker that has it a listener with the resource media and `enable_media_repo: true`, or the type \"media\" under [synapse.roles]"),
    );
}

fn judge_writers(duties: &Duties, processes: &[Process], found: &mut Diagnostics) {
    for (name, place) in &duties.writers_at {
        if name != "master" && name != "main" && !processes.iter().any(|p| p.name == *name) {
            found.push(
                Diagnostic::error(format!("the worker {name} writes a stream, but its file is not among those given"))
                    .at(place)
                    .key("stream_writers")
                    .fix(format!("name the file whose worker_name is {name} under [synapse] workers, or with --worker")),
            );
        }
    }
}

/// The last file that has a key is the one that counts, as in Synapse.
fn last<'a, T>(parts: &'a [Part], key: impl Fn(&'a Yaml) -> Option<T>) -> Option<(&'a Part, T)> {
    parts
        .iter()
        .rev()
        .find_map(|part| key(&part.yaml).map(|value| (part, value)))
}

fn parse(path: &Path, found: &mut Diagnostics) -> Option<Part> {
    let text = text_of(path, found)?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Some(Part {
            path: path.to_owned(),
            yaml: Yaml::default(),
        });
    }
    match serde_saphyr::from_str_with_options(&text, options) {
        Ok(yaml) => Some(Part {
            path: path.to_owned(),
            yaml,
        }),
        Err(error) => {
            let place = error.location().map_or_else(
                || Place::file(path),
                |at| Place::line(path, at.line() as usize, at.column() as usize),
            );
            // The reader's own words may quote a value, and a value may be a secret.
            let problem = Diagnostic::error("Synapse could not read this as YAML, or the value has another type than Synapse expects")
                .at(&place)
                .fix("check the indentation and quotes of this line and the one above it");
            found.push(match key_above(&text, place.line) {
                Some(key) => problem.key(key),
                None => problem,
            });
            None
        }
    }
}

/// The key at the left margin that a line belongs to. Nothing else of the line may be shown.
fn key_above(text: &str, line: usize) -> Option<&str> {
    let before: Vec<&str> = text.lines().take(line).collect();
    before.into_iter().rev().find_map(|line| {
        let (key, _) = line.split_once(':')?;
        let is_key = !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        is_key.then_some(key)
    })
}

/// Paths for a path whose last part may hold `*`; a folder stands for its `.yaml` files.
fn expand(pattern: &Path, found: &mut Diagnostics) -> Vec<PathBuf> {
    let name = pattern
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let (folder, name) = match name {
        _ if pattern.is_dir() => (pattern.to_owned(), "*.yaml".to_owned()),
        Some(name) if name.contains('*') => {
            (pattern.parent().unwrap_or(Path::new(".")).to_owned(), name)
        }
        _ => return vec![pattern.to_owned()],
    };
    let folder = if folder.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        folder
    };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| values::glob(&name, &entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    if paths.is_empty() {
        found.push(
            Diagnostic::error(format!("no file is like {}", pattern.display()))
                .key("synapse.workers")
                .fix("name a folder of worker files, a file, or a pattern such as workers/*.yaml"),
        );
    }
    paths
}

fn upload_size(part: &Part, size: &Spanned<NumberOrText>, found: &mut Diagnostics) -> Option<u64> {
    let bytes = match &size.value {
        NumberOrText::Number(bytes) => Some(*bytes),
        NumberOrText::Text(text) => values::size(text),
    };
    if bytes.is_none() {
        found.push(
            Diagnostic::error("not a size")
                .at(&place(part, size))
                .key("max_upload_size")
                .fix("write it as 50M"),
        );
    }
    bytes
}

fn place<T>(part: &Part, value: &Spanned<T>) -> Place {
    Place::line(
        &part.path,
        value.defined.line() as usize,
        value.defined.column() as usize,
    )
}

/// `instance_map`, whose hosts are where workers reach each other, so nginx mostly can too.
fn instances(shared: &[Part]) -> BTreeMap<String, String> {
    last(shared, |yaml| yaml.instance_map.as_ref())
        .map(|(_, map)| {
            map.iter()
                .filter_map(|(name, instance)| {
                    Some((name.clone(), instance.as_ref()?.host.clone()?))
                })
                .collect()
        })
        .unwrap_or_default()
}

fn main_process(
    shared: &[Part],
    instances: &BTreeMap<String, String>,
    options: &Options,
    found: &mut Diagnostics,
) -> Option<Process> {
    let (part, listeners) = last(shared, |yaml| yaml.listeners.as_ref())?;
    let host = host_of("main", instances, options);
    let process = process(
        "main",
        BTreeSet::new(),
        part,
        "listeners",
        listeners,
        &host,
        found,
    );
    if process.client.is_none() {
        found.push(
            Diagnostic::error("no listener of the main process serves the client API without TLS")
                .at(&Place::file(&part.path))
                .key("listeners")
                .fix("add a listener of type http, with `tls: false`, `x_forwarded: true` and the resources client and federation"),
        );
        return None;
    }
    Some(process)
}

fn worker(
    part: &Part,
    duties: &Duties,
    instances: &BTreeMap<String, String>,
    options: &Options,
    found: &mut Diagnostics,
) -> Option<Process> {
    let (app, application) = application(part, found)?;
    let name = part.yaml.worker_name.as_ref().unwrap_or(app).value.clone();
    if !values::is_one_word(&name) {
        found.push(
            Diagnostic::error("a worker's name must be one word")
                .at(&Place::file(&part.path))
                .key("worker_name")
                .fix("write it with letters, digits, - and _"),
        );
        return None;
    }
    let listeners = part.yaml.worker_listeners.as_deref().unwrap_or_default();
    let host = host_of(&name, instances, options);
    let mut process = process(
        &name,
        BTreeSet::new(),
        part,
        "worker_listeners",
        listeners,
        &host,
        found,
    );
    let mut own = duties.of.get(&name).cloned().unwrap_or_default();
    // Synapse's way to give the repository to a generic worker: off for all, on in that worker's file.
    let enabled = part.yaml.enable_media_repo.as_ref();
    if enabled.is_some_and(|enabled| enabled.value) && process.media.is_some() {
        own.insert(Role::Media);
    }
    process.roles = roles(&process, application, own, options);
    let needs = process
        .roles
        .iter()
        .find(|role| !matches!(role, Role::Nothing(_)));
    let lacks_listener = needs
        .filter(|_| process.address(Resource::Client).is_none())
        .map(|role| role.name());
    if let Some(role) = lacks_listener {
        found.push(
            Diagnostic::error(format!(
                "the worker {name} shall serve {role}, but no request can reach it"
            ))
            .at(&Place::file(&part.path))
            .key("worker_listeners")
            .fix("add a listener of type http with the resource client"),
        );
        return None;
    }
    Some(process)
}

/// What a worker file says that it runs, with what that was for before there were generic workers.
fn application<'a>(
    part: &'a Part,
    found: &mut Diagnostics,
) -> Option<(&'a Spanned<String>, Option<Role>)> {
    let Some(app) = &part.yaml.worker_app else {
        found.push(
            Diagnostic::error("this is no worker file: it has no worker_app")
                .at(&Place::file(&part.path))
                .key("worker_app")
                .fix("add worker_app: synapse.app.generic_worker, or name this file under homeserver instead"),
        );
        return None;
    };
    if app.value == "synapse.app.homeserver" {
        found.push(
            Diagnostic::error("this is a file of the main process, not of a worker")
                .at(&place(part, app))
                .key("worker_app")
                .fix("name it under [synapse] homeserver, or with --homeserver"),
        );
        return None;
    }
    let Some((_, role)) = APPLICATIONS.iter().find(|(name, _)| *name == app.value) else {
        let near = nearest(&app.value, APPLICATIONS.iter().map(|(name, _)| *name));
        found.push(
            Diagnostic::error(format!("no such worker application: {}", app.value))
                .at(&place(part, app))
                .key("worker_app")
                .fix(format!(
                    "write {}",
                    near.unwrap_or("synapse.app.generic_worker")
                )),
        );
        return None;
    };
    Some((app, *role))
}

/// What a worker serves: what the deployment file says, or its duties, or its application, or what its listeners allow.
fn roles(
    process: &Process,
    application: Option<Role>,
    own: BTreeSet<Role>,
    options: &Options,
) -> BTreeSet<Role> {
    // The narrowest pattern counts, as an operator reads it: the name itself, else the one that says most.
    let fitting = options
        .roles
        .iter()
        .filter(|(pattern, _)| values::glob(pattern, &process.name));
    if let Some((_, roles)) =
        fitting.max_by_key(|(pattern, _)| (!pattern.contains('*'), pattern.len()))
    {
        return roles.clone();
    }
    if !own.is_empty() {
        return own;
    }
    if let Some(role) = application {
        return BTreeSet::from([role]);
    }
    Role::GENERIC
        .into_iter()
        .filter(|role| match role.resource() {
            Resource::Client => process.client.is_some(),
            Resource::Federation => process.federation.is_some(),
            Resource::Media => process.media.is_some(),
        })
        .collect()
}
