//! What lookups the log shows, and what they would be with other settings.
//!
//! A log has no tokens, so devices stand for them: a device is a user with a user agent. Each `MISS` is a token that the zone
//! did not know, each `STALE` one whose answer was due to be asked again.

use std::collections::VecDeque;

use datasketches::hll::{HllSketch, HllType};
use matrix_user_hash_core::engine::Status;
use matrix_user_hash_core::shm::zone::Layout;
use serde::Serialize;

use crate::log::line::Line;

const HOUR: i64 = 3_600;

/// How the module would be configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// `matrix_user_hash_valid`, in seconds.
    pub valid: u64,
    /// `inactive`, in seconds.
    pub inactive: u64,
    /// How long a token lives, in seconds; none is as the log shows it.
    pub rotation: Option<u64>,
}

/// What is expected.
#[derive(Debug, Serialize)]
pub(crate) struct Lookups {
    /// Devices in the busiest hour, about.
    pub devices_in_an_hour: u64,
    /// `MISS` and `STALE` in the busiest hour, each second: about what whoami had to answer.
    pub seen_in_a_second: f64,
    /// Tokens that are new in a second of the busiest hour.
    pub new_tokens_in_a_second: f64,
    /// Answers that are asked again, each second.
    pub refreshes_in_a_second: f64,
    /// Both: what whoami has to answer in a second of the busiest hour.
    pub whoami_in_a_second: f64,
    /// Tokens that the zone has to hold.
    pub tokens: u64,
    /// The size for them, in MiB.
    pub zone_mib: u64,
}

/// What is counted on the way, an hour at a time.
#[derive(Debug)]
pub(crate) struct Seen {
    hour: i64,
    devices: HllSketch,
    misses: u64,
    stale: u64,
    most_devices: u64,
    most_misses: u64,
    most_asked: u64,
    /// Misses of the last hours, as many as `inactive` has.
    window: VecDeque<(i64, u64)>,
    in_window: u64,
    most_in_window: u64,
    inactive: i64,
}

impl Seen {
    /// Begins.
    pub(crate) fn new(wanted: &Wanted) -> Self {
        Self {
            hour: i64::MIN,
            devices: registers(),
            misses: 0,
            stale: 0,
            most_devices: 0,
            most_misses: 0,
            most_asked: 0,
            window: VecDeque::new(),
            in_window: 0,
            most_in_window: 0,
            inactive: i64::try_from(wanted.inactive)
                .unwrap_or(i64::MAX)
                .clamp(HOUR, 366 * 24 * HOUR),
        }
    }

    /// Takes a request in.
    pub(crate) fn add(&mut self, line: &Line<'_>) {
        let hour = line.time.div_euclid(HOUR);
        // A request of the hour before may end up here, but not one of any other.
        if hour > self.hour {
            self.end_hour();
            self.hour = hour;
        }
        match line.lookup {
            Some(Status::Miss) => self.misses += 1,
            Some(Status::Stale) => self.stale += 1,
            Some(Status::Hit | Status::Shared) => {}
            _ => return,
        }
        if let Some(user) = line.user {
            self.devices.update((user, line.agent));
        }
    }

    fn end_hour(&mut self) {
        self.most_devices = self
            .most_devices
            .max(self.devices.estimate().round() as u64);
        self.most_misses = self.most_misses.max(self.misses);
        self.most_asked = self.most_asked.max(self.misses + self.stale);
        self.window.push_back((self.hour, self.misses));
        self.in_window += self.misses;
        while let Some((hour, misses)) = self.window.front().copied() {
            if (self.hour.saturating_sub(hour)).saturating_mul(HOUR) < self.inactive {
                break;
            }
            self.in_window -= misses;
            self.window.pop_front();
        }
        self.most_in_window = self.most_in_window.max(self.in_window);
        (self.misses, self.stale, self.devices) = (0, 0, registers());
    }

    /// What to expect.
    pub(crate) fn expected(mut self, wanted: &Wanted) -> Lookups {
        self.end_hour();
        let devices = self.most_devices as f64;
        let new = match wanted.rotation {
            Some(life) => devices / life.max(1) as f64,
            None => self.most_misses as f64 / HOUR as f64,
        };
        // As long as it takes until all of the devices that are there have a new token.
        let life = if new > 0.0 {
            devices / new
        } else {
            f64::INFINITY
        };
        let valid = wanted.valid.max(1) as f64;
        // A token is asked for again each time that `valid` has passed in its life.
        let refreshes = if life.is_finite() {
            devices / life * ((life / valid).ceil() - 1.0).max(0.0)
        } else {
            devices / valid
        };
        // Those that were known before the log began are counted by their devices.
        let tokens = match wanted.rotation {
            Some(life) => {
                (devices * (wanted.inactive as f64 / life.max(1) as f64 + 1.0)).ceil() as u64
            }
            None => self.most_in_window + self.most_devices,
        };
        Lookups {
            devices_in_an_hour: self.most_devices,
            seen_in_a_second: self.most_asked as f64 / HOUR as f64,
            new_tokens_in_a_second: new,
            refreshes_in_a_second: refreshes,
            whoami_in_a_second: new + refreshes,
            tokens,
            zone_mib: mebibytes_for(tokens),
        }
    }
}

/// The size of the smallest zone, in whole MiB, that has room for so many tokens.
fn mebibytes_for(tokens: u64) -> u64 {
    // An entry takes 32 bytes, so no smaller zone than this one can do.
    let mut mib = tokens.div_ceil(32_768).max(1);
    while room_in(mib << 20) < tokens {
        mib += 1;
    }
    mib
}

/// How many tokens a zone of so many bytes has room for in an nginx on x86-64. nginx's slab pool keeps 704 bytes for itself,
/// and 24 beside each page of 4096 (`ngx_slab_init`); the module has all other pages.
fn room_in(bytes: u64) -> u64 {
    let pages = bytes.saturating_sub(704) / (4096 + 24);
    usize::try_from(pages * 4096 / 8)
        .ok()
        .and_then(Layout::for_words)
        .map_or(0, |layout| layout.capacity() as u64)
}

fn registers() -> HllSketch {
    // The number of registers is within the crate's bounds.
    HllSketch::new(12, HllType::Hll8).unwrap_or_else(|error| unreachable!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        valid: 3_600,
        inactive: 86_400,
        rotation: None,
    };

    /// Devices that ask once a minute for some hours, each with a new token after `life` seconds.
    fn seen(devices: u64, hours: i64, life: i64, wanted: &Wanted) -> Seen {
        let mut seen = Seen::new(wanted);
        for time in (0..hours * HOUR).step_by(60) {
            for device in 0..devices {
                let lookup = if time % life == 0 {
                    Some(Status::Miss)
                } else {
                    Some(Status::Hit)
                };
                seen.add(&Line {
                    time,
                    user: Some(device),
                    lookup,
                    ..Line::default()
                });
            }
        }
        seen
    }

    #[test]
    fn a_zone_has_the_room_that_a_running_nginx_tells() {
        // The figure `capacity` of nginx 1.28.3; companion/tests/nginx/hashes.py compares it with a running one.
        let table = include_str!("../../../docs/operations.md")
            .lines()
            .skip_while(|line| *line != "| size | tokens |")
            .skip(2)
            .map_while(|line| {
                line.strip_prefix("| ")?
                    .strip_suffix(" |")?
                    .split_once(" | ")
            });
        let mut sizes = 0;
        for (size, tokens) in table {
            let size = size.split(',').next().unwrap_or(size);
            let kib: u64 = match size.strip_suffix('m') {
                Some(mib) => mib.parse::<u64>().unwrap() << 10,
                None => size.strip_suffix('k').unwrap().parse().unwrap(),
            };
            let tokens: u64 = tokens.replace(',', "").parse().unwrap();
            assert_eq!(room_in(kib << 10), tokens, "{size}");
            assert_eq!(mebibytes_for(tokens), kib.div_ceil(1024), "{size}");
            assert_eq!(mebibytes_for(tokens + 1), kib / 1024 + 1, "{size}");
            sizes += 1;
        }
        assert_eq!((sizes, mebibytes_for(0)), (5, 1));
    }

    #[test]
    fn tokens_that_live_five_minutes_are_never_asked_for_again() {
        let expected = seen(300, 30, 300, &WANTED).expected(&WANTED);
        assert!(
            expected.devices_in_an_hour.abs_diff(300) <= 10,
            "{expected:?}"
        );
        assert_eq!(
            (
                expected.new_tokens_in_a_second,
                expected.refreshes_in_a_second
            ),
            (1.0, 0.0)
        );
        // 24 hours of one a second, and those that were there.
        assert!(expected.tokens.abs_diff(86_400 + 300) <= 10, "{expected:?}");
        assert_eq!(expected.zone_mib, 3);
    }

    #[test]
    fn tokens_that_live_long_are_asked_for_once_in_the_time_of_valid() {
        let wanted = Wanted {
            rotation: Some(30 * 86_400),
            ..WANTED
        };
        let expected = seen(360, 3, i64::MAX, &wanted).expected(&wanted);
        assert!(
            (0.095..0.105).contains(&expected.whoami_in_a_second),
            "{expected:?}"
        );
        assert!(expected.tokens.abs_diff(372) <= 15, "{expected:?}");
    }
}
