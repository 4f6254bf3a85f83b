//! `[canary]` and `[[pin]]`: which users are on one worker, whatever the ring says.

use matrix_user_hash_core::user::{UserHash, UserId};
use toml::Spanned;

use super::Reader;
use super::schema::{Canary, File, Pin};
use crate::diagnostic::nearest;
use crate::model::{self, Deployment, Role};

impl Reader<'_> {
    pub(super) fn canary(&mut self, canary: Option<&Canary>) -> Option<model::Canary> {
        let canary = canary?;
        let hundredths = canary.percent.get_ref() * 100.0;
        let whole = (hundredths - hundredths.round()).abs() < 1e-6;
        if !whole || !(0.0..=10_000.0).contains(&hundredths) {
            self.error(
                &canary.percent.span(),
                "a share is from 0 to 100 percent, with two digits behind the point at the most",
            )
            .fix_with("write percent = 1, or percent = 0.5");
            return None;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is from 0 to 10,000, as checked above"
        )]
        let share = hundredths.round() as u32;
        Some(model::Canary {
            worker: canary.worker.get_ref().clone(),
            share,
        })
    }

    pub(super) fn pins(&mut self, pins: &[Pin]) -> Vec<model::Pin> {
        let mut known: Vec<model::Pin> = Vec::new();
        for pin in pins {
            let user = pin.user.get_ref();
            let is_hash = user.len() == 16
                && user
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            if !is_hash {
                let fix = match UserId::try_from(user.as_str()) {
                    Ok(id) => format!(
                        "write user = \"{}\", which is this user's",
                        String::from_utf8_lossy(&UserHash::of_user(&id).hex())
                    ),
                    Err(_) => {
                        "write the user_hash of the access log, as \"86f01aef21b1acd3\"".to_owned()
                    }
                };
                self.error(
                    &pin.user.span(),
                    "a pin names a user by hash, so that the file holds no names",
                )
                .fix_with(fix);
            } else if known.iter().any(|other| other.user == *user) {
                self.error(&pin.user.span(), "this user is pinned twice")
                    .fix_with("take one of the two away");
            } else {
                known.push(model::Pin {
                    user: user.clone(),
                    worker: pin.worker.get_ref().clone(),
                });
            }
        }
        known
    }

    /// Whether the workers are there, and others beside the canary.
    pub(super) fn chosen_workers(&mut self, deployment: &Deployment, file: &File) {
        let canary = file.canary.as_ref().map(|canary| &canary.worker);
        for named in canary
            .into_iter()
            .chain(file.pin.iter().map(|pin| &pin.worker))
        {
            self.has_users(deployment, named);
        }
        let Some(named) = canary else { return };
        let canary = deployment
            .workers
            .iter()
            .find(|worker| worker.name == *named.get_ref());
        let Some(canary) = canary else { return };
        for role in &canary.roles {
            let is_alone = deployment
                .having(*role)
                .all(|worker| worker.name == canary.name);
            if deployment.is_by_user(*role) && is_alone {
                self.error(
                    &named.span(),
                    format!("the canary is the only worker of the type {}", role.name()),
                )
                .fix_with("add another, or take [canary] away");
            }
        }
        let others: Vec<&str> = canary
            .roles
            .iter()
            .filter(|role| !matches!(role, Role::Nothing(_)) && !deployment.is_by_user(**role))
            .map(|role| role.name())
            .collect();
        let has_users = canary.roles.iter().any(|role| deployment.is_by_user(*role));
        if has_users && !others.is_empty() {
            self.warning(
                &named.span(),
                format!(
                    "{} has its whole part of other requests: {}",
                    canary.name,
                    others.join(", ")
                ),
            )
            .fix_with("give the canary only types that are spread by user, such as sync");
        }
    }

    fn has_users(&mut self, deployment: &Deployment, named: &Spanned<String>) {
        let by_user =
            |worker: &&model::Process| worker.roles.iter().any(|role| deployment.is_by_user(*role));
        let candidates = deployment
            .workers
            .iter()
            .filter(by_user)
            .map(|worker| worker.name.as_str());
        let name = named.get_ref();
        if candidates.clone().any(|known| known == name) {
            return;
        }
        let fix = match nearest(name, candidates) {
            Some(near) => format!("write \"{near}\""),
            None => "name one of a type that is spread by user, such as sync".to_owned(),
        };
        self.error(
            &named.span(),
            format!("{name} is no worker whose requests are spread by user"),
        )
        .fix_with(fix);
    }
}
