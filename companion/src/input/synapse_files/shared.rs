//! The shared configuration: which worker has which duty, and where processes reach each other.

use super::yaml::{At, File};
use crate::diagnostic::{Diagnostic, Diagnostics, nearest};
use crate::input::facts::{Duty, Shared, Stated};
use crate::model::{NoRequests, Stream};

/// Lists of workers that work without requests.
const LISTS: [(&str, NoRequests); 2] = [
    ("federation_sender_instances", NoRequests::FederationSender),
    ("pusher_instances", NoRequests::Pusher),
];

/// Keys that name one worker.
const SINGLES: [(&str, Duty); 3] = [
    (
        "run_background_tasks_on",
        Duty::Unasked(NoRequests::Background),
    ),
    (
        "notify_appservices_from_worker",
        Duty::Unasked(NoRequests::Appservice),
    ),
    ("update_user_directory_from_worker", Duty::UserDirectory),
];

/// Reads the shared files. The last one that has a key counts (`read_config_files` in synapse/config/_base.py).
pub(super) fn read(files: &[File], found: &mut Diagnostics) -> Shared {
    let last = |key: &str| last(files, key);
    let mut shared = Shared {
        media_repository: last("enable_media_repo").and_then(|at| {
            Some(Stated {
                value: at.boolean(found)?,
                at: at.statement(),
            })
        }),
        mas: last("matrix_authentication_service").and_then(|at| {
            let enabled = at.get("enabled")?;
            Some(Stated {
                value: enabled.boolean(found)?,
                at: enabled.statement(),
            })
        }),
        media_jobs: last("media_instance_running_background_jobs").and_then(|at| one(&at, found)),
        ..Shared::default()
    };
    for (key, duty) in LISTS {
        let names = last(key).map(|at| at.list(found)).unwrap_or_default();
        shared.duties.extend(names.iter().filter_map(|name| {
            let stated = Stated {
                value: Duty::Unasked(duty),
                at: name.statement(),
            };
            Some((name.scalar(found)?, stated))
        }));
    }
    for (key, duty) in SINGLES {
        if let Some(name) = last(key).and_then(|at| one(&at, found)) {
            let stated = Stated {
                value: duty,
                at: name.at,
            };
            shared.duties.push((name.value, stated));
        }
    }
    if let Some(at) = last("instance_map") {
        for (name, instance) in at.entries(found) {
            let host = instance.get("host").and_then(|host| host.scalar(found));
            shared.instances.insert(name.to_owned(), host);
        }
    }
    if let Some(at) = last("stream_writers") {
        writers(&at, &mut shared, found);
    }
    shared
}

/// The value that counts.
pub(super) fn last<'a>(files: &'a [File], key: &str) -> Option<At<'a>> {
    // A later file's key without a value takes away an earlier one's, so the first look is for the key.
    let file = files.iter().rev().find(|file| file.has_any(&[key]))?;
    file.get(key)
}

fn one(at: &At<'_>, found: &mut Diagnostics) -> Option<Stated<String>> {
    Some(Stated {
        value: at.scalar(found)?,
        at: at.statement(),
    })
}

fn writers(at: &At<'_>, shared: &mut Shared, found: &mut Diagnostics) {
    for (name, instances) in at.entries(found) {
        let stream = Stream::ALL.into_iter().find(|stream| stream.name() == name);
        if stream.is_none() && name != "events" {
            let names = Stream::ALL.iter().map(|stream| stream.name());
            let fix = nearest(name, names.chain(["events"]))
                .map_or_else(|| "take it away".to_owned(), |near| format!("write {near}"));
            found.push(
                instances
                    .statement()
                    .on(Diagnostic::error(format!("Synapse has no such stream: {name}")).fix(fix)),
            );
            continue;
        }
        let names: Vec<String> = instances
            .texts(found)
            .iter()
            .filter_map(|name| name.scalar(found))
            .collect();
        let single = stream.is_some_and(Stream::single_writer);
        if names.is_empty() || (single && names.len() > 1) {
            let expected = if single {
                "one writer"
            } else {
                "at least one writer"
            };
            found.push(
                instances.statement().on(Diagnostic::error(format!(
                    "Synapse takes {expected} for the stream {name}, and there are {}",
                    names.len()
                ))
                .fix(if names.is_empty() {
                    "name one, or take the line away: then the main process writes it"
                } else {
                    "leave one of them"
                })),
            );
            continue;
        }
        let stated = Stated {
            value: names,
            at: instances.statement(),
        };
        match stream {
            Some(stream) => {
                shared.writers.insert(stream, stated);
            }
            None => shared.event_writers = Some(stated),
        }
    }
}
