//! What `matrix_user_hash_metrics prometheus` of one or several nginx says, added up.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use serde::Serialize;

use crate::balance::number;
use crate::diagnostic::Diagnostic;
use crate::html::{Bars, Page};

/// nginx is near, and answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(2);
/// An answer that is longer is not this one.
const LONGEST: u64 = 4 << 20;
const PREFIX: &str = "matrix_user_hash_";

/// Where an nginx answers.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    authority: String,
    path: String,
}

impl Source {
    /// Reads `http://127.0.0.1:8008/metrics`.
    ///
    /// # Errors
    /// It is no such URL.
    pub(crate) fn parse(url: &str) -> Result<Self, Diagnostic> {
        let refused = || {
            Diagnostic::error(format!("{url} is no address of nginx's figures"))
                .fix("write http://HOST:PORT/PATH")
        };
        let rest = url.strip_prefix("http://").ok_or_else(refused)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty()
            || authority.contains('@')
            || !printable(authority)
            || !printable(path)
        {
            return Err(refused());
        }
        let port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self {
            authority: if port {
                authority.to_owned()
            } else {
                format!("{authority}:80")
            },
            path: if path.is_empty() {
                "/metrics".to_owned()
            } else {
                path.to_owned()
            },
        })
    }

    fn get(&self) -> Result<String, String> {
        let said = |error: std::io::Error| error.to_string();
        let address = self
            .authority
            .to_socket_addrs()
            .map_err(said)?
            .next()
            .ok_or("no such host")?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(said)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(said)?;
        // HTTP/1.0, so that the answer ends with the connection and is not in chunks.
        let question = format!(
            "GET {} HTTP/1.0\r\nHost: {}\r\nAccept: text/plain\r\n\r\n",
            self.path, self.authority
        );
        stream.write_all(question.as_bytes()).map_err(said)?;
        let mut answer = Vec::new();
        stream
            .take(LONGEST)
            .read_to_end(&mut answer)
            .map_err(said)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
        match head.split(' ').nth(1) {
            Some("200") if body.contains(PREFIX) => Ok(body.to_owned()),
            Some("200") => Err("the answer has no figures of matrix_user_hash; is it `matrix_user_hash_metrics prometheus`?".to_owned()),
            Some(status) => Err(format!("HTTP status {status}")),
            None => Err("no HTTP answer".to_owned()),
        }
    }
}

/// Samples of all zones of all nginx, by name and label.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums(BTreeMap<(String, String), f64>);

/// Asks every nginx; those that do not answer are named.
pub(super) fn ask(sources: &[Source]) -> (Sums, Vec<String>) {
    let mut sums = Sums::default();
    let mut silent = Vec::new();
    for source in sources {
        match source.get() {
            Ok(text) => sums.add(&text),
            Err(why) => silent.push(format!("{}{}: {why}", source.authority, source.path)),
        }
    }
    (sums, silent)
}

impl Sums {
    fn add(&mut self, text: &str) {
        for line in text.lines().filter_map(|line| line.strip_prefix(PREFIX)) {
            let Some((sample, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else {
                continue;
            };
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            *self.0.entry((name.to_owned(), label(labels))).or_default() += value;
        }
    }

    fn get(&self, name: &str, label: &str) -> f64 {
        self.0
            .get(&(name.to_owned(), label.to_owned()))
            .copied()
            .unwrap_or(0.0)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0
            .iter()
            .filter(move |((known, _), _)| known == name)
            .map(|((_, label), value)| (label.as_str(), *value))
    }
}

/// The value of the label that is not the zone.
fn label(labels: &str) -> String {
    ["status=\"", "kind=\"", "le=\""]
        .iter()
        .find_map(|name| {
            let (before, rest) = labels.split_once(name)?;
            (before.is_empty() || before.ends_with(','))
                .then(|| rest.split('"').next().unwrap_or_default().to_owned())
        })
        .unwrap_or_default()
}

/// What they say together. Rates and ratios are of the time since the last question, and of all time at the first one.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// Seconds since the last question, if there was one.
    pub seconds: Option<f64>,
    /// Requests by status.
    pub requests: BTreeMap<String, u64>,
    /// Requests that were answered out of the zone, of all whose user was asked for.
    pub hit_ratio: Option<f64>,
    /// Lookups sent.
    pub lookups: u64,
    /// Half of the lookups took no longer, in seconds: the upper bound of the histogram's bucket.
    pub whoami_p50: Option<f64>,
    /// The time within which 95% of them ended.
    pub whoami_p95: Option<f64>,
    /// Lookups that wait now.
    pub in_flight: u64,
    /// Tokens that the zones know.
    pub entries: u64,
    /// Tokens that they have room for.
    pub capacity: u64,
    /// Entries that had to go.
    pub evictions: u64,
    /// Zones whose lookups are suspended.
    pub suspended: u64,
}

impl Figures {
    /// Makes them.
    pub(crate) fn new(now: &Sums, before: Option<(Duration, &Sums)>) -> Self {
        // An nginx that was started anew counts from 0.
        let grown = |name: &str, label: &str| {
            (now.get(name, label) - before.map_or(0.0, |(_, sums)| sums.get(name, label))).max(0.0)
        };
        let requests: BTreeMap<String, u64> = now
            .all("requests_total")
            .map(|(status, _)| (status.to_owned(), grown("requests_total", status) as u64))
            .collect();
        let of = |statuses: &[&str]| {
            statuses
                .iter()
                .filter_map(|status| requests.get(*status))
                .sum::<u64>()
        };
        let (known, asked) = (
            of(&["hit", "stale"]),
            of(&["hit", "stale", "miss", "shared", "error", "timeout"]),
        );
        let bucket = "lookup_duration_seconds_bucket";
        let mut buckets: Vec<(f64, f64)> = now
            .all(bucket)
            .filter_map(|(bound, _)| {
                Some((
                    if bound == "+Inf" {
                        f64::INFINITY
                    } else {
                        bound.parse().ok()?
                    },
                    grown(bucket, bound),
                ))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self {
            seconds: before.map(|(elapsed, _)| elapsed.as_secs_f64()),
            hit_ratio: (asked > 0).then(|| known as f64 / asked as f64),
            lookups: grown("lookups_total", "") as u64,
            whoami_p50: quantile(&buckets, 0.5),
            whoami_p95: quantile(&buckets, 0.95),
            in_flight: now.get("lookups_in_flight", "") as u64,
            entries: now.get("entries", "") as u64,
            capacity: now.get("capacity", "") as u64,
            evictions: grown("evictions_total", "") as u64,
            suspended: now.get("suspended", "") as u64,
            requests,
        }
    }
}

impl Figures {
    /// Puts them on a page.
    ///
    /// # Errors
    /// A plot cannot be drawn.
    pub(crate) fn on(&self, page: &mut Page) -> Result<(), Diagnostic> {
        let time =
            |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{seconds} s"));
        page.heading("nginx's figures");
        page.tiles(&[
            (
                "hit ratio",
                self.hit_ratio
                    .map_or("-".to_owned(), |ratio| format!("{:.2}%", ratio * 100.0)),
            ),
            ("lookups", number(self.lookups)),
            ("half of them took at most", time(self.whoami_p50)),
            ("95% of them", time(self.whoami_p95)),
            (
                "entries",
                format!("{} of {}", number(self.entries), number(self.capacity)),
            ),
            ("evictions", number(self.evictions)),
        ]);
        let bars = Bars {
            labels: self.requests.keys().cloned().collect(),
            names: vec!["requests".to_owned()],
            values: vec![self.requests.values().map(|count| *count as f64).collect()],
            unit: "",
        };
        page.bars("Requests by status", &bars)
    }
}

fn quantile(buckets: &[(f64, f64)], part: f64) -> Option<f64> {
    let all = buckets
        .last()
        .map(|(_, count)| *count)
        .filter(|count| *count > 0.0)?;
    buckets
        .iter()
        .find(|(_, count)| *count >= part * all)
        .map(|(bound, _)| *bound)
        .filter(|bound| bound.is_finite())
}

impl Display for Figures {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self.seconds {
            Some(seconds) => writeln!(f, "nginx's figures, of the last {seconds:.1} s")?,
            None => writeln!(f, "nginx's figures, since it was started")?,
        }
        let statuses: Vec<String> = self
            .requests
            .iter()
            .map(|(status, count)| format!("{status} {}", number(*count)))
            .collect();
        writeln!(f, "  requests   {}", statuses.join(", "))?;
        writeln!(
            f,
            "  hit ratio  {}",
            self.hit_ratio
                .map_or("-".to_owned(), |ratio| format!("{:.2}%", ratio * 100.0))
        )?;
        let time = |seconds: Option<f64>| {
            seconds.map_or("-".to_owned(), |seconds| format!("<= {seconds} s"))
        };
        writeln!(
            f,
            "  whoami     {} lookups, half {}, 95% {}, {} in flight{}",
            number(self.lookups),
            time(self.whoami_p50),
            time(self.whoami_p95),
            number(self.in_flight),
            if self.suspended > 0 {
                ", SUSPENDED"
            } else {
                ""
            }
        )?;
        writeln!(
            f,
            "  zones      {} of {} entries, {} evictions",
            number(self.entries),
            number(self.capacity),
            number(self.evictions)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(hits: u32, misses: u32, fast: u32) -> Sums {
        let mut sums = Sums::default();
        for zone in ["a", "b,\\\"x"] {
            sums.add(&format!(
                "# TYPE matrix_user_hash_requests_total counter\n\
                 matrix_user_hash_requests_total{{zone=\"{zone}\",status=\"hit\"}} {hits}\n\
                 matrix_user_hash_requests_total{{zone=\"{zone}\",status=\"miss\"}} {misses}\n\
                 matrix_user_hash_lookup_duration_seconds_bucket{{zone=\"{zone}\",le=\"0.001\"}} {fast}\n\
                 matrix_user_hash_lookup_duration_seconds_bucket{{zone=\"{zone}\",le=\"0.01\"}} {misses}\n\
                 matrix_user_hash_lookup_duration_seconds_bucket{{zone=\"{zone}\",le=\"+Inf\"}} {misses}\n\
                 matrix_user_hash_entries{{zone=\"{zone}\"}} 7\nother 3\nmatrix_user_hash_entries nonsense\n"
            ));
        }
        sums
    }

    #[test]
    fn zones_are_added_up_and_ratios_are_of_the_time_between() {
        let first = sums(100, 100, 90);
        let all = Figures::new(&first, None);
        assert_eq!(
            (all.hit_ratio, all.entries, all.whoami_p50, all.whoami_p95),
            (Some(0.5), 14, Some(0.001), Some(0.01))
        );
        let later = Figures::new(&sums(190, 110, 91), Some((Duration::from_secs(2), &first)));
        assert_eq!(
            (later.hit_ratio, later.requests["hit"], later.whoami_p50),
            (Some(0.9), 180, Some(0.01))
        );
        // Started anew in between.
        assert_eq!(
            Figures::new(&sums(1, 0, 0), Some((Duration::from_secs(2), &first))).requests["hit"],
            0
        );
    }

    #[test]
    fn an_address_has_a_port_and_a_path() {
        let source = Source::parse("http://127.0.0.1:8008/matrix_user_hash").unwrap();
        assert_eq!(
            (source.authority.as_str(), source.path.as_str()),
            ("127.0.0.1:8008", "/matrix_user_hash")
        );
        let source = Source::parse("http://nginx").unwrap();
        assert_eq!(
            (source.authority.as_str(), source.path.as_str()),
            ("nginx:80", "/metrics")
        );
        for url in [
            "https://nginx/",
            "nginx:80",
            "http://",
            "http://u@nginx/",
            "http://nginx/a b",
            "http://nginx/\r\nX: y",
        ] {
            assert!(Source::parse(url).is_err(), "{url}");
        }
    }
}
