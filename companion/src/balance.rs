//! `balance`: who is where, who is heavy, and is it even.
//!
//! In comes a [`Tally`], out comes a [`Report`], which is shown as text or as JSON. Nothing in it names a user: they appear
//! as their hash, as in the log.

mod chance;
mod html;
mod text;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::{Display, Formatter};

use serde::Serialize;

use crate::log::histogram::Histogram;
use crate::log::line::{Broken, LOOKUPS, place_of};
use crate::log::tally::{Counts, Measure, Person, Reason, Tally};
use crate::log::time;

pub(crate) use chance::Chance;
pub(crate) use text::{bytes, column, named, number};

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Lines read.
    pub lines: u64,
    /// Broken lines, by reason.
    pub broken: Vec<Named>,
    /// Lines outside `--since`, `--until` and `--group`.
    pub passed_over: u64,
    /// The first moment.
    pub from: Option<String>,
    /// The last moment.
    pub until: Option<String>,
    /// Seconds between them, at least 1.
    pub duration: i64,
    /// Requests counted.
    pub requests: u64,
    /// Bytes of answers.
    pub bytes: u64,
    /// Answers of 500 and more.
    pub errors: u64,
    /// Different users.
    pub users: u64,
    /// Whether the figures of users are exact.
    pub exact: bool,
    /// By how much one of those that are not may be off, in what `--by` says.
    pub error: u64,
    /// Requests that one worker did not answer and another did.
    pub failovers: u64,
    /// Requests by `$matrix_user_hash_status`.
    pub lookups: Vec<Named>,
    /// How long lookups held requests.
    pub held: Times,
    /// The groups, slowest first.
    pub groups: Vec<Group>,
    /// The user of `--user`.
    pub user: Option<User>,
    /// What makes a user heavy.
    #[serde(skip)]
    pub by: Measure,
    /// When the workers' intervals begin, and how many seconds each has.
    #[serde(skip)]
    pub timeline: (i64, i64),
}

/// A count with its name.
#[derive(Debug, Serialize)]
pub(crate) struct Named {
    /// What it counts.
    pub name: &'static str,
    /// How many.
    pub count: u64,
}

impl Named {
    /// Gives each name its count.
    fn each<T: Copy>(names: &[(&'static str, T)], count: impl Fn(T) -> u64) -> Vec<Self> {
        names
            .iter()
            .map(|&(name, what)| Self {
                name,
                count: count(what),
            })
            .collect()
    }
}

/// Seconds.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub(crate) struct Times {
    pub requests: u64,
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub largest: f64,
}

impl Times {
    fn of(histogram: &Histogram) -> Self {
        Self {
            requests: histogram.count(),
            mean: histogram.mean(),
            p50: histogram.quantile(0.5),
            p95: histogram.quantile(0.95),
            p99: histogram.quantile(0.99),
            largest: histogram.largest(),
        }
    }
}

/// A group of workers.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    /// Its name.
    pub group: String,
    /// Its requests.
    pub requests: u64,
    /// Answers of 500 and more.
    pub errors: u64,
    /// Requests that nginx answered itself.
    pub unserved: u64,
    /// How long clients waited.
    pub times: Times,
    /// Its workers, by name.
    pub workers: Vec<Worker>,
    /// How evenly they are loaded, if there are two or more.
    pub evenness: Option<Evenness>,
    /// Users who reached more than one of them.
    pub moved: Moved,
    /// What a canary and pins had of its requests.
    pub chosen: Vec<Chosen>,
}

/// What a canary or a pin had.
#[derive(Debug, Serialize)]
pub(crate) struct Chosen {
    /// Its upstream.
    pub upstream: String,
    /// Requests.
    pub requests: u64,
    /// Answers of 500 and more.
    pub errors: u64,
    /// How long clients waited on average, in seconds.
    pub mean: f64,
}

impl Chosen {
    /// Those of a group, by name.
    fn of(tally: &Tally, group: usize) -> Vec<Self> {
        let own = tally.chosen.iter();
        let own = own.filter(|chosen| usize::from(chosen.group) == group);
        let mut all: Vec<Self> = own
            .map(|chosen| Self {
                upstream: chosen.upstream.clone(),
                requests: chosen.counts.requests,
                errors: chosen.counts.errors,
                mean: chosen.counts.ms as f64 / 1_000.0 / chosen.counts.requests as f64,
            })
            .collect();
        all.sort_by(|a, b| a.upstream.cmp(&b.upstream));
        all
    }
}

impl Display for Chosen {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} requests, {} with errors, {:.3} s on average",
            self.upstream,
            text::number(self.requests),
            text::number(self.errors),
            self.mean
        )
    }
}

/// A worker in its group.
#[derive(Debug, Serialize)]
pub(crate) struct Worker {
    /// As nginx logs it.
    pub worker: String,
    /// Users who reached it.
    pub users: u64,
    /// Requests that it answered.
    pub requests: u64,
    /// Its part of the group's requests.
    pub share: f64,
    /// Whether users are spread over it: a canary has those that were chosen for it.
    pub has_share: bool,
    /// Seconds that requests were with it; long polls wait there without work.
    pub seconds: f64,
    /// Bytes of its answers.
    pub bytes: u64,
    /// Attempts that ended with 500 and more.
    pub errors: u64,
    /// Attempts after which nginx tried another worker.
    pub failed_attempts: u64,
    /// Its heaviest users.
    pub heaviest: Vec<Heavy>,
    /// Requests by interval.
    #[serde(skip)]
    pub timeline: Vec<u64>,
}

/// A heavy user of a worker.
#[derive(Debug, Serialize)]
pub(crate) struct Heavy {
    /// Their hash.
    pub user: String,
    /// What they did, where it is exact.
    #[serde(flatten)]
    pub exact: Option<Amounts>,
    /// Where it is not: what `--by` says, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<u64>,
}

/// What somebody did.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub(crate) struct Amounts {
    pub requests: u64,
    pub seconds: f64,
    pub bytes: u64,
}

impl Amounts {
    fn of(counts: &Counts) -> Self {
        Self {
            requests: counts.requests,
            seconds: counts.ms as f64 / 1_000.0,
            bytes: counts.bytes,
        }
    }
}

/// The largest worker over the mean, next to what chance alone would give.
#[derive(Debug, Serialize)]
pub(crate) struct Evenness {
    /// Of users.
    pub users: Even,
    /// Of requests.
    pub requests: Even,
    /// Of seconds.
    pub seconds: Even,
}

/// One evenness.
#[derive(Debug, Serialize)]
pub(crate) struct Even {
    /// 1 is perfectly even.
    pub largest_over_mean: f64,
    /// If every user were given to a worker by lot; none where no user is known.
    pub chance: Option<Chance>,
}

/// Users who reached more than one worker, by the first reason that is true.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Moved {
    /// All of them.
    pub users: u64,
    /// A worker was down.
    pub worker_down: u64,
    /// They went to another worker once and stayed.
    pub shift: u64,
    /// Neither.
    pub other: u64,
    /// Requests whose user was not known: the hash in the log is that of the token, so they cannot be counted as their
    /// users', and may have reached another worker than those.
    pub fallback_requests: u64,
    /// About how many tokens they had.
    pub fallback_tokens_about: u64,
}

/// The user of `--user`.
#[derive(Debug, Serialize)]
pub(crate) struct User {
    /// Their hash.
    pub user: String,
    /// Where they were.
    pub places: Vec<AtPlace>,
}

/// A user at a worker.
#[derive(Debug, Serialize)]
pub(crate) struct AtPlace {
    /// The group.
    pub group: String,
    /// The worker.
    pub worker: String,
    /// What they did.
    #[serde(flatten)]
    pub amounts: Amounts,
    /// Why they were not on one worker of the group alone.
    pub why: Option<&'static str>,
}

impl Report {
    /// Makes it.
    pub(crate) fn new(tally: &Tally, top: usize) -> Self {
        let (users, exact) = tally.users();
        let (from, until) = tally.span.unwrap_or((0, 0));
        let by = tally.options().by;
        let mut groups = groups(tally, top);
        groups.sort_by(|a, b| {
            b.times
                .mean
                .total_cmp(&a.times.mean)
                .then_with(|| a.group.cmp(&b.group))
        });
        Self {
            lines: tally.lines,
            broken: Named::each(&Broken::ALL, |why| tally.broken[why as usize]),
            passed_over: tally.passed_over,
            from: tally.span.map(|_| time::format(from)),
            until: tally.span.map(|_| time::format(until)),
            duration: (until - from).max(1),
            requests: tally.counts.requests,
            bytes: tally.counts.bytes,
            errors: tally.counts.errors,
            users,
            exact,
            error: tally.overflow().map_or(0, |overflow| overflow.error()),
            failovers: tally.failovers,
            lookups: Named::each(&LOOKUPS, |lookup| tally.lookups[place_of(lookup)]),
            held: Times::of(&tally.held),
            groups,
            user: tally.options().watched.map(|user| watched(tally, user)),
            by,
            timeline: (tally.timeline_start.unwrap_or(0), tally.timeline_step),
        }
    }
}

fn groups(tally: &Tally, top: usize) -> Vec<Group> {
    let mut heaviest = heaviest(tally, top);
    let mut moved: Vec<Moved> = tally.groups.iter().map(|_| Moved::default()).collect();
    let mut weights: Vec<Vec<Counts>> = vec![Vec::new(); tally.groups.len()];
    for (user, group, person) in tally.people() {
        if tally.places[usize::from(person.first)].has_share {
            weights[usize::from(group)].push(tally.of_person(user, group, person));
        }
        if let Some(reason) = tally.reason(person) {
            moved[usize::from(group)].count(reason);
        }
    }
    tally
        .groups
        .iter()
        .enumerate()
        .zip(moved)
        .map(|((index, group), mut moved)| {
            (moved.fallback_requests, moved.fallback_tokens_about) =
                (group.fallbacks, group.fallback_tokens());
            let mut workers: Vec<Worker> = tally
                .places
                .iter()
                .enumerate()
                .filter(|(_, place)| usize::from(place.group) == index)
                .map(|(at, place)| Worker {
                    worker: place.address.clone(),
                    users: place.users(),
                    requests: place.counts.requests,
                    share: place.counts.requests as f64 / group.counts.requests.max(1) as f64,
                    has_share: place.has_share,
                    seconds: place.counts.ms as f64 / 1_000.0,
                    bytes: place.counts.bytes,
                    errors: place.counts.errors,
                    failed_attempts: place.failed,
                    heaviest: std::mem::take(&mut heaviest[at]),
                    timeline: place.timeline.clone(),
                })
                .collect();
            workers.sort_by(|a, b| a.worker.cmp(&b.worker));
            Group {
                group: group.name.clone(),
                requests: group.counts.requests,
                errors: group.counts.errors,
                unserved: group.unserved,
                times: Times::of(&group.times),
                evenness: evenness(tally, index, &mut weights[index]),
                workers,
                moved,
                chosen: Chosen::of(tally, index),
            }
        })
        .collect()
}

/// None where fewer than two workers answered.
fn evenness(tally: &Tally, group: usize, weights: &mut [Counts]) -> Option<Evenness> {
    let workers: Vec<_> = tally
        .places
        .iter()
        .filter(|place| {
            let is_worker = usize::from(place.group) == group && place.is_worker();
            is_worker && place.has_share && place.counts.requests > 0
        })
        .collect();
    if workers.len() < 2 {
        return None;
    }
    // The table's order is by chance; a fixed one gives the same answer to the same log.
    weights.sort_by_key(|counts| Reverse((counts.requests, counts.ms, counts.bytes)));
    let even = |loads: Vec<u64>, of_user: fn(&Counts) -> u64| {
        even_by_lot(&loads, &vec![1; loads.len()], weights.iter().map(of_user))
    };
    Some(Evenness {
        users: even(workers.iter().map(|place| place.users()).collect(), |_| 1),
        requests: even(
            workers.iter().map(|place| place.counts.requests).collect(),
            |counts| counts.requests,
        ),
        seconds: even(
            workers.iter().map(|place| place.counts.ms).collect(),
            |counts| counts.ms,
        ),
    })
}

/// The evenness of loads of workers with weights, next to what lots give with users of the given amounts.
pub(crate) fn even_by_lot(
    loads: &[u64],
    weights: &[u64],
    users: impl Iterator<Item = u64> + Clone,
) -> Even {
    Even {
        largest_over_mean: largest_for_its_weight(loads, weights),
        chance: (users.clone().next().is_some() && loads.len() > 1)
            .then(|| Chance::of(users, weights)),
    }
}

/// The largest load over the mean, each next to its weight; 1 where there is nothing.
pub(crate) fn largest_for_its_weight(loads: &[u64], weights: &[u64]) -> f64 {
    let (load, weight): (u64, u64) = (loads.iter().sum(), weights.iter().sum());
    let of_one = |(load, weight): (&u64, &u64)| *load as f64 / (*weight).max(1) as f64;
    let largest = loads.iter().zip(weights).map(of_one).fold(0.0, f64::max);
    if load == 0 {
        1.0
    } else {
        largest * weight as f64 / load as f64
    }
}

/// Amount and user, the least amount first in a heap; of equals, the larger hash.
type Lightest = Reverse<(u64, Reverse<u64>)>;

/// The heaviest users of each place, heaviest first.
fn heaviest(tally: &Tally, top: usize) -> Vec<Vec<Heavy>> {
    let by = tally.options().by;
    let mut heaps = vec![BinaryHeap::<Lightest>::new(); tally.places.len()];
    let mut offer = |place: u16, amount: u64, user: u64| {
        let heap = &mut heaps[usize::from(place)];
        heap.push(Reverse((amount, Reverse(user))));
        if heap.len() > top {
            heap.pop();
        }
    };
    let mut exact = std::collections::HashMap::new();
    for (user, _, person) in tally.people() {
        offer(person.first, person.counts.by(by), user);
    }
    for (user, place, counts) in tally.elsewhere() {
        offer(place, counts.by(by), user);
    }
    for (user, place, amount) in tally.heavy_others() {
        offer(place, amount, user);
    }
    let wanted: std::collections::HashSet<(u64, u16)> = heaps
        .iter()
        .enumerate()
        .flat_map(|(place, heap)| {
            heap.iter()
                .map(move |Reverse((_, Reverse(user)))| (*user, place as u16))
        })
        .collect();
    let firsts = tally
        .people()
        .map(|(user, _, person)| (user, person.first, person.counts));
    for (user, place, counts) in firsts.chain(tally.elsewhere()) {
        if wanted.contains(&(user, place)) {
            exact.insert((user, place), counts);
        }
    }
    heaps
        .into_iter()
        .enumerate()
        .map(|(place, heap)| {
            heap.into_sorted_vec()
                .into_iter()
                .map(|Reverse((amount, Reverse(user)))| {
                    let exact = exact.get(&(user, place as u16)).map(Amounts::of);
                    Heavy {
                        user: format!("{user:016x}"),
                        at_most: exact.is_none().then_some(amount),
                        exact,
                    }
                })
                .collect()
        })
        .collect()
}

impl Moved {
    fn count(&mut self, reason: Reason) {
        self.users += 1;
        *match reason {
            Reason::Down => &mut self.worker_down,
            Reason::Shift => &mut self.shift,
            Reason::Other => &mut self.other,
        } += 1;
    }
}

fn watched(tally: &Tally, user: u64) -> User {
    let mut places = Vec::new();
    let mut at = |place: u16, counts: &Counts, person: Option<&Person>| {
        let known = &tally.places[usize::from(place)];
        places.push(AtPlace {
            group: tally.groups[usize::from(known.group)].name.clone(),
            worker: known.address.clone(),
            amounts: Amounts::of(counts),
            why: person
                .and_then(|person| tally.reason(person))
                .map(|reason| match reason {
                    Reason::Down => "worker down",
                    Reason::Shift => "shift",
                    Reason::Other => "other",
                }),
        });
    };
    let persons: Vec<_> = tally
        .people()
        .filter(|(known, ..)| *known == user)
        .collect();
    for (_, _, person) in &persons {
        at(person.first, &person.counts, Some(person));
    }
    for (_, place, counts) in tally.elsewhere().filter(|(known, ..)| *known == user) {
        let group = tally.places[usize::from(place)].group;
        let person = persons
            .iter()
            .find(|(_, of, _)| *of == group)
            .map(|(_, _, person)| *person);
        at(place, &counts, person);
    }
    places.sort_by(|a, b| (&a.group, &a.worker).cmp(&(&b.group, &b.worker)));
    User {
        user: format!("{user:016x}"),
        places,
    }
}
