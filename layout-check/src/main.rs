//! Compares what `src/` believes of nginx's structures with what the C compiler says, for one nginx.
//!
//! A module that has a field in the wrong place compiles, loads and mostly works: nothing else would tell. So each
//! size, offset and bitfield that `src/` uses (used.txt) is asked of both languages, over the same headers. A bitfield
//! has no address: C fills it with ones in a zeroed structure, Rust does the same in another, and the bytes must be
//! equal; then Rust must read ones from the bytes that C wrote.
//!
//! Run by `scripts/check-layout`. Exit status 1, and a line for each difference, if anything differs.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use core::ffi::{c_uint, c_void};
use core::mem::offset_of;
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

/// The module's own words on bitfields, and its own binding of `ngx_http_request_t`, as the module compiles them.
#[path = "../../src/ngx/compat.rs"]
#[allow(
    dead_code,
    reason = "the module uses all of it; here only the bitfields count"
)]
mod compat;

/// A size or an offset in bytes.
struct Place {
    what: &'static str,
    rust: usize,
    c: unsafe extern "C" fn() -> usize,
}

/// A bitfield.
struct Bit {
    what: &'static str,
    size: usize,
    c: unsafe extern "C" fn(*mut c_void),
    fill: fn(*mut c_void),
    get: fn(*mut c_void) -> u64,
}

#[allow(
    clippy::undocumented_unsafe_blocks,
    clippy::cast_lossless,
    reason = "generated; Bit::differs says why it is safe, and a bitfield may have any integer's type"
)]
mod lists {
    use super::compat::bound;
    use super::{Bit, Place, c_uint, c_void, offset_of};
    include!(concat!(env!("OUT_DIR"), "/layout.rs"));
}

/// The nginx under test, such as `nginx/1.28.3`.
const NGINX_VERSION: &str = env!("NGINX_VERSION");

/// The first nginx whose request bitfields nginx-sys 0.5 places wrong (rust-bindgen 3384).
const FIRST_WRONG: u32 = 1_029_003;

fn main() -> ExitCode {
    let mut wrong: Vec<String> = lists::PLACES.iter().filter_map(Place::differs).collect();
    wrong.extend(lists::BITS.iter().filter_map(Bit::differs));
    wrong.extend(lists::REQUEST_BITS_OURS.iter().filter_map(Bit::differs));
    wrong.extend(set_logged_differs());
    wrong.extend(fill_variable_differs());
    match unlisted_bitfields(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../src"))) {
        Ok(unlisted) => wrong.extend(unlisted),
        Err(error) => wrong.push(format!("src/ cannot be read: {error}")),
    }
    wrong.extend(nginx_sys_surprises());

    for line in &wrong {
        eprintln!("{}: {line}", NGINX_VERSION);
    }
    println!(
        "{}: {} sizes and offsets, {} bitfields compared with C, {} wrong",
        NGINX_VERSION,
        lists::PLACES.len(),
        lists::BITS.len() + lists::REQUEST_BITS_OURS.len() + 2,
        wrong.len()
    );
    if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Place {
    fn differs(&self) -> Option<String> {
        // SAFETY: the C function takes nothing and returns a constant.
        let c = unsafe { (self.c)() };
        (c != self.rust).then(|| format!("{} is {c} in C and {} in Rust", self.what, self.rust))
    }
}

impl Bit {
    fn differs(&self) -> Option<String> {
        let (mut c, mut rust) = (Memory::zeroed(self.size), Memory::zeroed(self.size));
        // SAFETY: zeroed memory, aligned, of the size of the structure whose bitfield is written.
        unsafe { (self.c)(c.pointer()) };
        (self.fill)(rust.pointer());
        let read = (self.get)(c.pointer());
        if c != rust {
            return Some(format!("{}: C writes {c}, Rust {rust}", self.what));
        }
        let ones = c.ones();
        (ones == 0 || u64::from(read.count_ones()) != ones)
            .then(|| format!("{}: C writes {ones} bits, Rust reads {read:#b}", self.what))
    }
}

/// A structure as words: the largest alignment that nginx's have. A margin catches a C structure that is larger.
#[derive(PartialEq)]
struct Memory(Vec<u128>);

impl Memory {
    fn zeroed(size: usize) -> Self {
        Self(vec![0; size / size_of::<u128>() + 64])
    }

    fn pointer(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }

    fn ones(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

impl core::fmt::Display for Memory {
    /// The first and the number of the bits that are set.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let first = self.0.iter().position(|word| *word != 0);
        match first.map(|at| (at, self.0[at].trailing_zeros())) {
            Some((at, bit)) => {
                let byte = at * size_of::<u128>() + bit as usize / 8;
                write!(f, "byte {byte} bit {} ({} in all)", bit % 8, self.ones())
            }
            None => write!(f, "nothing"),
        }
    }
}

/// What the module calls, as it calls it.
fn set_logged_differs() -> Option<String> {
    let logged = lists::REQUEST_BITS_OURS
        .iter()
        .find(|bit| bit.what == "ngx_http_request_t.logged")?;
    Bit {
        what: "compat::set_logged",
        // SAFETY: zeroed memory of the size of a request; the function writes one bit of it.
        fill: |request| unsafe { compat::set_logged(request.cast()) },
        ..*logged
    }
    .differs()
}

/// The same of a variable: its longest length and `valid`, and every other bit cleared that was set before.
fn fill_variable_differs() -> Option<String> {
    let bit = |name| {
        let what = format!("ngx_http_variable_value_t.{name}");
        let mut bits = lists::BITS.iter();
        bits.find(|bit| bit.what == what).expect("used.txt has it")
    };
    let (mut c, mut rust) = (
        Memory::zeroed(bit("len").size),
        Memory::zeroed(bit("len").size),
    );
    // SAFETY: zeroed memory, aligned, of the size of the structure that is written.
    unsafe {
        (bit("len").c)(c.pointer());
        (bit("valid").c)(c.pointer());
        (bit("no_cacheable").c)(rust.pointer());
        (bit("not_found").c)(rust.pointer());
        let value = &mut *rust.pointer().cast();
        compat::fill_variable(value, core::ptr::null(), (1 << 28) - 1);
    }
    (c != rust).then(|| format!("compat::fill_variable: C writes {c}, Rust {rust}"))
}

/// nginx-sys' own request bitfields must be wrong where we say that they are, and right elsewhere. The first half is
/// this program's proof that it can fail; when it turns false, `src/ngx/compat.rs` has lost its reason.
fn nginx_sys_surprises() -> Option<String> {
    let version: u32 = env!("NGINX_VERSION_NUMBER").parse().unwrap_or_default();
    let wrong: Vec<String> = lists::REQUEST_BITS_NGINX_SYS
        .iter()
        .filter_map(Bit::differs)
        .collect();
    if version >= FIRST_WRONG {
        println!(
            "nginx-sys alone would be wrong in {} bitfields, such as:",
            wrong.len()
        );
        for line in wrong.iter().filter(|line| line.contains("header_only")) {
            println!("  {line}");
        }
    }
    match (version >= FIRST_WRONG, wrong.is_empty()) {
        (true, true) => Some(
            "nginx-sys has its request bitfields right now: src/ngx/compat.rs can go".to_owned(),
        ),
        (false, false) => Some(format!(
            "nginx-sys has request bitfields wrong before 1.29.3 too: {wrong:?}"
        )),
        _ => None,
    }
}

/// Bitfields that `src/` touches and used.txt lacks: `.set_NAME(`, or `.NAME()` compared with a number, where nginx's
/// headers have a bitfield of that name.
fn unlisted_bitfields(src: &Path) -> io::Result<Vec<String>> {
    let names = lists::ALL_BITFIELDS;
    let listed = |name: &str| {
        lists::LEFT_OUT.contains(&name)
            || lists::BITS
                .iter()
                .any(|bit| bit.what.ends_with(&format!(".{name}")))
    };
    let mut unlisted = Vec::new();
    for path in rust_files(src)? {
        let text = fs::read_to_string(&path)?;
        for name in names {
            let touched = text.contains(&format!(".set_{name}("))
                || [" != 0", " == 0", " != 1", " == 1"]
                    .iter()
                    .any(|number| text.contains(&format!(".{name}(){number}")));
            if touched && !listed(name) && !path.ends_with("compat.rs") {
                unlisted.push(format!(
                    "{} touches the bitfield {name}, which used.txt lacks",
                    path.display()
                ));
            }
        }
    }
    unlisted.sort();
    unlisted.dedup();
    Ok(unlisted)
}

fn rust_files(folder: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
