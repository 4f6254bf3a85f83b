# The directives inherit from http to server to location as nginx's own do.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use Test::Nginx::Socket 'no_plan';

MatrixUserHash::use_steps();
run_tests();

__DATA__

=== set at http, it holds in every location
--- http_config
matrix_user_hash http://$TEST_NGINX_WHOAMI;
--- config
location / { proxy_pass http://sync_workers; }
location /a { location /a/b { proxy_pass http://sync_workers; } }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /a/b {alice/phone} = HIT @alice:example.org

=== set at server, it holds in nested locations and in `if`
--- config
matrix_user_hash http://$TEST_NGINX_WHOAMI;
location /a { location /a/b { proxy_pass http://sync_workers; } }
location /if { if ($arg_x) { proxy_pass http://sync_workers; } proxy_pass http://sync_workers; }
--- steps
GET /a/b {alice/phone} = MISS @alice:example.org
GET /if?x=1 {alice/phone} = HIT @alice:example.org

=== off in a location turns off what the server turned on, and only there
--- config
matrix_user_hash http://$TEST_NGINX_WHOAMI;
location / { proxy_pass http://sync_workers; }
location /off { matrix_user_hash off; proxy_pass http://sync_workers; }
location /off/on { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /off {alice/phone} = - -
asked 0
GET /sync {alice/phone} = MISS @alice:example.org
GET /off/on {alice/phone} = HIT @alice:example.org

=== off in a nested location inside one that is on
--- config
location /a {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
    location /a/off { matrix_user_hash off; proxy_pass http://sync_workers; }
    location /a/on { proxy_pass http://sync_workers; }
}
--- steps
GET /a/off {alice/phone} = - -
GET /a/on {alice/phone} = MISS @alice:example.org
GET /a {alice/phone} = HIT @alice:example.org

=== a location's own URL replaces the server's
--- config
matrix_user_hash http://$TEST_NGINX_DEAD;
location / { proxy_pass http://sync_workers; }
location /own { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /own {alice/phone} = MISS @alice:example.org
GET /sync {bob/phone} = ERROR token

=== timeouts are merged one by one, and an outer one holds for an inner URL
--- config
matrix_user_hash_timeout 200ms;
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location /patient { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_timeout 3s; proxy_pass http://sync_workers; }
--- steps
homeserver delay=0.7
GET /sync {alice/phone} = TIMEOUT token
GET /patient {bob/phone} = MISS @bob:example.org

=== a timeout of a location holds for a URL that it inherits
--- config
matrix_user_hash http://$TEST_NGINX_WHOAMI;
location / { proxy_pass http://sync_workers; }
location /hasty { matrix_user_hash_timeout 200ms; proxy_pass http://sync_workers; }
--- steps
homeserver delay=0.7
GET /hasty {alice/phone} = TIMEOUT token
GET /sync {bob/phone} = MISS @bob:example.org

=== the upstream family is inherited with an inherited URL and overridden per location
--- config
matrix_user_hash http://$TEST_NGINX_WHOAMI;
matrix_user_hash_read_timeout 200ms;
location / { proxy_pass http://sync_workers; }
location /patient { matrix_user_hash_read_timeout 1500ms; proxy_pass http://sync_workers; }
--- steps
homeserver delay=0.7
GET /sync {alice/phone} = ERROR|TIMEOUT token
GET /patient {bob/phone} = MISS @bob:example.org

=== matrix_user_hash_valid of the http level holds below, and a location has its own
--- http_config
matrix_user_hash_valid 200 2s;
matrix_user_hash_stale off;
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location /long { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_valid 200 1h; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /long {bob/phone} = MISS @bob:example.org
wait 3.1
GET /sync {alice/phone} = MISS @alice:example.org
GET /long {bob/phone} = HIT @bob:example.org

=== several servers with URLs of their own
--- http_config
server {
    listen 127.0.0.1:$TEST_NGINX_FREE1;
    add_header X-Hash $matrix_user_hash;
    add_header X-Status $matrix_user_hash_status;
    location / { matrix_user_hash http://$TEST_NGINX_WHOAMI2; proxy_pass http://sync_workers; }
}
--- config
location / { matrix_user_hash http://$TEST_NGINX_DEAD; proxy_pass http://sync_workers; }
location /via/ { proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1; }
--- steps
GET /sync {bob/phone} = ERROR token
GET /via/sync {alice/phone} = MISS @alice:example.org
