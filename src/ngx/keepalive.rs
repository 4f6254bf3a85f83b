//! The connections that a server group keeps (`ngx_http_upstream_keepalive_module`).

use core::ptr::NonNull;

use nginx_sys::{ngx_conf_t, ngx_http_upstream_srv_conf_t};

use super::compat::GroupKeepalive;
use super::modules;

/// Where the keepalive module has the connections of a group; `None` if it keeps none.
///
/// # Safety
///
/// The group is that of the configuration that nginx is reading.
pub(crate) unsafe fn of_group(
    cf: &ngx_conf_t,
    group: *const ngx_http_upstream_srv_conf_t,
) -> Option<NonNull<GroupKeepalive>> {
    // SAFETY: nginx is reading the configuration of a cycle.
    let mut modules = modules::all(unsafe { &*cf.cycle });
    let is_it = |name| name == c"ngx_http_upstream_keepalive_module";
    let module = modules.find(|module| modules::name(module).is_some_and(is_it))?;
    // SAFETY: the group is live, and has a place for each module of the http type, or none at all. Nothing has a reference to
    // the module's structure, which begins as ours (scripts/check-layout).
    unsafe {
        let places = NonNull::new((*group).srv_conf)?;
        let kept = (*places.as_ptr().add(module.ctx_index)).cast::<GroupKeepalive>();
        has_empty_list(kept).then(|| NonNull::new(kept))?
    }
}

/// Whether there is a list where we look for it, and it is empty, as it must be while the configuration is read: then it refers
/// to itself. So a structure that is not as it was when the module was built does no harm.
///
/// # Safety
///
/// `kept` is NULL, or points to a structure of the keepalive module.
unsafe fn has_empty_list(kept: *mut GroupKeepalive) -> bool {
    if kept.is_null() {
        return false;
    }
    // SAFETY: the caller's.
    unsafe {
        let head = &raw mut (*kept).cache;
        (*head).prev == head && (*head).next == head
    }
}

/// Calls `body`, which sees an empty list.
///
/// # Safety
///
/// `group` is what [`of_group`] gave, and `body` only reads its list. The links of the list's members are not touched, so the
/// head put back makes the list what it was.
pub(crate) unsafe fn with_list_hidden<T>(
    group: NonNull<GroupKeepalive>,
    body: impl FnOnce() -> T,
) -> T {
    // SAFETY: the caller's.
    unsafe {
        let head = &raw mut (*group.as_ptr()).cache;
        let (prev, next) = ((*head).prev, (*head).next);
        ((*head).prev, (*head).next) = (head, head);
        let result = body();
        ((*head).prev, (*head).next) = (prev, next);
        result
    }
}
