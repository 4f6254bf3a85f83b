//! The answer as text.

use std::fmt::{Display, Formatter, Result};

use super::{Report, Side};
use crate::balance::{column, named, number};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let only = if self.exact {
            ""
        } else {
            ", as many as are kept exactly: see --exact-users"
        };
        writeln!(
            f,
            "group {}: {} requests of {} users{only}",
            named(&self.group),
            number(self.requests),
            number(self.users)
        )?;
        let check = &self.check;
        writeln!(
            f,
            "today's ring explains {} of {} requests that did not fail over ({} did)",
            number(check.as_predicted),
            number(check.requests),
            number(check.failed_over)
        )?;
        if check.otherwise > 0 {
            writeln!(
                f,
                "  {} went elsewhere: the workers were others for a while (see --since), or have other names in nginx (see --today)",
                number(check.otherwise)
            )?;
        }
        if check.sent > 0 {
            writeln!(
                f,
                "  {} more were sent by a canary, a pin or a shift; below, all users are on the ring",
                number(check.sent)
            )?;
        }
        side(f, "today", &self.today)?;
        side(f, "then", &self.wanted)?;
        self.moved(f)?;
        self.lookups(f)?;
        writeln!(f, "\nnumber of workers   evenness   largest share")?;
        for line in &self.numbers {
            writeln!(
                f,
                "{:17} {:>10.3} {:>14.1}%",
                line.workers,
                line.evenness,
                line.largest_share * 100.0
            )?;
        }
        let recommended = &self.recommended;
        writeln!(
            f,
            "at most {} workers keep the evenness below {}",
            recommended.most_workers, recommended.evenness
        )?;
        match (recommended.at_most, recommended.fewest_workers) {
            (Some(share), Some(fewest)) => writeln!(
                f,
                "at least {fewest} workers give none of them more than {:.1}%",
                share * 100.0
            ),
            (Some(share), None) => writeln!(
                f,
                "none of these numbers keeps every worker below {:.1}%",
                share * 100.0
            ),
            (None, _) => Ok(()),
        }
    }
}

impl Report {
    fn moved(&self, f: &mut Formatter<'_>) -> Result {
        let moved = &self.moved;
        write!(
            f,
            "\n{} users move ({:.1}%, with {:.1}% of the requests)",
            number(moved.users),
            moved.share * 100.0,
            moved.share_of_requests * 100.0
        )?;
        match moved.gradually {
            Some(over) => writeln!(
                f,
                ", over {over} s: at most {} in a minute",
                number(moved.peak_in_a_minute)
            ),
            None => writeln!(f, ", all at once: see --gradually"),
        }
    }

    fn lookups(&self, f: &mut Formatter<'_>) -> Result {
        let lookups = &self.lookups;
        writeln!(
            f,
            "whoami: {:.2} a second in the busiest hour ({:.2} new tokens, {:.2} refreshes; the log shows {:.2}), of about {} devices",
            lookups.whoami_in_a_second,
            lookups.new_tokens_in_a_second,
            lookups.refreshes_in_a_second,
            lookups.seen_in_a_second,
            number(lookups.devices_in_an_hour)
        )?;
        writeln!(
            f,
            "zone: {}m, for about {} tokens",
            lookups.zone_mib,
            number(lookups.tokens)
        )
    }
}

fn side(f: &mut Formatter<'_>, title: &str, side: &Side) -> Result {
    let width = column(title, side.workers.iter().map(|worker| &*worker.worker));
    writeln!(
        f,
        "\n{title:width$} {:>6} {:>9} {:>12} {:>6} {:>12}",
        "weight", "users", "requests", "share", "seconds"
    )?;
    for worker in &side.workers {
        writeln!(
            f,
            "{:width$} {:>6} {:>9} {:>12} {:>5.1}% {:>12.0}",
            worker.worker,
            worker.weight,
            number(worker.users),
            number(worker.requests),
            worker.share * 100.0,
            worker.seconds
        )?;
    }
    write!(f, "evenness {:.3}", side.evenness.largest_over_mean)?;
    match &side.evenness.chance {
        Some(chance) => writeln!(
            f,
            " (by lot: half below {:.3}, 95% below {:.3})",
            chance.median, chance.p95
        ),
        None => writeln!(f),
    }
}
