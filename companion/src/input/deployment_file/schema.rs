//! The keys of a deployment file, as serde reads them. What they mean is in `EXAMPLE`; their defaults are in `settings`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub main: Option<Spanned<Main>>,
    pub workers: Vec<Spanned<Worker>>,
    pub synapse: Option<SynapseSection>,
    #[serde(rename = "override")]
    pub overrides: Vec<OwnRoute>,
    pub external: Vec<ExternalRoute>,
    pub mas: Option<Mas>,
    pub canary: Option<Canary>,
    pub pin: Vec<Pin>,
    pub name: Option<Spanned<String>>,
    pub listen: Listen,
    pub limits: Limits,
    pub spread: BTreeMap<String, Spanned<String>>,
    pub timeouts: Timeouts,
    pub resolver: Resolver,
    pub user_hash: UserHash,
    pub media_cache: Option<Cache>,
    pub log: Log,
    pub paths: Paths,
    pub status: Status,
    pub nginx: Nginx,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Main {
    pub host: Option<Spanned<String>>,
    pub port: Option<Spanned<u16>>,
    pub federation_port: Option<Spanned<u16>>,
    pub socket: Option<Spanned<String>>,
    pub service: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Worker {
    pub name: Spanned<String>,
    #[serde(rename = "type")]
    pub kind: Spanned<toml::Value>,
    pub replicas: Option<Spanned<u16>>,
    pub weight: Option<Spanned<u16>>,
    pub max_conns: Option<Spanned<u32>>,
    pub host: Option<Spanned<String>>,
    pub port: Option<Spanned<u16>>,
    pub federation_port: Option<Spanned<u16>>,
    pub media_port: Option<Spanned<u16>>,
    pub socket: Option<Spanned<String>>,
    pub service: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SynapseSection {
    pub homeserver: Vec<PathBuf>,
    pub workers: Vec<PathBuf>,
    pub host: Option<Spanned<String>>,
    pub roles: BTreeMap<String, Spanned<toml::Value>>,
    pub hosts: BTreeMap<String, Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnRoute {
    pub path: Spanned<String>,
    pub to: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExternalRoute {
    pub path: Spanned<String>,
    pub to: Spanned<String>,
    pub rewrite: Option<Spanned<String>>,
    pub authorities: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mas {
    pub address: Spanned<String>,
    pub authorities: Option<Spanned<String>>,
    pub allow: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Canary {
    pub worker: Spanned<String>,
    pub percent: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pin {
    pub user: Spanned<String>,
    pub worker: Spanned<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listen {
    pub client: Vec<Spanned<toml::Value>>,
    pub federation: Vec<Spanned<toml::Value>>,
    pub server_names: Vec<Spanned<String>>,
    pub certificate: Option<Spanned<String>>,
    pub certificate_key: Option<Spanned<String>>,
    pub http2: Option<Spanned<bool>>,
    pub trusted_proxies: Vec<Spanned<String>>,
    pub admin_allow: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub max_upload_size: Option<Spanned<String>>,
    pub client_body: Option<Spanned<String>>,
    pub federation_body: Option<Spanned<String>>,
    pub user: Option<Spanned<UserLimits>>,
    pub address: Option<Spanned<RateLimit>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UserLimits {
    pub sync: Option<Spanned<RateLimit>>,
    pub sliding_sync: Option<Spanned<RateLimit>>,
    pub send: Option<Spanned<RateLimit>>,
    pub media: Option<Spanned<RateLimit>>,
    pub everything: Option<Spanned<RateLimit>>,
    pub parallel_syncs: Option<Spanned<u32>>,
    pub exempt: Vec<Spanned<String>>,
    pub exempt_addresses: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RateLimit {
    pub per_second: Spanned<f64>,
    pub burst: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    pub sync: Option<Spanned<String>>,
    pub read: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Resolver {
    pub addresses: Vec<Spanned<String>>,
    pub valid: Option<Spanned<String>>,
    pub ipv6: Option<bool>,
    pub resolve: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UserHash {
    pub zone_size: Option<Spanned<String>>,
    pub state: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    pub path: Spanned<String>,
    pub size: Spanned<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub format: Option<Spanned<String>>,
    pub access: Option<Spanned<String>>,
    pub error: Option<Spanned<String>>,
    pub error_level: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Paths {
    pub temp: Option<Spanned<String>>,
    pub pid: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Status {
    pub listen: Option<Spanned<String>>,
    pub allow: Option<Vec<Spanned<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Nginx {
    pub version: Option<Spanned<String>>,
    pub module: Option<Spanned<String>>,
    pub user: Option<Spanned<String>>,
    pub worker_processes: Option<Spanned<toml::Value>>,
    pub worker_connections: Option<Spanned<u32>>,
}
