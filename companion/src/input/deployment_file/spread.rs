//! `[spread]`: what the requests of a group are spread by.

use std::collections::BTreeMap;

use toml::Spanned;

use super::Reader;
use crate::diagnostic::nearest;
use crate::model::{Resource, Role, Spread};

impl Reader<'_> {
    /// What the operator says of groups.
    pub(super) fn spread(
        &mut self,
        given: &BTreeMap<String, Spanned<String>>,
    ) -> BTreeMap<Role, Spread> {
        given
            .iter()
            .filter_map(|(group, how)| self.spread_of(group, how))
            .collect()
    }

    fn spread_of(&mut self, group: &str, how: &Spanned<String>) -> Option<(Role, Spread)> {
        let span = how.span();
        let Some(role) = Role::asked().find(|role| role.name() == group) else {
            let fix = match nearest(group, Role::asked().map(Role::name)) {
                Some(near) => format!("write {near}"),
                None => "write the type of the workers, as client_reader = \"user\"".to_owned(),
            };
            self.error(&span, format!("no such group: {group}"))
                .fix_with(fix);
            return None;
        };
        let word = how.get_ref();
        let Some((_, spread)) = Spread::NAMED.iter().find(|(name, _)| name == word) else {
            self.error(&span, format!("nothing to spread by: {word}"))
                .fix_with("write \"user\", \"room\", \"server\" or \"turns\"");
            return None;
        };
        let federation = role.resource() == Resource::Federation;
        let fits = match spread {
            Spread::Turns => true,
            Spread::Server => federation,
            Spread::User | Spread::Room => !federation,
        };
        if !fits {
            let (whose, fix) = if federation {
                (
                    "other servers ask, who are no users",
                    "write \"server\" or \"turns\"",
                )
            } else {
                (
                    "no other server asks these workers",
                    "write \"user\", \"room\" or \"turns\"",
                )
            };
            self.error(
                &span,
                format!("{group} cannot be spread by {word}: {whose}"),
            )
            .fix_with(fix);
            return None;
        }
        if role.waits() && *spread != Spread::User {
            self.warning(
                &span,
                format!(
                    "syncs are not spread by user, so each worker of {group} has to know every user"
                ),
            )
            .fix_with("take the line away: syncs are spread by user");
        }
        Some((role, *spread))
    }
}
