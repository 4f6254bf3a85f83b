//! The allocator of the library: the system's, and behind it a little memory that is kept for when there is no other.
//!
//! Rust's own allocations abort the process when they fail. Most of what a request needs is asked for so that it may fail
//! ([`memory`](crate::ngx::memory)). That cannot be said of other people's code, which is called where it matters all the same:
//! serde_json, threads, and whatever makes a text for the configuration. Such code runs [`within`] the reserve. What it allocates
//! comes from the system as ever; where that has nothing, from here.

use core::cell::UnsafeCell;
use core::ptr;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use matrix_user_hash_core::reserve::Reserve;

/// Bytes. They cost address space only, until they are used: the system maps pages of zeros when somebody writes to them.
const SIZE: usize = 256 * 1024;

/// No allocation here is aligned to more; a larger alignment is the system's alone.
const ALIGN: usize = 16;

#[repr(align(16))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: `RESERVE` lends each byte to one borrower at a time, and only borrowers touch it.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; SIZE]));
static RESERVE: Reserve = Reserve::new(SIZE as u32);

/// How many threads run within the reserve, some more than once.
static WITHIN: AtomicU32 = AtomicU32::new(0);

/// How many blocks were ever taken from it.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Runs `body`, whose allocations do not fail as long as the reserve lasts.
pub(crate) fn within<T>(body: impl FnOnce() -> T) -> T {
    /// Leaves it, also by a panic.
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            WITHIN.fetch_sub(1, Ordering::Relaxed);
        }
    }
    WITHIN.fetch_add(1, Ordering::Relaxed);
    let _leave = Leave;
    body()
}

/// How often the system had no memory, and it came from here.
pub(crate) fn taken() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: a block is the system's or one of the reserve's, which are apart from each other and as large and as aligned as was
// asked; and it is given back to where it came from. Nothing here panics.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        let memory = unsafe { System.alloc(layout) };
        if memory.is_null() {
            take(layout)
        } else {
            memory
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() {
            return memory;
        }
        let memory = take(layout);
        if !memory.is_null() {
            // SAFETY: the block has that size.
            unsafe { ptr::write_bytes(memory, 0, layout.size()) };
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_lent(memory) {
            RESERVE.give_back();
        } else {
            // SAFETY: the caller's; it is not of the reserve.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_lent(memory) {
            // SAFETY: the caller's; it is not of the reserve.
            let moved = unsafe { System.realloc(memory, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: the caller promises that `size` is one that a layout may have.
        let moved = take(unsafe { Layout::from_size_align_unchecked(size, layout.align()) });
        if !moved.is_null() {
            // SAFETY: both blocks are live and apart, and have so many bytes. The old one is given back to where it came from.
            unsafe {
                ptr::copy_nonoverlapping(memory, moved, size.min(layout.size()));
                self.dealloc(memory, layout);
            }
        }
        moved
    }
}

/// A block of the reserve; null if nobody is within it, or it has not so much left.
fn take(layout: Layout) -> *mut u8 {
    if WITHIN.load(Ordering::Relaxed) == 0 || layout.align() > ALIGN {
        return ptr::null_mut();
    }
    let Some(offset) = RESERVE.take(layout.size(), layout.align()) else {
        return ptr::null_mut();
    };
    TAKEN.fetch_add(1, Ordering::Relaxed);
    MEMORY.0.get().cast::<u8>().wrapping_add(offset)
}

fn is_lent(memory: *mut u8) -> bool {
    let start = MEMORY.0.get().cast::<u8>();
    (start..start.wrapping_add(SIZE)).contains(&memory)
}
