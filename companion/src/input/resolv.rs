//! The system's name servers, for nginx, which does not read /etc/resolv.conf itself.

use std::net::IpAddr;
use std::path::Path;

use crate::diagnostic::{Diagnostic, Place};
use crate::model::Address;

/// What /etc/resolv.conf says.
#[derive(Debug)]
pub(super) struct Resolv {
    /// In nginx's form: an IPv6 address in brackets.
    pub nameservers: Vec<String>,
    /// Domains that the C library appends and nginx does not.
    search: Vec<String>,
}

/// Reads a file in the form of resolv.conf(5).
///
/// # Errors
/// It cannot be read, or names no server.
pub(super) fn read(path: &Path) -> Result<Resolv, Diagnostic> {
    let fix = "name the servers under [resolver]: addresses = [\"10.96.0.10\"]";
    let text = std::fs::read_to_string(path).map_err(|error| {
        Diagnostic::error(format!(
            "no name server is known: cannot read {}: {error}",
            path.display()
        ))
        .key("resolver.addresses")
        .fix(fix)
    })?;
    let parsed = parse(&text);
    if parsed.nameservers.is_empty() {
        return Err(Diagnostic::error(
            "no name server is known: this file has no `nameserver` line",
        )
        .at(&Place::file(path))
        .key("resolver.addresses")
        .fix(fix));
    }
    Ok(parsed)
}

fn parse(text: &str) -> Resolv {
    let mut resolv = Resolv {
        nameservers: Vec::new(),
        search: Vec::new(),
    };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolv
                .nameservers
                .extend(words.next().and_then(in_nginx_form)),
            Some("search" | "domain") => resolv.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    resolv
}

/// A zone (`fe80::1%eth0`) means nothing to nginx, so such a server is left out.
fn in_nginx_form(address: &str) -> Option<String> {
    match address.parse().ok()? {
        IpAddr::V4(address) => Some(address.to_string()),
        IpAddr::V6(address) => Some(format!("[{address}]")),
    }
}

impl Resolv {
    /// Inside Kubernetes a short name works for everybody but nginx.
    pub(super) fn warns_about(&self, addresses: &[&Address]) -> Option<Diagnostic> {
        let cluster = self
            .search
            .iter()
            .find(|domain| domain.starts_with("svc."))?;
        let namespace = self
            .search
            .iter()
            .find(|domain| domain.ends_with(&format!(".{cluster}")));
        let short = addresses
            .iter()
            .filter_map(|address| address.dns_name())
            .find(|name| {
                !name
                    .trim_end_matches('.')
                    .ends_with(cluster.trim_start_matches("svc."))
            })?;
        let full = namespace.map_or_else(
            || format!("{short}.NAMESPACE.{cluster}"),
            |namespace| format!("{}.{namespace}", short.split('.').next().unwrap_or(short)),
        );
        Some(
            Diagnostic::warning(format!("nginx does not append the search domains of resolv.conf, so it will not find {short}"))
                .fix(format!("write the whole name: {full}")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_written_as_nginx_reads_them() {
        let resolv = parse(
            "# by hand\nnameserver 10.96.0.10\nnameserver fd00::a\nnameserver fe80::1%eth0\n",
        );
        assert_eq!(resolv.nameservers, ["10.96.0.10", "[fd00::a]"]);
    }

    #[test]
    fn a_short_name_in_kubernetes_is_warned_about() {
        let resolv = parse(
            "search matrix.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\n",
        );
        let short = Address::Tcp {
            host: "synapse-main".into(),
            port: 8008,
        };
        let full = Address::Tcp {
            host: "synapse-main.matrix.svc.cluster.local".into(),
            port: 8008,
        };
        let warning = resolv.warns_about(&[&short]).unwrap().to_string();
        assert!(
            warning.contains("synapse-main.matrix.svc.cluster.local"),
            "{warning}"
        );
        assert!(resolv.warns_about(&[&full]).is_none());
    }
}
