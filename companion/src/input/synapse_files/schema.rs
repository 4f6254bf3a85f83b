//! The keys of Synapse's files that routing depends on. All others, secrets among them, are not read into memory.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Yaml {
    pub listeners: Option<Vec<Spanned<YamlListener>>>,
    pub worker_listeners: Option<Vec<Spanned<YamlListener>>>,
    pub worker_app: Option<Spanned<String>>,
    pub worker_name: Option<Spanned<String>>,
    pub instance_map: Option<BTreeMap<String, Option<Instance>>>,
    pub stream_writers: Option<BTreeMap<String, Spanned<OneOrMany>>>,
    pub federation_sender_instances: Option<Vec<String>>,
    pub pusher_instances: Option<Vec<String>>,
    pub run_background_tasks_on: Option<String>,
    pub notify_appservices_from_worker: Option<String>,
    pub update_user_directory_from_worker: Option<String>,
    pub enable_media_repo: Option<Spanned<bool>>,
    pub media_instance_running_background_jobs: Option<String>,
    pub max_upload_size: Option<Spanned<NumberOrText>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct YamlListener {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub port: Option<u16>,
    pub path: Option<String>,
    pub tls: bool,
    pub x_forwarded: Option<bool>,
    pub bind_address: Option<String>,
    pub bind_addresses: Option<Vec<String>>,
    pub resources: Option<Vec<YamlResource>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct YamlResource {
    pub names: Vec<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Instance {
    pub host: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum NumberOrText {
    Number(u64),
    Text(String),
}
