//! From a deployment to what nginx has to be told: upstreams, and locations that each name one.
//!
//! In comes a [`Deployment`], out comes a [`Plan`], which `render` writes down and `route` walks through: both see the
//! same, so an explanation cannot differ from the file. A role without workers makes no upstream, and a route whose
//! roles have none goes to main.

use serde::Serialize;

use crate::model::{Address, Deployment, Process, Resource, Role};
use crate::table::{ROUTES, Route, Section, Split};

/// The upstream of the main process.
pub const MAIN: &str = "synapse_main";
/// The upstream of main's federation listener, where that is another.
pub const MAIN_FEDERATION: &str = "synapse_main_federation";

/// Prefixes that keep their patterns to themselves, each with the file of those. Without a slash at the end, for nginx
/// would redirect to one.
pub const PREFIXES: [(&str, Section, &str); 5] = [
    ("/_matrix/federation", Section::Federation, "federation"),
    ("/_matrix/key", Section::Key, "key"),
    ("/_matrix/media", Section::LegacyMedia, "media"),
    ("/_synapse/admin", Section::Admin, "admin"),
    ("/_synapse/mas", Section::Mas, "mas"),
];

/// What the configuration consists of.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// Every upstream that some location names.
    pub upstreams: Vec<Upstream>,
    /// In the order in which nginx tries them within their section.
    pub locations: Vec<Location>,
    /// Whether any location asks for the user.
    pub user_hash: bool,
    /// The upstream that answers whoami.
    pub whoami: String,
    /// Whether requests are spread by room.
    pub by_room: bool,
    /// Whether requests are spread by origin.
    pub by_origin: bool,
    /// Where the federation API's rest goes.
    pub main_federation: String,
    /// Whether clients wait for news at main, because no worker serves syncs.
    pub main_syncs: bool,
}

/// An `upstream {}`.
#[derive(Debug, Serialize)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// What it is for, as a comment.
    pub why: String,
    /// Its servers.
    pub servers: Vec<Server>,
    /// The variable that `hash … consistent` takes.
    pub hash: Option<&'static str>,
    /// Idle connections that each nginx process keeps.
    pub keepalive: usize,
}

/// A `server` line.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    /// The worker's name.
    pub worker: String,
    /// What stands after `server`.
    pub address: String,
    /// `service=`.
    pub service: Option<String>,
    /// `weight=`, if it is not 1.
    pub weight: u16,
    /// Whether nginx resolves it while it runs.
    pub resolve: bool,
}

/// A `location {}`.
#[derive(Debug, Serialize)]
pub struct Location {
    /// The route's name.
    pub id: String,
    /// Where it is rendered.
    #[serde(skip)]
    pub section: Section,
    /// The regular expression.
    pub pattern: String,
    /// The upstream, or the variable that holds its name.
    pub target: Target,
    /// Whether a client may wait here for news.
    pub long_poll: bool,
    /// Whether the module is on.
    pub user_hash: bool,
    /// The reason, for the comment and for `route`.
    pub why: String,
}

/// How a location chooses its upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Target {
    /// Always this one.
    Upstream {
        /// Its name.
        name: String,
    },
    /// By method.
    Methods {
        /// The variable of the map.
        variable: String,
        /// Those that go to `name`.
        methods: Vec<String>,
        /// Their upstream.
        name: String,
    },
    /// By `since` and `full_state`.
    Since {
        /// The variable of the map.
        variable: String,
        /// With a place to go on from.
        name: String,
        /// From nothing.
        initial: String,
    },
    /// By `from`.
    From {
        /// The variable of the map.
        variable: String,
        /// With a place to go on from.
        name: String,
        /// From nothing.
        initial: String,
    },
}

impl Target {
    /// Every upstream that it may choose.
    pub fn upstreams(&self) -> Vec<&str> {
        match self {
            Self::Upstream { name } => vec![name],
            Self::Methods { name, .. } => vec![name, MAIN],
            Self::Since { name, initial, .. } | Self::From { name, initial, .. } => {
                vec![name, initial]
            }
        }
    }
}

/// What an upstream is spread by.
fn hash_of(role: Role) -> Option<&'static str> {
    match role {
        Role::Sync | Role::InitialSync | Role::SlidingSync => Some("$matrix_user_hash"),
        Role::Room => Some("$synapse_room"),
        Role::FederationReader | Role::FederationInbound => Some("$synapse_federation_origin"),
        _ => None,
    }
}

/// Whether requests of a role wait for news.
fn by_user(role: Role) -> bool {
    hash_of(role) == Some("$matrix_user_hash")
}

/// The upstream of a role.
pub fn upstream_name(role: Role) -> String {
    format!("synapse_{}", role.name())
}

/// Idle connections to keep, for `servers` servers: nginx counts them per process and upstream, over all servers.
/// Sixteen a server covers bursts of a busy process; a sync that waits is not idle and needs none.
fn keepalive(servers: usize) -> usize {
    servers.max(1) * 16
}

impl Plan {
    /// Lays out a deployment.
    pub fn new(deployment: &Deployment) -> Self {
        let mut locations: Vec<Location> = deployment
            .overrides
            .iter()
            .enumerate()
            .flat_map(|(i, own)| overridden(deployment, i, own))
            .collect();
        locations.extend(ROUTES.iter().filter_map(|route| located(deployment, route)));
        // With no workers, everything is main's anyway and a pinned route protects it from nobody.
        if locations
            .iter()
            .all(|location| location.target.upstreams() == [MAIN])
        {
            locations.retain(|location| location.id.starts_with("override_"));
        }
        let main_federation = if main_federation_apart(deployment) {
            MAIN_FEDERATION
        } else {
            MAIN
        }
        .to_owned();
        let mut upstreams = main_upstreams(deployment);
        upstreams.extend(role_upstreams(deployment, &locations));
        let has_readers = has(deployment, Role::ClientReader);
        let whoami = if has_readers {
            upstream_name(Role::ClientReader)
        } else {
            MAIN.to_owned()
        };
        if has_readers && !upstreams.iter().any(|upstream| upstream.name == whoami) {
            upstreams.push(role_upstream(deployment, Role::ClientReader));
        }
        Self {
            user_hash: locations.iter().any(|location| location.user_hash),
            by_room: uses(&upstreams, "$synapse_room"),
            by_origin: uses(&upstreams, "$synapse_federation_origin"),
            whoami,
            main_federation,
            main_syncs: !locations.iter().any(|location| location.id == "sync"),
            upstreams,
            locations,
        }
    }

    /// An upstream by its name.
    pub fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
    }

    /// The locations of a section, in their order.
    pub fn section(&self, section: Section) -> impl Iterator<Item = &Location> {
        self.locations
            .iter()
            .filter(move |location| location.section == section)
    }
}

fn uses(upstreams: &[Upstream], variable: &str) -> bool {
    upstreams
        .iter()
        .any(|upstream| upstream.hash == Some(variable))
}

fn has(deployment: &Deployment, role: Role) -> bool {
    deployment
        .workers
        .iter()
        .any(|worker| worker.roles.contains(&role))
}

/// The first of the roles that somebody has.
fn serving(deployment: &Deployment, roles: &[Role]) -> Option<Role> {
    roles.iter().copied().find(|role| has(deployment, *role))
}

fn located(deployment: &Deployment, route: &Route) -> Option<Location> {
    let role = serving(deployment, route.to);
    let initial = serving(deployment, &[Role::InitialSync]);
    let splits_initial = matches!(route.split, Split::Since | Split::From)
        && initial.is_some_and(|i| Some(i) != role);
    if role.is_none() && !route.pinned && !splits_initial {
        return None;
    }
    let name = role.map_or_else(|| MAIN.to_owned(), upstream_name);
    let variable = format!("$synapse_{}_upstream", route.id);
    let target = match (route.split, initial) {
        (Split::Since, Some(initial)) => Target::Since {
            variable,
            name,
            initial: upstream_name(initial),
        },
        (Split::From, Some(initial)) => Target::From {
            variable,
            name,
            initial: upstream_name(initial),
        },
        (Split::Methods(methods), _) => Target::Methods {
            variable,
            name,
            methods: methods.iter().map(|&method| method.to_owned()).collect(),
        },
        _ => Target::Upstream { name },
    };
    let user_hash = role.is_some_and(by_user) || splits_initial;
    Some(Location {
        id: route.id.to_owned(),
        section: route.section,
        pattern: route.pattern(),
        target,
        long_poll: user_hash,
        user_hash,
        why: route.why.to_owned(),
    })
}

/// An override stands in every section whose requests its pattern can match: a `^~` prefix keeps others out.
fn overridden(deployment: &Deployment, i: usize, own: &crate::model::Override) -> Vec<Location> {
    let role = own.to.filter(|role| has(deployment, *role));
    let name = role.map_or_else(|| MAIN.to_owned(), upstream_name);
    let by_user = role.is_some_and(by_user);
    let sections = sections_of(&own.path);
    let in_section = |section| Location {
        id: format!("override_{i}"),
        section,
        pattern: own.path.clone(),
        target: Target::Upstream { name: name.clone() },
        long_poll: by_user,
        user_hash: by_user,
        why: "an override of the deployment file".to_owned(),
    };
    sections.into_iter().map(in_section).collect()
}

fn sections_of(pattern: &str) -> Vec<Section> {
    let literal = |prefix: &str| {
        let rest = pattern.strip_prefix('^')?.strip_prefix(prefix)?;
        Some(rest.is_empty() || rest.starts_with(['/', '$']))
    };
    let is_below = |prefix| literal(prefix) == Some(true);
    if is_below("/_matrix/client") || is_below("/_synapse/client") {
        return vec![Section::Client];
    }
    match PREFIXES.iter().find(|(prefix, ..)| is_below(prefix)) {
        Some((_, section, _)) => vec![*section],
        None => std::iter::once(Section::Client)
            .chain(PREFIXES.iter().map(|(_, section, _)| *section))
            .collect(),
    }
}

fn main_federation_apart(deployment: &Deployment) -> bool {
    let federation = deployment.main.address(Resource::Federation);
    federation.is_some() && federation != deployment.main.address(Resource::Client)
}

fn main_upstreams(deployment: &Deployment) -> Vec<Upstream> {
    let upstream = |name: &str, why: &str, resource| {
        let servers = server(deployment, &deployment.main, resource)
            .into_iter()
            .collect();
        Upstream {
            name: name.to_owned(),
            why: why.to_owned(),
            keepalive: keepalive(deployment.workers.len().max(1)).min(128),
            hash: None,
            servers,
        }
    };
    let mut upstreams = vec![upstream(
        MAIN,
        "the main process: all that no worker serves",
        Resource::Client,
    )];
    if main_federation_apart(deployment) {
        upstreams.push(upstream(
            MAIN_FEDERATION,
            "the main process's federation listener",
            Resource::Federation,
        ));
    }
    upstreams
}

fn role_upstreams(deployment: &Deployment, locations: &[Location]) -> Vec<Upstream> {
    let used = |name: &str| {
        locations
            .iter()
            .any(|location| location.target.upstreams().contains(&name))
    };
    Role::NAMED
        .iter()
        .map(|(_, role)| *role)
        .filter(|role| has(deployment, *role) && used(&upstream_name(*role)))
        .map(|role| role_upstream(deployment, role))
        .collect()
}

fn role_upstream(deployment: &Deployment, role: Role) -> Upstream {
    let workers: Vec<&Process> = deployment
        .workers
        .iter()
        .filter(|worker| worker.roles.contains(&role))
        .collect();
    let mut servers: Vec<Server> = workers
        .iter()
        .filter_map(|worker| server(deployment, worker, role.resource()))
        .collect();
    let hash = hash_of(role);
    if hash.is_some() && servers.iter().any(|server| server.service.is_some()) {
        // nginx takes the weights of SRV records where a line has none of its own, and 1 is none (`template->weight` in
        // ngx_http_upstream_zone_resolve_handler()). CoreDNS gives each of n pods the weight 100/n, so that one pod more would
        // change the points of all, and move users between pods that were there before.
        servers.iter_mut().for_each(|server| server.weight *= 2);
    }
    Upstream {
        name: upstream_name(role),
        why: purpose(role).to_owned(),
        keepalive: keepalive(
            workers
                .iter()
                .map(|worker| usize::from(worker.replicas))
                .sum(),
        ),
        hash,
        servers,
    }
}

/// What an upstream is for, as its comment says it.
fn purpose(role: Role) -> &'static str {
    match role {
        Role::Sync => "syncs: every device of a user on one worker",
        Role::InitialSync => "syncs from nothing, which would hold up the others",
        Role::SlidingSync => "simplified sliding sync: every device of a user on one worker",
        Role::Room => "what is about one room: all of a room on one worker",
        Role::ClientReader => "the rest of the client API that a worker can serve",
        Role::FederationReader => "federation: all of another server on one worker",
        Role::FederationInbound => "transactions of other servers: all of one server on one worker",
        Role::Media => "the media repository",
        Role::UserDirectory => "searches in the user directory",
        Role::Writer(_) => "the writer of a stream",
        Role::Nothing(_) => "no request is for it",
    }
}

/// The `server` line of a process for a resource. The judge of the input gives a role only where there is an address.
fn server(deployment: &Deployment, process: &Process, resource: Resource) -> Option<Server> {
    let address = process.address(resource)?;
    let service = match address {
        Address::Srv { service, .. } => Some(service.clone()),
        _ => None,
    };
    Some(Server {
        worker: process.name.clone(),
        resolve: deployment.settings.resolve && address.dns_name().is_some(),
        address: address.to_string(),
        service,
        weight: process.weight,
    })
}
