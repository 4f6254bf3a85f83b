//! Which duties the shared configuration gives to which worker: stream writers, senders, pushers and the rest.

use std::collections::{BTreeMap, BTreeSet};

use serde_saphyr::Spanned;

use super::schema::OneOrMany;
use super::{Part, last, place};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, nearest};
use crate::model::{NoRequests, Role, Stream};

/// Which worker has which duty, by the keys of the shared configuration.
#[derive(Default)]
pub(super) struct Duties {
    /// By worker name.
    pub of: BTreeMap<String, BTreeSet<Role>>,
    /// Where each writer of a stream is named.
    pub writers_at: BTreeMap<String, Place>,
}

impl Duties {
    /// Reads the shared configuration.
    pub(super) fn of(shared: &[Part], found: &mut Diagnostics) -> Self {
        let mut duties = Self::default();
        let mut give = |names: &[String], role: Role| {
            for name in names {
                duties.of.entry(name.clone()).or_default().insert(role);
            }
        };
        if let Some((_, names)) = last(shared, |y| y.federation_sender_instances.as_ref()) {
            give(names, Role::Nothing(NoRequests::FederationSender));
        }
        if let Some((_, names)) = last(shared, |y| y.pusher_instances.as_ref()) {
            give(names, Role::Nothing(NoRequests::Pusher));
        }
        if let Some((_, name)) = last(shared, |y| y.run_background_tasks_on.clone()) {
            give(&[name], Role::Nothing(NoRequests::Background));
        }
        if let Some((_, name)) = last(shared, |y| y.notify_appservices_from_worker.clone()) {
            give(&[name], Role::Nothing(NoRequests::Appservice));
        }
        if let Some((_, name)) = last(shared, |y| y.update_user_directory_from_worker.clone()) {
            give(&[name], Role::UserDirectory);
        }
        if let Some((_, name)) = last(shared, |y| y.media_instance_running_background_jobs.clone())
        {
            give(&[name], Role::Media);
        }
        if let Some((part, writers)) = last(shared, |y| y.stream_writers.as_ref()) {
            duties.writers(part, writers, found);
        }
        duties
    }

    fn writers(
        &mut self,
        part: &Part,
        writers: &BTreeMap<String, Spanned<OneOrMany>>,
        found: &mut Diagnostics,
    ) {
        for (name, instances) in writers {
            let at = place(part, instances);
            let stream = Stream::ALL.into_iter().find(|stream| stream.name() == name);
            let role = match stream {
                Some(stream) => Role::Writer(stream),
                None if name == "events" => Role::Nothing(NoRequests::EventPersister),
                None => {
                    let names = Stream::ALL
                        .iter()
                        .map(|stream| stream.name())
                        .chain(["events"]);
                    let fix = nearest(name, names).map_or_else(
                        || "take it away; Synapse knows no such stream".to_owned(),
                        |near| format!("write {near}"),
                    );
                    found.push(
                        Diagnostic::error(format!("no such stream: {name}"))
                            .at(&at)
                            .key(format!("stream_writers.{name}"))
                            .fix(fix),
                    );
                    continue;
                }
            };
            let instances = instances.value.names();
            if stream.is_some_and(Stream::single_writer) && instances.len() > 1 {
                found.push(
                    Diagnostic::error(format!(
                        "Synapse takes one writer for the stream {name}, and there are {}",
                        instances.len()
                    ))
                    .at(&at)
                    .key(format!("stream_writers.{name}"))
                    .fix("leave one of them"),
                );
            }
            for instance in instances {
                self.of.entry(instance.clone()).or_default().insert(role);
                self.writers_at
                    .entry(instance.clone())
                    .or_insert_with(|| at.clone());
            }
        }
    }
}
