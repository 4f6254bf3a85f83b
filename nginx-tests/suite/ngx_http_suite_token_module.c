/*
 * For scripts/nginx-suite: it gives every request an access token of its own.
 *
 * nginx's own tests know nothing of tokens. This module sets the token where nginx keeps a client's "Authorization" header,
 * for HTTP/1, HTTP/2 and HTTP/3 alike, before any phase that could look. It is not added to the list of headers, so nothing of
 * it is logged, counted or proxied. A request that has such a header of its own keeps it.
 *
 *     suite_token BASE64 ...;
 *
 * stands in "http". The n-th request of a worker process gets the token of the n-th user (each is the base64 of a localpart), and
 * starts again behind the last: tests/bed/standin.py answers by the localpart.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


typedef struct {
    ngx_array_t  *users;    /* of ngx_str_t */
} ngx_http_suite_token_conf_t;


static ngx_int_t ngx_http_suite_token_init(ngx_conf_t *cf);
static void *ngx_http_suite_token_create_conf(ngx_conf_t *cf);


static ngx_uint_t  ngx_http_suite_token_requests;


static ngx_command_t  ngx_http_suite_token_commands[] = {

    { ngx_string("suite_token"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_conf_set_str_array_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_suite_token_conf_t, users),
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_suite_token_module_ctx = {
    NULL,                                  /* preconfiguration */
    ngx_http_suite_token_init,             /* postconfiguration */

    ngx_http_suite_token_create_conf,      /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    NULL,                                  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_suite_token_module = {
    NGX_MODULE_V1,
    &ngx_http_suite_token_module_ctx,      /* module context */
    ngx_http_suite_token_commands,         /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_suite_token_handler(ngx_http_request_t *r)
{
    u_char                       *p;
    ngx_str_t                    *user;
    ngx_table_elt_t              *h;
    ngx_http_suite_token_conf_t  *conf;

    conf = ngx_http_get_module_main_conf(r, ngx_http_suite_token_module);

    if (conf->users == NGX_CONF_UNSET_PTR || r->headers_in.authorization) {
        return NGX_DECLINED;
    }

    user = conf->users->elts;
    user += ngx_http_suite_token_requests++ % conf->users->nelts;

    h = ngx_pcalloc(r->pool, sizeof(ngx_table_elt_t));
    p = ngx_pnalloc(r->pool, sizeof("Bearer syt__01234567890123456789_suite") + user->len);
    if (h == NULL || p == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    h->hash = 1;
    ngx_str_set(&h->key, "Authorization");
    h->lowcase_key = (u_char *) "authorization";
    h->value.data = p;
    h->value.len = ngx_sprintf(p, "Bearer syt_%V_%010uiP%09P_suite", user, ngx_http_suite_token_requests, ngx_pid) - p;

    r->headers_in.authorization = h;

    return NGX_DECLINED;
}


static void *
ngx_http_suite_token_create_conf(ngx_conf_t *cf)
{
    ngx_http_suite_token_conf_t  *conf;

    conf = ngx_palloc(cf->pool, sizeof(ngx_http_suite_token_conf_t));
    if (conf != NULL) {
        conf->users = NGX_CONF_UNSET_PTR;
    }

    return conf;
}


static ngx_int_t
ngx_http_suite_token_init(ngx_conf_t *cf)
{
    ngx_http_handler_pt        *h;
    ngx_http_core_main_conf_t  *cmcf;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_POST_READ_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_suite_token_handler;

    return NGX_OK;
}
