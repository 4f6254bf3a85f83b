//! `simulate`: what another set of workers would mean for the users of a log.
//!
//! In come the lines of a log and two rings: today's, which is held against every `$upstream_addr` of the log, and another.
//! Out comes a [`Report`]: shares before and after, who moves, what whoami would have to bear, and how even more or fewer
//! workers would be.

mod html;
mod lookups;
mod ring;
mod text;

use serde::Serialize;

use matrix_user_hash_core::shift::{Shift, Span};
use matrix_user_hash_core::user::UserHash;

use crate::balance::{Even, even_by_lot, largest_for_its_weight};
use crate::log::line::{Line, Way, attempts};
use crate::log::tally::{Counts, Tally};

pub(crate) use lookups::{Lookups, Seen, Wanted};
pub(crate) use ring::{Ring, Server};

/// What is asked.
#[derive(Debug)]
pub(crate) struct Question {
    /// The workers of today.
    pub today: Ring,
    /// Those that may come.
    pub wanted: Ring,
    /// Over how many seconds users move, if not at once.
    pub gradually: Option<u64>,
    /// The largest over the mean that is good enough.
    pub target: f64,
    /// The largest part of all requests that one worker may get.
    pub at_most: Option<f64>,
    /// How lookups would be configured.
    pub lookups: Wanted,
}

/// Today's ring, held against the log line by line.
#[derive(Debug)]
pub(crate) struct Check {
    ring: Ring,
    /// Requests by predicted server and address.
    seen: Vec<std::collections::HashMap<String, u64>>,
    failed_over: u64,
    sent: u64,
}

/// Addresses that are told apart for a server: it may move, but not endlessly.
const ADDRESSES: usize = 256;

impl Check {
    /// Begins.
    pub(crate) fn new(ring: Ring) -> Self {
        let seen = vec![std::collections::HashMap::new(); ring.servers().len()];
        Self {
            ring,
            seen,
            failed_over: 0,
            sent: 0,
        }
    }

    /// Takes a request in.
    pub(crate) fn add(&mut self, line: &Line<'_>) {
        let Some(key) = line.user else { return };
        if line.way() != Way::Ring {
            self.sent += 1;
            return;
        }
        let mut tried = attempts(line.workers);
        let Some(address) = tried.next() else { return };
        // nginx logs the group's name when it had no worker to try.
        if tried.next().is_some() || !address.contains(&b':') {
            self.failed_over += 1;
            return;
        }
        let Some(server) = self.ring.pick(key) else {
            return;
        };
        let Ok(address) = std::str::from_utf8(address) else {
            return;
        };
        let seen = &mut self.seen[server];
        if let Some(count) = seen.get_mut(address) {
            *count += 1;
        } else if seen.len() < ADDRESSES {
            seen.insert(address.to_owned(), 1);
        } else {
            *seen.entry(String::new()).or_default() += 1;
        }
    }

    fn result(&self) -> Checked {
        let all: u64 = self.seen.iter().flat_map(|seen| seen.values()).sum();
        let logged = |name: &str| self.seen.iter().any(|seen| seen.contains_key(name));
        let mut taken = std::collections::HashSet::new();
        let mut agree = 0;
        for (server, seen) in self.ring.servers().iter().zip(&self.seen) {
            // A server that is named by its address is logged as that; another one is where most of its requests went.
            let address = if logged(&server.name) {
                server.name.as_str()
            } else {
                let most = seen
                    .iter()
                    .max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
                most.map_or("", |(address, _)| address)
            };
            if !address.is_empty() && taken.insert(address) {
                agree += seen.get(address).copied().unwrap_or(0);
            }
        }
        Checked {
            requests: all,
            as_predicted: agree,
            otherwise: all - agree,
            failed_over: self.failed_over,
            sent: self.sent,
        }
    }
}

/// How well today's ring explains the log.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    /// Requests with a user or a token that nginx tried at one worker.
    pub requests: u64,
    /// Those that went where the ring says.
    pub as_predicted: u64,
    /// Those that did not.
    pub otherwise: u64,
    /// Requests that one worker failed; they say nothing of the ring.
    pub failed_over: u64,
    /// Requests that a canary, a pin or a shift sent elsewhere, which they say nothing of either.
    pub sent: u64,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The group.
    pub group: String,
    /// Users whose requests are simulated.
    pub users: u64,
    /// Whether those are all.
    pub exact: bool,
    /// Their requests.
    pub requests: u64,
    /// Whether the log agrees with today's ring.
    pub check: Checked,
    /// Today's workers.
    pub today: Side,
    /// Those that may come.
    pub wanted: Side,
    /// Who moves.
    pub moved: Moved,
    /// What whoami has to bear, and the zone to hold.
    pub lookups: Lookups,
    /// Other numbers of workers.
    pub numbers: Vec<Number>,
    /// What to choose among them.
    pub recommended: Recommended,
}

/// One set of workers.
#[derive(Debug, Serialize)]
pub(crate) struct Side {
    /// Each worker.
    pub workers: Vec<Share>,
    /// The largest over what its weight makes of the mean, in requests, next to chance.
    pub evenness: Even,
}

/// What a worker gets.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub(crate) struct Share {
    pub worker: String,
    pub weight: u16,
    pub users: u64,
    pub requests: u64,
    pub share: f64,
    pub seconds: f64,
}

/// Users who would have another worker.
#[derive(Debug, Serialize)]
pub(crate) struct Moved {
    /// How many.
    pub users: u64,
    /// Their part of all users.
    pub share: f64,
    /// Their part of all requests.
    pub share_of_requests: f64,
    /// If they move over this many seconds …
    pub gradually: Option<u64>,
    /// … so many of them in the minute with most.
    pub peak_in_a_minute: u64,
}

/// How it would be with another number of workers.
#[derive(Debug, Serialize)]
pub(crate) struct Number {
    /// How many.
    pub workers: usize,
    /// The largest over the mean, in requests, each next to its weight.
    pub evenness: f64,
    /// The largest worker's part of all requests.
    pub largest_share: f64,
}

/// What to choose.
#[derive(Debug, Serialize)]
pub(crate) struct Recommended {
    /// The evenness that was asked for.
    pub evenness: f64,
    /// The most workers that keep it.
    pub most_workers: usize,
    /// The share that one worker may get, if that was asked for.
    pub at_most: Option<f64>,
    /// The fewest workers that keep it, if any number does.
    pub fewest_workers: Option<usize>,
}

impl Report {
    /// Makes it.
    pub(crate) fn new(
        tally: &Tally,
        group: &str,
        check: &Check,
        lookups: Seen,
        question: &Question,
    ) -> Self {
        let index = tally.groups.iter().position(|known| known.name == group);
        let mut users: Vec<(u64, Counts)> = tally
            .people()
            .filter(|(_, of, _)| Some(usize::from(*of)) == index)
            .map(|(user, of, person)| (user, tally.of_person(user, of, person)))
            .collect();
        users.sort_unstable_by_key(|(user, _)| *user);
        let requests = users.iter().map(|(_, counts)| counts.requests).sum();
        let numbers = numbers(&users, &question.wanted);
        Self {
            group: group.to_owned(),
            users: users.len() as u64,
            exact: tally.overflow().is_none(),
            requests,
            check: check.result(),
            today: side(&users, &question.today),
            wanted: side(&users, &question.wanted),
            moved: moved(&users, requests, question),
            lookups: lookups.expected(&question.lookups),
            recommended: Recommended {
                evenness: question.target,
                most_workers: numbers
                    .iter()
                    .filter(|number| number.evenness <= question.target)
                    .map(|number| number.workers)
                    .max()
                    .unwrap_or(1),
                at_most: question.at_most,
                fewest_workers: question.at_most.and_then(|share| {
                    numbers
                        .iter()
                        .find(|number| number.largest_share <= share)
                        .map(|number| number.workers)
                }),
            },
            numbers,
        }
    }
}

/// The group that is asked for, or the one with the most requests of users; and its workers by their addresses.
pub(crate) fn group_of(
    tally: &Tally,
    wanted: Option<String>,
) -> Option<(Option<String>, Vec<Server>)> {
    let mut requests = vec![0; tally.groups.len()];
    for (user, group, person) in tally.people() {
        requests[usize::from(group)] += tally.of_person(user, group, person).requests;
    }
    let index = (0..tally.groups.len())
        .filter(|index| {
            requests[*index] > 0
                && wanted
                    .as_ref()
                    .is_none_or(|name| tally.groups[*index].name == *name)
        })
        .max_by_key(|index| requests[*index])?;
    let mut servers: Vec<Server> = tally
        .places
        .iter()
        .filter(|place| usize::from(place.group) == index && place.is_worker() && place.on_ring)
        .map(|place| Server {
            name: place.address.clone(),
            weight: 1,
        })
        .collect();
    servers.sort_by(|a, b| a.name.cmp(&b.name));
    Some((Some(tally.groups[index].name.clone()), servers))
}

fn loads(users: &[(u64, Counts)], ring: &Ring) -> Vec<(u64, Counts)> {
    let mut loads = vec![(0, Counts::default()); ring.servers().len()];
    for (user, counts) in users {
        if let Some(server) = ring.pick(*user) {
            loads[server].0 += 1;
            loads[server].1.add(*counts);
        }
    }
    loads
}

fn side(users: &[(u64, Counts)], ring: &Ring) -> Side {
    let loads = loads(users, ring);
    let all: u64 = loads.iter().map(|(_, counts)| counts.requests).sum();
    let workers: Vec<Share> = ring
        .servers()
        .iter()
        .zip(&loads)
        .map(|(server, (users, counts))| Share {
            worker: server.name.clone(),
            weight: server.weight,
            users: *users,
            requests: counts.requests,
            share: counts.requests as f64 / all.max(1) as f64,
            seconds: counts.ms as f64 / 1_000.0,
        })
        .collect();
    let requests: Vec<u64> = loads.iter().map(|(_, counts)| counts.requests).collect();
    let evenness = even_by_lot(
        &requests,
        &ring.weights(),
        users.iter().map(|(_, counts)| counts.requests),
    );
    Side { workers, evenness }
}

fn moved(users: &[(u64, Counts)], all: u64, question: &Question) -> Moved {
    let name = |ring: &Ring, user| {
        ring.pick(user)
            .map(|server| ring.servers()[server].name.clone())
    };
    let movers: Vec<_> = users
        .iter()
        .filter(|(user, _)| name(&question.today, *user) != name(&question.wanted, *user))
        .collect();
    let requests: u64 = movers.iter().map(|(_, counts)| counts.requests).sum();
    let mut minutes = std::collections::HashMap::new();
    for (user, _) in &movers {
        let at = question
            .gradually
            .map_or(0, |over| moment(*user, over) / 60);
        *minutes.entry(at).or_insert(0_u64) += 1;
    }
    Moved {
        users: movers.len() as u64,
        share: movers.len() as f64 / users.len().max(1) as f64,
        share_of_requests: requests as f64 / all.max(1) as f64,
        gradually: question.gradually,
        peak_in_a_minute: minutes.values().copied().max().unwrap_or(0),
    }
}

/// The second within `over` at which a user changes, as `matrix_user_hash_shift` moves them.
fn moment(user: u64, over: u64) -> u64 {
    Span::new(0, over.saturating_mul(1000))
        .and_then(|span| Shift::Over(span).moment(UserHash::from_bits(user)))
        .map_or(0, |milliseconds| milliseconds / 1000)
}

/// From one worker to twice as many as are wanted, at least 8.
fn numbers(users: &[(u64, Counts)], wanted: &Ring) -> Vec<Number> {
    let most = (2 * wanted.servers().len()).max(8);
    (1..=most)
        .map(|workers| {
            let ring = wanted.of_size(workers);
            let requests: Vec<u64> = loads(users, &ring)
                .iter()
                .map(|(_, counts)| counts.requests)
                .collect();
            let all: u64 = requests.iter().sum();
            Number {
                workers,
                evenness: largest_for_its_weight(&requests, &ring.weights()),
                largest_share: requests.iter().max().copied().unwrap_or(0) as f64
                    / all.max(1) as f64,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spread_evenly_and_within_the_time() {
        let mut minutes = [0; 10];
        for user in 0..10_000_u64 {
            minutes[(moment(user.wrapping_mul(0x1234_5678_9abc_def1), 600) / 60) as usize] += 1;
        }
        assert!(
            minutes.iter().all(|users| (850..1_150).contains(users)),
            "{minutes:?}"
        );
    }
}
