//! The state file: what the table knows, kept over a full restart.
//!
//! In goes a zone, out come bytes ([`encode`]) that a later process puts back into an empty zone ([`load`]), before it
//! serves the first request. A file that is not whole, not ours, or of another version is refused with one error, and the
//! zone stays as it is: a cache may start empty, it may not start wrong.
//!
//! Like shared memory it holds keyed digests of tokens and hashes of users, and the secret that the digests are made
//! with: a token is needed to find its entry, and none can be read from it. [`write_file`] gives it mode 0600.
//!
//! | bytes | content, integers little-endian |
//! |---|---|
//! | 8 | `MUHSTATE` |
//! | 4 | version of the format |
//! | 4 | 0 |
//! | 8 | wall clock when written, seconds since 1970 |
//! | 16 | secret |
//! | 8 | number of entries |
//! | 32 each | key (16), with its flags in the lowest four bits; user hash (8); seconds since lookup (4), since use (4) |
//! | 32 | SHA-256 of all before |
//!
//! Entries stand in the order of their use, the longest unused first, so that a smaller zone keeps the right ones.
//! Ages, not times: the monotonic clock begins anew with the machine. The wall clock only adds the time between.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::key::{Key, Secret};
use crate::shm::table::{Masquerade, Record};
use crate::shm::zone::Zone;
use crate::time::{Millis, Seconds};
use crate::user::UserHash;

const MAGIC: &[u8; 8] = b"MUHSTATE";
/// Goes up whenever the format changes its meaning.
pub const VERSION: u32 = 1;

const HEAD: usize = 48;
const ENTRY: usize = 32;
const CHECKSUM: usize = 32;

/// What is wrong with a state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It does not begin as one.
    #[error("it is not a state file of this module")]
    Foreign,
    /// Another version of the module wrote it.
    #[error("its format has version {0}, this module's has {VERSION}")]
    Version(u32),
    /// Its length is not what its head says.
    #[error("it is truncated, or something was appended to it")]
    Length,
    /// Its checksum is wrong.
    #[error("it is damaged: its checksum is wrong")]
    Checksum,
}

/// The state of a zone. `unix_seconds` is the wall clock at `now`.
///
/// Takes no lock, but the caller's time: 7 ms for a full zone of 1m, 47 ms for 4m, 350 ms for 32m (`benches/table.rs`, on a busy
/// machine). So it is nothing to do every second. And it takes memory for a while, 72 bytes for each entry.
///
/// # Errors
///
/// There is not so much memory.
pub fn encode(zone: &Zone<'_>, now: Millis, unix_seconds: u64) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    records.try_reserve_exact(zone.table().records(now).count())?;
    // What is added meanwhile is in the next file.
    let room = records.capacity();
    records.extend(zone.table().records(now).take(room));
    records.sort_unstable_by_key(|record| std::cmp::Reverse((record.rank, record.used)));
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(HEAD + records.len() * ENTRY + CHECKSUM)?;
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&unix_seconds.to_le_bytes());
    bytes.extend_from_slice(zone.secret().as_bytes());
    bytes.extend_from_slice(&(records.len() as u64).to_le_bytes());
    for record in &records {
        let [low, high] = record.key.words();
        bytes.extend_from_slice(&low.to_le_bytes());
        bytes.extend_from_slice(&(high & !0xf | flags_of(record.masquerade)).to_le_bytes());
        bytes.extend_from_slice(&record.user.to_bits().to_le_bytes());
        bytes.extend_from_slice(&record.looked_up.get().to_le_bytes());
        bytes.extend_from_slice(&record.used.get().to_le_bytes());
    }
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    Ok(bytes)
}

/// Puts a state back into `zone`, which takes over its secret, and gives the number of entries put back. Those that would
/// by now be unused for longer than `inactive` are left out. `unix_seconds` is the wall clock at `now`.
///
/// Before any other process uses the zone.
///
/// # Errors
///
/// What is wrong with `bytes`. Nothing of them is in the zone then, which is as before.
pub fn load(
    bytes: &[u8],
    zone: &Zone<'_>,
    now: Millis,
    unix_seconds: u64,
    inactive: Seconds,
) -> Result<usize, StateError> {
    let (head, mut entries) = verify(bytes)?;
    // A wall clock that was set back tells nothing.
    let away = unix_seconds.saturating_sub(head.written);
    let away = u32::try_from(away).unwrap_or(u32::MAX);
    zone.set_secret(&head.secret);
    let mut count = 0;
    while let Some((record, rest)) = split_record(entries, away) {
        if record.used <= inactive {
            zone.table().restore(&record, now, inactive);
            count += 1;
        }
        entries = rest;
    }
    Ok(count)
}

/// Writes a file that is whole or not there: beside it under another name, with mode 0600, to the disk, then renamed.
///
/// A file that cannot be replaced, because it is a mount of its own or nothing can be made beside it, is written over. If
/// that is interrupted, the file is damaged, and the next [`load`] says so. Behind a symbolic link, the file that it leads to
/// is written. What is no regular file is left alone.
///
/// It blocks until the disk has it.
///
/// # Errors
///
/// The file could be neither replaced nor written over, for the reason of the former.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Ok(found) = fs::metadata(path) else {
        return replace(path, bytes);
    };
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let path = fs::canonicalize(path)?;
    replace(&path, bytes).or_else(|error| match error.kind() {
        ErrorKind::ResourceBusy
        | ErrorKind::CrossesDevices
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem => overwrite(&path, bytes).map_err(|_| error),
        _ => Err(error),
    })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    let written = create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        // Best effort: the error that counts is the one above.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    // The new name must be on the disk as well, or an old file comes back after a power cut. Harmless, so best effort.
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let _ = File::open(directory.unwrap_or(Path::new("."))).and_then(|parent| parent.sync_all());
    Ok(())
}

fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

/// How old a temporary file is that nobody writes any more: it takes seconds.
const LEFT_BEHIND: Duration = Duration::from_secs(600);

/// Removes what writers that were killed left beside the file. By its age, not by the writer's process id: containers that
/// share a folder have process ids of their own.
pub fn sweep(path: &Path) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return;
    };
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let unique = found
            .as_encoded_bytes()
            .strip_prefix(name.as_encoded_bytes())
            .and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(b".tmp"));
        let is_ours = unique.is_some_and(|unique| {
            unique.len() == UNIQUE && unique.iter().all(u8::is_ascii_hexdigit)
        });
        let written = entry.metadata().and_then(|found| found.modified());
        let age = written.map(|written| written.elapsed().unwrap_or_default());
        if is_ours && age.is_ok_and(|age| age >= LEFT_BEHIND) {
            // Best effort: it only takes room.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn create(temporary: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
}

/// How many hexadecimal digits make a temporary name unique.
const UNIQUE: usize = 16;

/// In the same directory, since a rename is atomic within a file system only; with a random number, since several processes
/// may write: the old and the new binary of an upgrade, or the first process of two containers.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut temporary = name.to_owned();
    // The keys of a hash map's hasher are random in each process, and differ each time.
    let unique = RandomState::new().hash_one(std::process::id());
    temporary.push(format!(".{unique:016x}.tmp"));
    Ok(path.with_file_name(temporary))
}

struct Head {
    written: u64,
    secret: Secret,
}

/// Head and entries of a file that is whole.
fn verify(bytes: &[u8]) -> Result<(Head, &[u8]), StateError> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(StateError::Foreign)?;
    if magic != MAGIC {
        return Err(StateError::Foreign);
    }
    let (version, rest) = rest.split_first_chunk().ok_or(StateError::Length)?;
    match u32::from_le_bytes(*version) {
        VERSION => {}
        other => return Err(StateError::Version(other)),
    }
    let (head, rest) = head(rest).ok_or(StateError::Length)?;
    let (entries, checksum) = rest
        .split_last_chunk::<CHECKSUM>()
        .ok_or(StateError::Length)?;
    let promised = bytes[HEAD - 8..]
        .first_chunk()
        .map(|count| u64::from_le_bytes(*count));
    if entries.len() % ENTRY != 0 || promised != Some((entries.len() / ENTRY) as u64) {
        return Err(StateError::Length);
    }
    if Sha256::digest(&bytes[..bytes.len() - CHECKSUM])[..] != checksum[..] {
        return Err(StateError::Checksum);
    }
    Ok((head, entries))
}

/// What follows the version.
fn head(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let (_, rest) = bytes.split_first_chunk::<4>()?;
    let (written, rest) = rest.split_first_chunk()?;
    let (secret, rest) = rest.split_first_chunk()?;
    let (_, rest) = rest.split_first_chunk::<8>()?;
    let head = Head {
        written: u64::from_le_bytes(*written),
        secret: Secret::from_bytes(*secret),
    };
    Some((head, rest))
}

fn split_record(entries: &[u8], away: u32) -> Option<(Record, &[u8])> {
    let (low, rest) = entries.split_first_chunk()?;
    let (high, rest) = rest.split_first_chunk()?;
    let (user, rest) = rest.split_first_chunk()?;
    let (looked_up, rest) = rest.split_first_chunk()?;
    let (used, rest) = rest.split_first_chunk()?;
    let high = u64::from_le_bytes(*high);
    let age = |bytes| Seconds::new(u32::from_le_bytes(bytes).saturating_add(away));
    let record = Record {
        key: Key::from_words([u64::from_le_bytes(*low), high & !0xf]),
        user: UserHash::from_bits(u64::from_le_bytes(*user)),
        masquerade: masquerade_of(high & 0xf),
        looked_up: age(*looked_up),
        used: age(*used),
        rank: 0,
    };
    Some((record, rest))
}

fn flags_of(masquerade: Masquerade) -> u64 {
    match masquerade {
        Masquerade::No => 0,
        Masquerade::Maybe => 1,
        Masquerade::Never => 2,
    }
}

fn masquerade_of(flags: u64) -> Masquerade {
    match flags {
        1 => Masquerade::Maybe,
        2 => Masquerade::Never,
        _ => Masquerade::No,
    }
}

#[cfg(test)]
mod tests;
