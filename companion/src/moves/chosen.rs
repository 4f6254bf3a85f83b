//! A canary and pins: users who are on one worker because the deployment says so, whatever the ring says.
//!
//! A canary is no member of its groups' rings: it has its share of the users and no others. Each of these upstreams has one
//! more server, which gets the users while the worker is down. While users of a group are on the move there are two
//! [`Chosen`]: as it was, for those who have not moved, and as it is, for those who have.

use std::collections::BTreeMap;

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
    /// Who gets its users while it is down. A service has workers enough, and `hash` takes no spare one.
    pub spare: Option<Server>,
    /// The `resolver` that it was written with, if it is installed.
    pub resolver: Option<String>,
}

/// A share of the users on one worker.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Canary {
    /// The worker.
    pub single: Single,
    /// The share as the directive has it.
    pub percent: String,
    /// The share in hundredths of a percent.
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

/// A canary and pins of a group.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Chosen {
    /// The upstream of all others, which its upstreams and variables are named after.
    pub base: String,
    /// A share of the users on one worker.
    pub canary: Option<Canary>,
    /// Users who are on a worker that the deployment names.
    pub pins: Vec<Pinned>,
    /// What has the upstream of a user: a variable, or `base` where all are on the ring.
    pub target: String,
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
            upstream.resolve = upstream.servers.iter().any(|server| server.resolve);
            // Weights are doubled for a service alone: the ring is what it is without the canary.
            if canary.service.is_some() && upstream.servers.iter().all(|s| s.service.is_none()) {
                upstream
                    .servers
                    .iter_mut()
                    .for_each(|server| server.weight /= 2);
            }
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
        let chosen = Chosen::new(&upstream.name, canary, pins);
        if !chosen.is_empty() {
            moving.push(Moving::new(chosen));
        }
    }
    plan.moving = moving;
    plan.choose_late();
}

fn single(group: &Upstream, what: &str, server: Server) -> Single {
    let spare = group
        .servers
        .iter()
        .find(|other| other.worker != server.worker);
    Single {
        upstream: format!("{}_{what}", group.name),
        spare: spare.filter(|_| server.service.is_none()).cloned(),
        server,
        resolver: None,
    }
}

/// Hundredths of a percent, as nginx's directive takes them.
fn percent(hundredths: u32) -> String {
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

impl Single {
    /// What decides which process has the users.
    fn place(&self) -> (String, Option<String>) {
        (self.server.address.clone(), self.server.service.clone())
    }
}

impl Chosen {
    /// The canary and the pins of a group. Pins come before the canary, and the canary comes before the ring.
    pub(super) fn new(base: &str, canary: Option<Canary>, pins: Vec<Pinned>) -> Self {
        let target = if !pins.is_empty() {
            format!("${base}_pin")
        } else if canary.is_some() {
            format!("${base}_canary")
        } else {
            base.to_owned()
        };
        Self {
            base: base.to_owned(),
            canary,
            pins,
            target,
        }
    }

    /// Of a group whose users are all on its ring.
    pub(super) fn nobody(base: &str) -> Self {
        Self::new(base, None, Vec::new())
    }

    /// This canary and these pins for a group of another name.
    pub(super) fn renamed(mut self, base: &str) -> Self {
        let rename = |single: &mut Single| {
            if let Some(what) = single.upstream.strip_prefix(&self.base) {
                single.upstream = format!("{base}{what}");
            }
        };
        self.canary
            .iter_mut()
            .for_each(|canary| rename(&mut canary.single));
        self.pins
            .iter_mut()
            .for_each(|pinned| rename(&mut pinned.single));
        Self::new(base, self.canary, self.pins)
    }

    /// Every upstream for one worker.
    pub(crate) fn singles(&self) -> impl Iterator<Item = &Single> {
        let canary = self.canary.iter().map(|canary| &canary.single);
        canary.chain(self.pins.iter().map(|pinned| &pinned.single))
    }

    /// Whether all users are on the ring.
    pub(super) fn is_empty(&self) -> bool {
        self.canary.is_none() && self.pins.is_empty()
    }

    /// Whether both have the same users on the same workers.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let canary = |chosen: &Self| {
            let canary = chosen.canary.as_ref().filter(|canary| canary.share > 0)?;
            Some((canary.share, canary.single.place()))
        };
        let pins = |chosen: &Self| {
            let mut places = BTreeMap::new();
            for Pinned { single, users } in &chosen.pins {
                places.extend(users.iter().map(|user| (user.clone(), single.place())));
            }
            places
        };
        canary(self) == canary(other) && pins(self) == pins(other)
    }

    /// Where a user is, if a pin or the canary says so, and which of them.
    pub(crate) fn of_user(&self, user: UserHash) -> Option<(&Single, String)> {
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
}
