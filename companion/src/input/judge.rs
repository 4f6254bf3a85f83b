//! From facts to a deployment: what each process serves and where, and everything that is wrong or odd about it.
//!
//! Both sources end here, so a worker of the deployment file and one of Synapse's are held to the same rules:
//! the application gives a role, duties add to it, and a role is given only where a listener has the resource that its
//! endpoints need. One mistake has one message, at the line that causes it.

mod checks;
mod place;
mod roles;

use std::collections::BTreeSet;

use self::place::Located;
use self::roles::Decided;
use super::facts::{Facts, ProcessFacts};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::model::{Process, Resource, Role};

/// A worker with all that was found out about it.
struct Worker<'a> {
    facts: &'a ProcessFacts,
    located: Located,
    decided: Decided,
}

impl Worker<'_> {
    fn has(&self, role: Role) -> bool {
        self.decided.roles.contains(&role)
    }
}

/// Decides everything. `None` for the main process if nobody says where it listens.
pub(super) fn judge(facts: &Facts, found: &mut Diagnostics) -> (Option<Process>, Vec<Process>) {
    let mut located = place::locate(facts, found).into_iter();
    let main = facts
        .main
        .as_ref()
        .and_then(|main| Some((main, located.next()?)));
    let workers: Vec<Worker<'_>> = facts
        .workers
        .iter()
        .zip(located)
        .map(|(worker, located)| Worker {
            decided: roles::decide(worker, &located, facts, found),
            facts: worker,
            located,
        })
        .collect();
    checks::all(
        facts,
        main.as_ref().map(|(_, located)| located),
        &workers,
        found,
    );
    let main = main.and_then(|(process, located)| {
        let roles = checks::main_s_own(facts, &located);
        main_process(process, located, roles, found)
    });
    let workers = workers
        .into_iter()
        .map(|worker| process(worker.facts, worker.located, worker.decided.roles))
        .collect();
    (main, workers)
}

fn main_process(
    facts: &ProcessFacts,
    located: Located,
    roles: BTreeSet<Role>,
    found: &mut Diagnostics,
) -> Option<Process> {
    let addresses = &located.addresses;
    let fix = "add a listener of type http, with `tls: false`, `x_forwarded: true` and the resources client and federation";
    if !addresses.contains_key(&Resource::Client) {
        if !facts.broken && !located.lost {
            found.push(
                facts.listeners_at.on(Diagnostic::error(
                    "no listener of the main process serves the client API without TLS",
                )
                .fix(fix)),
            );
        }
        return None;
    }
    if !addresses.contains_key(&Resource::Federation) && !located.lost {
        found.push(facts.listeners_at.on(
            Diagnostic::warning(
                "no listener of the main process serves federation without TLS: what only main answers to other servers will be 404",
            )
            .fix(fix),
        ));
    }
    Some(process(facts, located, roles))
}

fn process(facts: &ProcessFacts, mut located: Located, roles: BTreeSet<Role>) -> Process {
    let mut address = |resource| located.addresses.remove(&resource);
    Process {
        name: facts.name.clone(),
        roles,
        client: address(Resource::Client),
        federation: address(Resource::Federation),
        media: address(Resource::Media),
        replicas: facts.replicas,
        weight: facts.weight,
        max_conns: facts.max_conns,
    }
}
