# The three variables: what they are, when, and that they stay what they are. docs/variables.md.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use Test::Nginx::Socket 'no_plan';

MatrixUserHash::use_steps();
run_tests();

__DATA__

=== all devices of a user have one hash, other users have others
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/laptop} = MISS @alice:example.org
GET /sync?access_token={alice/tablet} = MISS @alice:example.org
GET /sync {bob/phone} = MISS @bob:example.org
GET /sync {alice/phone} = HIT @alice:example.org
asked 4

=== the directive off: hash and status are empty, the time is a dash
--- config
location / { proxy_pass http://sync_workers; }
location /off { matrix_user_hash off; proxy_pass http://sync_workers; }
location /on { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = - -
GET /off {alice/phone} = - -
asked 0
GET /on {alice/phone} = MISS @alice:example.org

=== read too early they are empty, and that is not remembered
--- config
location / {
    set $early "[$matrix_user_hash|$matrix_user_hash_status]";
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_set_header X-Told "$early $matrix_user_hash";
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
--- raw_response_headers_like eval
[qr/X-Told: \[\|\] 86f01aef21b1acd3\r\n/]

=== an `if` in the rewrite phase sees nothing, and what follows sees the hash
--- config
location / {
    if ($matrix_user_hash) { return 418; }
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org

=== as a limit_req key the hash is empty, which limits nobody
--- http_config
limit_req_zone $matrix_user_hash zone=early:64k rate=1r/m;
--- config
location / {
    limit_req zone=early;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org

=== a map of the hash is evaluated when it is used, not before
--- http_config
map $matrix_user_hash $known { default "yes"; "" "no"; }
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_set_header X-Told $known;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync = ANONYMOUS -
--- raw_response_headers_like eval
[qr/X-Told: yes\r\n/, qr/X-Told: no\r\n/]

=== a map that is read before the wait keeps its early value, a volatile one does not
--- http_config
map $matrix_user_hash $kept { default "yes"; "" "no"; }
map $matrix_user_hash $computed { volatile; default "yes"; "" "no"; }
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    if ($kept = yes) { return 418; }
    if ($computed = yes) { return 418; }
    proxy_set_header X-Told "$kept $computed";
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org
--- raw_response_headers_like eval
[qr/X-Told: no yes\r\n/, qr/X-Told: no yes\r\n/]

=== proxy_set_header passes hash and status to the worker
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_set_header X-Told "$matrix_user_hash $matrix_user_hash_status";
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
--- raw_response_headers_like eval
[qr/X-Told: 86f01aef21b1acd3 MISS\r\n/]

=== log_format writes them; a lookup's time is seconds with milliseconds
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
    access_log logs/access.log matrix;
}
--- steps
GET /first {alice/phone} = MISS @alice:example.org
--- access_log eval
qr/^\/first hash=86f01aef21b1acd3 status=MISS time=\d+\.\d{3}$/m

=== with no lookup the time is a dash
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /first {alice/phone} = MISS @alice:example.org
GET /second {alice/phone} = HIT @alice:example.org
GET /third = ANONYMOUS -
--- raw_response_headers_like eval
[qr/X-Lookup-Time: 0\.\d{3}\r\n/, qr/X-Lookup-Time: -\r\n/, qr/X-Lookup-Time: -\r\n/]

=== the time of a slow lookup is at least that long
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
homeserver delay=0.3
GET /sync {alice/phone} = MISS @alice:example.org
--- raw_response_headers_like eval
['', qr/X-Lookup-Time: (?:0\.[3-9]|1\.)\d+\r\n/]

=== after a failed lookup the hash is the token's, stable while whoami fails
--- config
location / { matrix_user_hash http://$TEST_NGINX_DEAD; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = ERROR token
GET /sync {alice/phone} = ERROR token
GET /sync {alice/laptop} = ERROR token

=== error_page to a named location keeps them, and asks no second time
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    error_page 502 504 = @fallback;
    proxy_pass http://$TEST_NGINX_DEAD;
}
location @fallback {
    proxy_set_header X-Told "$matrix_user_hash $matrix_user_hash_status";
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
asked 1
--- raw_response_headers_like eval
[qr/X-Told: 86f01aef21b1acd3 MISS\r\n/, '']

=== error_page to a location that resolves too keeps the first result
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    error_page 502 504 = /other;
    proxy_pass http://$TEST_NGINX_DEAD;
}
location /other {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
asked 1

=== a named location of its own is resolved on the way in
--- config
location / { try_files /none @sync; }
location @sync { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
asked 1

=== a rewrite to another location resolves once, there
--- config
location / { rewrite ^ /inner last; matrix_user_hash http://$TEST_NGINX_WHOAMI2; }
location /inner { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
asked 1

=== X-Accel-Redirect keeps them
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location /inside/ {
    internal;
    proxy_set_header X-Told "$matrix_user_hash $matrix_user_hash_status";
    proxy_pass http://sync_workers;
}
--- steps
GET /sync?accel=/inside/file {alice/phone} = MISS @alice:example.org ~ /inside/file
asked 1
--- raw_response_headers_like eval
[qr/X-Told: 86f01aef21b1acd3 MISS\r\n/, '']

=== an SSI subrequest sees the main request's, and asks nothing itself
--- config
location = /page {
    ssi on;
    ssi_types text/plain;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    root html;
    try_files /page.html =404;
}
location /part {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_set_header X-Told $matrix_user_hash;
    proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1/told;
}
--- http_config
server { listen 127.0.0.1:$TEST_NGINX_FREE1; location / { return 200 "told $http_x_told"; } }
--- user_files
>>> page.html
<<!--# include virtual="/part" -->>
--- steps
GET /page {alice/phone} = MISS @alice:example.org ~ <told 86f01aef21b1acd3>
asked 1

=== mirrored requests carry the hash to where they go
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    mirror /mirror;
    proxy_pass http://sync_workers;
}
location = /mirror {
    internal;
    proxy_set_header X-Told "$matrix_user_hash";
    proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1;
}
--- http_config
log_format told 'mirrored $http_x_told';
server { listen 127.0.0.1:$TEST_NGINX_FREE1; access_log logs/access.log told; location / { return 204; } }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
asked 1
--- access_log
mirrored 86f01aef21b1acd3

=== an auth_request subrequest runs before: it sees nothing and spoils nothing
--- config
location / {
    auth_request /auth;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
location = /auth {
    internal;
    proxy_set_header X-Told "hash($matrix_user_hash) status($matrix_user_hash_status)";
    proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1;
}
--- http_config
log_format told 'authenticated $http_x_told';
server { listen 127.0.0.1:$TEST_NGINX_FREE1; access_log logs/access.log told; location / { return 204; } }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
asked 1
--- access_log
authenticated hash() status()

=== the directive in an auth_request location does nothing: subrequests are not resolved
--- config
location / { auth_request /auth; proxy_pass http://sync_workers; }
location = /auth { internal; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = - -
asked 0

=== a user id in escaped JSON has the hash of what it says
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI/escaped/whoami; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
