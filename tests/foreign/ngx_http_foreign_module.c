/*
 * A module that limits as nginx's own do, in the PREACCESS phase, and that somebody else has built: `foreign_needs VALUE;`
 * (http, server, location) refuses a request with 403 where VALUE is empty. tests/foreign/check.py says what for.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

typedef struct {
    ngx_http_complex_value_t *needed;
} foreign_conf_t;

static void *create_conf(ngx_conf_t *cf);
static char *merge_conf(ngx_conf_t *cf, void *parent, void *child);
static ngx_int_t postconfiguration(ngx_conf_t *cf);

static ngx_command_t commands[] = {
    { ngx_string("foreign_needs"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(foreign_conf_t, needed),
      NULL },
    ngx_null_command
};

static ngx_http_module_t context = {
    NULL, postconfiguration, NULL, NULL, NULL, NULL, create_conf, merge_conf
};

ngx_module_t ngx_http_foreign_module = {
    NGX_MODULE_V1, &context, commands, NGX_HTTP_MODULE, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NGX_MODULE_V1_PADDING
};

static ngx_int_t
handler(ngx_http_request_t *r)
{
    ngx_str_t        value;
    foreign_conf_t  *conf = ngx_http_get_module_loc_conf(r, ngx_http_foreign_module);

    if (conf->needed == NULL) {
        return NGX_DECLINED;
    }
    if (ngx_http_complex_value(r, conf->needed, &value) != NGX_OK) {
        return NGX_ERROR;
    }
    return value.len ? NGX_DECLINED : NGX_HTTP_FORBIDDEN;
}

static void *
create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(foreign_conf_t));
}

static char *
merge_conf(ngx_conf_t *cf, void *parent, void *child)
{
    foreign_conf_t  *outer = parent, *inner = child;

    if (inner->needed == NULL) {
        inner->needed = outer->needed;
    }
    return NGX_CONF_OK;
}

static ngx_int_t
postconfiguration(ngx_conf_t *cf)
{
    ngx_http_core_main_conf_t  *core = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
    ngx_http_handler_pt        *place = ngx_array_push(&core->phases[NGX_HTTP_PREACCESS_PHASE].handlers);

    if (place == NULL) {
        return NGX_ERROR;
    }
    *place = handler;
    return NGX_OK;
}
