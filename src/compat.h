/* The one structure that nginx-sys binds wrong on nginx >= 1.29.3; see src/compat.rs. */
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>
