//! Moments as nginx's `$time_iso8601` has them, in seconds since 1970, and back.

/// Bytes of `2026-11-25T17:20:00+00:00`.
const LENGTH: usize = 25;

/// Reads `2026-11-25T17:20:00+00:00`.
pub(crate) fn parse(text: &[u8]) -> Option<i64> {
    if text.len() != LENGTH {
        return None;
    }
    let local = parse_local(&text[..19])?;
    let sign = match text[19] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = (number(&text[20..22])?, number(&text[23..25])?);
    (text[22] == b':' && hours < 24 && minutes < 60)
        .then(|| local - sign * (hours * 3_600 + minutes * 60))
}

/// Reads `2026-11-25T17:20:00`, as UTC.
fn parse_local(text: &[u8]) -> Option<i64> {
    let marks = [text[4], text[7], text[10], text[13], text[16]];
    if !matches!(marks, [b'-', b'-', b'T' | b't' | b' ', b':', b':']) {
        return None;
    }
    let (year, month, day) = (
        number(&text[..4])?,
        number(&text[5..7])?,
        number(&text[8..10])?,
    );
    let (hour, minute, second) = (
        number(&text[11..13])?,
        number(&text[14..16])?,
        number(&text[17..19])?,
    );
    // A leap second is 60.
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// What an operator may write for `--since` and `--until`: RFC 3339, with or without a zone (UTC then), a day, or seconds
/// since 1970.
pub(crate) fn parse_argument(text: &str) -> Result<i64, String> {
    let bytes = text.as_bytes();
    let read = match bytes.len() {
        LENGTH => parse(bytes),
        20 if matches!(bytes[19], b'Z' | b'z') => parse_local(&bytes[..19]),
        19 => parse_local(bytes),
        10 if bytes[4] == b'-' => parse_local(format!("{text}T00:00:00").as_bytes()),
        _ => text.parse().ok(),
    };
    read.ok_or_else(|| {
        "write it as 2026-11-25T15:00:00Z, 2026-11-25, or seconds since 1970".to_owned()
    })
}

/// A length of time as nginx writes it: `90`, `30s`, `5m`, `1h`, `7d`. In seconds.
pub(crate) fn parse_length(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3_600),
        Some(b'd') => (&text[..text.len() - 1], 86_400),
        _ => (text, 1),
    };
    let length = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    length
        .filter(|length| *length > 0)
        .ok_or_else(|| "write it as 30s, 5m, 1h or 7d".to_owned())
}

/// Writes `2026-11-25T17:20:00Z`.
pub(crate) fn format(seconds: i64) -> String {
    let (day, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(day);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, byte| {
        byte.is_ascii_digit()
            .then(|| sum * 10 + i64::from(byte - b'0'))
    })
}

/// Days from 1970-01-01 to a date: Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date that is so many days from 1970-01-01: Howard Hinnant's `civil_from_days`.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_in_its_zone_and_written_in_utc() {
        // date -d 2026-11-25T17:20:00+02:00 +%s
        assert_eq!(parse(b"2026-11-25T17:20:00+02:00"), Some(1_795_620_000));
        assert_eq!(format(1_795_620_000), "2026-11-25T15:20:00Z");
        assert_eq!(
            parse(b"2024-02-29T00:00:00+00:00").map(format),
            Some("2024-02-29T00:00:00Z".to_owned())
        );
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in 0..146_097 {
            let (year, month, of_month) = date(day);
            assert_eq!(days(year, month, of_month), day);
        }
    }

    #[test]
    fn what_is_no_moment_is_none() {
        for text in [
            "2026-13-25T17:20:00+00:00",
            "2026-11-25 17:20",
            "2026-11-25T17:20:00+00.00",
            "x",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_operator_may_write_it_in_five_ways() {
        for text in [
            "2026-11-25T15:20:00Z",
            "2026-11-25T15:20:00",
            "2026-11-25T17:20:00+02:00",
            "2026-11-25 15:20:00",
            "1795620000",
        ] {
            assert_eq!(parse_argument(text), Ok(1_795_620_000), "{text}");
        }
        assert_eq!(
            parse_argument("2026-11-25").map(format),
            Ok("2026-11-25T00:00:00Z".to_owned())
        );
        assert!(parse_argument("yesterday").is_err());
        assert_eq!(
            ["90", "30s", "5m", "1h", "7d"].map(parse_length),
            [Ok(90), Ok(30), Ok(300), Ok(3_600), Ok(604_800)]
        );
        assert!(
            ["", "0", "h", "5x"]
                .iter()
                .all(|text| parse_length(text).is_err())
        );
    }
}
