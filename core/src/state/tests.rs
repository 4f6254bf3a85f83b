use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::sync::AtomicU64;

const SECRET: Secret =
    Secret::from_bytes(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
const OTHER: Secret = Secret::from_bytes([0x5a; 16]);
const DAY: Seconds = Seconds::new(86_400);
const NOW: Millis = Millis::new(700_000_000);
/// 2026-11-23 22:13:20 UTC.
const WALL: u64 = 1_795_472_000;

fn memory(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

fn token(n: u64) -> String {
    format!("syt_YWxpY2U_{n:020}_1a2b3c")
}

fn key(zone: &Zone<'_>, n: u64) -> Key {
    zone.secret()
        .token(&crate::token::Token::new(token(n).as_bytes()).unwrap())
}

fn user(n: u64) -> UserHash {
    UserHash::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn masquerade(n: u64) -> Masquerade {
    [Masquerade::No, Masquerade::Maybe, Masquerade::Never][n as usize % 3]
}

fn fill(zone: &Zone<'_>, tokens: std::ops::Range<u64>, now: Millis) {
    for n in tokens {
        zone.table()
            .insert(&key(zone, n), user(n), masquerade(n), now, DAY);
    }
}

#[test]
fn what_killed_writers_left_beside_a_file_is_swept_and_nothing_else() {
    let directory =
        std::env::temp_dir().join(format!("matrix-user-hash-sweep-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let old = [
        "users.0123456789abcdef.tmp",
        "users.tmp",
        "users.123.tmp",
        "users.0123456789abcdeg.tmp",
        "users",
        "other.0123456789abcdef.tmp",
    ];
    let hours_ago = SystemTime::now() - Duration::from_secs(7200);
    for name in old {
        let file = File::create(directory.join(name)).unwrap();
        file.set_modified(hours_ago).unwrap();
    }
    // Somebody in another container may be writing it now.
    let new = "users.fedcba9876543210.tmp";
    fs::write(directory.join(new), b"half").unwrap();
    sweep(&directory.join("users"));
    let gone: Vec<_> = old
        .iter()
        .chain([&new])
        .filter(|name| !directory.join(name).exists())
        .collect();
    assert_eq!(gone, [&"users.0123456789abcdef.tmp"]);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn ten_thousand_users_are_known_after_a_full_restart() {
    let old = memory(131_072);
    let old = Zone::format(&old, &SECRET).unwrap();
    fill(&old, 0..10_000, NOW);
    let bytes = encode(&old, NOW.plus(60_000), WALL).unwrap();
    // The machine was off for ten minutes, and its clock begins anew.
    let new = memory(131_072);
    let booted = Millis::new(30_000);
    let new = Zone::format(&new, &OTHER).unwrap();
    assert_eq!(load(&bytes, &new, booted, WALL + 600, DAY), Ok(10_000));
    for n in 0..10_000 {
        let entry = new.table().get(&key(&new, n), booted, DAY).unwrap();
        assert_eq!((entry.user, entry.masquerade), (user(n), masquerade(n)));
        assert_eq!(entry.age, Seconds::new(660));
    }
}

#[test]
fn a_smaller_zone_keeps_those_who_were_used_last() {
    let old = memory(131_072);
    let old = Zone::format(&old, &SECRET).unwrap();
    fill(&old, 0..30_000, NOW);
    let new = memory(16_384);
    let new = Zone::format(&new, &OTHER).unwrap();
    let bytes = encode(&old, NOW, WALL).unwrap();
    load(&bytes, &new, NOW, WALL, DAY).unwrap();
    let kept = (29_000..30_000).filter(|n| new.table().get(&key(&new, *n), NOW, DAY).is_some());
    assert_eq!(kept.count(), 1_000);
}

#[test]
fn what_is_unused_for_longer_than_inactive_by_now_is_left_out() {
    let old = memory(131_072);
    let old = Zone::format(&old, &SECRET).unwrap();
    fill(&old, 0..10, NOW);
    fill(&old, 10..15, NOW.plus(3_600_000));
    let bytes = encode(&old, NOW.plus(3_600_000), WALL).unwrap();
    let new = memory(131_072);
    let new = Zone::format(&new, &OTHER).unwrap();
    assert_eq!(load(&bytes, &new, NOW, WALL + 86_400 - 1_800, DAY), Ok(5));
    // A wall clock that was set back adds nothing.
    assert_eq!(load(&bytes, &new, NOW, WALL - 86_400, DAY), Ok(15));
}

fn small_file() -> Vec<u8> {
    let zone = memory(4_096);
    let zone = Zone::format(&zone, &SECRET).unwrap();
    fill(&zone, 0..3, NOW);
    encode(&zone, NOW, WALL).unwrap()
}

fn refusal(bytes: &[u8]) -> StateError {
    let words = memory(4_096);
    let zone = Zone::format(&words, &OTHER).unwrap();
    let before: Vec<_> = words
        .iter()
        .map(|word| word.load(crate::sync::Ordering::Relaxed))
        .collect();
    let error = load(bytes, &zone, NOW, WALL, DAY).unwrap_err();
    let after: Vec<_> = words
        .iter()
        .map(|word| word.load(crate::sync::Ordering::Relaxed))
        .collect();
    assert_eq!(before, after, "a refused file leaves no trace");
    error
}

#[test]
fn a_file_that_is_not_whole_is_refused_whatever_is_missing_or_wrong() {
    let file = small_file();
    for length in 0..file.len() {
        let expected = if length < 8 {
            StateError::Foreign
        } else {
            StateError::Length
        };
        assert_eq!(refusal(&file[..length]), expected, "{length}");
    }
    let longer = [&file[..], &[0; ENTRY]].concat();
    assert_eq!(refusal(&longer), StateError::Length);
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        let expected = match at {
            0..8 => StateError::Foreign,
            8..12 => StateError::Version(u32::from_le_bytes(damaged[8..12].try_into().unwrap())),
            40..48 => StateError::Length,
            _ => StateError::Checksum,
        };
        assert_eq!(refusal(&damaged), expected, "{at}");
    }
}

#[test]
fn an_older_or_newer_file_is_refused_with_its_version() {
    for version in [0, VERSION + 1] {
        let mut file = small_file();
        file[8..12].copy_from_slice(&version.to_le_bytes());
        let expected = format!("its format has version {version}, this module's has 1");
        assert_eq!(refusal(&file).to_string(), expected);
    }
}

#[test]
fn a_file_holds_no_part_of_a_token_and_no_user_id() {
    let zone = memory(4_096);
    let zone = Zone::format(&zone, &SECRET).unwrap();
    fill(&zone, 0..100, NOW);
    let bytes = encode(&zone, NOW, WALL).unwrap();
    let token = token(42);
    for part in token.as_bytes().windows(4) {
        assert!(!bytes.windows(4).any(|window| window == part));
    }
}

#[test]
fn a_file_replaces_the_old_one_whole_and_only_the_owner_reads_it() {
    let directory = std::env::temp_dir().join(format!("muh-state-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("users.state");
    fs::write(&path, b"an older one").unwrap();
    assert_ne!(
        temporary_name(&path).unwrap(),
        temporary_name(&path).unwrap()
    );
    write_file(&path, &small_file()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), small_file());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["users.state"]);
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(
        write_file(&path, b"x").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        write_file(Path::new("/"), b"x").unwrap_err().kind(),
        io::ErrorKind::Other
    );
}

#[test]
fn what_is_no_regular_file_is_left_alone_and_a_link_is_followed() {
    let directory = std::env::temp_dir().join(format!("muh-kinds-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let (link, file) = (directory.join("link"), directory.join("file"));
    fs::write(&file, b"an older one").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    write_file(&link, &small_file()).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&file).unwrap(), small_file());
    // A device is a kind that every system has; a name in its folder would be replaced by a file.
    assert!(write_file(Path::new("/dev/null"), b"x").is_err());
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_file_that_cannot_be_replaced_is_written_over_whole() {
    let path = std::env::temp_dir().join(format!("muh-over-{}", std::process::id()));
    for old in [&b"short"[..], &[0; 100_000]] {
        fs::write(&path, old).unwrap();
        overwrite(&path, &small_file()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), small_file());
    }
    fs::remove_file(&path).unwrap();
}

proptest! {
    #[test]
    fn no_bytes_crash_it(
        bytes in prop::collection::vec(any::<u8>(), 0..400), magic: bool, version: bool, checksum: bool,
    ) {
        let mut bytes = bytes;
        if magic && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(MAGIC);
        }
        if version && bytes.len() >= 12 {
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        }
        let end = bytes.len().saturating_sub(CHECKSUM);
        if end > HEAD {
            let entries = ((end - HEAD) / ENTRY) as u64;
            bytes[40..48].copy_from_slice(&entries.to_le_bytes());
        }
        if checksum && end > 0 {
            let sum = Sha256::digest(&bytes[..end]);
            bytes[end..].copy_from_slice(&sum);
        }
        let words = memory(4_096);
        let zone = Zone::format(&words, &OTHER).unwrap();
        let loaded = load(&bytes, &zone, NOW, WALL, DAY);
        let whole = magic && version && checksum && end >= HEAD && (end - HEAD) % ENTRY == 0;
        prop_assert!(loaded.is_err() || whole);
    }

    #[test]
    fn any_entries_survive_a_round_trip(
        entries in prop::collection::vec((any::<[u64; 2]>(), any::<u64>(), 0_u8..3), 0..40),
    ) {
        let words = memory(8_192);
        let zone = Zone::format(&words, &SECRET).unwrap();
        for (key, user, kind) in &entries {
            let (key, user) = (Key::from_words(*key), UserHash::from_bits(*user));
            zone.table().insert(&key, user, masquerade(u64::from(*kind)), NOW, DAY);
        }
        let again = memory(8_192);
        let again = Zone::format(&again, &OTHER).unwrap();
        load(&encode(&zone, NOW, WALL).unwrap(), &again, NOW, WALL, DAY).unwrap();
        for (key, ..) in &entries {
            let key = Key::from_words(*key);
            prop_assert_eq!(zone.table().get(&key, NOW, DAY), again.table().get(&key, NOW, DAY));
        }
    }
}

#[test]
fn an_entry_takes_72_bytes_while_a_file_is_made() {
    assert_eq!(size_of::<Record>() + ENTRY, 72);
}
