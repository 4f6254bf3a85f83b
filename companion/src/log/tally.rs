//! Lines added up: for each worker, each group, each status and each user, in a bounded amount of memory.
//!
//! Whatever concerns workers, groups and statuses is exact. Users are exact as long as there are no more of them than
//! [`Options::exact_users`]. One who comes when the table is full is never in it: their requests go to a sketch of heavy
//! hitters (Misra and Gries, in Apache DataSketches), and they are counted by HyperLogLog. So each user's figures are either
//! exact, or off by at most [`Overflow::error`].
//!
//! A request counts for the worker that answered it, the last that nginx tried. The seconds of an attempt count for the
//! worker that was tried.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use datasketches::frequencies::{ErrorType, FrequentItemsSketch};
use datasketches::hll::{HllSketch, HllType};
use rustc_hash::FxHasher;

use super::histogram::Histogram;
use super::line::{
    Broken, LOOKUPS, Line, Parser, Way, attempts, is_fallback, milliseconds, place_of, status,
};

type Map<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// Workers that are told apart, each in its group. A deployment has some dozens; a log that somebody made up may have any number.
const PLACES: usize = 4_096;
/// Upstreams of canaries and pins that are told apart.
const CHOSEN: usize = 256;
/// Bytes of a worker's or group's name that are kept.
const NAME: usize = 200;
/// Counters of the heavy-hitter sketch: one for each 16 users of the exact table, within these bounds.
const SKETCH: [usize; 2] = [1 << 10, 1 << 16];
/// HyperLogLog of 2^12 registers: 1.6% standard error.
const REGISTERS: u8 = 12;
/// Intervals for the plots.
const INTERVALS: usize = 1_440;
/// A worker whose attempt failed is taken for down this long before and after, in seconds: three times nginx's
/// `fail_timeout`, for which nginx does not try it.
const DOWN: i64 = 30;
/// Times that a worker went down; later ones prolong the last.
const DOWNS: usize = 4_096;
/// The index of no place.
const NONE: u16 = u16::MAX;

/// Which lines and users are counted, and how.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Seconds since 1970, inclusive.
    pub since: Option<i64>,
    /// Seconds since 1970, exclusive.
    pub until: Option<i64>,
    /// One group only.
    pub group: Option<String>,
    /// A user who is exact whatever comes before.
    pub watched: Option<u64>,
    /// Users whose figures are exact.
    pub exact_users: usize,
    /// What makes a user heavy.
    pub by: Measure,
}

/// What makes a user heavy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measure {
    /// How often they ask
    Requests,
    /// How long their requests take, with the time that a worker waits for news
    Seconds,
    /// What they download
    Bytes,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests.
    pub requests: u64,
    /// Milliseconds that a worker worked or waited.
    pub ms: u64,
    /// Bytes of answers.
    pub bytes: u64,
    /// Answers of 500 and more.
    pub errors: u64,
}

impl Counts {
    /// Adds another sum.
    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.ms += other.ms;
        self.bytes += other.bytes;
        self.errors += other.errors;
    }

    /// The sum that `measure` names.
    pub(crate) const fn by(&self, measure: Measure) -> u64 {
        match measure {
            Measure::Requests => self.requests,
            Measure::Seconds => self.ms,
            Measure::Bytes => self.bytes,
        }
    }
}

/// A worker in a group.
#[derive(Debug)]
pub(crate) struct Place {
    /// The index of its group.
    pub group: u16,
    /// Its name as nginx logs it.
    pub address: String,
    /// What it answered. The milliseconds are of all attempts at it, the errors too.
    pub counts: Counts,
    /// Attempts after which nginx tried another worker.
    pub failed: u64,
    /// Whether the ring of the group has it.
    pub on_ring: bool,
    /// Whether that ring has it, or the one before a shift: a canary is on neither.
    pub has_share: bool,
    /// Users in the exact table who reached it.
    pub exact_users: u64,
    /// Users who are not there.
    pub other_users: Option<HllSketch>,
    /// When it was down: intervals in seconds.
    downs: Vec<(i64, i64)>,
    /// Requests by interval.
    pub timeline: Vec<u64>,
}

impl Place {
    /// Whether it is a worker: nginx logs the name of the group when none of its workers can be tried.
    pub(crate) fn is_worker(&self) -> bool {
        self.address.contains(':')
    }

    /// How many users reached it.
    pub(crate) fn users(&self) -> u64 {
        self.exact_users + self.other_users.as_ref().map_or(0, estimated)
    }

    /// Makes intervals twice as long; `shifted` is 1 if the first of them gets nothing in front.
    fn halve(&mut self, shifted: usize) {
        let old = std::mem::take(&mut self.timeline);
        self.timeline = vec![0; (old.len() + shifted).div_ceil(2)];
        for (index, count) in old.into_iter().enumerate() {
            self.timeline[(index + shifted) / 2] += count;
        }
    }

    fn went_down(&mut self, at: i64) {
        let full = self.downs.len() >= DOWNS;
        let near = |(from, to): &(i64, i64)| (from - 2 * DOWN..=to + 2 * DOWN).contains(&at);
        // Only the last ones: what failed at the same time is logged at about the same time.
        let mut last = self.downs.iter_mut().rev().take(8);
        match last.find(|down| full || near(down)) {
            Some((from, to)) => (*from, *to) = ((*from).min(at), (*to).max(at)),
            None => self.downs.push((at, at)),
        }
    }

    fn was_down(&self, at: i64) -> bool {
        self.downs
            .iter()
            .rev()
            .any(|(from, to)| (from - DOWN..=to + DOWN).contains(&at))
    }
}

/// A group of workers.
#[derive(Debug)]
pub(crate) struct Group {
    /// Its name; empty where none is logged.
    pub name: String,
    /// Its requests. The milliseconds are those that clients waited.
    pub counts: Counts,
    /// Requests that nginx answered without any worker.
    pub unserved: u64,
    /// How long clients waited.
    pub times: Histogram,
    /// Requests whose user was not known, so that the token chose the worker.
    pub fallbacks: u64,
    tokens: Option<HllSketch>,
}

impl Group {
    /// About how many tokens chose a worker themselves.
    pub(crate) fn fallback_tokens(&self) -> u64 {
        self.tokens.as_ref().map_or(0, estimated)
    }
}

/// An upstream that a canary or pins have, beside the ring of their group.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The index of its group.
    pub group: u16,
    /// Its name.
    pub upstream: String,
    /// Its requests, whichever worker answered them. The milliseconds are those that clients waited.
    pub counts: Counts,
}

/// A user in a group.
#[derive(Debug)]
pub(crate) struct Person {
    /// What they did at `first`.
    pub counts: Counts,
    /// When they first went to another worker with none of `home`'s attempts failing, in seconds.
    moved_at: i64,
    /// The worker that they reached first.
    pub first: u16,
    /// The worker where nginx looks for them now, as far as the log says.
    home: u16,
    /// The worker that they left at `moved_at`.
    left: u16,
    flags: u8,
}

const DOWN_SEEN: u8 = 1;
const RETURNED: u8 = 2;
const ELSEWHERE: u8 = 4;

/// Why a user was on more than one worker of a group. The first that is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// A worker did not answer, and nginx tried another.
    Down,
    /// They went from one worker to another and stayed there: the set of workers changed, or a shift went on.
    Shift,
    /// Neither: two nginx with different workers, or a group that is not hashed by user.
    Other,
}

/// What does not fit into the exact table.
#[derive(Debug)]
pub(crate) struct Overflow {
    sketch: FrequentItemsSketch<(u64, u16)>,
    people: HllSketch,
}

impl Overflow {
    /// By how much a user's figure may be off.
    pub(crate) fn error(&self) -> u64 {
        self.sketch.maximum_error()
    }
}

/// Everything that is added up.
#[derive(Debug)]
pub(crate) struct Tally {
    options: Options,
    parser: Parser,
    /// Lines, with the broken ones.
    pub lines: u64,
    /// Broken lines by reason.
    pub broken: [u64; Broken::ALL.len()],
    /// Lines that are of another time or group.
    pub passed_over: u64,
    /// The first and the last moment.
    pub span: Option<(i64, i64)>,
    /// Requests by status of the lookup.
    pub lookups: [u64; LOOKUPS.len()],
    /// How long lookups held requests.
    pub held: Histogram,
    /// Sums of everything.
    pub counts: Counts,
    /// Requests that some worker did not answer and another did.
    pub failovers: u64,
    /// Groups, by index.
    pub groups: Vec<Group>,
    /// Workers, by index.
    pub places: Vec<Place>,
    /// Upstreams of canaries and pins.
    pub chosen: Vec<Chosen>,
    /// When the first interval of the timelines begins.
    pub timeline_start: Option<i64>,
    /// How long each interval is, in seconds.
    pub timeline_step: i64,
    group_names: Map<Vec<u8>, u16>,
    place_names: Map<Vec<u8>, u16>,
    scratch: Vec<u8>,
    people: Map<(u64, u16), Person>,
    elsewhere: Map<(u64, u16), Counts>,
    overflow: Option<Box<Overflow>>,
}

impl Tally {
    /// Nothing yet.
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            parser: Parser::default(),
            lines: 0,
            broken: [0; Broken::ALL.len()],
            passed_over: 0,
            span: None,
            lookups: [0; LOOKUPS.len()],
            held: Histogram::default(),
            counts: Counts::default(),
            failovers: 0,
            groups: Vec::new(),
            places: Vec::new(),
            chosen: Vec::new(),
            timeline_start: None,
            timeline_step: 60,
            group_names: Map::default(),
            place_names: Map::default(),
            scratch: Vec::new(),
            people: Map::default(),
            elsewhere: Map::default(),
            overflow: None,
        }
    }

    /// Adds a line as `read::lines` gives it, and returns it if it counts.
    pub(crate) fn add<'a>(&mut self, line: Option<&'a [u8]>) -> Option<Line<'a>> {
        self.lines += 1;
        match line
            .ok_or(Broken::Long)
            .and_then(|line| self.parser.parse(line))
        {
            Ok(line) => self.count(&line).then_some(line),
            Err(why) => {
                self.broken[why as usize] += 1;
                None
            }
        }
    }

    fn count(&mut self, line: &Line<'_>) -> bool {
        let options = &self.options;
        if options.since.is_some_and(|since| line.time < since)
            || options.until.is_some_and(|until| line.time >= until)
            || options
                .group
                .as_ref()
                .is_some_and(|group| group.as_bytes() != line.group)
        {
            self.passed_over += 1;
            return false;
        }
        let (first, last) = self.span.unwrap_or((line.time, line.time));
        self.span = Some((first.min(line.time), last.max(line.time)));
        self.lookups[place_of(line.lookup)] += 1;
        if let Some(ms) = line.lookup_ms {
            self.held.add(ms);
        }
        let Some(group) = self.group(line.group) else {
            // More groups than any deployment has: their requests count in the sums alone.
            self.counts.requests += 1;
            return true;
        };
        let served = self.attempts(line, group);
        let all = Counts {
            requests: 1,
            ms: served.request_ms,
            bytes: line.bytes,
            errors: u64::from(line.status >= 500),
        };
        self.counts.add(all);
        let figures = &mut self.groups[usize::from(group)];
        figures.counts.add(all);
        if served.timed {
            figures.times.add(served.request_ms);
        }
        if line.way() == Way::Chosen {
            self.by_choice(line, group, all);
        }
        let figures = &mut self.groups[usize::from(group)];
        if served.place == NONE {
            figures.unserved += 1;
            return true;
        }
        self.at_place(line, served.place);
        let Some(user) = line.user else { return true };
        if is_fallback(line.lookup) {
            let figures = &mut self.groups[usize::from(group)];
            figures.fallbacks += 1;
            figures.tokens.get_or_insert_with(registers).update(user);
            return true;
        }
        let counts = Counts {
            ms: served.last_ms,
            ..all
        };
        self.of_user(user, group, &served, counts);
        true
    }

    /// What nginx tried, in turn.
    fn attempts(&mut self, line: &Line<'_>, group: u16) -> Served {
        let has_times = !line.upstream_time.is_empty();
        let upstream_ms = || attempts(line.upstream_time).filter_map(milliseconds).sum();
        let request_ms = line.request_ms.or_else(|| has_times.then(upstream_ms));
        let mut served = Served {
            place: NONE,
            tried: NONE,
            request_ms: request_ms.unwrap_or(0),
            last_ms: request_ms.unwrap_or(0),
            timed: request_ms.is_some(),
            began: line.time - seconds(request_ms.unwrap_or(0)),
        };
        let mut statuses = attempts(line.upstream_status);
        let mut times = attempts(line.upstream_time);
        let (mut number, mut spent, mut last) = (0, 0, None);
        let way = line.way();
        for address in attempts(line.workers) {
            if served.place != NONE && last.is_none_or(|status| status >= 500) {
                let place = &mut self.places[usize::from(served.place)];
                place.failed += 1;
                place.went_down(served.began + seconds(spent));
            }
            number += 1;
            served.place = self.place(group, address);
            last = statuses.next().and_then(|text| status(text).ok());
            if number == 1 {
                served.tried = served.place;
            }
            let ms = if has_times {
                times.next().and_then(milliseconds).unwrap_or(0)
            } else {
                0
            };
            spent += ms;
            if has_times {
                served.last_ms = ms;
            }
            if let Some(place) = self.places.get_mut(usize::from(served.place)) {
                place.on_ring |= way == Way::Ring;
                place.has_share |= way != Way::Chosen;
                place.counts.ms += ms;
                place.counts.errors += u64::from(last.is_some_and(|status| status >= 500));
            }
        }
        if let Some(place) = self.places.get_mut(usize::from(served.place)) {
            if !has_times {
                place.counts.ms += served.last_ms;
            }
            // The client's status is the last attempt's where that is not logged.
            place.counts.errors += u64::from(last.is_none() && line.status >= 500);
            // A 504 is one slow request, and says nothing of others.
            if last.unwrap_or(line.status) == 502 {
                place.went_down(line.time);
            }
        }
        self.failovers += u64::from(number > 1);
        served
    }

    fn at_place(&mut self, line: &Line<'_>, place: u16) {
        let interval = self.interval(line.time);
        let place = &mut self.places[usize::from(place)];
        place.counts.requests += 1;
        place.counts.bytes += line.bytes;
        if place.timeline.len() <= interval {
            place.timeline.resize(interval + 1, 0);
        }
        place.timeline[interval] += 1;
    }

    fn by_choice(&mut self, line: &Line<'_>, group: u16, counts: Counts) {
        let name = shown(&line.upstream[..line.upstream.len().min(NAME)]);
        let known = self
            .chosen
            .iter()
            .position(|chosen| chosen.group == group && chosen.upstream == name);
        if let Some(index) = known {
            self.chosen[index].counts.add(counts);
        } else if self.chosen.len() < CHOSEN {
            self.chosen.push(Chosen {
                group,
                upstream: name,
                counts,
            });
        }
    }

    fn of_user(&mut self, user: u64, group: u16, served: &Served, counts: Counts) {
        let full = self.people.len() + self.elsewhere.len() >= self.options.exact_users
            && self.options.watched != Some(user);
        let place = served.place;
        if full && !self.people.contains_key(&(user, group)) {
            return self.overflowed(user, place, counts, true);
        }
        let person = self.people.entry((user, group)).or_insert_with(|| {
            self.places[usize::from(place)].exact_users += 1;
            Person {
                counts: Counts::default(),
                moved_at: 0,
                first: place,
                home: served.tried,
                left: NONE,
                flags: 0,
            }
        });
        person.met(served, &self.places);
        if place == person.first {
            person.counts.add(counts);
            return;
        }
        person.flags |= ELSEWHERE;
        if full && !self.elsewhere.contains_key(&(user, place)) {
            return self.overflowed(user, place, counts, false);
        }
        self.elsewhere
            .entry((user, place))
            .or_insert_with(|| {
                self.places[usize::from(place)].exact_users += 1;
                Counts::default()
            })
            .add(counts);
    }

    fn overflowed(&mut self, user: u64, place: u16, counts: Counts, stranger: bool) {
        let size = (self.options.exact_users / 16)
            .clamp(SKETCH[0], SKETCH[1])
            .next_power_of_two();
        let overflow = self.overflow.get_or_insert_with(|| {
            Box::new(Overflow {
                // The size is a power of two within the crate's bounds.
                sketch: FrequentItemsSketch::new(size)
                    .unwrap_or_else(|error| unreachable!("{error}")),
                people: registers(),
            })
        });
        let weight = counts.by(self.options.by);
        if weight > 0 {
            overflow.sketch.update_with_count((user, place), weight);
        }
        if stranger {
            overflow.people.update(user);
        }
        self.places[usize::from(place)]
            .other_users
            .get_or_insert_with(registers)
            .update(user);
    }

    fn group(&mut self, name: &[u8]) -> Option<u16> {
        let name = &name[..name.len().min(NAME)];
        if let Some(index) = self.group_names.get(name) {
            return Some(*index);
        }
        let index = u16::try_from(self.groups.len())
            .ok()
            .filter(|index| usize::from(*index) < PLACES)?;
        self.group_names.insert(name.to_vec(), index);
        self.groups.push(Group {
            name: shown(name),
            counts: Counts::default(),
            unserved: 0,
            times: Histogram::default(),
            fallbacks: 0,
            tokens: None,
        });
        Some(index)
    }

    fn place(&mut self, group: u16, address: &[u8]) -> u16 {
        let address = &address[..address.len().min(NAME)];
        self.scratch.clear();
        self.scratch.extend_from_slice(&group.to_le_bytes());
        self.scratch.extend_from_slice(address);
        if let Some(index) = self.place_names.get(self.scratch.as_slice()) {
            return *index;
        }
        let index = match u16::try_from(self.places.len()) {
            Ok(index) if usize::from(index) < PLACES => index,
            _ => return NONE,
        };
        self.place_names.insert(self.scratch.clone(), index);
        self.places.push(Place {
            group,
            address: shown(address),
            counts: Counts::default(),
            failed: 0,
            on_ring: false,
            has_share: false,
            exact_users: 0,
            other_users: None,
            downs: Vec::new(),
            timeline: Vec::new(),
        });
        index
    }

    /// The interval of a moment. Intervals get longer when there are too many of them.
    fn interval(&mut self, time: i64) -> usize {
        let mut start = *self.timeline_start.get_or_insert(time.div_euclid(60) * 60);
        let mut step = self.timeline_step;
        while time < start || (time - start) / step >= INTERVALS as i64 {
            let before = (start - time).max(0).div_euclid(step) + 1;
            let longest = self
                .places
                .iter()
                .map(|place| place.timeline.len())
                .max()
                .unwrap_or(0);
            match usize::try_from(before) {
                Ok(more) if time < start && longest + more <= INTERVALS => {
                    start -= before * step;
                    for place in &mut self.places {
                        place.timeline.splice(..0, std::iter::repeat_n(0, more));
                    }
                }
                _ => {
                    let doubled = start.div_euclid(2 * step) * 2 * step;
                    let shifted = usize::from(doubled != start);
                    for place in &mut self.places {
                        place.halve(shifted);
                    }
                    (start, step) = (doubled, step * 2);
                }
            }
        }
        (self.timeline_start, self.timeline_step) = (Some(start), step);
        usize::try_from((time - start) / step).unwrap_or(0)
    }

    /// Users in a group, each with what they did at all of its workers. Only those of the exact table.
    pub(crate) fn people(&self) -> impl Iterator<Item = (u64, u16, &Person)> {
        self.people
            .iter()
            .map(|((user, group), person)| (*user, *group, person))
    }

    /// What users did at workers that were not their first.
    pub(crate) fn elsewhere(&self) -> impl Iterator<Item = (u64, u16, Counts)> {
        self.elsewhere
            .iter()
            .map(|((user, place), counts)| (*user, *place, *counts))
    }

    /// What a user did in a group, whatever worker it was.
    pub(crate) fn of_person(&self, user: u64, group: u16, person: &Person) -> Counts {
        let mut counts = person.counts;
        if person.flags & ELSEWHERE != 0 {
            (0..self.places.len() as u16)
                .filter(|place| self.places[usize::from(*place)].group == group)
                .filter_map(|place| self.elsewhere.get(&(user, place)))
                .for_each(|more| counts.add(*more));
        }
        counts
    }

    /// Why a user was on more than one worker; none if they were not.
    pub(crate) fn reason(&self, person: &Person) -> Option<Reason> {
        if person.flags & ELSEWHERE == 0 {
            return None;
        }
        let explained =
            |place: u16| place != NONE && self.places[usize::from(place)].was_down(person.moved_at);
        Some(if person.flags & DOWN_SEEN != 0 || explained(person.left) {
            Reason::Down
        } else if person.left != NONE && person.flags & RETURNED == 0 {
            Reason::Shift
        } else {
            Reason::Other
        })
    }

    /// How many different users there are; whether that is exact.
    pub(crate) fn users(&self) -> (u64, bool) {
        let mut users: Vec<u64> = self.people.keys().map(|(user, _)| *user).collect();
        users.sort_unstable();
        users.dedup();
        match &self.overflow {
            None => (users.len() as u64, true),
            Some(overflow) => (users.len() as u64 + estimated(&overflow.people), false),
        }
    }

    /// Users who did not fit into the table.
    pub(crate) fn overflow(&self) -> Option<&Overflow> {
        self.overflow.as_deref()
    }

    /// The heaviest who did not fit, each with an upper bound: user, place, amount.
    pub(crate) fn heavy_others(&self) -> Vec<(u64, u16, u64)> {
        self.overflow().map_or_else(Vec::new, |overflow| {
            overflow
                .sketch
                .frequent_items(ErrorType::NoFalseNegatives)
                .iter()
                .map(|row| (row.item().0, row.item().1, row.upper_bound()))
                .collect()
        })
    }

    /// What is counted.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }
}

impl Person {
    /// Follows where nginx looks for them.
    fn met(&mut self, served: &Served, places: &[Place]) {
        if served.tried != served.place {
            self.flags |= DOWN_SEEN;
        }
        let tried = served.tried;
        if tried == self.home || tried == NONE {
            return;
        }
        if self.home != NONE && places[usize::from(self.home)].was_down(served.began) {
            self.flags |= DOWN_SEEN;
            return;
        }
        if self.left == NONE {
            (self.left, self.moved_at) = (self.home, served.began);
        } else if tried == self.left {
            // A request that began before the move ends after it: long polls do.
            if served.began <= self.moved_at + 1 {
                return;
            }
            self.flags |= RETURNED;
        }
        self.home = tried;
    }
}

/// What came of the attempts of one request.
struct Served {
    /// The last.
    place: u16,
    /// The first.
    tried: u16,
    request_ms: u64,
    last_ms: u64,
    /// Whether the log says how long it took.
    timed: bool,
    /// When the client asked.
    began: i64,
}

fn registers() -> HllSketch {
    // The number of registers is within the crate's bounds.
    HllSketch::new(REGISTERS, HllType::Hll8).unwrap_or_else(|error| unreachable!("{error}"))
}

fn estimated(sketch: &HllSketch) -> u64 {
    sketch.estimate().round() as u64
}

fn seconds(ms: u64) -> i64 {
    i64::try_from(ms / 1_000).unwrap_or(i64::MAX / 2)
}

/// A name of the log on a terminal: nothing in it may steer that.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        Tally::new(Options {
            since: None,
            until: None,
            group: None,
            watched: None,
            exact_users: 1_000,
            by: Measure::Requests,
        })
    }

    /// A request of a user that ended at a moment and took some seconds.
    fn asked(tally: &mut Tally, end: i64, took: u32, user: u64, workers: &str, status: u16) {
        let end = crate::log::time::format(end).replace('Z', "+00:00");
        let line = format!(
            "::1 {end} \"GET /sync\" {status} 5 time={took}.000 worker={workers} user={user:016x} lookup=HIT"
        );
        assert!(tally.add(Some(line.as_bytes())).is_some(), "{line}");
    }

    fn reason(tally: &Tally, wanted: u64) -> Option<Reason> {
        let (_, _, person) = tally.people().find(|(user, ..)| *user == wanted).unwrap();
        tally.reason(person)
    }

    #[test]
    fn a_worker_that_failed_explains_who_is_elsewhere_for_a_while() {
        let mut tally = tally();
        for user in 1..=3 {
            asked(&mut tally, 1_000, 0, user, "a:1", 200);
        }
        // nginx gave up on the worker with the request of somebody else, and does not try it for some seconds.
        asked(&mut tally, 1_100, 0, 2, "b:1", 200);
        asked(&mut tally, 1_130, 30, 1, "a:1, b:1", 200);
        asked(&mut tally, 1_105, 0, 3, "b:1", 200);
        asked(&mut tally, 1_200, 0, 2, "a:1", 200);
        asked(&mut tally, 1_200, 0, 3, "a:1", 200);
        for user in 1..=3 {
            assert_eq!(reason(&tally, user), Some(Reason::Down), "{user}");
        }
        assert_eq!((tally.failovers, tally.places[0].failed), (1, 1));
    }

    #[test]
    fn who_goes_once_and_stays_was_shifted_and_who_goes_to_and_fro_was_not() {
        let mut tally = tally();
        for (user, workers) in [(1, "aabb"), (2, "abab"), (3, "aaaa"), (4, "abcc")] {
            for (step, worker) in workers.chars().enumerate() {
                asked(
                    &mut tally,
                    1_000 + 100 * step as i64,
                    1,
                    user,
                    &format!("{worker}:1"),
                    200,
                );
            }
        }
        assert_eq!(
            [1, 2, 3, 4].map(|user| reason(&tally, user)),
            [
                Some(Reason::Shift),
                Some(Reason::Other),
                None,
                Some(Reason::Shift)
            ]
        );
    }

    #[test]
    fn a_poll_that_began_before_a_shift_is_no_return() {
        let mut tally = tally();
        asked(&mut tally, 1_000, 0, 1, "a:1", 200);
        asked(&mut tally, 1_020, 1, 1, "b:1", 200);
        asked(&mut tally, 1_030, 30, 1, "a:1", 200);
        asked(&mut tally, 1_040, 1, 1, "b:1", 200);
        assert_eq!(reason(&tally, 1), Some(Reason::Shift));
    }

    #[test]
    fn seconds_are_those_of_each_attempt_where_they_are_logged() {
        let mut tally = tally();
        let line = b"::1 [2026-11-25T17:20:00+00:00] \"GET /sync\" 200 7 time=5.500 group=sync worker=a:1, b:1 \
            upstream_status=504, 200 upstream_time=5.000, 0.500 user_hash=86f01aef21b1acd3 user_hash_status=HIT lookup_time=- \"x\"";
        tally.add(Some(line));
        let [a, b] = [&tally.places[0], &tally.places[1]];
        assert_eq!(
            (a.counts.ms, a.counts.errors, a.counts.requests),
            (5_000, 1, 0)
        );
        assert_eq!(
            (
                b.counts.ms,
                b.counts.errors,
                b.counts.requests,
                b.counts.bytes
            ),
            (500, 0, 1, 7)
        );
    }

    #[test]
    fn intervals_hold_every_request_however_long_the_log_and_whatever_its_order() {
        let mut tally = tally();
        let moments = [500_000, 500_060, 400_000, 90_000_000, 0, 499_999];
        for (number, moment) in moments.into_iter().enumerate() {
            asked(&mut tally, moment, 0, 1, "a:1", 200);
            assert_eq!(
                tally.places[0].timeline.iter().sum::<u64>(),
                number as u64 + 1,
                "{moment}"
            );
            assert!(tally.places[0].timeline.len() <= INTERVALS);
        }
        let (start, step) = (tally.timeline_start.unwrap(), tally.timeline_step);
        assert!(start <= 0 && start + step * INTERVALS as i64 > 90_000_000);
        assert_eq!(tally.places[0].timeline.last(), Some(&1));
    }

    #[test]
    fn a_canary_and_a_worker_that_leaves_are_told_from_those_of_the_ring() {
        let mut tally = tally();
        for (upstream, worker) in [
            ("s_sync", "ring:1"),
            ("s_sync_before", "leaves:1"),
            ("s_sync_canary", "canary:1"),
            ("s_sync_before_canary", "canary:1"),
            ("s_sync_pin_2", "ring:1"),
        ] {
            let status = if upstream == "s_sync_canary" {
                500
            } else {
                200
            };
            let line = format!(
                "::1 [2026-11-25T17:20:00+00:00] \"GET /sync\" {status} 7 time=0.500 group=s_sync upstream={upstream} worker={worker} \
                user_hash=86f01aef21b1acd3 user_hash_status=HIT"
            );
            assert!(tally.add(Some(line.as_bytes())).is_some());
        }
        let found = |place: &Place| (place.address.clone(), place.on_ring, place.has_share);
        assert_eq!(
            tally.places.iter().map(found).collect::<Vec<_>>(),
            [
                ("ring:1".to_owned(), true, true),
                ("leaves:1".to_owned(), false, true),
                ("canary:1".to_owned(), false, false)
            ]
        );
        let chosen = |chosen: &Chosen| (chosen.upstream.clone(), chosen.counts);
        let once = |errors| Counts {
            requests: 1,
            ms: 500,
            bytes: 7,
            errors,
        };
        assert_eq!(
            tally.chosen.iter().map(chosen).collect::<Vec<_>>(),
            [
                ("s_sync_canary".to_owned(), once(1)),
                ("s_sync_before_canary".to_owned(), once(0)),
                ("s_sync_pin_2".to_owned(), once(0))
            ]
        );
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut tally = tally();
        for number in 0..3 * PLACES as u64 {
            asked(&mut tally, 1_000, 0, number, &format!("w{number}:1"), 200);
        }
        assert_eq!(tally.places.len(), PLACES);
        assert!(tally.people.len() + tally.elsewhere.len() <= 1_000);
        assert_eq!(tally.counts.requests, 3 * PLACES as u64);
        let (users, exact) = tally.users();
        // Those of the workers that do not fit are in the sums alone.
        assert!(!exact && users.abs_diff(PLACES as u64) < 200, "{users}");
    }
}
