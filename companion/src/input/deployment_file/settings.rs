//! The settings of a deployment file, with their defaults.

use toml::Spanned;

use super::super::values;
use super::Reader;
use super::schema::{File, Listen};
use crate::model::{MediaCache, NginxVersion, Settings, UserHashSettings};

/// Synapse accepts this many bytes on any endpoint, however small `max_upload_size` is
/// (synapse/api/constants.py, `MAX_REQUEST_SIZE`); a proxy that accepts less breaks what Synapse would have taken.
const SYNAPSE_REQUEST: u64 = 200 * 65_536;
/// Synapse's default of `max_upload_size`.
const UPLOAD: u64 = 50 << 20;
/// What a federation request may have at the least.
const FEDERATION: u64 = 100 << 20;
/// Clients hold a sync for 30 seconds, some for minutes; whoever asks for longer than this polls again.
const SYNC_TIMEOUT: u32 = 600;
/// Joining a large room over federation takes minutes.
const READ_TIMEOUT: u32 = 300;
/// Connections of each nginx process. A device that waits for news holds two.
const CONNECTIONS: u32 = 16_384;
/// Networks that no stranger comes from: loopback, those of RFC 1918 and RFC 6598, unique and link-local IPv6 addresses.
const PRIVATE: [&str; 9] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "::1",
    "fc00::/7",
    "fe80::/10",
    "unix:",
];
/// The nginx that is assumed when nobody says which.
pub(super) const ASSUMED_NGINX: NginxVersion = NginxVersion(1, 28, 0);

impl Reader<'_> {
    pub(super) fn settings(&mut self, file: &File, synapse_upload: Option<u64>) -> Settings {
        let upload = self
            .size(file.limits.max_upload_size.as_ref())
            .or(synapse_upload)
            .unwrap_or(UPLOAD);
        let listen = &file.listen;
        let mut client_listen = self.listens(&listen.client);
        if client_listen.is_empty() {
            client_listen.push("8008".into());
        }
        let nginx = self.version(file.nginx.version.as_ref());
        Settings {
            name: self.name(file.name.as_ref()),
            server_names: self.server_names(&listen.server_names),
            client_listen,
            federation_listen: self.listens(&listen.federation),
            tls: self.tls(listen),
            http2: self.http2(listen),
            trusted_proxies: self.networks(&listen.trusted_proxies),
            admin_allow: self.networks_or_all(&listen.admin_allow),
            client_body: self
                .size(file.limits.client_body.as_ref())
                .unwrap_or(upload.max(SYNAPSE_REQUEST)),
            federation_body: self
                .size(file.limits.federation_body.as_ref())
                .unwrap_or(upload.saturating_mul(3).max(FEDERATION)),
            canary: self.canary(file.canary.as_ref()),
            pins: self.pins(&file.pin),
            limits: self.request_limits(&file.limits),
            spread: self.spread(&file.spread),
            sync_read_timeout: self
                .time(file.timeouts.sync.as_ref())
                .unwrap_or(SYNC_TIMEOUT),
            read_timeout: self
                .time(file.timeouts.read.as_ref())
                .unwrap_or(READ_TIMEOUT),
            resolver: self.resolvers(&file.resolver.addresses),
            resolver_valid: self.time(file.resolver.valid.as_ref()),
            resolver_ipv6: file.resolver.ipv6.unwrap_or(true),
            resolve: file.resolver.resolve.unwrap_or(true),
            user_hash: UserHashSettings {
                zone_size: self.nginx_size(file.user_hash.zone_size.as_ref(), "4m"),
                state: file
                    .user_hash
                    .state
                    .as_ref()
                    .map(|state| self.word(Some(state), "")),
            },
            media_cache: file.media_cache.as_ref().map(|cache| MediaCache {
                path: self.word(Some(&cache.path), ""),
                size: self.nginx_size(Some(&cache.size), ""),
            }),
            log_json: self.is_json(file.log.format.as_ref()),
            access_log: self.word(file.log.access.as_ref(), "/dev/stdout"),
            error_log: self.word(file.log.error.as_ref(), "stderr"),
            error_level: self.level(file.log.error_level.as_ref()),
            status_listen: self.status(file.status.listen.as_ref()),
            status_allow: match &file.status.allow {
                Some(allow) => self.networks(allow),
                None => PRIVATE.map(str::to_owned).to_vec(),
            },
            temp: self.word(file.paths.temp.as_ref(), "/tmp"),
            pid: self.word(file.paths.pid.as_ref(), "/tmp/nginx.pid"),
            user: file
                .nginx
                .user
                .as_ref()
                .map(|user| self.word(Some(user), "")),
            module: self.word(
                file.nginx.module.as_ref(),
                "modules/ngx_http_matrix_user_hash_module.so",
            ),
            worker_processes: self.processes(file.nginx.worker_processes.as_ref()),
            worker_connections: self.connections(file.nginx.worker_connections.as_ref()),
            nginx,
        }
    }

    /// A value that goes into nginx's file as one word.
    pub(super) fn word(&mut self, value: Option<&Spanned<String>>, default: &str) -> String {
        let Some(value) = value else {
            return default.to_owned();
        };
        if !values::is_one_word(value.get_ref()) {
            self.error(&value.span(), "nginx would not read this as one word")
                .fix_with("write it without blanks, quotes, braces, `;`, `#`, `$` and backslashes");
        }
        value.get_ref().clone()
    }

    fn words(&mut self, values: &[Spanned<String>]) -> Vec<String> {
        values
            .iter()
            .map(|value| self.word(Some(value), ""))
            .collect()
    }

    /// A size that nginx reads itself: it knows no `T`, and no sizes without digits.
    fn nginx_size(&mut self, value: Option<&Spanned<String>>, default: &str) -> String {
        let Some(value) = value else {
            return default.to_owned();
        };
        let text = value.get_ref();
        if values::size(text).is_none_or(|size| size == 0) || text.ends_with(['t', 'T']) {
            self.error(&value.span(), format!("not a size: {text}"))
                .fix_with("write it as nginx does: \"4m\" or \"10g\"");
        }
        text.clone()
    }

    fn size(&mut self, value: Option<&Spanned<String>>) -> Option<u64> {
        let value = value?;
        // To nginx, a limit of 0 is none.
        let size = values::size(value.get_ref()).filter(|size| *size > 0);
        if size.is_none() {
            self.error(&value.span(), format!("not a size: {}", value.get_ref()))
                .fix_with("write it as Synapse does: \"50M\"");
        }
        size
    }

    fn time(&mut self, value: Option<&Spanned<String>>) -> Option<u32> {
        let value = value?;
        let seconds = values::seconds(value.get_ref()).filter(|seconds| *seconds > 0);
        if seconds.is_none() {
            self.error(&value.span(), format!("not a time: {}", value.get_ref()))
                .fix_with("write it as nginx does: \"90s\" or \"10m\"");
        }
        seconds
    }

    /// `8008`, `"127.0.0.1:8008"`, `"[::]:8008"`, `"unix:/run/nginx.sock"`.
    fn listens(&mut self, values: &[Spanned<toml::Value>]) -> Vec<String> {
        let mut listens = Vec::new();
        for value in values {
            let listen = match value.get_ref() {
                toml::Value::Integer(port) => {
                    u16::try_from(*port).ok().map(|port| port.to_string())
                }
                toml::Value::String(listen) => is_listen(listen).then(|| listen.clone()),
                _ => None,
            };
            match listen {
                Some(listen) => listens.push(listen),
                None => self
                    .error(&value.span(), "not something to listen on")
                    .fix_with("write 8008, \"127.0.0.1:8008\", \"[::]:8008\" or \"unix:/run/matrix.sock\""),
            }
        }
        listens
    }

    fn status(&mut self, listen: Option<&Spanned<String>>) -> Option<String> {
        let Some(listen) = listen else {
            return Some("127.0.0.1:8090".into());
        };
        if listen.get_ref() == "off" {
            return None;
        }
        if !is_listen(listen.get_ref()) {
            self.error(&listen.span(), "not something to listen on")
                .fix_with("write \"127.0.0.1:8090\", or \"off\"");
        }
        Some(listen.get_ref().clone())
    }

    /// Addresses of name servers, with a port or without, in nginx's form.
    fn resolvers(&mut self, values: &[Spanned<String>]) -> Vec<String> {
        let mut resolvers = Vec::new();
        for value in values {
            let text = value.get_ref();
            if text.parse::<std::net::Ipv6Addr>().is_ok() {
                resolvers.push(format!("[{text}]"));
            } else if values::is_host(text) || is_listen(text) && !text.starts_with("unix:") {
                resolvers.push(text.clone());
            } else {
                self.error(&value.span(), format!("not a name server: {text}"))
                    .fix_with("write \"10.96.0.10\", \"127.0.0.1:5353\" or \"fd00::a\"");
            }
        }
        resolvers
    }

    fn server_names(&mut self, values: &[Spanned<String>]) -> Vec<String> {
        for value in values {
            let name = value.get_ref();
            if name.contains(['/', ':']) {
                self.error(&value.span(), format!("not the name of a host: {name}"))
                    .fix_with("write \"matrix.example.org\", without https:// and without a port");
            }
        }
        self.words(values)
    }

    fn connections(&mut self, value: Option<&Spanned<u32>>) -> u32 {
        let Some(value) = value else {
            return CONNECTIONS;
        };
        // A client that waits and the worker that it waits for are two; nginx has a few of its own.
        if *value.get_ref() < 64 {
            self.error(&value.span(), "too few connections to serve anybody")
                .fix_with("write twice the number of clients that one process shall serve: 8192");
        }
        *value.get_ref()
    }

    /// What names begin with. nginx has them in variables, and PCRE in groups of 32 characters.
    fn name(&mut self, value: Option<&Spanned<String>>) -> String {
        let Some(value) = value else {
            return crate::plan::NAME.to_owned();
        };
        let text = value.get_ref();
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !begins || !text.chars().all(fits) || text.len() > 20 {
            self.error(
                &value.span(),
                "a name has up to 20 small letters, digits and `_`, a letter first",
            )
            .fix_with("write name = \"example\"");
        }
        text.clone()
    }

    /// As [`Self::networks`], and `all` for everybody.
    fn networks_or_all(&mut self, values: &[Spanned<String>]) -> Vec<String> {
        match values {
            [all] if all.get_ref() == "all" => vec!["all".to_owned()],
            _ => self.networks(values),
        }
    }

    pub(super) fn networks(&mut self, values: &[Spanned<String>]) -> Vec<String> {
        for value in values {
            let text = value.get_ref();
            let (address, prefix) = text.split_once('/').unwrap_or((text, "0"));
            let is_address = address.parse::<std::net::IpAddr>().is_ok();
            let fits = prefix
                .parse::<u8>()
                .is_ok_and(|p| p <= if address.contains(':') { 128 } else { 32 });
            if text != "unix:" && !(is_address && fits) {
                self.error(
                    &value.span(),
                    format!("not an address or a network: {text}"),
                )
                .fix_with("write \"10.0.0.0/8\", \"fd00::/8\" or \"unix:\"");
            }
        }
        self.words(values)
    }

    fn tls(&mut self, listen: &Listen) -> Option<(String, String)> {
        match (&listen.certificate, &listen.certificate_key) {
            (Some(certificate), Some(key)) => {
                Some((self.word(Some(certificate), ""), self.word(Some(key), "")))
            }
            (None, None) => None,
            (Some(one), None) => {
                self.error(&one.span(), "a certificate without its key")
                    .fix_with("add certificate_key = \"/etc/ssl/private/matrix.key\"");
                None
            }
            (None, Some(one)) => {
                self.error(&one.span(), "a key without its certificate")
                    .fix_with("add certificate = \"/etc/ssl/certs/matrix.pem\"");
                None
            }
        }
    }

    fn http2(&mut self, listen: &Listen) -> bool {
        let Some(http2) = &listen.http2 else {
            return false;
        };
        if *http2.get_ref() && listen.certificate.is_none() {
            self.error(&http2.span(), "HTTP/2 is for listeners with TLS, and there is no certificate")
                .fix_with("add certificate and certificate_key, or take http2 away: whoever ends TLS in front speaks it with clients");
        }
        *http2.get_ref()
    }

    fn is_json(&mut self, format: Option<&Spanned<String>>) -> bool {
        match format.map(|format| (format.get_ref().as_str(), format.span())) {
            None | Some(("text", _)) => false,
            Some(("json", _)) => true,
            Some((other, span)) => {
                self.error(&span, format!("no such log format: {other}"))
                    .fix_with("write \"text\" or \"json\"");
                false
            }
        }
    }

    fn level(&mut self, level: Option<&Spanned<String>>) -> String {
        const LEVELS: [&str; 8] = [
            "debug", "info", "notice", "warn", "error", "crit", "alert", "emerg",
        ];
        // nginx writes the whole request line beside each error, a token in the query included; beside a full disk (crit) too.
        let Some(level) = level else {
            return "alert".into();
        };
        if !LEVELS.contains(&level.get_ref().as_str()) {
            self.error(&level.span(), format!("no such level: {}", level.get_ref()))
                .fix_with(format!("use one of {}", LEVELS.join(", ")));
        }
        level.get_ref().clone()
    }

    fn version(&mut self, version: Option<&Spanned<String>>) -> NginxVersion {
        let Some(version) = version else {
            return ASSUMED_NGINX;
        };
        NginxVersion::parse(version.get_ref()).unwrap_or_else(|| {
            self.error(
                &version.span(),
                format!("not a version of nginx: {}", version.get_ref()),
            )
            .fix_with("write it as `nginx -v` shows it: \"1.28.3\"");
            ASSUMED_NGINX
        })
    }

    fn processes(&mut self, value: Option<&Spanned<toml::Value>>) -> String {
        match value.map(|value| (value.get_ref(), value.span())) {
            None => "auto".into(),
            Some((toml::Value::Integer(n), _)) if *n > 0 => n.to_string(),
            Some((toml::Value::String(text), _)) if text == "auto" => "auto".into(),
            Some((_, span)) => {
                self.error(&span, "not a number of processes")
                    .fix_with("write 2 or \"auto\"");
                "auto".into()
            }
        }
    }
}

fn is_listen(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(path) = text.strip_prefix("unix:") {
        return path.starts_with('/') && values::is_one_word(path);
    }
    match text.rsplit_once(':') {
        None => port(text),
        Some((host, number)) => {
            let bare = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'));
            let host_fits = match bare {
                Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
                None => host == "*" || (values::is_host(host) && !host.contains(':')),
            };
            host_fits && port(number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nginx_can_listen_on_is_known() {
        for listen in [
            "8008",
            "127.0.0.1:8008",
            "[::]:8008",
            "*:8008",
            "unix:/run/m.sock",
        ] {
            assert!(is_listen(listen), "{listen}");
        }
        for listen in [
            "",
            "0",
            "http://x:1",
            "::1:8008",
            "unix:relative",
            "8008 ssl",
        ] {
            assert!(!is_listen(listen), "{listen}");
        }
    }
}
