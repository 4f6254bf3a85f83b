//! What the settings of nginx and the operator's own routes say together. Processes are judged in `input::judge`.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Reader;
use super::schema::File;
use crate::model::{Deployment, Role};

impl Reader<'_> {
    pub(super) fn check(&mut self, deployment: &Deployment, file: &File) {
        self.listeners(deployment, file);
        self.overrides(deployment, file);
        self.chosen_workers(deployment, file);
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
            if Role::named(to).is_some_and(|role| !deployment.has(role)) {
                self.warning(
                    &own.to.span(),
                    format!("no worker has the type {to}, so the main process gets these requests"),
                )
                .fix_with("give a worker that type, or write \"main\"");
            }
        }
    }
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
