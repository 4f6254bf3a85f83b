//! Where a Synapse process listens, as far as nginx can reach it: plain HTTP with a resource that is routed to.

use std::collections::{BTreeMap, BTreeSet};

use serde_saphyr::Spanned;

use super::schema::YamlListener;
use super::{Options, Part, place};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::input::values;
use crate::model::{Address, Process, Role};

/// The host of a process whose listeners do not say it.
pub(super) fn host_of(
    name: &str,
    instances: &BTreeMap<String, String>,
    options: &Options,
) -> String {
    let known = options.hosts.get(name).or_else(|| instances.get(name));
    let known = known.filter(|host| host.as_str() != "localhost");
    known.cloned().unwrap_or_else(|| options.host.clone())
}

/// Where a process listens, by resource. A listener that serves several is kept for each.
pub(super) fn process(
    name: &str,
    roles: BTreeSet<Role>,
    part: &Part,
    key: &str,
    listeners: &[Spanned<YamlListener>],
    host: &str,
    found: &mut Diagnostics,
) -> Process {
    let mut process = Process {
        name: name.to_owned(),
        roles,
        client: None,
        federation: None,
        media: None,
        replicas: 1,
        weight: 1,
    };
    for (i, listener) in listeners.iter().enumerate() {
        let at = place(part, listener);
        let listener = &listener.value;
        let is_http = listener.kind.as_deref() == Some("http");
        let names: Vec<&str> = listener
            .resources
            .iter()
            .flatten()
            .flat_map(|r| &r.names)
            .map(String::as_str)
            .collect();
        if is_http && names.is_empty() {
            found.push(
                Diagnostic::warning(format!(
                    "{name} gets no requests here: the listener has no resources"
                ))
                .at(&at)
                .key(format!("{key}[{i}].resources"))
                .fix("add resources: [{names: [client, federation]}], or take the listener away"),
            );
        }
        let serves = ["client", "federation", "media"]
            .iter()
            .any(|name| names.contains(name));
        // nginx speaks plain HTTP to workers; a listener with TLS is for somebody else.
        if !is_http || !serves || listener.tls {
            continue;
        }
        let Some(address) = address(listener, host) else {
            found.push(
                Diagnostic::error("a listener has no port or path that nginx could be given")
                    .at(&at)
                    .key(format!("{key}[{i}]"))
                    .fix("add port: 8083, or path: /run/synapse/sync1.sock"),
            );
            continue;
        };
        if !listener.x_forwarded.unwrap_or(listener.path.is_some()) {
            found.push(
                Diagnostic::warning(format!("behind nginx, {name} will take nginx for the client: it does not read X-Forwarded-For"))
                    .at(&at)
                    .key(format!("{key}[{i}].x_forwarded"))
                    .fix("add x_forwarded: true to this listener"),
            );
        }
        let slots = [
            ("client", &mut process.client),
            ("federation", &mut process.federation),
            ("media", &mut process.media),
        ];
        for (resource, slot) in slots {
            if names.contains(&resource) && slot.is_none() {
                *slot = Some(address.clone());
            }
        }
    }
    process
}

fn address(listener: &YamlListener, host: &str) -> Option<Address> {
    if let Some(path) = &listener.path {
        let fits = path.starts_with('/') && values::is_one_word(path);
        return fits.then(|| Address::Unix(path.into()));
    }
    let bound: Vec<std::net::IpAddr> = listener
        .bind_address
        .iter()
        .chain(listener.bind_addresses.iter().flatten())
        .filter_map(|address| address.parse().ok())
        .collect();
    // An address of its own says where it is; a loopback, that nginx has to be there too; a wildcard says nothing.
    let own = bound
        .iter()
        .find(|ip| !ip.is_unspecified() && !ip.is_loopback());
    let loopback = bound
        .iter()
        .filter(|_| bound.iter().all(std::net::IpAddr::is_loopback))
        .max_by_key(|ip| ip.is_ipv4());
    let host = own
        .or(loopback)
        .map_or_else(|| host.to_owned(), ToString::to_string);
    if !values::is_host(&host) {
        return None;
    }
    Some(Address::Tcp {
        host,
        port: listener.port?,
    })
}
