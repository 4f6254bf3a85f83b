//! The modules of an nginx.

use core::ffi::CStr;

use nginx_sys::{ngx_cycle_t, ngx_module_t};

/// All modules of a cycle.
pub(crate) fn all(cycle: &ngx_cycle_t) -> impl Iterator<Item = &ngx_module_t> {
    // SAFETY: nginx ends the array with a NULL, at which this ends, too; modules live as long as the process or the cycle.
    (0..).map_while(|index| unsafe { (*cycle.modules.add(index)).as_ref() })
}

/// The name of a module; `None` if it has none.
pub(crate) fn name(module: &ngx_module_t) -> Option<&CStr> {
    // SAFETY: a module's name is NULL or a static C string.
    (!module.name.is_null()).then(|| unsafe { CStr::from_ptr(module.name) })
}
