//! Where each process is: what it is bound to, else `instance_map`, else `[synapse.hosts]`, else this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::input::facts::{Application, Bound, Facts, ListenerFacts, ProcessFacts, Stated};
use crate::input::values;
use crate::model::{Address, Resource};

/// Where a process serves what.
#[derive(Debug, Default)]
pub(super) struct Located {
    /// One address for each resource that it serves.
    pub addresses: BTreeMap<Resource, Address>,
    /// Listeners at these addresses that do not believe `X-Forwarded-For`.
    pub blind: Vec<usize>,
    /// It is not known where it is, which has been said.
    pub lost: bool,
}

/// Main first, if there is one, then the workers.
pub(super) fn locate(facts: &Facts, found: &mut Diagnostics) -> Vec<Located> {
    let somewhere_else = is_anything_elsewhere(facts);
    let mut used = BTreeSet::new();
    let located: Vec<Located> = facts
        .main
        .iter()
        .chain(&facts.workers)
        .map(|process| process_at(process, facts, somewhere_else, &mut used, found))
        .collect();
    warn_of_unused(facts, &used, found);
    warn_of_several_loopbacks(facts, &located, found);
    located
}

fn process_at(
    process: &ProcessFacts,
    facts: &Facts,
    somewhere_else: bool,
    used: &mut BTreeSet<String>,
    found: &mut Diagnostics,
) -> Located {
    let mut located = Located::default();
    let mut host: Option<Option<String>> = None;
    for (i, listener) in process.listeners.iter().enumerate() {
        if listener.unusable.is_some() {
            continue;
        }
        let address = match &listener.bound {
            Bound::Nowhere => continue,
            Bound::Address(address) => address.clone(),
            Bound::Port(port) => {
                let host = host.get_or_insert_with(|| {
                    host_of(process, listener, facts, somewhere_else, used, found)
                });
                let Some(host) = host.clone() else {
                    located.lost = true;
                    continue;
                };
                Address::Tcp { host, port: *port }
            }
        };
        let mut is_used = false;
        for resource in &listener.serves {
            is_used |= !located.addresses.contains_key(resource);
            located
                .addresses
                .entry(*resource)
                .or_insert_with(|| address.clone());
        }
        if is_used && !listener.x_forwarded {
            located.blind.push(i);
        }
    }
    located
}

/// The host of a process whose listener does not say it.
fn host_of(
    process: &ProcessFacts,
    listener: &ListenerFacts,
    facts: &Facts,
    somewhere_else: bool,
    used: &mut BTreeSet<String>,
    found: &mut Diagnostics,
) -> Option<String> {
    let instance = instance(facts, &process.name);
    if let Some(Some(host)) = instance
        && !is_local(host)
    {
        if values::is_host(host) {
            return Some(host.clone());
        }
        found.push(
            listener.at.on(Diagnostic::error(format!(
                "instance_map says that {} is at something that is no host name or address",
                process.name
            ))
            .fix("write the host there without a port and without http://")),
        );
        return None;
    }
    if let Some((pattern, host)) = narrowest(&facts.hosts, &process.name) {
        used.insert(pattern.to_owned());
        let host = host.value.replace("{name}", &process.name);
        if values::is_host(&host) {
            return Some(host);
        }
        found.push(
            listener.at.on(Diagnostic::error(format!(
                "{{name}} under [synapse.hosts] makes {host}, which is no host name"
            ))
            .fix(format!("name the host of {} itself there", process.name))),
        );
        return None;
    }
    if let Some(host) = &facts.host {
        return Some(host.clone());
    }
    // Where processes reach each other over loopback, they are on one machine.
    let loopback = match instance {
        Some(Some(host)) if host != "localhost" => Some(host.as_str()),
        Some(_) => Some("127.0.0.1"),
        None => (!somewhere_else).then_some("127.0.0.1"),
    };
    if let Some(loopback) = loopback {
        return Some(loopback.to_owned());
    }
    found.push(
        listener.at.on(Diagnostic::error(format!(
            "nobody says on which host {} is, and other processes are not on this machine",
            process.name
        ))
        .fix(format!(
            "add \"{0}\" = \"HOST\" under [synapse.hosts]; or \"*\" = \"{{name}}\" where each host is called as its process; or {0} to Synapse's instance_map",
            process.name
        ))),
    );
    None
}

/// The entry of `instance_map`. Main has two names there.
fn instance<'a>(facts: &'a Facts, name: &str) -> Option<&'a Option<String>> {
    let instances = &facts.shared.as_ref()?.instances;
    instances
        .get(name)
        .or_else(|| instances.get("master").filter(|_| name == "main"))
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether any process is on another machine than nginx.
fn is_anything_elsewhere(facts: &Facts) -> bool {
    let processes = || facts.main.iter().chain(&facts.workers);
    let bound = processes()
        .flat_map(|process| &process.listeners)
        .filter(|listener| listener.unusable.is_none())
        .any(|listener| match &listener.bound {
            Bound::Address(Address::Tcp { host, .. }) => !is_local(host),
            Bound::Address(Address::Srv { .. }) => true,
            _ => false,
        });
    let mapped = facts
        .shared
        .iter()
        .flat_map(|shared| shared.instances.values())
        .flatten()
        .any(|host| !is_local(host));
    let named = processes()
        .filter_map(|process| narrowest(&facts.hosts, &process.name))
        .any(|(_, host)| !is_local(&host.value));
    bound || mapped || named
}

/// The pattern that says most about a name: the name itself, else the longest.
pub(super) fn narrowest<'a, T>(
    patterns: &'a [(String, Stated<T>)],
    name: &str,
) -> Option<(&'a str, &'a Stated<T>)> {
    patterns
        .iter()
        .filter(|(pattern, _)| values::glob(pattern, name))
        .max_by_key(|(pattern, _)| (!pattern.contains('*'), pattern.len()))
        .map(|(pattern, stated)| (pattern.as_str(), stated))
}

/// A host for a process that says itself where it is.
fn warn_of_unused(facts: &Facts, used: &BTreeSet<String>, found: &mut Diagnostics) {
    for (name, host) in &facts.hosts {
        let known = facts.main.iter().chain(&facts.workers);
        let exact = known.into_iter().find(|process| process.name == *name);
        if exact.is_some_and(is_served_at_port) && !used.contains(name) {
            found.push(
                host.at.on(Diagnostic::warning(format!(
                    "its listener or instance_map says where {name} is, so this line has no effect"
                ))
                .fix("take it away, or change the listener's bind_addresses or instance_map")),
            );
        }
    }
}

/// Loopback is the machine that nginx is on, so processes on several hosts cannot all be reached there.
fn warn_of_several_loopbacks(facts: &Facts, located: &[Located], found: &mut Diagnostics) {
    let mut on_loopback = facts
        .main
        .iter()
        .chain(&facts.workers)
        .zip(located)
        .filter(|(process, located)| {
            !matches!(process.application, Application::Declared(_))
                && located.addresses.values().any(is_loopback)
        })
        .filter_map(|(process, _)| Some((process, stated_host(process, facts)?)));
    let Some((first, host)) = on_loopback.next() else {
        return;
    };
    let Some((other, other_host)) = on_loopback.find(|(_, other)| *other != host) else {
        return;
    };
    found.push(
        other.listeners_at.on(Diagnostic::warning(format!(
            "{} is on {host} and {} on {other_host}, and both listen at a loopback address: nginx can reach only those on its own host",
            first.name, other.name
        ))
        .fix("bind each to an address that nginx can reach, as bind_addresses: ['::']; or name the same host for both, if they are on one")),
    );
}

fn is_loopback(address: &Address) -> bool {
    matches!(address, Address::Tcp { host, .. } if is_local(host))
}

/// The host of a process by `instance_map` or `[synapse.hosts]`, if it is not this machine.
fn stated_host(process: &ProcessFacts, facts: &Facts) -> Option<String> {
    if let Some(Some(host)) = instance(facts, &process.name)
        && !is_local(host)
    {
        return Some(host.clone());
    }
    let (_, host) = narrowest(&facts.hosts, &process.name)?;
    let host = host.value.replace("{name}", &process.name);
    (!is_local(&host)).then_some(host)
}

fn is_served_at_port(process: &ProcessFacts) -> bool {
    process
        .listeners
        .iter()
        .any(|listener| !matches!(listener.bound, Bound::Nowhere))
}
