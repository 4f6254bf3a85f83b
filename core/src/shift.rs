//! When each user moves from one group of Synapse workers to another (`matrix_user_hash_shift`).
//!
//! In go a [`UserHash`] and the time of day, out comes whether that user has moved. Nothing is stored: the moment follows
//! from the hash alone, so every nginx with the same line agrees, and a restart changes nothing. [`parse_time`] and
//! [`parse_percent`] read what an operator writes.

use crate::user::UserHash;

/// 100 percent, in hundredths of a percent.
const WHOLE: u32 = 10_000;

/// A gradual move of all users, or of a fixed share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// Everyone moves once, between two moments.
    Over(Span),
    /// A share has moved, and it stays so: in hundredths of a percent, at most 10,000.
    At(u32),
}

/// The time that a shift takes, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u64,
    length: u64,
}

impl Span {
    /// From `start` on, for `length` milliseconds. `None` if that is no time, or ends past the year 9999.
    pub fn new(start: u64, length: u64) -> Option<Self> {
        let end = start.checked_add(length)?;
        (length > 0 && end <= LAST).then_some(Self { start, length })
    }

    /// The first moment at which somebody may move.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The moment from which on everyone has moved.
    pub const fn end(&self) -> u64 {
        self.start + self.length
    }
}

impl Shift {
    /// Whether the user has moved, `now` milliseconds after the start of 1970.
    #[inline]
    pub fn has_moved(&self, user: UserHash, now: u64) -> bool {
        match self {
            Self::Over(span) => now >= moment(span, user),
            Self::At(share) => of_parts(user, u64::from(WHOLE)) < u64::from(*share),
        }
    }

    /// When the user moves, in milliseconds since 1970. `None` where nobody moves at any moment.
    pub fn moment(&self, user: UserHash) -> Option<u64> {
        match self {
            Self::Over(span) => Some(moment(span, user)),
            Self::At(_) => None,
        }
    }

    /// The share of all possible users that has moved: 0 to 1.
    pub fn moved(&self, now: u64) -> f64 {
        match self {
            Self::Over(span) => {
                let passed = now.saturating_sub(span.start).min(span.length);
                passed as f64 / span.length as f64
            }
            Self::At(share) => f64::from(*share) / f64::from(WHOLE),
        }
    }

    /// When it starts and ends, unless the share is fixed.
    pub fn span(&self) -> Option<Span> {
        match self {
            Self::Over(span) => Some(*span),
            Self::At(_) => None,
        }
    }
}

fn moment(span: &Span, user: UserHash) -> u64 {
    span.start + of_parts(user, span.length)
}

/// The user's place where the order of moves is cut into `parts` equal ones: from 0 to below `parts`.
fn of_parts(user: UserHash, parts: u64) -> u64 {
    let product = u128::from(place(user)) * u128::from(parts);
    // The high half of the product.
    u64::try_from(product >> 64).unwrap_or(u64::MAX)
}

/// The user's place in the order of moves: each 64-bit hash has one of its own.
///
/// nginx's ring takes the CRC32 of the hash's hex digits, which is linear in its bits. This is the finalizer of
/// SplitMix64 (Steele, Lea and Flood, 2014; the constants are Stafford's variant 13): it is not linear, and each input bit
/// changes each output bit in about half of all cases. So who moves early says nothing about the place on the ring, and
/// each Synapse worker loses and gains users at the same pace. The constants must never change: all nginx must agree.
#[inline]
fn place(user: UserHash) -> u64 {
    let mut bits = user.to_bits();
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// The last millisecond of the year 9999.
const LAST: u64 = 253_402_300_799_999;

/// Reads a moment, in milliseconds since 1970: RFC 3339 (`2026-11-25T15:00:00Z`, `2026-11-25T16:00:00.5+01:00`) or seconds
/// since 1970. `None` if it is neither, if there is no such moment, or if it is before 1970 or after 9999.
///
/// The grammar has one form and needs no calendar but the Gregorian, so this is shorter than the use of a crate for
/// dates, and has no time zone to be wrong about. A leap second (`:60`) is refused: seconds since 1970 have none.
pub fn parse_time(text: &[u8]) -> Option<u64> {
    if text.len() <= 12 && text.iter().all(u8::is_ascii_digit) {
        let milliseconds = number(text)?.checked_mul(1000)?;
        return u64::try_from(milliseconds).ok().filter(|ms| *ms <= LAST);
    }
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.split_at_checked(9)?;
    let (fraction, zone) = match rest.strip_prefix(b".") {
        None => (0, rest),
        Some(rest) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            (thousandths(&rest[..digits])?, &rest[digits..])
        }
    };
    let clock = &time[1..];
    let marks = [date[4], date[7], time[0], clock[2], clock[5]];
    if !matches!(marks, [b'-', b'-', b'T' | b't', b':', b':']) {
        return None;
    }
    let days = days(
        number(&date[..4])?,
        number(&date[5..7])?,
        number(&date[8..])?,
    )?;
    let (hour, minute, second) = (
        number(&clock[..2])?,
        number(&clock[3..5])?,
        number(&clock[6..])?,
    );
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let local = days * 86_400 + hour * 3_600 + minute * 60 + second;
    let milliseconds = (local - offset(zone)?) * 1000 + fraction;
    u64::try_from(milliseconds).ok().filter(|ms| *ms <= LAST)
}

/// `Z` or `+01:00`, in seconds.
fn offset(zone: &[u8]) -> Option<i64> {
    let sign = match zone.first()? {
        b'Z' | b'z' if zone.len() == 1 => return Some(0),
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    if zone.len() != 6 || zone[3] != b':' {
        return None;
    }
    let (hours, minutes) = (number(&zone[1..3])?, number(&zone[4..])?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

/// The digits behind a point, in thousandths; the rest is cut off.
fn thousandths(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() {
        return None;
    }
    let mut three = [b'0'; 3];
    let known = digits.len().min(3);
    three[..known].copy_from_slice(&digits[..known]);
    number(&three)
}

fn number(digits: &[u8]) -> Option<i64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all.then(|| core::str::from_utf8(digits).ok()?.parse().ok())?
}

/// Days from the start of 1970 to a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    // Years begin in March here, so that the leap day is the last of its year (Hinnant, "chrono-compatible date algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(year * 365 + leap_days + day_of_year - 719_468)
}

/// Reads a share such as `25%` or `0.5%`, in hundredths of a percent. `None` if it is none, is above 100%, or has more than
/// two digits behind the point.
pub fn parse_percent(text: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(text.strip_suffix(b"%")?).ok()?;
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if part.len() > 2 || whole.len() > 3 {
        return None;
    }
    let part = number(format!("{part:0<2}").as_bytes().get(..2)?)?;
    let part = if text.ends_with('.') {
        None
    } else {
        Some(part)
    }?;
    let hundredths = number(whole.as_bytes())? * 100 + part;
    u32::try_from(hundredths)
        .ok()
        .filter(|share| *share <= WHOLE)
}

#[cfg(test)]
mod tests;
