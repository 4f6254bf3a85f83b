//! What is odd about a deployment as a whole, each part of which may be well.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Reader;
use super::schema::{File, Worker};
use crate::diagnostic::Diagnostic;
use crate::model::{Address, Deployment, Process, Role, Stream};

impl Reader<'_> {
    pub(super) fn judge(&mut self, deployment: &Deployment, file: &File) {
        self.names(deployment, file);
        self.single_writers(deployment, file);
        self.addresses(deployment, file);
        self.listeners(deployment, file);
        self.overrides(deployment, file);
        let pairs = [
            (Role::InitialSync, Role::Sync, "syncs that go on"),
            (
                Role::FederationInbound,
                Role::FederationReader,
                "other federation requests",
            ),
        ];
        for (special, usual, rest) in pairs {
            self.lonely(deployment, file, special, usual, rest);
        }
    }

    fn names(&mut self, deployment: &Deployment, file: &File) {
        let mut names = BTreeSet::new();
        for worker in &deployment.workers {
            if names.insert(&worker.name) {
                continue;
            }
            let message = format!("two workers are called {}", worker.name);
            let same = |own: &&toml::Spanned<Worker>| *own.get_ref().name.get_ref() == worker.name;
            match file.workers.iter().rfind(same) {
                Some(own) => self
                    .error(&own.get_ref().name.span(), message)
                    .fix_with("give each its own worker_name"),
                None => self.found.push(
                    Diagnostic::error(message)
                        .key("worker_name")
                        .fix("give each its own worker_name, and name each file once"),
                ),
            }
        }
    }

    /// Two writers where Synapse takes one.
    fn single_writers(&mut self, deployment: &Deployment, file: &File) {
        for stream in Stream::ALL
            .into_iter()
            .filter(|stream| stream.single_writer())
        {
            let writes = |worker: &&Process| worker.roles.contains(&Role::Writer(stream));
            let Some(second) = deployment.workers.iter().filter(writes).nth(1) else {
                continue;
            };
            let span = type_of(file, &second.name).unwrap_or(0..0);
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

    /// Two processes cannot listen at one address: one of the two is a slip, and half of the users would be misled.
    fn addresses(&mut self, deployment: &Deployment, file: &File) {
        let mut known: BTreeMap<&Address, &str> = BTreeMap::new();
        for process in std::iter::once(&deployment.main).chain(&deployment.workers) {
            let own: BTreeSet<&Address> = [&process.client, &process.federation, &process.media]
                .into_iter()
                .flatten()
                .collect();
            for address in own {
                let other = known.insert(address, &process.name);
                let Some(other) = other.filter(|other| **other != process.name) else {
                    continue;
                };
                let message = format!("{} and {other} are both at {address}", process.name);
                match whole(file, &process.name) {
                    Some(span) => self.error(&span, message).fix_with(
                        "give each its own port; one worker of several types has a list: type = [\"sync\", \"room\"]",
                    ),
                    None => self.found.push(
                        Diagnostic::error(message)
                            .key("synapse.hosts")
                            .fix("say on which host each runs: under [synapse.hosts], or in Synapse's instance_map"),
                    ),
                }
            }
        }
    }

    /// nginx cannot listen twice at one address.
    fn listeners(&mut self, deployment: &Deployment, file: &File) {
        let settings = &deployment.settings;
        let listen = &file.listen;
        let all = with_spans(&settings.client_listen, &listen.client)
            .chain(with_spans(&settings.federation_listen, &listen.federation));
        let mut known: BTreeSet<&str> = BTreeSet::new();
        for (address, span) in all {
            if !known.insert(comparable(address)) {
                self.error(&span, format!("nginx shall listen twice at {address}"))
                    .fix_with("take one of them away; without `federation`, other servers use the port of the clients");
            }
        }
        let Some(private) = &settings.status_listen else {
            return;
        };
        // A port alone means every address, the private one among them.
        if known.iter().any(|address| {
            comparable(private) == *address || private.ends_with(&format!(":{address}"))
        }) {
            let span = file.status.listen.as_ref().map(toml::Spanned::span);
            let span = span.or_else(|| Some(listen.client.first()?.span()));
            self.error(
                &span.unwrap_or(0..0),
                format!("the listener for figures is at {private}, and so is another"),
            )
            .fix_with(
                "say another port under [status], as listen = \"127.0.0.1:8091\"; or \"off\"",
            );
        }
    }

    fn overrides(&mut self, deployment: &Deployment, file: &File) {
        for own in &file.overrides {
            let to = own.to.get_ref();
            let named = Role::NAMED.iter().find(|(name, _)| name == to);
            if named.is_some_and(|(_, role)| !has(deployment, *role)) {
                self.warning(
                    &own.to.span(),
                    format!("no worker has the type {to}, so the main process gets these requests"),
                )
                .fix_with("give a worker that type, or write \"main\"");
            }
        }
    }

    /// Workers for a part of what nobody has the rest of.
    fn lonely(
        &mut self,
        deployment: &Deployment,
        file: &File,
        special: Role,
        usual: Role,
        rest: &str,
    ) {
        if !has(deployment, special) || has(deployment, usual) {
            return;
        }
        let message = format!(
            "there are {} workers but no {} workers: {rest} stay with the main process",
            special.name(),
            usual.name()
        );
        let fix = format!("give a worker the type \"{}\"", usual.name());
        let worker = deployment
            .workers
            .iter()
            .find(|worker| worker.roles.contains(&special));
        match worker.and_then(|worker| type_of(file, &worker.name)) {
            Some(span) => self.warning(&span, message).fix_with(fix),
            None => self
                .found
                .push(Diagnostic::warning(message).key("synapse.roles").fix(fix)),
        }
    }
}

fn has(deployment: &Deployment, role: Role) -> bool {
    deployment
        .workers
        .iter()
        .any(|worker| worker.roles.contains(&role))
}

fn type_of(file: &File, name: &str) -> Option<Range<usize>> {
    let worker = file
        .workers
        .iter()
        .find(|worker| worker.get_ref().name.get_ref() == name)?;
    Some(worker.get_ref().kind.span())
}

fn whole(file: &File, name: &str) -> Option<Range<usize>> {
    let worker = file
        .workers
        .iter()
        .rev()
        .find(|worker| worker.get_ref().name.get_ref() == name)?;
    Some(worker.span())
}

/// All spellings of "every address of this machine" are one.
fn comparable(listen: &str) -> &str {
    ["*:", "0.0.0.0:"]
        .iter()
        .find_map(|every| listen.strip_prefix(every))
        .unwrap_or(listen)
}

/// Listeners with where they are written; a default is written nowhere.
fn with_spans<'a>(
    given: &'a [String],
    written: &'a [toml::Spanned<toml::Value>],
) -> impl Iterator<Item = (&'a str, Range<usize>)> {
    let spans = written.iter().map(toml::Spanned::span);
    given
        .iter()
        .map(String::as_str)
        .zip(spans.chain(std::iter::repeat(0..0)))
}
