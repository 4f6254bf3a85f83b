//! Where a process listens, and how much of its group it takes.

use std::ops::Range;

use toml::Spanned;

use super::Reader;
use crate::input::values;
use crate::model::Address;

/// The keys that say where something listens.
pub(super) struct Listener<'a> {
    pub host: Option<&'a Spanned<String>>,
    pub port: Option<&'a Spanned<u16>>,
    pub socket: Option<&'a Spanned<String>>,
    pub service: Option<&'a Spanned<String>>,
}

impl Listener<'_> {
    pub(super) fn is_given(&self) -> bool {
        self.host.is_some()
            || self.port.is_some()
            || self.socket.is_some()
            || self.service.is_some()
    }
}

/// The same host, another port.
pub(super) fn other_port(address: &Address, port: Option<&Spanned<u16>>) -> Option<Address> {
    match (address, port) {
        (Address::Tcp { host, .. }, Some(port)) => Some(Address::Tcp {
            host: host.clone(),
            port: *port.get_ref(),
        }),
        _ => None,
    }
}

/// nginx multiplies a weight by 160 points; more than this is no share that anybody means.
const HEAVIEST: u16 = 100;

impl Reader<'_> {
    pub(super) fn address(
        &mut self,
        listener: &Listener<'_>,
        whole: Range<usize>,
    ) -> Option<Address> {
        match *listener {
            Listener {
                socket: Some(socket),
                host: None,
                port: None,
                service: None,
            } => self.socket(socket),
            Listener {
                socket: None,
                host: Some(host),
                port,
                service,
            } => self.host_with(host, port, service, whole),
            Listener {
                socket: Some(_), ..
            } => {
                self.error(&whole, "it listens on a socket or on a host, not on both")
                    .fix_with("take either socket or host and port away");
                None
            }
            _ => {
                self.error(&whole, "nobody says where it listens")
                    .fix_with("add host = \"127.0.0.1\" and port = 8083, or socket = \"/run/…\"");
                None
            }
        }
    }

    fn socket(&mut self, socket: &Spanned<String>) -> Option<Address> {
        let path = socket.get_ref();
        if path.starts_with('/') && values::is_one_word(path) {
            return Some(Address::Unix(path.into()));
        }
        self.error(
            &socket.span(),
            "a socket is an absolute path without blanks",
        )
        .fix_with("write socket = \"/run/synapse/sync1.sock\"");
        None
    }

    fn host_with(
        &mut self,
        host: &Spanned<String>,
        port: Option<&Spanned<u16>>,
        service: Option<&Spanned<String>>,
        whole: Range<usize>,
    ) -> Option<Address> {
        if !values::is_host(host.get_ref()) {
            self.host(host);
            return None;
        }
        let name = host.get_ref().clone();
        match (port, service) {
            (Some(port), None) if *port.get_ref() == 0 => self
                .error(&port.span(), "nobody can be reached at port 0")
                .fix_with("write the port of the worker's listener: 8083"),
            (Some(port), None) => {
                return Some(Address::Tcp {
                    host: name,
                    port: *port.get_ref(),
                });
            }
            (None, Some(_)) if name.parse::<std::net::IpAddr>().is_ok() => self
                .error(&host.span(), "an address has no SRV records")
                .fix_with("write the name of the service here, or a port instead of service"),
            (None, Some(service)) if values::is_host(service.get_ref()) => {
                return Some(Address::Srv {
                    host: name,
                    service: service.get_ref().clone(),
                });
            }
            (None, Some(service)) => self
                .error(&service.span(), "not the name of a service")
                .fix_with("write service = \"http\", the name of the port in Kubernetes"),
            (Some(_), Some(service)) => self
                .error(&service.span(), "a port and a service, whose records say the port")
                .fix_with("take one of the two away"),
            (None, None) => self
                .error(&whole, "a host needs either a port or a DNS service")
                .fix_with("add port = 8083; or service = \"http\" where DNS has SRV records, as in Kubernetes"),
        }
        None
    }

    /// A host's name as it is written, with a message if it is none.
    pub(super) fn host(&mut self, host: &Spanned<String>) -> String {
        if !values::is_host(host.get_ref()) {
            self.error(
                &host.span(),
                format!("not a host name or an address: {}", host.get_ref()),
            )
            .fix_with("write \"sync1\" or \"10.0.0.7\", with the port apart and without http://");
        }
        host.get_ref().clone()
    }

    /// A host in which `{name}` stands for the process's name.
    pub(super) fn host_pattern(&mut self, host: &Spanned<String>) -> String {
        let pattern = host.get_ref();
        if pattern.contains("{name}") && values::is_host(&pattern.replace("{name}", "x")) {
            return pattern.clone();
        }
        self.host(host)
    }

    /// Another port of the same host needs a host that has ports.
    pub(super) fn no_port_beside(&mut self, client: &Address, port: Option<&Spanned<u16>>) {
        if let (Address::Unix(_) | Address::Srv { .. }, Some(port)) = (client, port) {
            self.error(
                &port.span(),
                "only a worker with a host and a port can have another port",
            )
            .fix_with("take it away, or give host and port instead of socket or service");
        }
    }

    pub(super) fn replicas(
        &mut self,
        replicas: Option<&Spanned<u16>>,
        client: Option<&Address>,
    ) -> u16 {
        let Some(replicas) = replicas else { return 1 };
        if !matches!(client, Some(Address::Srv { .. })) {
            self.error(
                &replicas.span(),
                "only a DNS service has several workers behind one entry",
            )
            .fix_with("write [[workers]] for each, with its own name and address; or say service = \"http\"");
        }
        if *replicas.get_ref() == 0 {
            self.error(&replicas.span(), "no worker at all")
                .fix_with("take the whole entry away, or write how many there are");
        }
        *replicas.get_ref()
    }

    pub(super) fn weight(&mut self, weight: Option<&Spanned<u16>>) -> u16 {
        let Some(weight) = weight else { return 1 };
        if !(1..=HEAVIEST).contains(weight.get_ref()) {
            self.error(
                &weight.span(),
                format!("a weight is a number from 1 to {HEAVIEST}"),
            )
            .fix_with("write 2 for a worker that shall have twice the share of the others");
        }
        *weight.get_ref()
    }

    pub(super) fn max_conns(&mut self, most: Option<&Spanned<u32>>) -> Option<u32> {
        let most = most?;
        // To nginx, a limit of 0 is none.
        if *most.get_ref() == 0 {
            self.error(&most.span(), "a limit of 0 connections is none")
                .fix_with("write max_conns = 2000, or leave it out");
        }
        Some(*most.get_ref())
    }
}
