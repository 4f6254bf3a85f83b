//! A canary and pins: users who are on one worker because the deployment says so, whatever the ring says.
//!
//! A canary is no member of its groups' rings: it has its share of the users and no others. Each of these upstreams has one
//! more server, which gets the users while the worker is down.

use matrix_user_hash_core::shift::Shift;
use matrix_user_hash_core::user::UserHash;
use serde::Serialize;

use super::Moving;
use crate::model::Deployment;
use crate::plan::{Key, Plan, Server, Upstream};

/// An upstream for one worker.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Single {
    /// The upstream.
    pub upstream: String,
    /// The worker.
    pub server: Server,
    /// Who gets its users while it is down.
    pub spare: Option<Server>,
}

/// A share of the users on one worker.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Canary {
    /// The worker.
    pub single: Single,
    /// The share as the directive has it.
    pub percent: String,
    /// The same in hundredths of a percent.
    #[serde(skip)]
    pub share: u32,
}

/// Users on one worker.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pinned {
    /// The worker.
    pub single: Single,
    /// Their hashes.
    pub users: Vec<String>,
}

/// Takes the canary out of the rings, and gives each group its upstreams for single workers.
pub(super) fn apply(plan: &mut Plan, deployment: &Deployment) {
    let settings = &deployment.settings;
    if settings.canary.is_none() && settings.pins.is_empty() {
        return;
    }
    let mut moving = Vec::new();
    for upstream in plan
        .upstreams
        .iter_mut()
        .filter(|upstream| upstream.hash == Some(Key::User))
    {
        let all = upstream.servers.clone();
        let canary = settings.canary.as_ref().and_then(|canary| {
            let has_others = all.iter().any(|server| server.worker != canary.worker);
            let server = all.iter().find(|server| server.worker == canary.worker)?;
            has_others.then(|| (canary, server.clone()))
        });
        if let Some((_, canary)) = &canary {
            upstream
                .servers
                .retain(|server| server.worker != canary.worker);
        }
        let canary = canary.map(|(wanted, server)| Canary {
            single: single(upstream, "canary", server),
            percent: percent(wanted.share),
            share: wanted.share,
        });
        let mut pins: Vec<Pinned> = Vec::new();
        for pin in &settings.pins {
            let Some(server) = all.iter().find(|server| server.worker == pin.worker) else {
                continue;
            };
            match pins
                .iter_mut()
                .find(|pinned| pinned.single.server.worker == pin.worker)
            {
                Some(pinned) => pinned.users.push(pin.user.clone()),
                None => pins.push(Pinned {
                    single: single(upstream, &format!("pin_{}", pins.len() + 1), server.clone()),
                    users: vec![pin.user.clone()],
                }),
            }
        }
        if canary.is_some() || !pins.is_empty() {
            moving.push(Moving {
                group: upstream.name.clone(),
                variable: String::new(),
                shift: None,
                canary,
                pins,
            });
        }
    }
    plan.moving = moving;
    plan.moving.iter_mut().for_each(Moving::name_variable);
    plan.choose_late();
}

fn single(group: &Upstream, what: &str, server: Server) -> Single {
    let spare = group
        .servers
        .iter()
        .find(|other| other.worker != server.worker);
    Single {
        upstream: format!("{}_{what}", group.name),
        spare: spare.cloned(),
        server,
    }
}

/// Hundredths of a percent, as nginx's directive takes them.
fn percent(hundredths: u32) -> String {
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

impl Moving {
    /// Where a user is, if a pin or the canary says so, and which of them.
    pub(crate) fn chosen(&self, user: UserHash) -> Option<(&Single, String)> {
        let digits = user.hex();
        let pinned = self
            .pins
            .iter()
            .find(|pinned| pinned.users.iter().any(|hash| hash.as_bytes() == digits));
        if let Some(pinned) = pinned {
            return Some((&pinned.single, "a pin of the deployment file".to_owned()));
        }
        let canary = self.canary.as_ref()?;
        Shift::At(canary.share).has_moved(user, 0).then(|| {
            let why = format!("the canary, with {} of the users", canary.percent);
            (&canary.single, why)
        })
    }

    /// The variable that has the upstream in the end: pins come before the canary, and that before the ring.
    pub(super) fn name_variable(&mut self) {
        let what = if !self.pins.is_empty() {
            "pin"
        } else if self.canary.is_some() {
            "canary"
        } else {
            "moving"
        };
        self.variable = format!("${}_{what}", self.group);
    }
}
