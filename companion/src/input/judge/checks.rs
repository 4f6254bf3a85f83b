//! What is wrong or odd about a deployment as a whole, though each part of it may be right.

use std::collections::{BTreeMap, BTreeSet};

use super::Worker;
use super::place::Located;
use super::roles::Generic;
use crate::diagnostic::{Diagnostic, Diagnostics, nearest};
use crate::input::facts::{Application, Facts, ListenerFacts, Shared, Stated, Unusable};
use crate::input::values;
use crate::model::{Address, Resource, Role, Stream};

/// Synapse's name for the main process in `stream_writers`.
const MAIN: &str = "master";

pub(super) fn all(
    facts: &Facts,
    main: Option<&Located>,
    workers: &[Worker<'_>],
    found: &mut Diagnostics,
) {
    names(workers, found);
    addresses(facts, main, workers, found);
    if !facts.incomplete {
        patterns(facts, found);
    }
    forwarded(facts, main, workers, found);
    match &facts.shared {
        Some(shared) => {
            writers_are_synapse_s(shared, workers, found);
            if !facts.incomplete {
                writers_have_files(shared, workers, found);
                media(shared, workers, found);
                quarantine(shared, main, workers, found);
            }
        }
        None => single_writers(workers, found),
    }
    // What follows from a mistake needs no words.
    if !found.has_errors() {
        decisions(workers, found);
    }
    idle(workers, found);
    let pairs = [
        (Role::InitialSync, Role::Sync, "syncs that go on"),
        (
            Role::FederationInbound,
            Role::FederationReader,
            "other federation requests",
        ),
    ];
    for (special, usual, rest) in pairs {
        lonely(workers, special, usual, rest, found);
    }
}

fn names(workers: &[Worker<'_>], found: &mut Diagnostics) {
    let mut names = BTreeSet::new();
    for worker in workers {
        if !names.insert(&worker.facts.name) {
            found.push(
                worker.facts.at.on(Diagnostic::error(format!(
                    "two workers are called {}",
                    worker.facts.name
                ))
                .fix("give each its own worker_name, and name each file once")),
            );
        }
    }
}

/// Two processes cannot listen at one address: one of the two is a mistake, and half of the requests would go to the wrong one.
fn addresses(
    facts: &Facts,
    main: Option<&Located>,
    workers: &[Worker<'_>],
    found: &mut Diagnostics,
) {
    let mut known: BTreeMap<&Address, &str> = BTreeMap::new();
    let all = facts.main.iter().zip(main);
    let all = all.chain(workers.iter().map(|worker| (worker.facts, &worker.located)));
    for (process, located) in all {
        let own: BTreeSet<&Address> = located.addresses.values().collect();
        for address in own {
            let other = known.insert(address, &process.name);
            let Some(other) = other.filter(|other| **other != process.name) else {
                continue;
            };
            let fix = if matches!(process.application, Application::Declared(_)) {
                "give each its own port; one worker of several types has a list: type = [\"sync\", \"room\"]"
            } else {
                "say on which host each runs: under [synapse.hosts], or in Synapse's instance_map"
            };
            found.push(
                process.listeners_at.on(Diagnostic::error(format!(
                    "{} and {other} are both at {address}",
                    process.name
                ))
                .fix(fix)),
            );
        }
    }
}

/// A pattern that fits no process is a mistake: it was meant for one.
fn patterns(facts: &Facts, found: &mut Diagnostics) {
    let workers: Vec<&str> = facts.workers.iter().map(|w| w.name.as_str()).collect();
    let roles = facts
        .roles
        .iter()
        .map(|(pattern, at)| (pattern, &at.at, "worker"));
    let hosts = facts
        .hosts
        .iter()
        .map(|(pattern, at)| (pattern, &at.at, "process"));
    for (pattern, at, kind) in roles.chain(hosts) {
        let is_main = kind == "process" && values::glob(pattern, "main");
        if is_main || workers.iter().any(|name| values::glob(pattern, name)) {
            continue;
        }
        let near = nearest(pattern.trim_end_matches('*'), workers.iter().copied());
        let fix = match near {
            Some(near) => format!("write it so that it fits {near}"),
            None if workers.is_empty() => "name the files of the workers".to_owned(),
            None => format!("the workers are called {}", workers.join(", ")),
        };
        found.push(
            at.on(Diagnostic::warning(format!("no {kind} is called like {pattern}")).fix(fix)),
        );
    }
}

/// Synapse would take nginx for the client.
fn forwarded(
    facts: &Facts,
    main: Option<&Located>,
    workers: &[Worker<'_>],
    found: &mut Diagnostics,
) {
    let asked = workers
        .iter()
        .filter(|worker| worker.decided.takes_requests())
        .map(|worker| (worker.facts, &worker.located));
    for (process, located) in facts.main.iter().zip(main).chain(asked) {
        for i in &located.blind {
            let at = process.listeners[*i].at.below("x_forwarded");
            found.push(at.on(Diagnostic::warning(format!(
                "behind nginx, {} will take nginx for the client: it does not read X-Forwarded-For",
                process.name
            ))
            .fix("add x_forwarded: true to this listener")));
        }
    }
}

/// Whoever writes a stream has to be among the workers.
fn writers_have_files(shared: &Shared, workers: &[Worker<'_>], found: &mut Diagnostics) {
    let streams = shared.writers.values();
    // Nobody has to declare a writer of events, for no request goes to it; but its file is among the others.
    let has_files = workers
        .iter()
        .any(|worker| !matches!(worker.facts.application, Application::Declared(_)));
    let events = shared.event_writers.iter().filter(|_| has_files);
    let mut said = BTreeSet::new();
    for stated in streams.chain(events) {
        for name in &stated.value {
            let known = name == MAIN || workers.iter().any(|worker| worker.facts.name == *name);
            if known || !said.insert(name) {
                continue;
            }
            let (message, fix) = if name == "main" {
                (
                    "in stream_writers Synapse calls the main process master, and it will not start".to_owned(),
                    "write master".to_owned(),
                )
            } else {
                (
                    format!(
                        "the worker {name} writes a stream, but its file is not among those given"
                    ),
                    format!(
                        "name the file whose worker_name is {name} under [synapse] workers or with --worker, or add it as [[workers]]"
                    ),
                )
            };
            found.push(stated.at.on(Diagnostic::error(message).fix(fix)));
        }
    }
}

/// A stream that the deployment file gives to a worker which does not write it: Synapse would answer 500.
fn writers_are_synapse_s(shared: &Shared, workers: &[Worker<'_>], found: &mut Diagnostics) {
    for worker in workers {
        let Some(at) = &worker.decided.stated else {
            continue;
        };
        for stream in Stream::ALL {
            if !worker.has(Role::Writer(stream)) {
                continue;
            }
            let writers = writers_of(shared, stream);
            if writers.iter().any(|name| *name == worker.facts.name) {
                continue;
            }
            let writers = writers.join(", ").replace(MAIN, "the main process");
            found.push(at.on(Diagnostic::error(format!(
                "{0} shall serve {1}, but by Synapse's stream_writers {writers} writes {1}, and {0} would answer 500",
                worker.facts.name,
                stream.name()
            ))
            .fix(format!(
                "take {0} away here, or write {0}: {1} under stream_writers",
                stream.name(),
                worker.facts.name
            ))));
        }
    }
}

/// The writers of a stream, by Synapse's default if nobody says.
fn writers_of(shared: &Shared, stream: Stream) -> Vec<&str> {
    shared.writers.get(&stream).map_or_else(
        || vec![MAIN],
        |writers| writers.value.iter().map(String::as_str).collect(),
    )
}

/// Two writers where Synapse takes one, in a deployment file alone.
fn single_writers(workers: &[Worker<'_>], found: &mut Diagnostics) {
    for stream in Stream::ALL.into_iter().filter(|s| s.single_writer()) {
        let mut writers = workers.iter().filter(|w| w.has(Role::Writer(stream)));
        let at = writers
            .nth(1)
            .and_then(|worker| worker.decided.stated.as_ref());
        if let Some(at) = at {
            found.push(
                at.on(Diagnostic::error(format!(
                    "Synapse takes one writer for the stream {}, and there are two",
                    stream.name()
                ))
                .fix("leave the type to the worker that stream_writers names in homeserver.yaml")),
            );
        }
    }
}

/// Without a worker that has the media repository, main must have it.
fn media(shared: &Shared, workers: &[Worker<'_>], found: &mut Diagnostics) {
    let main_has_none = shared
        .media_repository
        .as_ref()
        .filter(|stated| !stated.value);
    let Some(Stated { at, .. }) = main_has_none else {
        return;
    };
    if workers.iter().any(|worker| worker.has(Role::Media)) {
        return;
    }
    found.push(at.on(
        Diagnostic::warning("main has no media repository and no worker is known to have one, so all media will be 404")
            .fix("give the worker that has it a listener with the resource media and `enable_media_repo: true`"),
    ));
}

/// What main serves better than any worker: quarantining, if it has the media repository and writes the stream.
pub(super) fn main_s_own(facts: &Facts, main: &Located) -> BTreeSet<Role> {
    let stream = Stream::QuarantinedMediaChanges;
    let writes = |shared: &Shared| writers_of(shared, stream).contains(&MAIN);
    let has_it = main.addresses.contains_key(&Resource::Media);
    let quarantines = has_it && facts.shared.as_ref().is_some_and(writes);
    quarantines
        .then_some(Role::Writer(stream))
        .into_iter()
        .collect()
}

/// Quarantining needs the media repository and the right to write a stream, both in one process.
fn quarantine(
    shared: &Shared,
    main: Option<&Located>,
    workers: &[Worker<'_>],
    found: &mut Diagnostics,
) {
    let stream = Stream::QuarantinedMediaChanges;
    let writers = writers_of(shared, stream);
    let of_media: Vec<&str> = workers
        .iter()
        .filter(|worker| worker.has(Role::Media))
        .map(|worker| worker.facts.name.as_str())
        .collect();
    let main_has_it = main.is_some_and(|main| main.addresses.contains_key(&Resource::Media));
    // Then these requests go to the main process, whoever else serves media.
    if main_has_it && writers.contains(&MAIN) {
        return;
    }
    let of_media = match of_media.as_slice() {
        [] if main_has_it => vec![MAIN],
        _ => of_media,
    };
    let strangers: Vec<&str> = of_media
        .iter()
        .copied()
        .filter(|name| !writers.contains(name))
        .collect();
    if strangers.is_empty() {
        return;
    }
    let names = strangers.join(", ").replace(MAIN, "the main process");
    let stated = shared.writers.get(&stream).map(|stated| &stated.at);
    let at = stated.or_else(|| {
        let first = workers
            .iter()
            .find(|worker| worker.facts.name == strangers[0]);
        first.map(|worker| &worker.facts.at)
    });
    let warning = Diagnostic::warning(format!(
        "{names} serves media but does not write the stream {0}: administrators who quarantine media get errors",
        stream.name()
    ))
    .fix(format!("write {}: [{}] under stream_writers", stream.name(), of_media.join(", ")));
    found.push(match at {
        Some(at) => at.on(warning),
        None => warning,
    });
}

/// What was decided about generic workers with duties.
fn decisions(workers: &[Worker<'_>], found: &mut Diagnostics) {
    let others_serve = workers.iter().any(|worker| worker.has(Role::ClientReader));
    for worker in workers {
        let name = &worker.facts.name;
        let duties: Vec<&str> = worker
            .decided
            .duties
            .iter()
            .map(|role| role.name())
            .collect();
        let diagnostic = match worker.decided.generic {
            Generic::Clear => continue,
            Generic::Kept => Diagnostic::note(format!(
                "{name} has the duty {} and serves what any generic worker does, for it listens for client and federation",
                duties.join(", ")
            ))
            .fix(format!(
                "if it shall do nothing else, say \"{name}\" = \"{}\" under [synapse.roles]",
                duties[0]
            )),
            Generic::Dedicated => {
                let message = format!(
                    "{name} has the duty {} and serves nothing else, for it does not listen for both client and federation",
                    duties.join(", ")
                );
                let roles: Vec<String> = Role::GENERIC
                    .iter()
                    .filter(|role| worker.located.addresses.contains_key(&role.resource()))
                    .map(|role| format!("\"{}\"", role.name()))
                    .collect();
                let fix = format!(
                    "if it shall serve the rest too, say \"{name}\" = [{}] under [synapse.roles]",
                    roles.join(", ")
                );
                if others_serve {
                    Diagnostic::note(message).fix(fix)
                } else {
                    Diagnostic::warning(format!("{message}; the main process serves the rest"))
                        .fix(fix)
                }
            }
        };
        found.push(worker.facts.at.on(diagnostic));
    }
}

/// Workers that get no request, though nothing says that they shall not.
fn idle(workers: &[Worker<'_>], found: &mut Diagnostics) {
    for worker in workers {
        let decided = &worker.decided;
        let expected = !decided.roles.is_empty()
            || !decided.duties.is_empty()
            || decided.stated.is_some()
            || worker.facts.broken
            || worker.located.lost
            || worker
                .facts
                .listeners
                .iter()
                .any(|listener| listener.unusable == Some(Unusable::Mistyped))
            || matches!(worker.facts.application, Application::Former(_));
        if expected {
            continue;
        }
        let name = &worker.facts.name;
        let listeners = &worker.facts.listeners;
        let first = |why| {
            listeners
                .iter()
                .find(|listener| listener.unusable == Some(why))
        };
        let at = |listener: &ListenerFacts| listener.at.clone();
        let (at, message, fix) = if let Some(listener) = first(Unusable::Tls) {
            (
                at(listener).below("tls"),
                "nginx speaks plain HTTP to Synapse, and this listener is for TLS",
                "add a listener without TLS for nginx",
            )
        } else if let Some(listener) = first(Unusable::NoResources) {
            (
                at(listener).below("resources"),
                "the listener has no resources",
                "add resources: [{names: [client, federation]}], or take the listener away",
            )
        } else if worker.located.addresses.contains_key(&Resource::Media) {
            (
                worker.facts.listeners_at.clone(),
                "it has the resource media only, and main has the media repository",
                "add enable_media_repo: false to the shared files and enable_media_repo: true to the worker's file",
            )
        } else if listeners.is_empty() {
            (
                worker.facts.listeners_at.clone(),
                "it listens nowhere",
                "add worker_listeners with a listener of type http and resources: [{names: [client, federation]}]",
            )
        } else {
            (
                worker.facts.listeners_at.clone(),
                "none of its listeners has the resource client or federation",
                "add a listener of type http with resources: [{names: [client, federation]}]",
            )
        };
        found.push(
            at.on(Diagnostic::warning(format!("{name} gets no requests: {message}")).fix(fix)),
        );
    }
}

/// Workers for a part of what nobody has the rest of.
fn lonely(workers: &[Worker<'_>], special: Role, usual: Role, rest: &str, found: &mut Diagnostics) {
    if workers.iter().any(|worker| worker.has(usual)) {
        return;
    }
    let Some(worker) = workers.iter().find(|worker| worker.has(special)) else {
        return;
    };
    let warning = Diagnostic::warning(format!(
        "there are {} workers but no {} workers: {rest} stay with the main process",
        special.name(),
        usual.name()
    ))
    .fix(format!("give a worker the type \"{}\"", usual.name()));
    let at = worker.decided.stated.as_ref().unwrap_or(&worker.facts.at);
    found.push(at.on(warning));
}
