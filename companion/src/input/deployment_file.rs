//! The deployment file: TOML, short, every key optional but the workers.
//!
//! In comes its text, out come facts and settings, or diagnostics with line, key and fix. Unknown keys are errors, for a
//! mistyped key that is ignored is a setting that does not hold. It may name Synapse's own files, which are then read
//! by `synapse_files`; what all of them mean together, `judge` decides.

mod checks;
mod chosen;
mod external;
mod limits;
mod listener;
mod messages;
mod schema;
mod settings;
mod spread;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use self::listener::{Listener, other_port};
use self::schema::{File, Main, OwnRoute, SynapseSection, Worker};
use super::facts::{Application, Bound, Facts, ListenerFacts, ProcessFacts, Stated, Statement};
use super::{Request, judge, synapse_files, text_of, values};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, nearest};
use crate::model::{Address, Deployment, Override, Resource, Role};

/// What `init` writes.
pub(crate) const EXAMPLE: &str = include_str!("../../templates/example.toml");

/// The file while it is read: what a span means, and where to report.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    found: &'a mut Diagnostics,
}

/// Reads what the request names.
pub(super) fn read(request: &Request, found: &mut Diagnostics) -> Option<Deployment> {
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

/// Listeners of a process of the deployment file: one, and those for which it names another port.
fn declared(
    client: &Address,
    others: impl IntoIterator<Item = (Resource, Option<Address>)>,
    at: &Statement,
) -> Vec<ListenerFacts> {
    let listener = |serves, address| ListenerFacts {
        at: at.clone(),
        serves,
        unusable: None,
        bound: Bound::Address(address),
        x_forwarded: true,
    };
    let mut rest = BTreeSet::from(Resource::ALL);
    let mut listeners = Vec::new();
    for (resource, address) in others {
        if let Some(address) = address {
            rest.remove(&resource);
            listeners.push(listener(BTreeSet::from([resource]), address));
        }
    }
    listeners.push(listener(rest, client.clone()));
    listeners
}

impl Reader<'_> {
    fn deployment(&mut self, file: File, request: &Request) -> Option<Deployment> {
        let named = file.synapse.as_ref().map(|section| &section.homeserver);
        let named = named
            .and_then(|paths| paths.first())
            .or(request.homeserver.first());
        let synapse = self.synapse(&file, request);
        let mut settings = self.settings(&file, synapse.as_ref().and_then(|s| s.max_upload_size));
        let installed = request.installed.filter(|_| file.nginx.version.is_none());
        if let Some(version) = request.nginx.or(installed) {
            settings.nginx = version;
        }
        let facts = self.facts(&file, synapse)?;
        let (main, workers) = judge::judge(&facts, self.found);
        let mas = self.mas(file.mas.as_ref(), facts.shared.as_ref());
        let externals = file
            .external
            .iter()
            .filter_map(|own| self.external(own))
            .collect();
        let overrides = file
            .overrides
            .iter()
            .filter_map(|own| self.own_route(own))
            .collect();
        // What is wrong with the main process has been said, unless nobody names it.
        let main = match main {
            Some(main) => main,
            None if self.found.has_errors() => return None,
            None => {
                self.nobody_names_main(named);
                return None;
            }
        };
        let deployment = Deployment {
            main,
            workers,
            overrides,
            externals,
            mas,
            settings,
        };
        self.check(&deployment, &file);
        Some(deployment)
    }

    fn nobody_names_main(&mut self, homeserver: Option<&PathBuf>) {
        self.found.push(match homeserver {
            Some(path) => Diagnostic::error("no file of Synapse's says where the main process listens")
                .at(&Place::file(path))
                .key("listeners")
                .fix("name the file that has `listeners` under [synapse] homeserver or with --homeserver, or add [main]"),
            None => Diagnostic::error("nobody says where the main process listens")
                .at(&Place::file(self.path))
                .key("main")
                .fix("add [main] with host = \"127.0.0.1\" and port = 8008"),
        });
    }

    /// Both sources as one. `None` if a mistake here would only make others appear.
    fn facts(&mut self, file: &File, synapse: Option<synapse_files::Found>) -> Option<Facts> {
        let none = SynapseSection::default();
        let section = file.synapse.as_ref().unwrap_or(&none);
        let mut facts = Facts {
            roles: self.role_patterns(section),
            hosts: section
                .hosts
                .iter()
                .map(|(name, host)| {
                    let value = self.host_pattern(host);
                    let at = self.statement(&host.span());
                    (name.clone(), Stated { value, at })
                })
                .collect(),
            host: section.host.as_ref().map(|host| self.host(host)),
            ..Facts::default()
        };
        for worker in &file.workers {
            let worker = self.worker(worker);
            facts.workers.extend(worker);
        }
        if let Some(synapse) = synapse {
            facts.main = synapse.main;
            facts.workers.extend(synapse.workers);
            facts.shared = Some(synapse.shared);
        }
        if let Some(main) = &file.main {
            let mut main = self.main(main)?;
            let repository = facts
                .shared
                .as_ref()
                .and_then(|s| s.media_repository.as_ref());
            if repository.is_some_and(|repository| !repository.value) {
                for listener in &mut main.listeners {
                    listener.serves.remove(&Resource::Media);
                }
            }
            facts.main = Some(main);
        }
        facts.incomplete = self.found.has_errors();
        Some(facts)
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
        synapse_files::read(&homeserver, &workers, self.found)
    }

    fn role_patterns(&mut self, section: &SynapseSection) -> Vec<(String, Stated<BTreeSet<Role>>)> {
        section
            .roles
            .iter()
            .filter_map(|(pattern, names)| {
                let value = self.roles(names.get_ref(), names.span())?;
                let at = self.statement(&names.span());
                Some((pattern.clone(), Stated { value, at }))
            })
            .collect()
    }

    fn main(&mut self, main: &Spanned<Main>) -> Option<ProcessFacts> {
        let span = main.span();
        let main = main.get_ref();
        let listener = Listener {
            host: main.host.as_ref(),
            port: main.port.as_ref(),
            socket: main.socket.as_ref(),
            service: main.service.as_ref(),
        };
        let client = self.address(&listener, span.clone())?;
        self.no_port_beside(&client, main.federation_port.as_ref());
        let at = self.statement(&span);
        let federation = other_port(&client, main.federation_port.as_ref());
        Some(ProcessFacts {
            name: "main".into(),
            at: at.clone(),
            application: Application::Main,
            media_repository: None,
            listeners: declared(&client, [(Resource::Federation, federation)], &at),
            listeners_at: at,
            broken: false,
            replicas: 1,
            weight: 1,
            max_conns: None,
        })
    }

    fn worker(&mut self, worker: &Spanned<Worker>) -> Option<ProcessFacts> {
        let span = worker.span();
        let worker = worker.get_ref();
        let roles = self.roles(worker.kind.get_ref(), worker.kind.span())?;
        if !values::is_one_word(worker.name.get_ref()) {
            self.error(&worker.name.span(), "a worker's name must be one word")
                .fix_with("use Synapse's worker_name");
            return None;
        }
        let takes_requests = roles.iter().any(|role| role.takes_requests());
        let listener = Listener {
            host: worker.host.as_ref(),
            port: worker.port.as_ref(),
            socket: worker.socket.as_ref(),
            service: worker.service.as_ref(),
        };
        // A worker that no request is for need not listen.
        let client = if takes_requests || listener.is_given() {
            Some(self.address(&listener, span.clone())?)
        } else {
            None
        };
        for port in [&worker.federation_port, &worker.media_port] {
            client
                .iter()
                .for_each(|client| self.no_port_beside(client, port.as_ref()));
        }
        let at = self.statement(&span);
        let listeners = client.as_ref().map(|client| {
            let others = [
                (
                    Resource::Federation,
                    other_port(client, worker.federation_port.as_ref()),
                ),
                (
                    Resource::Media,
                    other_port(client, worker.media_port.as_ref()),
                ),
            ];
            declared(client, others, &at)
        });
        Some(ProcessFacts {
            name: worker.name.get_ref().clone(),
            at: self.statement(&worker.name.span()),
            application: Application::Declared(Stated {
                value: roles,
                at: self.statement(&worker.kind.span()),
            }),
            media_repository: None,
            listeners: listeners.unwrap_or_default(),
            listeners_at: at,
            broken: false,
            replicas: self.replicas(worker.replicas.as_ref(), client.as_ref()),
            weight: self.weight(worker.weight.as_ref()),
            max_conns: self.max_conns(worker.max_conns.as_ref()),
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

    /// A regular expression for a path, of which nginx reads nothing as its own syntax.
    fn pattern(&mut self, value: &Spanned<String>) -> Option<String> {
        let path = value.get_ref();
        if let Err(error) = regex::Regex::new(path) {
            let reason = error.to_string();
            let reason = reason
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            self.error(&value.span(), format!("not a regular expression: {reason}"))
                .fix_with("write path = \"^/_matrix/client/v3/search$\"");
            return None;
        }
        if path
            .chars()
            .any(|c| c.is_whitespace() || "{};\"'#$\\".contains(c) && !"$\\".contains(c))
        {
            self.error(
                &value.span(),
                "nginx would read blanks, braces, quotes, `;` and `#` as its own syntax",
            )
            .fix_with(
                "say it without them: [0-9][0-9] instead of [0-9]{2}, \\s instead of a blank",
            );
            return None;
        }
        Some(path.clone())
    }

    fn own_route(&mut self, own: &OwnRoute) -> Option<Override> {
        let path = self.pattern(&own.path)?;
        let name = own.to.get_ref();
        let to = match name.as_str() {
            "main" => None,
            "mas" => {
                self.error(&own.to.span(), "the Matrix Authentication Service is no group of workers")
                    .fix_with("take the override away, and add [mas] with address = \"http://127.0.0.1:8080\": it takes login, logout and refresh");
                return None;
            }
            _ => {
                let role = Role::asked().find(|role| role.name() == name);
                if role.is_none() {
                    self.error(&own.to.span(), format!("no such group: {name}"))
                        .fix_with("write \"main\" or the type of the workers that shall have it");
                    return None;
                }
                role
            }
        };
        Some(Override { path, to })
    }
}
