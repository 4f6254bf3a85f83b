# How long an answer is fresh: matrix_user_hash_valid and matrix_user_hash_stale.
#
# Blocks that are skipped under valgrind have steps within a second of each other; there each step takes one.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use Test::Nginx::Socket 'no_plan';

MatrixUserHash::use_steps();
run_tests();

__DATA__

=== a known token is asked for once, however often it comes
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org
asked 1

=== past its freshness an answer is STALE, at once, and refreshed once in the background
--- skip_eval: 1: $ENV{TEST_NGINX_USE_VALGRIND}
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_valid 200 2s; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
wait 3.1
homeserver delay=0.5
GET /sync {alice/phone} = STALE @alice:example.org
GET /sync {alice/phone} = STALE @alice:example.org
GET /sync {alice/phone} = STALE @alice:example.org
asked 2
wait 0.7
GET /sync {alice/phone} = HIT @alice:example.org
asked 2

=== stale off: past its freshness an answer is asked for again
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    matrix_user_hash_valid 200 2s;
    matrix_user_hash_stale off;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org
wait 3.1
GET /sync {alice/phone} = MISS @alice:example.org
asked 2

=== stale off, and whoami fails: the fallback
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    matrix_user_hash_valid 200 2s;
    matrix_user_hash_stale off;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
wait 3.1
homeserver kind=status-503
GET /sync {alice/phone} = ERROR token

=== a refused token is remembered: asked once, REFUSED ever after
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {revoked/phone} = REFUSED token
GET /sync {revoked/phone} = REFUSED token
GET /sync?access_token={revoked/phone} = REFUSED token
asked 1

=== … and as long as `401 TIME` says
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_valid 401 2s; proxy_pass http://sync_workers; }
--- steps
GET /sync {revoked/phone} = REFUSED token
GET /sync {revoked/phone} = REFUSED token
asked 1
wait 3.1
GET /sync {revoked/phone} = REFUSED token
asked 2

=== an expired token (soft logout) is refused too
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {expired/phone} = REFUSED token
GET /sync {expired/phone} = REFUSED token
asked 1

=== a locked user is not a refused token: after a second it is asked for again
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {locked/phone} = ERROR token
wait 1.6
GET /sync {locked/phone} = ERROR token
asked 2

=== an error is remembered for at most a second, and that is no fact about the token
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
homeserver kind=status-500
GET /sync {alice/phone} = ERROR token
GET /sync {alice/phone} = ERROR token
asked 1..2
homeserver kind=
wait 3.1
GET /sync {alice/phone} = MISS @alice:example.org

=== an error never takes the place of a known answer
--- skip_eval: 1: $ENV{TEST_NGINX_USE_VALGRIND}
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_valid 200 2s; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
wait 3.1
homeserver kind=status-500
GET /sync {alice/phone} = STALE @alice:example.org
wait 0.2
GET /sync {alice/phone} = STALE @alice:example.org
homeserver kind=
wait 3.1
GET /sync {alice/phone} = STALE @alice:example.org
wait 0.3
GET /sync {alice/phone} = HIT @alice:example.org

=== `any` is about errors alone: it takes nothing from what is known
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    matrix_user_hash_valid any 500ms;
    matrix_user_hash_stale off;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {locked/phone} = ERROR token
asked 2
wait 1.1
GET /sync {alice/phone} = HIT @alice:example.org
GET /sync {locked/phone} = ERROR token
asked 3

=== several codes and several lines
--- config
location / {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    matrix_user_hash_valid 200 401 2s;
    matrix_user_hash_stale off;
    proxy_pass http://sync_workers;
}
location /lines {
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    matrix_user_hash_valid 200 1h;
    matrix_user_hash_valid 401 2s;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {revoked/phone} = REFUSED token
GET /lines {bob/phone} = MISS @bob:example.org
GET /lines {revoked/laptop} = REFUSED token
asked 4
wait 3.1
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {revoked/phone} = REFUSED token
GET /lines {bob/phone} = HIT @bob:example.org
GET /lines {revoked/laptop} = REFUSED token
asked 7
