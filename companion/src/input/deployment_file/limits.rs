//! `[limits.user]` and `[limits.address]`: rates, and what an ordinary client needs at the least.

use std::ops::Range;

use matrix_user_hash_core::user::{UserHash, UserId};
use toml::Spanned;

use super::Reader;
use super::schema::{Limits, RateLimit, UserLimits};
use crate::model::{LimitGroup, Rate, RequestLimits};

/// What one person with ordinary clients needs, as measured: see docs/companion/limits.md.
struct Need {
    /// Requests a second, over minutes.
    per_second: f64,
    /// Requests at once.
    burst: u32,
    /// What needs them.
    why: &'static str,
}

/// Syncs of one person at a time: the devices that people have, and one more of each while it reconnects.
const PARALLEL: u32 = 10;

const fn need(group: LimitGroup) -> Need {
    let (per_second, burst, why) = match group {
        LimitGroup::Sync => (
            2.0,
            20,
            "in a busy room a device syncs again after each event, and a person has several",
        ),
        LimitGroup::SlidingSync => (
            2.0,
            20,
            "a device syncs again after each event and each time it scrolls, and a person has several",
        ),
        LimitGroup::Send => (1.0, 10, "people write several short messages in a row"),
        LimitGroup::Media => (
            5.0,
            100,
            "a room that is opened shows a picture of each member who speaks",
        ),
        LimitGroup::Everything => (
            10.0,
            150,
            "a client that starts asks for its account, its keys and each room that it shows, all at once",
        ),
    };
    Need {
        per_second,
        burst,
        why,
    }
}

/// What an address needs of which no user is known: a login has about ten requests, and an office has one address.
const ADDRESS: Need = Need {
    per_second: 5.0,
    burst: 50,
    why: "logins have no user yet, and many people may have one address",
};

impl Reader<'_> {
    /// All limits of requests. `None` if there are none.
    pub(super) fn request_limits(&mut self, limits: &Limits) -> Option<RequestLimits> {
        if limits.user.is_none() && limits.address.is_none() {
            return None;
        }
        let none = UserLimits::default();
        let user = limits.user.as_ref().map_or(&none, Spanned::get_ref);
        let mut rates = Vec::new();
        for group in LimitGroup::ALL {
            let given = match group {
                LimitGroup::Sync => &user.sync,
                LimitGroup::SlidingSync => &user.sliding_sync,
                LimitGroup::Send => &user.send,
                LimitGroup::Media => &user.media,
                LimitGroup::Everything => &user.everything,
            };
            if let Some(given) = given {
                rates.extend(Some(group).zip(self.rate(given, &need(group))));
            }
        }
        let parallel_syncs = user.parallel_syncs.as_ref().map(|n| {
            self.parallel(n);
            *n.get_ref()
        });
        let mut exempt: Vec<String> = user
            .exempt
            .iter()
            .filter_map(|who| self.hash_of(who))
            .collect();
        exempt.sort();
        exempt.dedup();
        let exempt_addresses = self.networks(&user.exempt_addresses);
        let address = limits
            .address
            .as_ref()
            .and_then(|given| self.rate(given, &ADDRESS));
        if let Some(section) = &limits.user
            && rates.is_empty()
            && parallel_syncs.is_none()
            && address.is_none()
        {
            self.warning(&section.span(), "nothing is limited here")
                .fix_with(
                    "add everything = { per_second = 50, burst = 500 }, or take [limits.user] away",
                );
        }
        Some(RequestLimits {
            rates,
            parallel_syncs,
            exempt,
            exempt_addresses,
            address,
        })
    }

    fn rate(&mut self, given: &Spanned<RateLimit>, need: &Need) -> Option<Rate> {
        let RateLimit { per_second, burst } = given.get_ref();
        let per_minute = per_second.get_ref() * 60.0;
        // nginx takes whole requests a second or a minute, and keeps a thousandth of a request a second in 32 bits.
        let whole = (per_minute - per_minute.round()).abs() < 1e-6;
        if !whole || !(1.0..=6_000_000.0).contains(&per_minute) {
            self.error(&per_second.span(), "nginx counts whole requests a minute, 1 at the least and 100,000 a second at the most")
                .fix_with("write per_second = 5, or per_second = 0.5 for 30 a minute");
            return None;
        }
        let at_once = burst.as_ref().map_or(0, |burst| *burst.get_ref());
        if at_once > 1_000_000 {
            let span = burst.as_ref().map_or(0..0, Spanned::span);
            self.error(&span, "nginx takes a burst of 1,000,000 at the most")
                .fix_with("write burst = 500");
            return None;
        }
        if *per_second.get_ref() < need.per_second {
            self.low(
                &per_second.span(),
                format!("{} requests a second", per_second.get_ref()),
                need.why,
                format!("write per_second = {} or more", need.per_second),
            );
        }
        if at_once < need.burst {
            let span = burst.as_ref().map_or_else(|| given.span(), Spanned::span);
            self.low(
                &span,
                format!("a burst of {at_once}"),
                need.why,
                format!("write burst = {} or more", need.burst),
            );
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is from 1 to 6,000,000, as checked above"
        )]
        let per_minute = per_minute.round() as u32;
        Some(Rate {
            per_minute,
            burst: at_once,
        })
    }

    fn parallel(&mut self, given: &Spanned<u32>) {
        if !(1..=65_535).contains(given.get_ref()) {
            self.error(
                &given.span(),
                "nginx counts up to 65,535 requests at a time, 1 at the least",
            )
            .fix_with("write parallel_syncs = 20");
        } else if *given.get_ref() < PARALLEL {
            self.low(
                &given.span(),
                format!("{} syncs at a time", given.get_ref()),
                "each device of a person waits in one, and in two for a moment when it reconnects",
                format!("write parallel_syncs = {PARALLEL} or more"),
            );
        }
    }

    fn low(&mut self, span: &Range<usize>, what: String, why: &str, fix: String) {
        self.warning(
            span,
            format!("{what} may be too few for an ordinary person: {why}"),
        )
        .fix_with(fix);
    }

    /// A user id, or the hash that the access log has.
    fn hash_of(&mut self, who: &Spanned<String>) -> Option<String> {
        let text = who.get_ref();
        if text.len() == 16
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Some(text.clone());
        }
        match UserId::try_from(text.as_str()) {
            Ok(id) => Some(String::from_utf8_lossy(&UserHash::of_user(&id).hex()).into_owned()),
            Err(_) => {
                self.error(&who.span(), format!("neither a user id nor a hash of one: {text}"))
                    .fix_with("write \"@bot:example.org\", or the user_hash of the access log, as \"86f01aef21b1acd3\"");
                None
            }
        }
    }
}
