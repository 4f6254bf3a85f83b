//! Servers that are not Synapse: `[mas]`, and the targets of `[[external]]`.

use toml::Spanned;

use super::Reader;
use super::schema;
use crate::input::facts::{Shared, Stated};
use crate::input::values;
use crate::model::{Address, External, ExternalRoute, Mas};

impl Reader<'_> {
    pub(super) fn external(&mut self, own: &schema::ExternalRoute) -> Option<ExternalRoute> {
        let path = self.pattern(&own.path);
        let to = self.server(&own.to, own.authorities.as_ref());
        Some(ExternalRoute {
            path: path?,
            to: to?,
            rewrite: own.rewrite.as_ref().map(|rewrite| self.rewrite(rewrite)),
        })
    }

    /// `[mas]`, held against what Synapse's files say.
    pub(super) fn mas(
        &mut self,
        mas: Option<&schema::Mas>,
        shared: Option<&Shared>,
    ) -> Option<Mas> {
        let delegated = shared.map(|shared| shared.mas.as_ref());
        match (mas, delegated) {
            (None, Some(Some(Stated { value: true, at }))) => self.found.push(
                at.on(crate::diagnostic::Diagnostic::warning(
                    "Synapse leaves login, logout and refresh to the Matrix Authentication Service, and nobody says where that is: they will be 404",
                )
                .fix("add [mas] with address = \"http://127.0.0.1:8080\" to the deployment file")),
            ),
            (Some(mas), Some(None | Some(Stated { value: false, .. }))) => self
                .warning(
                    &mas.address.span(),
                    "Synapse's files do not enable matrix_authentication_service, so Synapse knows nobody who logs in there",
                )
                .fix_with("add matrix_authentication_service to homeserver.yaml, or take [mas] away"),
            _ => {}
        }
        let mas = mas?;
        let server = self.server(&mas.address, mas.authorities.as_ref())?;
        let allow = match &mas.allow {
            Some(allow) => self.networks(allow),
            None => self.own_address(&mas.address, &server),
        };
        Some(Mas { server, allow })
    }

    /// The addresses from which a service calls that listens there.
    fn own_address(&mut self, at: &Spanned<String>, server: &External) -> Vec<String> {
        let this_machine = || {
            vec![
                "127.0.0.0/8".to_owned(),
                "::1".to_owned(),
                "unix:".to_owned(),
            ]
        };
        match &server.address {
            Address::Unix(_) => this_machine(),
            Address::Tcp { host, .. } if host == "localhost" => this_machine(),
            Address::Tcp { host, .. } => match host.parse::<std::net::IpAddr>() {
                Ok(address) if address.is_loopback() => this_machine(),
                Ok(address) => vec![address.to_string()],
                Err(_) => {
                    self.warning(
                        &at.span(),
                        "nginx cannot tell who calls by a name, so /_synapse/mas stays closed for the service too",
                    )
                    .fix_with("add allow = [\"10.0.0.5\"] with its address; or allow = [], if it calls Synapse without nginx between");
                    Vec::new()
                }
            },
            Address::Srv { .. } => Vec::new(),
        }
    }

    /// `http://host:port`, `https://host`, or `unix:/path`.
    fn server(
        &mut self,
        value: &Spanned<String>,
        authorities: Option<&Spanned<String>>,
    ) -> Option<External> {
        let text = value.get_ref();
        let fix = "write \"http://127.0.0.1:8080\", \"https://auth.example.org\" or \"unix:/run/mas.sock\"";
        let (is_tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            None if text.starts_with("unix:") => (false, text.as_str()),
            _ => {
                self.error(
                    &value.span(),
                    "a server begins with http://, https:// or unix:",
                )
                .fix_with(fix);
                return None;
            }
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authorities = authorities.map(|file| self.word(Some(file), ""));
        if let Some(path) = rest.strip_prefix("unix:") {
            let path = path.strip_suffix(':').unwrap_or(path);
            if is_tls || !path.starts_with('/') || !values::is_one_word(path) {
                self.error(
                    &value.span(),
                    "a socket is an absolute path without blanks, and without TLS",
                )
                .fix_with(fix);
                return None;
            }
            return Some(External {
                address: Address::Unix(path.into()),
                tls: None,
                authorities,
            });
        }
        if rest.contains('/') {
            self.error(&value.span(), "a server has no path").fix_with(
                "leave the path away; what it shall be asked for goes under rewrite = \"/api/$1\"",
            );
            return None;
        }
        let Some((host, port)) = host_and_port(rest, if is_tls { 443 } else { 80 }) else {
            self.error(&value.span(), format!("not a host with a port: {rest}"))
                .fix_with(fix);
            return None;
        };
        Some(External {
            tls: is_tls.then(|| host.to_owned()),
            address: Address::Tcp {
                host: host.to_owned(),
                port,
            },
            authorities,
        })
    }

    /// A path for another server, in which nginx puts what the pattern captured.
    fn rewrite(&mut self, value: &Spanned<String>) -> String {
        let text = value.get_ref();
        let without = text
            .split('$')
            .enumerate()
            .all(|(i, part)| i == 0 || part.starts_with(|c: char| ('1'..='9').contains(&c)));
        if !text.starts_with('/') || !without || !values::is_one_word(&text.replace('$', "")) {
            self.error(
                &value.span(),
                "not a path with $1 to $9 for what the pattern captured",
            )
            .fix_with("write rewrite = \"/api/1/report/$1/$2\"");
        }
        text.clone()
    }
}

fn host_and_port(text: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, default),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(v6) => {
            v6.parse::<std::net::Ipv6Addr>().ok()?;
            v6
        }
        None if host.contains(':') || !values::is_host(host) => return None,
        None => host,
    };
    (port > 0).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_port_or_gets_that_of_its_scheme() {
        assert_eq!(host_and_port("mas:8080", 80), Some(("mas", 8080)));
        assert_eq!(
            host_and_port("auth.example.org", 443),
            Some(("auth.example.org", 443))
        );
        assert_eq!(host_and_port("[fd00::1]:8080", 80), Some(("fd00::1", 8080)));
        assert_eq!(host_and_port("[fd00::1]", 80), Some(("fd00::1", 80)));
        for wrong in [
            "",
            "mas:",
            "mas:0",
            "mas:99999",
            "fd00::1",
            "[fd00]:1",
            "a b",
            "user@mas",
        ] {
            assert_eq!(host_and_port(wrong, 80), None, "{wrong}");
        }
    }
}
