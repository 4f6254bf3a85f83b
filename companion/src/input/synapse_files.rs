//! Synapse's own configuration: `homeserver.yaml`, in as many parts as it has, and the worker files.
//!
//! In come paths, out come facts, as Synapse itself reads them. Keys that say nothing about routing are not even kept, for
//! these files hold secrets; for the same reason no message shows a line of them, only its number.

mod listeners;
mod shared;
mod yaml;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use self::listeners::Of;
use self::yaml::{At, File};
use super::facts::{Application, ProcessFacts, Shared, Statement};
use super::{text_of, values};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, nearest};
use crate::model::{NoRequests, Role};

/// What Synapse's files say.
pub(super) struct Found {
    /// The main process.
    pub main: Option<ProcessFacts>,
    /// The workers that have files.
    pub workers: Vec<ProcessFacts>,
    /// What is said about all of them.
    pub shared: Shared,
    /// `max_upload_size`, in bytes.
    pub max_upload_size: Option<u64>,
}

/// What a `worker_app` was for.
enum App {
    /// A file of the main process.
    Main,
    Generic,
    Former(Role),
}

/// What an application runs, by its name. All but the first run the same code
/// (synapse/app/generic_worker.py, `start`); what the older ones were for is in their names.
const APPLICATIONS: [(&str, App); 12] = [
    ("synapse.app.homeserver", App::Main),
    ("synapse.app.generic_worker", App::Generic),
    ("synapse.app.synchrotron", App::Former(Role::Sync)),
    ("synapse.app.client_reader", App::Former(Role::ClientReader)),
    ("synapse.app.event_creator", App::Former(Role::Room)),
    (
        "synapse.app.federation_reader",
        App::Former(Role::FederationReader),
    ),
    (
        "synapse.app.frontend_proxy",
        App::Former(Role::ClientReader),
    ),
    (MEDIA, App::Former(Role::Media)),
    ("synapse.app.user_dir", App::Former(Role::UserDirectory)),
    (
        "synapse.app.federation_sender",
        App::Former(Role::Nothing(NoRequests::FederationSender)),
    ),
    (
        "synapse.app.pusher",
        App::Former(Role::Nothing(NoRequests::Pusher)),
    ),
    (
        "synapse.app.appservice",
        App::Former(Role::Nothing(NoRequests::Appservice)),
    ),
];

/// The one application that has the media repository whatever the shared files say (synapse/config/repository.py).
const MEDIA: &str = "synapse.app.media_repository";

/// Reads all of them.
pub(super) fn read(
    homeserver: &[PathBuf],
    workers: &[PathBuf],
    found: &mut Diagnostics,
) -> Option<Found> {
    let mut files: Vec<File> = Vec::new();
    for (path, _) in all(homeserver, Files::Shared, found) {
        files.extend(parse(&path, found));
    }
    let mut worker_files: Vec<(File, Named)> = Vec::new();
    for (path, named) in all(workers, Files::Workers, found) {
        worker_files.extend(parse(&path, found).map(|file| (file, named)));
    }
    if files.is_empty() {
        return None;
    }
    let shared = shared::read(&files, found);
    let main = main_process(&files, &shared, found);
    let processes = worker_files
        .iter()
        .filter_map(|(file, named)| worker(file, *named, &shared, found))
        .collect();
    let max_upload_size =
        shared::last(&files, "max_upload_size").and_then(|at| upload_size(&at, found));
    Some(Found {
        main,
        workers: processes,
        shared,
        max_upload_size,
    })
}

fn all(paths: &[PathBuf], files: Files, found: &mut Diagnostics) -> Vec<(PathBuf, Named)> {
    paths
        .iter()
        .flat_map(|path| expanded(path, files, found))
        .collect()
}

fn parse(path: &Path, found: &mut Diagnostics) -> Option<File> {
    File::parse(path, &text_of(path, found)?, found)
}

/// What a path is to name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    /// Parts of the shared configuration, as Synapse's `--config-path` takes them.
    Shared,
    /// Files of workers.
    Workers,
}

/// How a file was named: a folder or a pattern may hold files of another kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Itself,
    AmongOthers,
}

/// The files of a path whose last part may hold `*`. A folder stands for its YAML files: in alphabetical order, and for
/// the shared configuration only those that end in `.yaml`, hidden ones too (`find_config_files` in
/// synapse/config/_base.py).
fn expanded(path: &Path, files: Files, found: &mut Diagnostics) -> Vec<(PathBuf, Named)> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let (folder, pattern) = match name {
        _ if path.is_dir() => (path.to_owned(), None),
        Some(name) if name.contains('*') => (
            path.parent().unwrap_or(Path::new("")).to_owned(),
            Some(name),
        ),
        _ => return vec![(path.to_owned(), Named::Itself)],
    };
    let read = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &folder
    };
    let entries = std::fs::read_dir(read)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        });
    let entries = match entries {
        Ok(entries) => entries,
        Err(error) => {
            found.push(
                Diagnostic::error(format!("cannot read {}: {error}", folder.display())).fix(
                    "run this as a user who may read the folder, or name its files one by one",
                ),
            );
            return Vec::new();
        }
    };
    let has_hidden = files == Files::Shared && pattern.is_none();
    let mut paths: Vec<PathBuf> = entries
        .into_iter()
        .map(|entry| folder.join(entry.file_name()))
        .filter(|path| fits(path, pattern.as_deref(), has_hidden) && may_be_file(path))
        .collect();
    paths.sort();
    if files == Files::Shared && pattern.is_none() {
        paths.retain(|path| is_read_by_synapse(path, found));
    }
    if paths.is_empty() && files == Files::Workers {
        found.push(
            Diagnostic::error(format!("no file is like {}", path.display()))
                .key("synapse.workers")
                .fix("name a folder of worker files, a file, or a pattern such as workers/*.yaml"),
        );
    } else if paths.is_empty() && pattern.is_some() {
        found.push(
            Diagnostic::error(format!("no file is like {}", path.display()))
                .key("synapse.homeserver")
                .fix("name homeserver.yaml, a folder such as conf.d, or a pattern such as conf.d/*.yaml"),
        );
    }
    paths
        .into_iter()
        .map(|path| (path, Named::AmongOthers))
        .collect()
}

fn fits(path: &Path, pattern: Option<&str>, has_hidden: bool) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    match pattern {
        Some(pattern) => values::glob(pattern, &name),
        None => {
            (has_hidden || !name.starts_with('.'))
                && (name.ends_with(".yaml") || name.ends_with(".yml"))
        }
    }
}

/// Whether it is a file. What nobody lets us look at may be one, and reading it will say why it cannot be read.
fn may_be_file(path: &Path) -> bool {
    path.metadata().map_or_else(
        |error| error.kind() == ErrorKind::PermissionDenied,
        |metadata| metadata.is_file(),
    )
}

/// In a folder, Synapse reads `.yaml` and nothing else.
fn is_read_by_synapse(path: &Path, found: &mut Diagnostics) -> bool {
    let read = path.to_string_lossy().ends_with(".yaml");
    if !read {
        found.push(
            Diagnostic::warning("in a folder, Synapse reads only files that end in .yaml, so this one has no effect")
                .at(&Place::file(path))
                .fix("rename it to end in .yaml if Synapse shall read it"),
        );
    }
    read
}

fn upload_size(at: &At<'_>, found: &mut Diagnostics) -> Option<u64> {
    let text = at.scalar(found)?;
    let bytes = values::size(&text);
    if bytes.is_none() {
        found.push(
            at.statement()
                .on(Diagnostic::error("not a size").fix("write it as 50M")),
        );
    }
    bytes
}

fn main_process(files: &[File], shared: &Shared, found: &mut Diagnostics) -> Option<ProcessFacts> {
    let at = shared::last(files, "listeners")?;
    let has_repository = shared.media_repository.as_ref().is_none_or(|r| r.value);
    let (listeners, broken) = listeners::read(Some(&at), Of::Main, has_repository, found);
    Some(ProcessFacts {
        name: "main".into(),
        at: at.statement(),
        application: Application::Main,
        media_repository: None,
        listeners,
        listeners_at: at.statement(),
        broken,
        replicas: 1,
        weight: 1,
        max_conns: None,
    })
}

fn worker(
    file: &File,
    named: Named,
    shared: &Shared,
    found: &mut Diagnostics,
) -> Option<ProcessFacts> {
    let app_at = application_of(file, named, found)?;
    let app = app_at.text(found)?;
    let application = match APPLICATIONS.iter().find(|(name, _)| *name == app) {
        Some((_, App::Generic)) => Application::Generic,
        Some((_, App::Former(role))) => Application::Former(*role),
        Some((_, App::Main)) => {
            let diagnostic = of_main(named);
            found.push(app_at.statement().on(diagnostic));
            return None;
        }
        None => {
            let near = nearest(app, APPLICATIONS.iter().map(|(name, _)| *name));
            let near = near.unwrap_or("synapse.app.generic_worker");
            found.push(
                app_at.statement().on(Diagnostic::error(format!(
                    "no such worker application: {app}"
                ))
                .fix(format!("write {near}"))),
            );
            return None;
        }
    };
    let name_at = file.get("worker_name").unwrap_or_else(|| app_at.clone());
    let name = name_at.scalar(found)?;
    if !values::is_one_word(&name) {
        found.push(
            name_at
                .statement()
                .on(Diagnostic::error("a worker's name must be one word")
                    .fix("write it with letters, digits, - and _")),
        );
        return None;
    }
    if let Some(writers) = file.get("stream_writers") {
        found.push(writers.statement().on(Diagnostic::warning(format!(
            "only {name} sees these stream_writers: all other processes, and this program, go by the shared files"
        ))
        .fix("move them into the shared configuration")));
    }
    let own = file
        .get("enable_media_repo")
        .and_then(|at| at.boolean(found));
    let said = own.or(shared.media_repository.as_ref().map(|r| r.value));
    let has_repository = app == MEDIA || said.unwrap_or(true);
    let listeners_at = file.get("worker_listeners");
    let (listeners, broken) =
        listeners::read(listeners_at.as_ref(), Of::Worker, has_repository, found);
    Some(ProcessFacts {
        at: name_at.statement(),
        application,
        media_repository: own,
        listeners,
        listeners_at: listeners_at.map_or_else(
            || Statement {
                place: Some(Place::file(&file.path)),
                key: "worker_listeners".into(),
            },
            |at| at.statement(),
        ),
        broken,
        replicas: 1,
        weight: 1,
        max_conns: None,
        name,
    })
}

/// The `worker_app` of a file; or that it has none.
fn application_of<'a>(file: &'a File, named: Named, found: &mut Diagnostics) -> Option<At<'a>> {
    let app = file.get("worker_app");
    if app.is_none() {
        let place = Place::file(&file.path);
        found.push(if named == Named::AmongOthers {
            Diagnostic::warning("passed over: this is no worker file, it has no worker_app").at(&place)
        } else {
            Diagnostic::error("this is no worker file: it has no worker_app")
                .at(&place)
                .key("worker_app")
                .fix("name the file that the worker is started with; what all processes share belongs under homeserver")
        });
    }
    app
}

fn of_main(named: Named) -> Diagnostic {
    match named {
        Named::AmongOthers => {
            Diagnostic::warning("passed over: this is a file of the main process, not of a worker")
        }
        Named::Itself => Diagnostic::error("this is a file of the main process, not of a worker")
            .fix("name it under [synapse] homeserver, or with --homeserver"),
    }
}
