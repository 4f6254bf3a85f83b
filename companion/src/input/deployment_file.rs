//! The deployment file: TOML, short, every key optional but the workers.
//!
//! In comes its text, out comes a deployment or diagnostics with line, key and fix. Unknown keys are errors, for a
//! mistyped key that is ignored is a setting that does not hold. It may name Synapse's own files, which are then read
//! by `synapse_files`, with this file's settings on top.

mod messages;
mod schema;
mod settings;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use self::schema::{File, Main, OwnRoute, SynapseSection, Worker};
use super::{Request, synapse_files, text_of, values};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, nearest};
use crate::model::{Address, Deployment, Override, Process, Role, Stream};

/// What `init` writes.
pub const EXAMPLE: &str = include_str!("../../templates/example.toml");

/// The file while it is read: what a span means, and where to report.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    found: &'a mut Diagnostics,
}

/// Reads what the request names.
pub fn read(request: &Request, found: &mut Diagnostics) -> Option<Deployment> {
    let path = request.deployment.clone().unwrap_or_default();
    let text = match &request.deployment {
        Some(path) => text_of(path, found)?,
        None => String::new(),
    };
    let mut reader = Reader {
        path: &path,
        text: &text,
        found,
    };
    let file: File = match toml::from_str(&text) {
        Ok(file) => file,
        Err(error) => {
            reader.syntax(&error);
            return None;
        }
    };
    reader.deployment(file, request)
}

impl Reader<'_> {
    fn deployment(&mut self, file: File, request: &Request) -> Option<Deployment> {
        let mut synapse = self.synapse(&file, request);
        let mut settings = self.settings(&file, synapse.as_ref().and_then(|s| s.max_upload_size));
        let installed = request.installed.filter(|_| file.nginx.version.is_none());
        if let Some(version) = request.nginx.or(installed) {
            settings.nginx = version;
        }
        let main = match (&file.main, synapse.as_mut().and_then(|s| s.main.take())) {
            (Some(main), _) => self.main(main)?,
            (None, Some(main)) => main,
            (None, None) => {
                self.found.push(
                    Diagnostic::error("nobody says where the main process listens")
                        .at(&Place::file(self.path))
                        .key("main")
                        .fix("add [main] with host = \"127.0.0.1\" and port = 8008"),
                );
                return None;
            }
        };
        let mut workers: Vec<Process> = file
            .workers
            .iter()
            .filter_map(|worker| self.worker(worker))
            .collect();
        workers.extend(synapse.map(|synapse| synapse.workers).unwrap_or_default());
        let overrides = file
            .overrides
            .iter()
            .filter_map(|own| self.own_route(own))
            .collect();
        let deployment = Deployment {
            main,
            workers,
            overrides,
            settings,
        };
        self.judge_workers(&deployment, &file);
        Some(deployment)
    }

    fn synapse(&mut self, file: &File, request: &Request) -> Option<synapse_files::Found> {
        let none = SynapseSection::default();
        let section = file.synapse.as_ref().unwrap_or(&none);
        let base = self.path.parent().unwrap_or(Path::new("")).to_owned();
        let below = |paths: &[PathBuf]| paths.iter().map(|p| base.join(p)).collect::<Vec<_>>();
        let homeserver = [below(&section.homeserver), request.homeserver.clone()].concat();
        let workers = [below(&section.workers), request.workers.clone()].concat();
        if homeserver.is_empty() {
            if !workers.is_empty() {
                self.found.push(
                    Diagnostic::error("worker files are named, but not the homeserver.yaml that they share")
                        .key("synapse.homeserver")
                        .fix("add homeserver = [\"/etc/matrix-synapse/homeserver.yaml\"], or --homeserver"),
                );
            }
            return None;
        }
        let roles = self.role_patterns(&section.roles);
        let hosts = section
            .hosts
            .iter()
            .filter_map(|(name, host)| Some((name.clone(), host.as_str()?.to_owned())))
            .collect();
        let host = section
            .host
            .as_ref()
            .map_or("127.0.0.1", |host| host.get_ref());
        let options = synapse_files::Options {
            roles,
            hosts,
            host: host.to_owned(),
        };
        synapse_files::read(&homeserver, &workers, &options, self.found)
    }

    fn role_patterns(&mut self, roles: &toml::Table) -> Vec<(String, BTreeSet<Role>)> {
        let mut patterns = Vec::new();
        for (pattern, names) in roles {
            // Values in a table have no span of their own; the pattern is unique, so its line is found by it.
            let at = self.text.find(pattern.as_str()).unwrap_or(0);
            let span = at..at + pattern.len();
            if let Some(roles) = self.roles(names, span) {
                patterns.push((pattern.clone(), roles));
            }
        }
        patterns
    }

    fn main(&mut self, main: &Spanned<Main>) -> Option<Process> {
        let span = main.span();
        let main = main.get_ref();
        let listener = Listener {
            host: main.host.as_ref(),
            port: main.port.as_ref(),
            socket: main.socket.as_ref(),
            service: main.service.as_ref(),
        };
        let client = self.address(&listener, span)?;
        let federation = other_port(&client, main.federation_port.as_ref());
        Some(Process {
            name: "main".into(),
            roles: BTreeSet::new(),
            client: Some(client),
            federation,
            media: None,
            replicas: 1,
        })
    }

    fn worker(&mut self, worker: &Spanned<Worker>) -> Option<Process> {
        let span = worker.span();
        let worker = worker.get_ref();
        let roles = self.roles(worker.kind.get_ref(), worker.kind.span())?;
        if !values::is_one_word(worker.name.get_ref()) {
            self.error(&worker.name.span(), "a worker's name must be one word")
                .fix_with("use Synapse's worker_name");
            return None;
        }
        let takes_requests = roles.iter().any(|role| !matches!(role, Role::Nothing(_)));
        let listener = Listener {
            host: worker.host.as_ref(),
            port: worker.port.as_ref(),
            socket: worker.socket.as_ref(),
            service: worker.service.as_ref(),
        };
        // A worker that no request is for need not listen.
        let client = if takes_requests || listener.is_given() {
            Some(self.address(&listener, span)?)
        } else {
            None
        };
        let other = |port| client.as_ref().and_then(|client| other_port(client, port));
        Some(Process {
            name: worker.name.get_ref().clone(),
            roles,
            federation: other(worker.federation_port.as_ref()),
            media: other(worker.media_port.as_ref()),
            replicas: worker.replicas.unwrap_or(1).max(1),
            client,
        })
    }

    fn roles(&mut self, kind: &toml::Value, span: Range<usize>) -> Option<BTreeSet<Role>> {
        let names: Option<Vec<&str>> = match kind {
            toml::Value::String(name) => Some(vec![name]),
            toml::Value::Array(names) => names.iter().map(toml::Value::as_str).collect(),
            _ => None,
        };
        let Some(names) = names.filter(|names| !names.is_empty()) else {
            self.error(&span, "a worker's type is a name or a list of names")
                .fix_with("write type = \"sync\" or type = [\"room\", \"client_reader\"]");
            return None;
        };
        let mut roles = BTreeSet::new();
        for name in names {
            if let Some(stood_for) = Role::from_name(name) {
                roles.extend(stood_for);
                continue;
            }
            let fix = match nearest(name, Role::names()) {
                Some(near) => format!("write \"{near}\""),
                None => {
                    format!(
                        "use one of {}",
                        Role::names().collect::<Vec<_>>().join(", ")
                    )
                }
            };
            self.error(&span, format!("no such worker type: {name}"))
                .fix_with(fix);
            return None;
        }
        Some(roles)
    }

    fn address(&mut self, listener: &Listener<'_>, whole: Range<usize>) -> Option<Address> {
        match listener {
            Listener {
                socket: Some(socket),
                host: None,
                port: None,
                service: None,
            } => {
                let path = socket.get_ref();
                if path.starts_with('/') && values::is_one_word(path) {
                    return Some(Address::Unix(path.into()));
                }
                self.error(
                    &socket.span(),
                    "a socket is an absolute path without blanks",
                )
                .fix_with("write socket = \"/run/synapse/sync1.sock\"");
            }
            Listener {
                socket: None,
                host: Some(host),
                port,
                service,
            } => {
                if !values::is_host(host.get_ref()) {
                    self.error(
                        &host.span(),
                        format!("not a host name or an address: {}", host.get_ref()),
                    )
                    .fix_with("write host = \"sync1\", with the port apart and without http://");
                    return None;
                }
                let host = host.get_ref().clone();
                match (port, service) {
                    (Some(port), None) if *port.get_ref() > 0 => {
                        return Some(Address::Tcp { host, port: *port.get_ref() });
                    }
                    (None, Some(service)) if values::is_host(service.get_ref()) => {
                        return Some(Address::Srv { host, service: service.get_ref().clone() });
                    }
                    _ => self
                        .error(&whole, "a host needs either a port or a DNS service")
                        .fix_with("add port = 8083; or service = \"http\" where DNS has SRV records, as in Kubernetes"),
                }
            }
            Listener {
                socket: Some(_), ..
            } => self
                .error(&whole, "it listens on a socket or on a host, not on both")
                .fix_with("take either socket or host and port away"),
            _ => self
                .error(&whole, "nobody says where it listens")
                .fix_with("add host = \"127.0.0.1\" and port = 8083, or socket = \"/run/…\""),
        }
        None
    }

    fn own_route(&mut self, own: &OwnRoute) -> Option<Override> {
        let path = own.path.get_ref();
        if let Err(error) = regex::Regex::new(path) {
            let reason = error.to_string();
            let reason = reason
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            self.error(
                &own.path.span(),
                format!("not a regular expression: {reason}"),
            )
            .fix_with("write path = \"^/_matrix/client/v3/search$\"");
            return None;
        }
        if path
            .chars()
            .any(|c| c.is_whitespace() || "{};\"'#$\\".contains(c) && !"$\\".contains(c))
        {
            self.error(
                &own.path.span(),
                "nginx would read blanks, braces, quotes, `;` and `#` as its own syntax",
            )
            .fix_with(
                "say it without them: [0-9][0-9] instead of [0-9]{2}, \\s instead of a blank",
            );
            return None;
        }
        let name = own.to.get_ref();
        let to = match name.as_str() {
            "main" => None,
            _ => {
                let role = Role::NAMED
                    .iter()
                    .find(|(known, _)| known == name)
                    .map(|(_, r)| *r);
                if role.is_none_or(|role| matches!(role, Role::Nothing(_))) {
                    self.error(&own.to.span(), format!("no such group: {name}"))
                        .fix_with("write \"main\" or the type of the workers that shall have it");
                    return None;
                }
                role
            }
        };
        Some(Override {
            path: path.clone(),
            to,
        })
    }

    /// Two workers of one name, or two writers where Synapse takes one.
    fn judge_workers(&mut self, deployment: &Deployment, file: &File) {
        let mut names = BTreeSet::new();
        for worker in &file.workers {
            let name = &worker.get_ref().name;
            if !names.insert(name.get_ref()) {
                self.error(
                    &name.span(),
                    format!("two workers are called {}", name.get_ref()),
                )
                .fix_with("give each its own worker_name");
            }
        }
        for stream in Stream::ALL
            .into_iter()
            .filter(|stream| stream.single_writer())
        {
            let writes = |worker: &&Process| worker.roles.contains(&Role::Writer(stream));
            let Some(second) = deployment.workers.iter().filter(writes).nth(1) else {
                continue;
            };
            let spanned = file
                .workers
                .iter()
                .find(|w| *w.get_ref().name.get_ref() == second.name);
            let span = spanned.map_or(0..0, |worker| worker.get_ref().kind.span());
            self.error(
                &span,
                format!(
                    "Synapse takes one writer for the stream {}, and there are two",
                    stream.name()
                ),
            )
            .fix_with("leave the type to the worker that stream_writers names in homeserver.yaml");
        }
    }
}

/// The keys that say where something listens.
struct Listener<'a> {
    host: Option<&'a Spanned<String>>,
    port: Option<&'a Spanned<u16>>,
    socket: Option<&'a Spanned<String>>,
    service: Option<&'a Spanned<String>>,
}

impl Listener<'_> {
    fn is_given(&self) -> bool {
        self.host.is_some()
            || self.port.is_some()
            || self.socket.is_some()
            || self.service.is_some()
    }
}

/// The same host, another port.
fn other_port(address: &Address, port: Option<&Spanned<u16>>) -> Option<Address> {
    match (address, port) {
        (Address::Tcp { host, .. }, Some(port)) => Some(Address::Tcp {
            host: host.clone(),
            port: *port.get_ref(),
        }),
        _ => None,
    }
}
