//! The deployment file: TOML, short, every key optional but the workers.
//!
//! In comes its text, out comes a deployment or diagnostics with line, key and fix. Unknown keys are errors, for a
//! mistyped key that is ignored is a setting that does not hold. It may name Synapse's own files, which are then read
//! by `synapse_files`, with this file's settings on top.

mod judge;
mod listener;
mod messages;
mod schema;
mod settings;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use self::listener::{Listener, other_port};
use self::schema::{File, Main, OwnRoute, SynapseSection, Worker};
use super::{Request, synapse_files, text_of, values};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, nearest};
use crate::model::{Deployment, Override, Process, Role};

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
        let named = file.synapse.as_ref().map(|section| &section.homeserver);
        let named = named
            .and_then(|paths| paths.first())
            .or(request.homeserver.first());
        let mut synapse = self.synapse(&file, request);
        let mut settings = self.settings(&file, synapse.as_ref().and_then(|s| s.max_upload_size));
        let installed = request.installed.filter(|_| file.nginx.version.is_none());
        if let Some(version) = request.nginx.or(installed) {
            settings.nginx = version;
        }
        let main = match (&file.main, synapse.as_mut().and_then(|s| s.main.take())) {
            (Some(main), _) => self.main(main)?,
            (None, Some(main)) => main,
            // What is wrong with Synapse's files has been said.
            (None, None) if self.found.has_errors() => return None,
            (None, None) if named.is_some() => {
                self.found.push(
                    Diagnostic::error("no file of Synapse's says where the main process listens")
                        .at(&Place::file(named.map_or(self.path, |path| path)))
                        .key("listeners")
                        .fix("name the file that has `listeners` under [synapse] homeserver or with --homeserver, or add [main]"),
                );
                return None;
            }
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
        self.judge(&deployment, &file);
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
        let options = synapse_files::Options {
            roles: self.role_patterns(section),
            hosts: section
                .hosts
                .iter()
                .map(|(name, host)| (name.clone(), self.host(host)))
                .collect(),
            host: section
                .host
                .as_ref()
                .map_or_else(|| "127.0.0.1".into(), |host| self.host(host)),
        };
        synapse_files::read(&homeserver, &workers, &options, self.found)
    }

    fn role_patterns(&mut self, section: &SynapseSection) -> Vec<(String, BTreeSet<Role>)> {
        section
            .roles
            .iter()
            .filter_map(|(pattern, names)| {
                Some((pattern.clone(), self.roles(names.get_ref(), names.span())?))
            })
            .collect()
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
        self.no_port_beside(&client, main.federation_port.as_ref());
        Some(Process {
            name: "main".into(),
            roles: BTreeSet::new(),
            federation: other_port(&client, main.federation_port.as_ref()),
            client: Some(client),
            media: None,
            replicas: 1,
            weight: 1,
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
        for port in [&worker.federation_port, &worker.media_port] {
            client
                .iter()
                .for_each(|client| self.no_port_beside(client, port.as_ref()));
        }
        let other = |port| client.as_ref().and_then(|client| other_port(client, port));
        Some(Process {
            name: worker.name.get_ref().clone(),
            roles,
            federation: other(worker.federation_port.as_ref()),
            media: other(worker.media_port.as_ref()),
            replicas: self.replicas(worker.replicas.as_ref(), client.as_ref()),
            weight: self.weight(worker.weight.as_ref()),
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
}
