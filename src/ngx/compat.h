/* The structures whose bitfields nginx-sys places wrong or sets slowly; see src/ngx/compat.rs. */
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>
