# What stands in the same location works as without us, and a request that is turned away costs no lookup.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use Test::Nginx::Socket 'no_plan';

MatrixUserHash::use_steps();
run_tests();

__DATA__

=== deny: 403, and nobody is asked
--- config
location / { deny all; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = 403
asked 0

=== limit_req: what is over the limit gets its 503 and asks nobody
--- http_config
limit_req_zone $binary_remote_addr zone=few:64k rate=1r/m;
--- config
location / { limit_req zone=few; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {bob/phone} = 503
GET /sync {carol/phone} = 503
asked 1

=== limit_conn lets through what it lets through
--- http_config
limit_conn_zone $binary_remote_addr zone=conns:64k;
--- config
location / { limit_conn conns 1; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org

=== auth_request that allows: one lookup, the answer of the worker
--- config
location / { auth_request /auth; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location = /auth { return 204; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org ~ ^worker
asked 1

=== auth_request that refuses: its 401 or 403, and nobody is asked
--- http_config
server { listen 127.0.0.1:$TEST_NGINX_FREE1; location / { return 401; } location /no { return 403; } }
--- config
location / { auth_request /auth; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location = /auth { proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1; }
location /never { auth_request /never-auth; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location = /never-auth { proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1/no; }
--- steps
GET /sync {alice/phone} = 401
GET /never {alice/phone} = 403
asked 0

=== satisfy any: one of the two is enough, and then it is resolved
--- config
location / {
    satisfy any;
    deny all;
    auth_request /auth;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
location = /auth { return 204; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org

=== try_files in the same location is run as ever
--- config
location / {
    root html;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    try_files $uri @sync;
}
location @sync { proxy_pass http://sync_workers; }
--- user_files
>>> there.txt
a file
--- steps
GET /there.txt {alice/phone} = MISS @alice:example.org ~ ^a file
GET /sync {alice/phone} = HIT @alice:example.org ~ ^worker \d GET /sync
asked 1

=== try_files with a status is an error as ever
--- config
location / { root html; matrix_user_hash http://$TEST_NGINX_WHOAMI; try_files $uri =404; }
--- steps
GET /none {alice/phone} = 404

=== a mirror in the same location gets its copy
--- http_config
log_format mirrored 'mirrored $request_method $http_x_original $request_length';
server { listen 127.0.0.1:$TEST_NGINX_FREE1; access_log logs/access.log mirrored; location / { return 204; } }
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; mirror /mirror; proxy_pass http://sync_workers; }
location = /mirror {
    internal;
    proxy_set_header X-Original $request_uri;
    proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
asked 1
--- access_log
mirrored GET /sync

=== return in the same location answers before anything is asked
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; return 200 "here\n"; }
--- steps
GET /sync {alice/phone} = - - ~ ^here
asked 0

=== rewrite … break in the same location: the rewritten request is resolved and proxied
--- config
location / {
    rewrite ^/old/(.*)$ /new/$1 break;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
--- steps
GET /old/sync {alice/phone} = MISS @alice:example.org ~ GET /new/sync

=== rewrite … last moves to a location without the directive
--- config
location /old { matrix_user_hash http://$TEST_NGINX_WHOAMI; rewrite ^ /new last; }
location /new { proxy_pass http://sync_workers; }
--- steps
GET /old {alice/phone} = - - ~ GET /new
asked 0

=== HEAD is resolved like GET
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- request
HEAD /sync
--- more_headers eval
'Authorization: Bearer ' . ::token('alice/phone')
--- response_headers
X-Status: MISS
X-Hash: 86f01aef21b1acd3

=== OPTIONS without a token, as a browser's preflight, asks nobody
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
OPTIONS /sync "Origin: https://app.example.org" "Access-Control-Request-Headers: authorization" = ANONYMOUS - ~ worker \d OPTIONS
asked 0

=== PUT and DELETE with a token are resolved
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
DELETE /devices/X {alice/phone} = MISS @alice:example.org ~ worker \d DELETE
PUT /profile {alice/phone} = HIT @alice:example.org ~ worker \d PUT

=== a worker's error is the client's, with error_page as ever
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_intercept_errors on;
    error_page 404 =200 /sorry;
    proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1;
}
location = /sorry { internal; return 200 "sorry $matrix_user_hash\n"; }
location /plain { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1; }
--- http_config
server { listen 127.0.0.1:$TEST_NGINX_FREE1; location / { return 404 "not here\n"; } }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org ~ ^sorry 86f01aef21b1acd3
GET /plain {alice/phone} = 404 HIT @alice:example.org ~ ^not here

=== error_page of the location never runs for a failed lookup
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_DEAD;
    proxy_intercept_errors on;
    error_page 500 502 503 504 =200 /sorry;
    proxy_pass http://sync_workers;
}
location /status { matrix_user_hash http://$TEST_NGINX_WHOAMI/status-503/whoami; error_page 503 =200 /sorry; proxy_pass http://sync_workers; }
location = /sorry { return 200 "sorry\n"; }
--- steps
GET /sync {alice/phone} = ERROR token ~ ^worker
GET /status {bob/phone} = ERROR token ~ ^worker

=== proxy settings of the location are not the lookup's
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_set_header X-Told "only for workers";
    proxy_set_header Authorization "";
    proxy_set_body "replaced";
    proxy_method POST;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org ~ worker \d POST
GET /__log = 200 ~ "GET /_matrix

=== a request without a handler for its content still ends as it would
--- config
location / { root html; matrix_user_hash http://$TEST_NGINX_WHOAMI; }
--- user_files
>>> there.txt
a file
--- steps
GET /there.txt {alice/phone} = 200 MISS @alice:example.org ~ ^a file
GET /none {alice/phone} = 404
GET /there.txt {alice/phone} "Range: bytes=0-0" = 206 HIT @alice:example.org ~ ^a$

=== gzip and other filters of the location work on the worker's answer alone
--- skip_eval: 1: MatrixUserHash::nginx_says() =~ /--without-http_gzip_module/
--- config
location / {
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    gzip_http_version 1.0;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} "Accept-Encoding: gzip" = MISS @alice:example.org ~ ^\x1f\x8b
GET /sync {alice/phone} = HIT @alice:example.org ~ ^worker \d

=== HTTP/1.0 without a Host
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- raw_request eval
"GET /sync HTTP/1.0\r\nAuthorization: Bearer " . ::token('alice/phone') . "\r\n\r\n"
--- response_headers
X-Status: MISS
X-Hash: 86f01aef21b1acd3

=== requests one after the other on one connection are resolved each for itself
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- pipelined_requests eval
['GET /one', 'GET /two', 'GET /three', 'GET /four']
--- more_headers eval
[map { "Authorization: Bearer $_" } map { ::token($_) } qw(alice/phone bob/phone alice/phone alice/laptop)]
--- response_headers_like eval
[map { "X-Status: $_->[0]\nX-Hash: " . ::hash_of($_->[1]) }
    ['MISS', '@alice:example.org'], ['MISS', '@bob:example.org'], ['HIT', '@alice:example.org'], ['MISS', '@alice:example.org']]
--- response_body_like eval
[qr/one/, qr/two/, qr/three/, qr/four/]
