//! From a deployment to what nginx has to be told: upstreams, and locations that each name one.
//!
//! In comes a [`Deployment`], out comes a [`Plan`], which `render` writes down and `route` walks through: both see the
//! same, so an explanation cannot differ from the file. A role without workers makes no upstream, and a route whose
//! roles have none goes to main.

mod edge;
mod limits;

use serde::Serialize;

use self::edge::{EDGE, PREFIXES, prefixes};
pub(crate) use self::edge::{Edge, Prefix};
use self::limits::Limits;
use crate::model::{
    Address, Deployment, External, ExternalRoute, NginxVersion, Process, Resource, Role, Spread,
};
use crate::moves::Moving;
use crate::table::{ROUTES, Route, Section, Split};

/// What names begin with unless the deployment has a name.
pub(crate) const NAME: &str = "synapse";

/// What main serves because no group does.
pub(crate) const NO_GROUP: &str = "no group of workers serves it, so the main process does";

/// The rooms of a path, for `hash`: what stands between `/rooms/` and the next slash, or the like.
const ROOM: Room = Room {
    before: "^/_matrix/client/.+?/(?:rooms|join|knock|room_summary|summary)/",
    id: "[^/]+",
};

/// What the configuration consists of.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// What all names and the folder begin with.
    pub name: String,
    /// Every upstream that some location names.
    pub upstreams: Vec<Upstream>,
    /// In the order in which nginx tries them within their section.
    pub locations: Vec<Location>,
    /// Prefixes, each of which keeps the patterns of its section to itself.
    pub prefixes: Vec<Prefix>,
    /// What nginx answers itself, whoever asks.
    pub edge: Edge,
    /// Whether any location asks for the user.
    pub user_hash: bool,
    /// Limits by user and by address.
    pub limits: Option<Limits>,
    /// The upstream that answers whoami.
    pub whoami: String,
    /// How the room is found in a path, where requests are spread by room.
    pub room: Option<Room>,
    /// Whether requests are spread by origin.
    pub by_origin: bool,
    /// The upstream of the main process.
    pub main: String,
    /// Where the federation API's rest goes.
    pub main_federation: String,
    /// Whether clients wait for news at main, because no worker serves syncs.
    pub main_syncs: bool,
    /// Groups some of whose users are elsewhere.
    pub moving: Vec<Moving>,
    /// The variable that has a request's upstream, where that is not its group for everybody.
    pub late_variable: String,
}

/// How a room is found in a path: two expressions, one after the other.
#[derive(Debug, Serialize)]
pub(crate) struct Room {
    /// What stands before it.
    pub before: &'static str,
    /// Its id or alias.
    pub id: &'static str,
}

/// An `upstream {}`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Upstream {
    /// Its name.
    pub name: String,
    /// What it is for, as a comment.
    pub why: String,
    /// Its servers.
    pub servers: Vec<Server>,
    /// What `hash … consistent` takes.
    pub hash: Option<Key>,
    /// The variable that holds it.
    pub hash_variable: Option<String>,
    /// Whether nginx resolves a server of it while it runs.
    pub resolve: bool,
    /// Idle connections that each nginx process keeps. `None` where nginx's default is as good.
    pub keepalive: Option<usize>,
}

/// What requests are spread by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Key {
    /// The user who asks.
    User,
    /// The room that it is about.
    Room,
    /// The other server that asks.
    Origin,
}

impl Key {
    /// `None` where workers take turns.
    const fn of(spread: Spread) -> Option<Self> {
        match spread {
            Spread::User => Some(Self::User),
            Spread::Room => Some(Self::Room),
            Spread::Server => Some(Self::Origin),
            Spread::Turns => None,
        }
    }

    fn variable(self, name: &str) -> String {
        match self {
            Self::User => "$matrix_user_hash".to_owned(),
            Self::Room => format!("${name}_room"),
            Self::Origin => format!("${name}_federation_origin"),
        }
    }
}

/// A `server` line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Server {
    /// The worker's name.
    pub worker: String,
    /// What stands after `server`.
    pub address: String,
    /// `service=`.
    pub service: Option<String>,
    /// `weight=`, if it is not 1.
    pub weight: u16,
    /// `max_conns=`.
    pub max_conns: Option<u32>,
    /// Whether nginx resolves it while it runs.
    pub resolve: bool,
}

/// A `location {}`.
#[derive(Debug, Serialize)]
pub(crate) struct Location {
    /// The route's name.
    pub id: String,
    /// Where it is rendered.
    #[serde(skip)]
    pub section: Section,
    /// The regular expression.
    pub pattern: String,
    /// The group, or the variable that holds its name.
    pub target: Target,
    /// Whether the upstream is not its group for everybody, so that it is chosen once the user is known.
    pub late: bool,
    /// Whether a client may wait here for news.
    pub long_poll: bool,
    /// Whether a POST may be sent again to the next worker, when the first hung up.
    pub repeats_post: bool,
    /// Whether the module is on.
    pub user_hash: bool,
    /// Whether limits by user and by address hold there.
    pub limited: bool,
    /// How a server is spoken to that is not Synapse.
    pub external: Option<Other>,
    /// The reason, for the comment and for `route`.
    pub why: String,
}

/// How a server is spoken to that is not Synapse.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Other {
    /// Its name for TLS and `Host`, if it speaks TLS.
    pub tls: Option<String>,
    /// What its certificate is checked against.
    pub authorities: Option<String>,
    /// The path that it is asked for.
    pub rewrite: Option<String>,
}

/// How a location chooses its upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Target {
    /// Always this one.
    Upstream {
        /// Its name.
        name: String,
    },
    /// By what the request says, through a `map`.
    Mapped {
        /// The variable of the map.
        variable: String,
        /// What the map reads: variables of nginx and text.
        source: &'static str,
        /// Its lines.
        rows: Vec<Row>,
        /// What is chosen if no line fits.
        default: String,
        /// Why that is, as an explanation says it.
        default_why: String,
    },
}

/// A line of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// A text, or a regular expression behind `~`.
    pub key: String,
    /// The upstream.
    pub name: String,
    /// Why, as an explanation says it.
    pub why: String,
}

impl Target {
    /// Every upstream that it may choose.
    pub(crate) fn upstreams(&self) -> Vec<&str> {
        match self {
            Self::Upstream { name } => vec![name],
            Self::Mapped { rows, default, .. } => rows
                .iter()
                .map(|row| row.name.as_str())
                .chain([default.as_str()])
                .collect(),
        }
    }
}

/// What a group is spread by here.
fn spread(deployment: &Deployment, role: Role) -> Option<Key> {
    Key::of(deployment.spread(role))
}

/// What a group is for, with what the deployment file has it spread by.
fn purpose(deployment: &Deployment, role: Role) -> String {
    let why = role.purpose();
    let key = spread(deployment, role);
    if key == Key::of(role.spread()) {
        return why.to_owned();
    }
    let by = match key {
        Some(Key::User) => "by user",
        Some(Key::Room) => "by room",
        Some(Key::Origin) => "by server",
        None => "in turns",
    };
    let why = why.split_once(':').map_or(why, |(what, _)| what);
    format!("{why}, spread {by} as the deployment file says")
}

/// Names within one configuration.
struct Names<'a>(&'a str);

impl Names<'_> {
    fn upstream(&self, role: Role) -> String {
        self.of(role.name())
    }

    fn of(&self, what: &str) -> String {
        format!("{}_{what}", self.0)
    }

    fn main(&self) -> String {
        self.of("main")
    }
}

/// Idle connections to keep, for `servers` servers: nginx counts them per process and upstream, over all servers.
/// Sixteen a server covers bursts of a busy process; a sync that waits is not idle and needs none.
fn keepalive(servers: usize) -> usize {
    servers.max(1) * 16
}

/// How many connections a group keeps by default (`keepalive 32 local`), for each location those that it made itself.
const KEPT_BY_DEFAULT: usize = 32;

/// Leaves nginx's default to the groups that it suits: those that need no more connections, and are named in one location
/// only, so that it makes no difference that locations do not share them.
fn leave_defaults(plan: &mut Plan, deployment: &Deployment) {
    if deployment.settings.nginx < NginxVersion::KEEPS_CONNECTIONS {
        return;
    }
    // What other servers ask for is written twice where they have a listener of their own.
    let is_apart = !deployment.settings.federation_listen.is_empty();
    let times = |location: &Location| match location.section {
        Section::Client => 1,
        _ => 1 + usize::from(is_apart),
    };
    let (locations, prefixes) = (&plan.locations, &plan.prefixes);
    for upstream in &mut plan.upstreams {
        let name = upstream.name.as_str();
        let named = locations
            .iter()
            .filter(|location| location.target.upstreams().contains(&name));
        let is_rest = name == plan.main || prefixes.iter().any(|prefix| prefix.upstream == name);
        if !is_rest && named.map(times).sum::<usize>() == 1 {
            upstream.keepalive = upstream.keepalive.filter(|n| *n > KEPT_BY_DEFAULT);
        }
    }
}

impl Plan {
    /// Lays out a deployment.
    pub(crate) fn new(deployment: &Deployment) -> Self {
        let names = Names(&deployment.settings.name);
        let mut upstreams = main_upstreams(deployment, &names);
        let mut locations = Vec::new();
        for (id, external) in externals(deployment) {
            let name = names.of(&id);
            upstreams.push(external_upstream(deployment, name.clone(), &external.to));
            locations.extend(outside(id, name, &external));
        }
        locations.extend(
            deployment
                .overrides
                .iter()
                .enumerate()
                .flat_map(|(i, own)| overridden(deployment, &names, i, own)),
        );
        locations.extend(
            ROUTES
                .iter()
                .filter_map(|route| located(deployment, &names, route)),
        );
        // With no workers, everything is main's anyway and a pinned route protects it from nobody.
        let main = names.main();
        if locations
            .iter()
            .all(|location| location.target.upstreams() == [main.as_str()])
        {
            locations.retain(|location| location.id.starts_with("override_"));
        }
        upstreams.extend(role_upstreams(deployment, &names, &locations));
        let has_readers = deployment.has(Role::ClientReader);
        // A lookup is made to learn the user, so the workers that answer it take turns.
        let readers_in_turns = spread(deployment, Role::ClientReader).is_none();
        let whoami = match (has_readers, readers_in_turns) {
            (true, true) => names.upstream(Role::ClientReader),
            (true, false) => names.of("whoami"),
            (false, _) => main.clone(),
        };
        if has_readers && !upstreams.iter().any(|upstream| upstream.name == whoami) {
            let mut readers = role_upstream(deployment, &names, Role::ClientReader);
            if !readers_in_turns {
                readers.name.clone_from(&whoami);
                readers.why = "who answers whoami, in turns".to_owned();
                (readers.hash, readers.hash_variable) = (None, None);
            }
            upstreams.push(readers);
        }
        let limits = deployment.settings.limits.as_ref();
        let uses = |key| upstreams.iter().any(|upstream| upstream.hash == Some(key));
        let mut plan = Self {
            name: names.0.to_owned(),
            prefixes: prefixes(deployment, &names, &locations),
            edge: EDGE,
            user_hash: limits.is_some() || locations.iter().any(|location| location.user_hash),
            limits: limits.map(Limits::new),
            room: uses(Key::Room).then_some(ROOM),
            by_origin: uses(Key::Origin),
            whoami,
            main_federation: main_federation(deployment, &names),
            main_syncs: !locations.iter().any(|location| location.id == "sync"),
            moving: Vec::new(),
            late_variable: format!("${}", names.of("upstream")),
            main,
            upstreams,
            locations,
        };
        leave_defaults(&mut plan, deployment);
        plan
    }

    /// Has the locations of groups that are on the move choose their upstream late.
    pub(crate) fn choose_late(&mut self) {
        let moving = &self.moving;
        let is_moving = |name: &str| moving.iter().any(|moving| moving.group == name);
        for location in &mut self.locations {
            location.late = location.target.upstreams().into_iter().any(is_moving);
        }
    }

    /// An upstream by its name.
    pub(crate) fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
    }

    /// The locations of a section, in their order.
    pub(crate) fn section(&self, section: Section) -> impl Iterator<Item = &Location> {
        self.locations
            .iter()
            .filter(move |location| location.section == section)
    }
}

/// The first of the roles that somebody has. `None` is main: nobody has one, or main serves it better.
fn serving(deployment: &Deployment, roles: &[Role]) -> Option<Role> {
    let by_main = |role: &Role| deployment.main.roles.contains(role);
    roles
        .iter()
        .copied()
        .find(|role| deployment.has(*role) || by_main(role))
        .filter(|role| deployment.has(*role))
}

fn located(deployment: &Deployment, names: &Names<'_>, route: &Route) -> Option<Location> {
    let role = serving(deployment, route.to);
    let initial = serving(deployment, &[Role::InitialSync]);
    let splits_initial = matches!(route.split, Split::Since | Split::From)
        && initial.is_some_and(|i| Some(i) != role);
    let is_main_s = route.pinned
        || route
            .to
            .iter()
            .any(|role| deployment.main.roles.contains(role));
    if role.is_none() && !is_main_s && !splits_initial {
        return None;
    }
    let name = role.map_or_else(|| names.main(), |role| names.upstream(role));
    let variable = format!("${}", names.of(&format!("{}_upstream", route.id)));
    let row = |key: &str, name: &str, why: &str| Row {
        key: key.to_owned(),
        name: name.to_owned(),
        why: why.to_owned(),
    };
    let initial = initial.map(|initial| names.upstream(initial));
    let target = match (route.split, initial) {
        (Split::Since, Some(initial)) => Target::Mapped {
            variable,
            source: "$arg_full_state/$arg_since",
            rows: vec![
                row(
                    "~^true/",
                    &initial,
                    "full_state=true makes it an initial one",
                ),
                row("~/$", &initial, "without since it is an initial one"),
            ],
            default: name,
            default_why: "since says where to go on".to_owned(),
        },
        (Split::From, Some(initial)) => Target::Mapped {
            variable,
            source: "$arg_from",
            rows: vec![row("", &initial, "without from it is an initial one")],
            default: name,
            default_why: "from says where to go on".to_owned(),
        },
        (Split::Methods(methods), _) => Target::Mapped {
            variable,
            source: "$request_method",
            rows: methods
                .iter()
                .map(|method| row(method, &name, &format!("{method} only reads")))
                .collect(),
            default: names.main(),
            default_why: format!("the method is not among {}", methods.join(", ")),
        },
        _ => Target::Upstream { name },
    };
    let by_user = |role| spread(deployment, role) == Some(Key::User);
    let long_poll = role.is_some_and(Role::waits) || splits_initial;
    let user_hash = role.is_some_and(by_user) || (splits_initial && by_user(Role::InitialSync));
    let why = match (route.to.first(), role) {
        // Whoever is sent a request that it may not be able to serve shall find that in the explanation.
        (Some(best @ Role::Writer(_)), Some(role)) if *best != role => format!(
            "{}; no worker here has the type {}, so the type {} gets it",
            route.why,
            best.name(),
            role.name()
        ),
        _ => route.why.to_owned(),
    };
    Some(Location {
        id: route.id.to_owned(),
        section: route.section,
        pattern: route.pattern(),
        target,
        late: false,
        long_poll,
        repeats_post: route.repeats_post,
        user_hash,
        limited: limited_in(deployment, route.section),
        external: None,
        why,
    })
}

fn limited_in(deployment: &Deployment, section: Section) -> bool {
    deployment.settings.limits.is_some() && limits::hold_in(section)
}

/// An override stands in every section whose requests its pattern can match: a `^~` prefix keeps others out.
fn overridden(
    deployment: &Deployment,
    names: &Names<'_>,
    i: usize,
    own: &crate::model::Override,
) -> Vec<Location> {
    let role = own.to.filter(|role| deployment.has(*role));
    let name = role.map_or_else(|| names.main(), |role| names.upstream(role));
    let by_user = role.is_some_and(|role| spread(deployment, role) == Some(Key::User));
    let in_section = |section| Location {
        id: format!("override_{i}"),
        section,
        pattern: own.path.clone(),
        target: Target::Upstream { name: name.clone() },
        late: false,
        long_poll: role.is_some_and(Role::waits),
        repeats_post: false,
        user_hash: by_user,
        limited: limited_in(deployment, section),
        external: None,
        why: "an override of the deployment file".to_owned(),
    };
    sections_of(&own.path).into_iter().map(in_section).collect()
}

/// What the Matrix Authentication Service's own documentation gives it (docs/setup/reverse-proxy.md, "Compatibility layer"):
/// login, logout and refresh in every version of the path, and what is below them (single sign-on, `logout/all`).
const MAS_LOGINS: &str =
    "^/_matrix/client/(?:api/v1|unstable/[^/]+|[^/]+)/(?:login|logout|refresh)(?:/|$)";

/// All that servers take which are not Synapse, each with its id.
fn externals(deployment: &Deployment) -> Vec<(String, ExternalRoute)> {
    let own = deployment.externals.iter().enumerate();
    let own = own.map(|(i, external)| (format!("external_{i}"), external.clone()));
    let mas = deployment.mas.iter().map(|mas| {
        let route = ExternalRoute {
            path: MAS_LOGINS.to_owned(),
            to: mas.server.clone(),
            rewrite: None,
        };
        ("mas".to_owned(), route)
    });
    own.chain(mas).collect()
}

fn outside(id: String, name: String, external: &ExternalRoute) -> Vec<Location> {
    let why = if id == "mas" {
        "logins of clients: the Matrix Authentication Service's compatibility layer"
    } else {
        "a server of the deployment file's that is not Synapse"
    };
    let in_section = |section| Location {
        id: id.clone(),
        section,
        pattern: external.path.clone(),
        target: Target::Upstream { name: name.clone() },
        late: false,
        long_poll: false,
        repeats_post: false,
        user_hash: false,
        limited: false,
        external: Some(Other {
            tls: external.to.tls.clone(),
            authorities: external.to.authorities.clone(),
            rewrite: external.rewrite.clone(),
        }),
        why: why.to_owned(),
    };
    sections_of(&external.path)
        .into_iter()
        .map(in_section)
        .collect()
}

fn external_upstream(deployment: &Deployment, name: String, external: &External) -> Upstream {
    let server = line(deployment, "", &external.address, 1, None);
    Upstream {
        why: "a server that is not Synapse".to_owned(),
        keepalive: Some(keepalive(1)),
        hash: None,
        hash_variable: None,
        resolve: server.resolve,
        servers: vec![server],
        name,
    }
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
    match PREFIXES.iter().find(|(prefix, _)| is_below(prefix)) {
        Some((_, section)) => vec![*section],
        None => std::iter::once(Section::Client)
            .chain(PREFIXES.iter().map(|(_, section)| *section))
            .collect(),
    }
}

fn main_federation_apart(deployment: &Deployment) -> bool {
    let federation = deployment.main.address(Resource::Federation);
    federation.is_some() && federation != deployment.main.address(Resource::Client)
}

fn main_federation(deployment: &Deployment, names: &Names<'_>) -> String {
    if main_federation_apart(deployment) {
        names.of("main_federation")
    } else {
        names.main()
    }
}

fn main_upstreams(deployment: &Deployment, names: &Names<'_>) -> Vec<Upstream> {
    let upstream = |name: String, why: &str, resource| {
        let servers: Vec<Server> = server(deployment, &deployment.main, resource)
            .into_iter()
            .collect();
        Upstream {
            name,
            why: why.to_owned(),
            keepalive: Some(keepalive(deployment.workers.len().max(1)).min(128)),
            hash: None,
            hash_variable: None,
            resolve: servers.iter().any(|server| server.resolve),
            servers,
        }
    };
    let mut upstreams = vec![upstream(
        names.main(),
        "the main process: all that no worker serves",
        Resource::Client,
    )];
    if main_federation_apart(deployment) {
        upstreams.push(upstream(
            main_federation(deployment, names),
            "the main process's federation listener",
            Resource::Federation,
        ));
    }
    upstreams
}

fn role_upstreams(
    deployment: &Deployment,
    names: &Names<'_>,
    locations: &[Location],
) -> Vec<Upstream> {
    let used = |name: &str| {
        locations
            .iter()
            .any(|location| location.target.upstreams().contains(&name))
    };
    Role::all()
        .filter(|role| deployment.has(*role) && used(&names.upstream(*role)))
        .map(|role| role_upstream(deployment, names, role))
        .collect()
}

fn role_upstream(deployment: &Deployment, names: &Names<'_>, role: Role) -> Upstream {
    let workers: Vec<&Process> = deployment.having(role).collect();
    let mut servers: Vec<Server> = workers
        .iter()
        .filter_map(|worker| server(deployment, worker, role.resource()))
        .collect();
    let hash = spread(deployment, role);
    if hash.is_some() && servers.iter().any(|server| server.service.is_some()) {
        // nginx takes the weights of SRV records where a line has none of its own, and 1 is none (`template->weight` in
        // ngx_http_upstream_zone_resolve_handler()). CoreDNS gives each of n pods the weight 100/n, so that one pod more would
        // change the points of all, and move users between pods that were there before.
        servers.iter_mut().for_each(|server| server.weight *= 2);
    }
    Upstream {
        name: names.upstream(role),
        why: purpose(deployment, role),
        keepalive: Some(keepalive(
            workers
                .iter()
                .map(|worker| usize::from(worker.replicas))
                .sum(),
        )),
        hash,
        hash_variable: hash.map(|key| key.variable(names.0)),
        resolve: servers.iter().any(|server| server.resolve),
        servers,
    }
}

/// The `server` line of a process for a resource. The judge of the input gives a role only where there is an address.
fn server(deployment: &Deployment, process: &Process, resource: Resource) -> Option<Server> {
    let address = process.address(resource)?;
    Some(line(
        deployment,
        &process.name,
        address,
        process.weight,
        process.max_conns,
    ))
}

fn line(
    deployment: &Deployment,
    worker: &str,
    address: &Address,
    weight: u16,
    max_conns: Option<u32>,
) -> Server {
    let service = match address {
        Address::Srv { service, .. } => Some(service.clone()),
        _ => None,
    };
    let shown = address.to_string();
    Server {
        worker: if worker.is_empty() {
            shown.clone()
        } else {
            worker.to_owned()
        },
        resolve: deployment.settings.resolve && address.dns_name().is_some(),
        address: shown,
        service,
        weight,
        max_conns,
    }
}
