//! Memory that nginx shares between its processes.

use core::ffi::c_void;
use core::iter::successors;
use core::sync::atomic::AtomicU64;

use nginx_sys::{
    ngx_conf_t, ngx_cycle_t, ngx_int_t, ngx_list_part_t, ngx_shared_memory_add, ngx_shm_zone_t,
    ngx_slab_alloc, ngx_slab_pool_t,
};

use super::conf::Invalid;
use super::request::string;

/// What nginx calls once the memory of a zone is mapped.
pub(crate) type Init = unsafe extern "C" fn(*mut ngx_shm_zone_t, *mut c_void) -> ngx_int_t;

/// Declares a zone, for which `init` is called with `data`. `tag` tells our zones from those of other modules.
///
/// # Safety
///
/// `name`, `tag` and `data` live as long as the configuration, and `init` may be called with a zone that has that `data`.
///
/// # Errors
///
/// nginx refused, and has logged why.
pub(crate) unsafe fn declare(
    cf: &mut ngx_conf_t,
    name: &str,
    size: usize,
    tag: *mut c_void,
    init: Init,
    data: *mut c_void,
) -> Result<(), Invalid> {
    let mut name = string(name.as_bytes());
    // SAFETY: the caller's; nginx gives a zone of the configuration or NULL.
    let zone = unsafe { ngx_shared_memory_add(cf, &raw mut name, size, tag).as_mut() };
    let zone = zone.ok_or(Invalid)?;
    zone.init = Some(init);
    zone.data = data;
    Ok(())
}

/// The zones of a cycle that were declared with that tag.
pub(crate) fn with_tag(
    cycle: &ngx_cycle_t,
    tag: *mut c_void,
) -> impl Iterator<Item = &ngx_shm_zone_t> {
    // SAFETY: each part of the list names the next or NULL.
    let parts = successors(Some(&cycle.shared_memory.part), |part| unsafe {
        part.next.as_ref()
    });
    parts
        .flat_map(zones_of_part)
        .filter(move |zone| zone.tag == tag)
}

fn zones_of_part(part: &ngx_list_part_t) -> &[ngx_shm_zone_t] {
    if part.elts.is_null() {
        return &[];
    }
    // SAFETY: a cycle's list of zones holds `nelts` of them in each part.
    unsafe { core::slice::from_raw_parts(part.elts.cast(), part.nelts) }
}

/// The memory that nginx's slab pool has for us.
pub(crate) struct Memory {
    pool: *mut ngx_slab_pool_t,
    /// What we took of it earlier, if this is a reload.
    pub found: Option<&'static [AtomicU64]>,
}

impl Memory {
    /// The memory of a zone, once it is mapped.
    pub(crate) fn of(zone: &ngx_shm_zone_t) -> Self {
        let pool = zone.shm.addr.cast::<ngx_slab_pool_t>();
        // SAFETY: nginx has made a slab pool at the beginning of the mapping (ngx_init_zone_pool). Its `data` is ours: NULL, or
        // what `allocate` took.
        let found = unsafe {
            let start = (*pool).data.cast::<AtomicU64>();
            (!start.is_null()).then(|| words(pool, start))
        };
        Self { pool, found }
    }

    /// Takes all that the pool has, in one piece.
    ///
    /// # Errors
    ///
    /// The pool does not have it in one piece.
    pub(crate) fn allocate(&self) -> Result<&'static [AtomicU64], String> {
        // SAFETY: the pool is new: all of its free pages are in one row, so one allocation gets them. `pfree` counts them.
        // Zeroed or not does not matter, the zone is formatted next.
        unsafe {
            let bytes = (*self.pool).pfree * nginx_sys::ngx_pagesize;
            let start = ngx_slab_alloc(self.pool, bytes).cast::<AtomicU64>();
            if start.is_null() {
                return Err(format!("no {bytes} bytes in one piece"));
            }
            (*self.pool).data = start.cast();
            Ok(words(self.pool, start))
        }
    }
}

/// The memory from `start` up to the end of the pool's pages.
///
/// # Safety
///
/// The pool is live, and `start` is page-aligned memory that was allocated from it and goes up to there.
unsafe fn words(pool: *const ngx_slab_pool_t, start: *const AtomicU64) -> &'static [AtomicU64] {
    // SAFETY: the caller's; the mapping lives as long as the process uses the zone.
    unsafe {
        let bytes = (*pool).end as usize - start as usize;
        core::slice::from_raw_parts(start, bytes / size_of::<AtomicU64>())
    }
}
