//! `[limits.user]` and `[limits.address]`: rates, and what an ordinary client needs at the least.

use std::ops::Range;

use matrix_user_hash_core::user::{UserHash, UserId};
use toml::Spanned;

use super::Reader;
use super::schema::{Limits, RateLimit, UserLimits};
use crate::model::{LimitGroup, Rate, RequestLimits};

/// What one device of an ordinary person needs, as `scripts/limits pattern` measured it: docs/companion/limits.md.
struct Need {
    /// Rates, ascending, each with the burst that it needs. A rate below the first is not enough.
    bursts: &'static [(f64, u32)],
    /// What needs them.
    why: &'static str,
}

impl Need {
    /// The burst that a rate needs. `None` if the rate is too low for any.
    fn burst(&self, per_second: f64) -> Option<u32> {
        let fits = |(rate, _): &&(f64, u32)| *rate <= per_second;
        self.bursts.iter().rev().find(fits).map(|(_, burst)| *burst)
    }
}

/// Syncs of one person at a time: a device has one, people have several devices, and a device that reconnects has two for a
/// moment.
const PARALLEL: u32 = 10;

const fn need(group: LimitGroup) -> Need {
    match group {
        LimitGroup::Sync | LimitGroup::SlidingSync => Need {
            bursts: &[(2.0, 70), (5.0, 10)],
            why: "in busy rooms a device syncs again after each event",
        },
        LimitGroup::Send => Need {
            bursts: &[(1.0, 10)],
            why: "people write several short messages in a row",
        },
        LimitGroup::Media => Need {
            bursts: &[(5.0, 220), (10.0, 140), (20.0, 20)],
            why: "a room that is opened shows a picture of each member who speaks",
        },
        LimitGroup::Everything => Need {
            bursts: &[(5.0, 310), (10.0, 220), (20.0, 45), (50.0, 25)],
            why: "who looks through rooms asks for members, pages and pictures of each",
        },
    }
}

/// What an address needs of which no user is known: each login has several requests, and an office has one address.
const ADDRESS: Need = Need {
    bursts: &[(5.0, 50)],
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
        if let Some(section) = &limits.user {
            self.missing(section, &rates, parallel_syncs, limits.address.is_some());
        }
        Some(RequestLimits {
            rates,
            parallel_syncs,
            exempt,
            exempt_addresses,
            address,
        })
    }

    /// Warns of limits that limit nobody, or that a request passes whose user is not known.
    fn missing(
        &mut self,
        section: &Spanned<UserLimits>,
        rates: &[(LimitGroup, Rate)],
        parallel_syncs: Option<u32>,
        by_address: bool,
    ) {
        let by_user = !rates.is_empty() || parallel_syncs.is_some();
        if by_user && !by_address {
            self.warning(
                &section.span(),
                "requests without a known user have no limit: those without a token, with one that nobody knows, and with one \
                 whose lookup fails, as all of a heavy account's may when Synapse is slow",
            )
            .fix_with("add [limits.address] with per_second = 20 and burst = 200");
        } else if !by_user && !by_address {
            self.warning(&section.span(), "nothing is limited here")
                .fix_with(
                    "add everything = { per_second = 50, burst = 500 }, or take [limits.user] away",
                );
        }
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
        match need.burst(*per_second.get_ref()) {
            None => {
                let least = need.bursts.first().map_or(1.0, |(rate, _)| *rate);
                self.low(
                    &per_second.span(),
                    &format!("{} requests a second", per_second.get_ref()),
                    need.why,
                    format!("write per_second = {least} or more"),
                );
            }
            Some(needed) if at_once < needed => {
                let span = burst.as_ref().map_or_else(|| given.span(), Spanned::span);
                self.low(
                    &span,
                    &format!(
                        "a burst of {at_once} at {} requests a second",
                        per_second.get_ref()
                    ),
                    need.why,
                    format!("write burst = {needed} or more"),
                );
            }
            Some(_) => {}
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
                &format!("{} syncs at a time", given.get_ref()),
                "each device of a person waits in one, and in two for a moment when it reconnects",
                format!("write parallel_syncs = {PARALLEL} or more"),
            );
        }
    }

    fn low(&mut self, span: &Range<usize>, what: &str, why: &str, fix: String) {
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
