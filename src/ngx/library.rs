//! The file that this library was loaded from, and whether it is still the one under that name.
//!
//! glibc's dlopen(3) gives the library that it has already loaded under a name, whatever the file of that name is by then,
//! so a reload goes on with the old code after the file was replaced. musl's compares files, and loads the new one beside
//! the old. In both, this tells about the library whose code runs.

use core::ffi::{CStr, c_void};
use core::mem::MaybeUninit;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::OnceLock;

static OPENED: OnceLock<Option<Opened>> = OnceLock::new();

struct Opened {
    path: &'static Path,
    /// Device and inode. While the library is mapped, no other file gets them.
    file: (u64, u64),
}

/// Notes which file it is. To be called when the library is being opened.
pub(crate) fn opened() {
    OPENED.get_or_init(|| {
        let path = own_path()?;
        Some(Opened {
            file: identity(path)?,
            path,
        })
    });
}

/// The name of the file, if by now another one has it, or none.
pub(crate) fn replaced() -> Option<&'static Path> {
    let opened = OPENED.get()?.as_ref()?;
    (identity(opened.path) != Some(opened.file)).then_some(opened.path)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// As nginx gave it to dlopen(3), which is absolute.
fn own_path() -> Option<&'static Path> {
    let here = (&raw const OPENED).cast::<c_void>();
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr only writes to what it is given, which is all zero before; a name that it gives stays while the library
    // is loaded, as this code does.
    let name = unsafe {
        if libc::dladdr(here, found.as_mut_ptr()) == 0 {
            return None;
        }
        let name = found.assume_init().dli_fname;
        (!name.is_null()).then(|| CStr::from_ptr(name))?
    };
    let path = Path::new(OsStr::from_bytes(name.to_bytes()));
    path.is_absolute().then_some(path)
}
