//! What is known of a deployment's processes before anything is decided: the meeting point of both sources.
//!
//! The readers of the deployment file and of Synapse's files fill these in, each fact with the place where it is stated.
//! The judge takes them and is the only one that decides what a process serves.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Diagnostic, Place};
use crate::model::{Address, NoRequests, Resource, Role, Stream};

/// Where something is stated.
#[derive(Clone, Debug, Default)]
pub(super) struct Statement {
    /// The file and the line.
    pub place: Option<Place>,
    /// The path of the key: `worker_listeners[0].port`.
    pub key: String,
}

impl Statement {
    /// A message about it.
    pub(super) fn on(&self, diagnostic: Diagnostic) -> Diagnostic {
        let diagnostic = match &self.place {
            Some(place) => diagnostic.at(place),
            None => diagnostic,
        };
        match self.key.as_str() {
            "" => diagnostic,
            key => diagnostic.key(key),
        }
    }

    /// A key below it.
    pub(super) fn below(&self, key: &str) -> Self {
        Self {
            key: format!("{}.{key}", self.key),
            ..self.clone()
        }
    }
}

/// A fact and where it is stated.
#[derive(Clone, Debug)]
pub(super) struct Stated<T> {
    /// The fact.
    pub value: T,
    /// Where it is stated.
    pub at: Statement,
}

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The main process.
    pub main: Option<ProcessFacts>,
    /// The workers, in the order of the input.
    pub workers: Vec<ProcessFacts>,
    /// What Synapse's shared files say. `None` if none is given.
    pub shared: Option<Shared>,
    /// `[synapse.roles]`: patterns of worker names with what these serve.
    pub roles: Vec<(String, Stated<BTreeSet<Role>>)>,
    /// `[synapse.hosts]`: patterns of process names with their hosts.
    pub hosts: Vec<(String, Stated<String>)>,
    /// `[synapse] host`: the host of every process that nobody else says one of.
    pub host: Option<String>,
    /// Something could not be read, so that what seems to be missing may be there.
    pub incomplete: bool,
}

/// What Synapse's shared files say about all processes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// `stream_writers`, for each stream that it names.
    pub writers: BTreeMap<Stream, Stated<Vec<String>>>,
    /// The writers of `events`, to which no request goes.
    pub event_writers: Option<Stated<Vec<String>>>,
    /// Duties that take no requests, and the updates of the user directory.
    pub duties: Vec<(String, Stated<Duty>)>,
    /// `instance_map`, with the hosts that it names.
    pub instances: BTreeMap<String, Option<String>>,
    /// `enable_media_repo`.
    pub media_repository: Option<Stated<bool>>,
    /// `matrix_authentication_service.enabled`.
    pub mas: Option<Stated<bool>>,
    /// `media_instance_running_background_jobs`.
    pub media_jobs: Option<Stated<String>>,
}

/// What Synapse's shared files give to a worker besides streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// It works without requests.
    Unasked(NoRequests),
    /// It updates the user directory, and is the best to search it.
    UserDirectory,
}

/// A process.
#[derive(Debug)]
pub(super) struct ProcessFacts {
    /// Its `worker_name`, or `main`.
    pub name: String,
    /// Where its name is stated.
    pub at: Statement,
    /// What says what it is.
    pub application: Application,
    /// `enable_media_repo` in its own file.
    pub media_repository: Option<bool>,
    /// What it listens on, also what nginx cannot use.
    pub listeners: Vec<ListenerFacts>,
    /// The key of its listeners.
    pub listeners_at: Statement,
    /// A mistake in its listeners was reported, so that what follows from it needs no words.
    pub broken: bool,
    /// How many there are behind one address.
    pub replicas: u16,
    /// Its share of its group.
    pub weight: u16,
    /// The most connections to it.
    pub max_conns: Option<u32>,
}

/// What says what a process is.
#[derive(Clone, Debug)]
pub(super) enum Application {
    /// The main process.
    Main,
    /// `synapse.app.generic_worker`.
    Generic,
    /// An application from before generic workers, with what it was for.
    Former(Role),
    /// `[[workers]]` of the deployment file, which states the roles.
    Declared(Stated<BTreeSet<Role>>),
}

/// A listener.
#[derive(Clone, Debug)]
pub(super) struct ListenerFacts {
    /// Where it stands.
    pub at: Statement,
    /// What it serves, as Synapse builds it.
    pub serves: BTreeSet<Resource>,
    /// Why nginx cannot use it.
    pub unusable: Option<Unusable>,
    /// Where it is.
    pub bound: Bound,
    /// Whether Synapse believes `X-Forwarded-For` there.
    pub x_forwarded: bool,
}

/// Why a listener is not for nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// nginx speaks plain HTTP to Synapse.
    Tls,
    /// It is a listener for something else: metrics, a manhole, replication.
    Other,
    /// It is of type http and has no resources.
    NoResources,
    /// Its type is none of Synapse's, which has been said.
    Mistyped,
}

/// Where a listener is, as far as it says so itself.
#[derive(Clone, Debug)]
pub(super) enum Bound {
    /// It says all.
    Address(Address),
    /// It says the port; the host is to be found.
    Port(u16),
    /// It says nothing that can be used; that was reported.
    Nowhere,
}
