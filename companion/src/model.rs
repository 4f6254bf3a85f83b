//! A deployment, as everything after the input sees it: which processes there are, what each serves, and the settings.
//!
//! In comes what the readers in `input` made of files, checked; out of it `plan` makes upstreams and locations. Nothing
//! here knows of a file format or of nginx.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

pub(crate) use limits::{LimitGroup, Rate, RequestLimits};
pub(crate) use role::{NoRequests, Role, Stream};

mod limits;
mod role;

/// Synapse's listeners have resources; these three are routed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "Synapse's own names")]
pub(crate) enum Resource {
    Client,
    Federation,
    Media,
}

impl Resource {
    /// All three.
    pub(crate) const ALL: [Self; 3] = [Self::Client, Self::Federation, Self::Media];

    /// Synapse's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Federation => "federation",
            Self::Media => "media",
        }
    }
}

/// Where a process listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Address {
    /// A name or an address, and a port.
    Tcp {
        /// The host; an IPv6 address has no brackets here.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
    /// A service in DNS: `_service._tcp.host`, whose SRV records name hosts and ports.
    Srv {
        /// The name that the service belongs to.
        host: String,
        /// The service, without the underscore.
        service: String,
    },
}

impl Address {
    /// The host's name, if it has to be asked of DNS.
    pub(crate) fn dns_name(&self) -> Option<&str> {
        match self {
            // glibc and Synapse's own default mean this host by it, whatever a DNS server says.
            Self::Tcp { host, .. } if host == "localhost" => None,
            Self::Tcp { host, .. } if host.parse::<std::net::IpAddr>().is_err() => Some(host),
            Self::Srv { host, .. } => Some(host),
            _ => None,
        }
    }
}

/// As nginx's `server` line takes it; SRV without its service.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Srv { host, .. } => f.write_str(host),
        }
    }
}

/// A Synapse process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Its `worker_name`, or `main`.
    pub name: String,
    /// What it serves. Main serves what is left; it has a role only where it serves it better than any worker.
    pub roles: BTreeSet<Role>,
    /// Where it serves the client API.
    pub client: Option<Address>,
    /// Where it serves the federation API; often the same address.
    pub federation: Option<Address>,
    /// Where it serves the media repository; often the same address.
    pub media: Option<Address>,
    /// How many there are behind the one address, where that is a DNS service.
    pub replicas: u16,
    /// Its share, next to others of its group.
    pub weight: u16,
    /// How many connections to it an nginx may have at most.
    pub max_conns: Option<u32>,
}

impl Process {
    /// Where it serves a resource. `None` if no listener that nginx can reach has it.
    pub(crate) fn address(&self, resource: Resource) -> Option<&Address> {
        match resource {
            Resource::Client => self.client.as_ref(),
            Resource::Federation => self.federation.as_ref(),
            Resource::Media => self.media.as_ref(),
        }
    }

    /// Every address at which it serves anything.
    pub(crate) fn addresses(&self) -> BTreeSet<&Address> {
        Resource::ALL
            .into_iter()
            .filter_map(|resource| self.address(resource))
            .collect()
    }
}

/// A path of the operator's own that goes somewhere else than the table says.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    /// A regular expression for the path.
    pub path: String,
    /// The role whose workers get it; none is main.
    pub to: Option<Role>,
}

/// A server that is not Synapse.
#[derive(Clone, Debug)]
pub(crate) struct External {
    /// Where it listens.
    pub address: Address,
    /// Its name for TLS and `Host`, if it speaks TLS.
    pub tls: Option<String>,
    /// The file of the authorities that its certificate is checked against.
    pub authorities: Option<String>,
}

/// A path that a server takes which is not Synapse.
#[derive(Clone, Debug)]
pub(crate) struct ExternalRoute {
    /// A regular expression for the path.
    pub path: String,
    /// Who takes it.
    pub to: External,
    /// The path that it is asked for, with `$1` for what the expression captured; none is the client's own.
    pub rewrite: Option<String>,
}

/// The Matrix Authentication Service.
#[derive(Clone, Debug)]
pub(crate) struct Mas {
    /// Where clients' logins go.
    pub server: External,
    /// The addresses from which it may call `/_synapse/mas`.
    pub allow: Vec<String>,
}

/// The whole deployment.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    /// The main process.
    pub main: Process,
    /// The workers, in the order of the input.
    pub workers: Vec<Process>,
    /// The operator's own routes, before all others.
    pub overrides: Vec<Override>,
    /// Paths that other servers take, before all others.
    pub externals: Vec<ExternalRoute>,
    /// The Matrix Authentication Service, where there is one.
    pub mas: Option<Mas>,
    /// Everything else.
    pub settings: Settings,
}

impl Deployment {
    /// The workers that have a role.
    pub(crate) fn having(&self, role: Role) -> impl Iterator<Item = &Process> + Clone {
        self.workers
            .iter()
            .filter(move |worker| worker.roles.contains(&role))
    }

    /// Whether any worker has a role.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.having(role).next().is_some()
    }

    /// What the requests of a role are spread by here.
    pub(crate) fn spread(&self, role: Role) -> Spread {
        let chosen = self.settings.spread.get(&role);
        chosen.copied().unwrap_or(role.spread())
    }

    /// Whether the requests of a role are spread by user here.
    pub(crate) fn is_by_user(&self, role: Role) -> bool {
        self.spread(role) == Spread::User
    }
}

/// A worker that a share of the users is on, and no others.
#[derive(Clone, Debug)]
pub(crate) struct Canary {
    /// Its name.
    pub worker: String,
    /// The share, in hundredths of a percent.
    pub share: u32,
}

/// A user on one worker.
#[derive(Clone, Debug)]
pub(crate) struct Pin {
    /// The user's hash, as 16 hex digits.
    pub user: String,
    /// The worker's name.
    pub worker: String,
}

/// What the requests of a group are spread by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// The user who asks.
    User,
    /// The room that it is about.
    Room,
    /// The other server that asks.
    Server,
    /// By nothing: its workers take turns.
    Turns,
}

impl Spread {
    /// Each with its name in a deployment file.
    pub(crate) const NAMED: [(&'static str, Self); 4] = [
        ("user", Self::User),
        ("room", Self::Room),
        ("server", Self::Server),
        ("turns", Self::Turns),
    ];
}

/// An nginx version, which decides what may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NginxVersion(pub u16, pub u16, pub u16);

impl NginxVersion {
    /// The first that has `resolve` and `service=` in `server` lines in its open-source form.
    pub(crate) const RESOLVE: Self = Self(1, 27, 3);
    /// The first with `http2 on`.
    pub(crate) const HTTP2_DIRECTIVE: Self = Self(1, 25, 1);
    /// The first that speaks HTTP/1.1 to its upstreams, and keeps connections to them, unless told otherwise.
    pub(crate) const KEEPS_CONNECTIONS: Self = Self(1, 29, 7);
    /// The last that does not.
    pub(crate) const KEEPS_NONE: Self = Self(1, 29, 6);

    /// Reads `1.28.3`, and the version out of what `nginx -v` prints.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text
            .split_once("nginx/")
            .map_or(text, |(_, version)| version);
        let number = text
            .split(|c: char| c != '.' && !c.is_ascii_digit())
            .next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        let version = Self(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }
}

impl fmt::Display for NginxVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What is not about processes.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What names of zones, upstreams, variables and the folder begin with.
    pub name: String,
    /// Names for `server_name`; none is `_`.
    pub server_names: Vec<String>,
    /// `listen` parameters of the client API.
    pub client_listen: Vec<String>,
    /// `listen` parameters of a federation API apart; empty when one listener serves both.
    pub federation_listen: Vec<String>,
    /// Certificate and key, when nginx itself speaks TLS.
    pub tls: Option<(String, String)>,
    /// Whether `http2` is on for TLS listeners.
    pub http2: bool,
    /// Addresses of proxies in front, whose X-Forwarded-* headers are believed.
    pub trusted_proxies: Vec<String>,
    /// Who may call `/_synapse/admin`; empty is nobody.
    pub admin_allow: Vec<String>,
    /// Bytes that a client API request may have.
    pub client_body: u64,
    /// Bytes that a federation request may have.
    pub federation_body: u64,
    /// A worker that a share of the users is on, and no others.
    pub canary: Option<Canary>,
    /// Users who are on one worker, whatever the ring says.
    pub pins: Vec<Pin>,
    /// Limits of requests by user and address, if there are any.
    pub limits: Option<RequestLimits>,
    /// What the requests of a role are spread by, where the operator says so.
    pub spread: BTreeMap<Role, Spread>,
    /// Seconds that a long poll may take.
    pub sync_read_timeout: u32,
    /// Seconds that anything else may take between two reads.
    pub read_timeout: u32,
    /// Name servers in nginx's form; none when no name has to be resolved.
    pub resolver: Vec<String>,
    /// Seconds that overrule the TTL.
    pub resolver_valid: Option<u32>,
    /// Whether AAAA records are asked for.
    pub resolver_ipv6: bool,
    /// Whether names are resolved while nginx runs.
    pub resolve: bool,
    /// The zone of the module.
    pub user_hash: UserHashSettings,
    /// A cache of public media.
    pub media_cache: Option<MediaCache>,
    /// JSON access log instead of text.
    pub log_json: bool,
    /// Where the access log goes.
    pub access_log: String,
    /// Where the error log goes.
    pub error_log: String,
    /// From which level on it has lines about requests; nginx quotes the request's line in each.
    pub error_level: String,
    /// The private listener for figures.
    pub status_listen: Option<String>,
    /// Who may read them.
    pub status_allow: Vec<String>,
    /// Folder of nginx's temporary files; it must exist.
    pub temp: String,
    /// The pid file.
    pub pid: String,
    /// `user`, when nginx is started as root.
    pub user: Option<String>,
    /// The module's file.
    pub module: String,
    /// `worker_processes`.
    pub worker_processes: String,
    /// `worker_connections`.
    pub worker_connections: u32,
    /// The nginx that this is for.
    pub nginx: NginxVersion,
}

/// Settings of `matrix_user_hash`.
#[derive(Clone, Debug)]
pub(crate) struct UserHashSettings {
    /// `matrix_user_hash_zone` size.
    pub zone_size: String,
    /// `state=`, if it is to survive a restart.
    pub state: Option<String>,
}

/// `proxy_cache_path` of public media.
#[derive(Clone, Debug)]
pub(crate) struct MediaCache {
    /// The folder.
    pub path: String,
    /// `max_size`.
    pub size: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_nginx_prints() {
        assert_eq!(
            NginxVersion::parse("nginx version: nginx/1.28.3 (Debian)\n"),
            Some(NginxVersion(1, 28, 3))
        );
        assert_eq!(NginxVersion::parse("1.27.3"), Some(NginxVersion(1, 27, 3)));
        assert_eq!(NginxVersion::parse("newest"), None);
    }

    #[test]
    fn an_ipv6_address_gets_its_brackets_and_is_not_asked_of_dns() {
        let address = Address::Tcp {
            host: "fd00::8".into(),
            port: 8083,
        };
        assert_eq!(address.to_string(), "[fd00::8]:8083");
        assert_eq!(address.dns_name(), None);
    }
}
