use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::user::UserId;

const START: u64 = 1_795_618_800_000;
const HOUR: u64 = 3_600_000;

fn user(number: u32) -> UserHash {
    let id = format!("@user{number}:example.org");
    UserHash::of_user(&UserId::try_from(id.as_str()).unwrap())
}

fn over(start: u64, length: u64) -> Shift {
    Shift::Over(Span::new(start, length).unwrap())
}

/// nginx's `ngx_crc32_long` of the key, bit by bit.
fn crc32(key: &[u8]) -> u32 {
    !key.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn the_order_of_users_never_changes() {
    // python3: h=0x86f01aef21b1acd3; M=2**64-1; h=(h^h>>30)*0xbf58476d1ce4e5b9&M; h=(h^h>>27)*0x94d049bb133111eb&M; h^=h>>31
    let alice = UserHash::of_user(&UserId::try_from("@alice:example.org").unwrap());
    assert_eq!(place(alice), 0xc73a_944d_ec4a_289d);
    assert_eq!(place(UserHash::from_bits(1)), 0x5692_161d_100b_05e5);
    // python3: 1795618800000 + (0xc73a944dec4a289d * 3600000 >> 64)
    assert_eq!(over(START, HOUR).moment(alice), Some(1_795_621_601_655));
}

#[test]
fn nobody_has_moved_before_the_start_and_everyone_at_the_end() {
    let shift = over(START, HOUR);
    for number in 0..10_000 {
        assert!(!shift.has_moved(user(number), START - 1));
        assert!(shift.has_moved(user(number), START + HOUR));
    }
    for bits in [0, u64::MAX] {
        assert!(shift.has_moved(UserHash::from_bits(bits), START + HOUR));
    }
    assert_eq!(shift.moved(START - 1), 0.0);
    assert_eq!(shift.moved(START + HOUR / 4), 0.25);
    assert_eq!(shift.moved(START + 2 * HOUR), 1.0);
}

#[test]
fn two_nginx_agree_about_100_000_users_at_1_000_moments_and_each_moves_once() {
    let ours = over(parse_time(b"2026-11-25T15:00:00Z").unwrap(), HOUR);
    let theirs = over(parse_time(b"1795618800").unwrap(), HOUR);
    let mut random = 7_u64;
    let mut moments: Vec<u64> = (0..1_000)
        .map(|_| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            START - HOUR / 10 + (random >> 33) % (HOUR * 12 / 10)
        })
        .collect();
    moments.sort_unstable();
    for number in 0..100_000 {
        let user = user(number);
        let moved = moments.partition_point(|now| !ours.has_moved(user, *now));
        for (at, now) in moments.iter().enumerate() {
            assert_eq!(ours.has_moved(user, *now), at >= moved);
            assert_eq!(theirs.has_moved(user, *now), at >= moved);
        }
    }
}

/// A share of 100,000 users differs from its expectation by more than 0.7 percentage points (4.4 standard deviations) in
/// one of 100,000 cases.
#[test]
fn users_move_at_an_even_pace() {
    let shift = over(START, HOUR);
    let users: Vec<_> = (0..100_000).map(user).collect();
    for part in 1..20 {
        let now = START + HOUR * part / 20;
        let moved = users
            .iter()
            .filter(|user| shift.has_moved(**user, now))
            .count();
        let difference = moved as f64 / 1e5 - shift.moved(now);
        assert!(difference.abs() < 0.007, "{part}/20: {difference}");
    }
}

/// Pearson's test of 16 × 16 cells: 225 degrees of freedom, above 330 in less than one of 100,000 cases.
fn dependence(users: impl Iterator<Item = UserHash>, place: fn(UserHash) -> u64) -> f64 {
    let (mut cells, mut all) = ([[0.0; 16]; 16], 0.0);
    for user in users {
        let on_the_ring = crc32(&user.hex()) >> 28;
        cells[on_the_ring as usize][(place(user) >> 60) as usize] += 1.0;
        all += 1.0;
    }
    let rows = cells.map(|row| row.iter().sum::<f64>());
    let columns: [f64; 16] = core::array::from_fn(|at| cells.iter().map(|row| row[at]).sum());
    let mut sum = 0.0;
    for (row, total) in cells.iter().zip(rows) {
        for (cell, column) in row.iter().zip(columns) {
            let expected = total * column / all;
            sum += (cell - expected).powi(2) / expected;
        }
    }
    sum
}

#[test]
fn when_a_user_moves_says_nothing_about_the_place_on_the_ring() {
    assert!(dependence((0..100_000).map(user), place) < 330.0);
    // Also where hashes are as regular as no SHA-256 is.
    let regular =
        (0..100_000_u64).map(|n| UserHash::from_bits(n.wrapping_mul(0x0001_0003_0007_000f)));
    assert!(dependence(regular, place) < 330.0);
}

#[test]
fn that_test_finds_an_order_that_is_the_rings() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    let by_ring = |user: UserHash| u64::from(crc32(&user.hex())) << 32;
    assert!(dependence((0..100_000).map(user), by_ring) > 1_000_000.0);
    // One bit of the order is one of the ring's: still found.
    let nearly = |user: UserHash| place(user) >> 1 | u64::from(crc32(&user.hex())) >> 31 << 63;
    assert!(dependence((0..100_000).map(user), nearly) > 10_000.0);
}

#[test]
fn a_share_grows_without_anyone_moving_back() {
    let users: Vec<_> = (0..10_000).map(user).collect();
    let mut before = vec![false; users.len()];
    for share in [0, 1, 100, 2_500, 9_999, 10_000] {
        let shift = Shift::At(share);
        let after: Vec<_> = users.iter().map(|user| shift.has_moved(*user, 0)).collect();
        assert!(
            before
                .iter()
                .zip(&after)
                .all(|(before, after)| !before || *after)
        );
        let moved = after.iter().filter(|moved| **moved).count() as f64 / 1e4;
        assert!(
            (moved - f64::from(share) / 1e4).abs() < 0.02,
            "{share}: {moved}"
        );
        before = after;
    }
    assert!(before.iter().all(|moved| *moved));
    assert!(!Shift::At(0).has_moved(UserHash::from_bits(0), 0));
}

#[test]
fn a_shift_takes_time_and_ends_before_the_year_10000() {
    assert_eq!(Span::new(START, 0), None);
    assert_eq!(Span::new(u64::MAX, 1), None);
    assert_eq!(Span::new(LAST, 1), None);
    assert_eq!(Span::new(START, HOUR).unwrap().end(), START + HOUR);
}

#[test]
fn times_are_those_of_rfc_3339() {
    for (text, milliseconds) in [
        // date -u -d … +%s
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-25T15:00:00Z", START),
        ("2026-11-25t16:00:00+01:00", START),
        ("2026-11-25T09:30:00-05:30", START),
        ("2026-11-25T15:00:00.5z", START + 500),
        ("2026-11-25T15:00:00.123456789Z", START + 123),
        ("2000-02-29T12:00:00Z", 951_825_600_000),
        ("2100-03-01T00:00:00Z", 4_107_542_400_000),
        ("9999-12-31T23:59:59Z", LAST - 999),
        ("1795618800", START),
        ("0", 0),
    ] {
        assert_eq!(parse_time(text.as_bytes()), Some(milliseconds), "{text}");
    }
    for text in [
        "",
        "now",
        "2026-11-25",
        "2026-11-25T15:00:00",
        "2026-11-25 15:00:00Z",
        "2026-11-25T15:00Z",
        "2026-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-11-31T00:00:00Z",
        "2026-11-00T00:00:00Z",
        "2026-11-25T24:00:00Z",
        "2026-11-25T15:60:00Z",
        "2026-11-25T15:00:60Z",
        "2026-11-25T15:00:00.Z",
        "2026-11-25T15:00:00+0100",
        "2026-11-25T15:00:00+24:00",
        "2026-11-25T15:00:00Zulu",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "-1",
        "253402300800",
        "1795618800.5",
        "99999999999999999999999",
    ] {
        assert_eq!(parse_time(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn shares_have_at_most_two_digits_behind_the_point() {
    for (text, share) in [
        ("0%", 0),
        ("25%", 2_500),
        ("0.5%", 50),
        ("12.25%", 1_225),
        ("100%", 10_000),
        ("100.00%", 10_000),
    ] {
        assert_eq!(parse_percent(text.as_bytes()), Some(share), "{text}");
    }
    for text in [
        "", "%", "25", "-1%", "+1%", "101%", "100.01%", "1.234%", "1.%", ".5%", "1e1%", "25%%",
        "0025%", "1.+%",
    ] {
        assert_eq!(parse_percent(text.as_bytes()), None, "{text}");
    }
}

proptest! {
    #[test]
    fn a_user_moves_at_the_moment_that_is_told(bits: u64, start in 0..LAST / 2, length in 1..LAST / 2, now in 0..LAST) {
        let (shift, user) = (over(start, length), UserHash::from_bits(bits));
        let moment = shift.moment(user).unwrap();
        prop_assert!((start..start + length).contains(&moment));
        prop_assert_eq!(shift.has_moved(user, now), now >= moment);
    }

    #[test]
    fn every_hash_has_a_place_of_its_own(bits: u64) {
        // The inverse of the finalizer, by its constants' inverses modulo 2^64.
        let mut back = place(UserHash::from_bits(bits));
        back ^= back >> 31 ^ back >> 62;
        back = back.wrapping_mul(0x3196_42b2_d24d_8ec3);
        back ^= back >> 27 ^ back >> 54;
        back = back.wrapping_mul(0x96de_1b17_3f11_9089);
        back ^= back >> 30 ^ back >> 60;
        prop_assert_eq!(back, bits);
    }

    #[test]
    fn a_day_more_is_a_day_later(year in 1970_i64..9999, month in 1_i64..=12, day in 1_i64..=31) {
        let read = |y: i64, m: i64, d: i64| parse_time(format!("{y:04}-{m:02}-{d:02}T00:00:00Z").as_bytes());
        if let Some(today) = read(year, month, day) {
            let tomorrow = read(year, month, day + 1)
                .or_else(|| read(year, month + 1, 1))
                .or_else(|| read(year + 1, 1, 1));
            prop_assert_eq!(tomorrow, Some(today + 86_400_000));
        }
    }

    #[test]
    fn no_text_makes_it_panic(text: Vec<u8>) {
        let _ = (parse_time(&text), parse_percent(&text));
    }
}

#[test]
fn fallbacks_move_by_the_hash_of_their_token() {
    let token = crate::token::Token::new(b"mat_x").unwrap();
    let digest = Sha256::digest(b"mat_x");
    let bits = u64::from_be_bytes(digest[..8].try_into().unwrap());
    let shift = over(START, HOUR);
    assert_eq!(
        shift.moment(UserHash::of_token(&token)),
        shift.moment(UserHash::from_bits(bits))
    );
}
