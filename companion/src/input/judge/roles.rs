//! What each worker serves: its application gives roles, its duties add to them, and what no listener can serve is refused.

use std::collections::BTreeSet;

use super::place::{Located, narrowest};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::input::facts::{Application, Duty, Facts, ProcessFacts, Stated, Statement};
use crate::model::{NoRequests, Resource, Role, Stream};

/// What was decided about a worker.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// What it serves.
    pub roles: BTreeSet<Role>,
    /// Where an operator states its roles, if one does.
    pub stated: Option<Statement>,
    /// What it does by Synapse's files besides its application, as these name it.
    pub duties: Vec<Role>,
    /// What became of a generic worker with duties.
    pub generic: Generic,
}

/// Whether a generic worker with duties stays generic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Generic {
    /// There was nothing to choose.
    #[default]
    Clear,
    /// It has its duties and serves the rest too.
    Kept,
    /// It has its duties alone.
    Dedicated,
}

pub(super) fn decide(
    worker: &ProcessFacts,
    located: &Located,
    facts: &Facts,
    found: &mut Diagnostics,
) -> Decided {
    let has = |role: &Role| located.addresses.contains_key(&role.resource());
    let duties = duties_of(worker, located, facts);
    let mut decided = Decided {
        duties: duties.iter().map(|duty| duty.value).collect(),
        ..Decided::default()
    };
    let explicit = narrowest(&facts.roles, &worker.name).map(|(_, stated)| stated);
    match (&worker.application, explicit) {
        (Application::Main, _) => {}
        (Application::Declared(stated), _) => {
            decided.take(stated, worker, located, found);
            warn_of_undeclared(stated, &duties, worker, found);
        }
        (_, Some(stated)) => decided.take(stated, worker, located, found),
        (Application::Former(role), None) => {
            let stated = Stated {
                value: BTreeSet::from([*role]),
                at: worker.at.clone(),
            };
            // Updating the user directory needs no listener; only searching it does.
            if *role != Role::UserDirectory || has(role) {
                require(&stated, worker, located, found);
                decided.roles.insert(*role);
            }
        }
        (Application::Generic, None) => {
            let generic: Vec<Role> = Role::GENERIC.into_iter().filter(|role| has(role)).collect();
            // In Synapse's documentation a generic worker listens for client and federation, and a worker that has a
            // duty for client at the most, and that for the endpoints of its duty.
            let as_documented = located.addresses.contains_key(&Resource::Client)
                && located.addresses.contains_key(&Resource::Federation);
            decided.generic = match () {
                () if duties.is_empty() || generic.is_empty() => Generic::Clear,
                () if as_documented => Generic::Kept,
                () => Generic::Dedicated,
            };
            if decided.generic != Generic::Dedicated {
                decided.roles.extend(generic);
            }
        }
    }
    let is_declared = matches!(worker.application, Application::Declared(_));
    for duty in &duties {
        let role = duty.value;
        let is_optional = match role {
            Role::UserDirectory => true,
            // Whoever serves media is judged as a whole, in `checks`.
            Role::Writer(Stream::QuarantinedMediaChanges) => true,
            _ => false,
        };
        // A deployment file says nothing of a worker's resources, so its port is taken to have what its types need.
        let is_repository = decided.roles.contains(&Role::Media);
        match role {
            Role::UserDirectory | Role::Nothing(_) if is_declared => {}
            Role::Writer(Stream::QuarantinedMediaChanges) if is_declared && !is_repository => {}
            _ if is_optional && !has(&role) => {}
            _ => {
                let stated = Stated {
                    value: BTreeSet::from([role]),
                    at: duty.at.clone(),
                };
                if !decided.roles.contains(&role) {
                    require(&stated, worker, located, found);
                }
                decided.roles.insert(role);
            }
        }
    }
    decided
}

impl Decided {
    /// Roles that an operator states.
    fn take(
        &mut self,
        stated: &Stated<BTreeSet<Role>>,
        worker: &ProcessFacts,
        located: &Located,
        found: &mut Diagnostics,
    ) {
        require(stated, worker, located, found);
        self.roles.extend(&stated.value);
        self.stated = Some(stated.at.clone());
    }

    /// Whether any request is for it.
    pub(super) fn takes_requests(&self) -> bool {
        self.roles.iter().any(|role| role.takes_requests())
    }
}

/// What Synapse's files give to a worker besides its application.
fn duties_of(worker: &ProcessFacts, located: &Located, facts: &Facts) -> Vec<Stated<Role>> {
    let Some(shared) = &facts.shared else {
        return Vec::new();
    };
    let mut duties: Vec<Stated<Role>> = shared
        .writers
        .iter()
        .filter(|(_, writers)| writers.value.contains(&worker.name))
        .map(|(stream, writers)| Stated {
            value: Role::Writer(*stream),
            at: writers.at.clone(),
        })
        .collect();
    let events = shared.event_writers.iter();
    duties.extend(
        events
            .filter(|writers| writers.value.contains(&worker.name))
            .map(|writers| Stated {
                value: Role::Nothing(NoRequests::EventPersister),
                at: writers.at.clone(),
            }),
    );
    let own = shared
        .duties
        .iter()
        .filter(|(name, _)| *name == worker.name);
    duties.extend(own.map(|(_, duty)| Stated {
        value: match duty.value {
            Duty::Unasked(what) => Role::Nothing(what),
            Duty::UserDirectory => Role::UserDirectory,
        },
        at: duty.at.clone(),
    }));
    let has_media = located.addresses.contains_key(&Resource::Media);
    let runs_jobs = shared
        .media_jobs
        .as_ref()
        .is_some_and(|jobs| jobs.value == worker.name);
    // The repository is where its files are, so nothing under [synapse.roles] moves it.
    let is_repository = matches!(worker.application, Application::Former(Role::Media))
        || worker.media_repository == Some(true)
        || runs_jobs;
    if has_media && is_repository {
        duties.push(Stated {
            value: Role::Media,
            at: worker.listeners_at.clone(),
        });
    }
    duties
}

/// Refuses roles that need a resource which no listener has. One message a resource.
fn require(
    stated: &Stated<BTreeSet<Role>>,
    worker: &ProcessFacts,
    located: &Located,
    found: &mut Diagnostics,
) {
    if worker.broken || located.lost {
        return;
    }
    for resource in Resource::ALL {
        if located.addresses.contains_key(&resource) {
            continue;
        }
        let lacking: Vec<&str> = stated
            .value
            .iter()
            .filter(|role| role.takes_requests() && role.resource() == resource)
            .map(|role| role.name())
            .collect();
        if lacking.is_empty() {
            continue;
        }
        let message = format!(
            "the worker {} shall serve {}, but none of its listeners that nginx can reach has the resource {}",
            worker.name,
            lacking.join(", "),
            resource.name()
        );
        let fix = match resource {
            Resource::Media => "add the resource media to a listener of type http, and enable_media_repo: true to the worker's file".to_owned(),
            _ => format!(
                "add a listener of type http with the resource {} to the worker's file, or give this to another worker",
                resource.name()
            ),
        };
        found.push(stated.at.on(Diagnostic::error(message).fix(fix)));
    }
}

/// Streams that Synapse gives to a worker of the deployment file which does not say so.
fn warn_of_undeclared(
    stated: &Stated<BTreeSet<Role>>,
    duties: &[Stated<Role>],
    worker: &ProcessFacts,
    found: &mut Diagnostics,
) {
    let undeclared: Vec<&str> = duties
        .iter()
        .map(|duty| duty.value)
        .filter(|role| matches!(role, Role::Writer(_)) && !stated.value.contains(role))
        .filter(|role| {
            *role != Role::Writer(Stream::QuarantinedMediaChanges)
                || stated.value.contains(&Role::Media)
        })
        .map(Role::name)
        .collect();
    if !undeclared.is_empty() {
        let streams = undeclared.join(", ");
        found.push(stated.at.on(Diagnostic::warning(format!(
            "by Synapse's stream_writers {} also writes {streams}, so it gets these requests too",
            worker.name
        ))
        .fix(format!("add {streams} to its type, or take it away from stream_writers"))));
    }
}
