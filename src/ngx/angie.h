/*
 * What the bindings of nginx-sys must find by nginx's name, where Angie has another one. scripts/build includes it before
 * any header of Angie's; see src/ngx/compat.rs.
 */
#define angie_sign spare1

/*
 * The crate ngx calls ngx_log_error_core() as nginx declares it, so it needs that declaration to compile. Since 1.12.0
 * Angie has another one. So what the crate finds is a declaration of a symbol that no server has: a library in which
 * anything still called it would not be loaded. Angie's own headers go on with Angie's, by another name.
 */
#define ngx_log_error_core ngx_log_error_core_of_angie

#include <ngx_config.h>
#include <ngx_core.h>

#pragma push_macro("ngx_log_error_core")
#undef ngx_log_error_core

void ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, ngx_err_t err, const char *fmt, ...)
    __asm__("ngx_log_error_core_of_nginx");

#pragma pop_macro("ngx_log_error_core")
