# With matrix_user_hash_phase preaccess, everything in phases.t and variables.t holds but for what that directive changes.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
BEGIN { $ENV{MATRIX_USER_HASH_PHASE} = 'preaccess' }
use MatrixUserHash;
use Test::Nginx::Socket 'no_plan';

# Title → what is changed: these requests are refused after they are resolved, and read before access control.
my %changed = map { $_ => 1 } (
    'deny: 403, and nobody is asked',
    'limit_req: what is over the limit gets its 503 and asks nobody',
    'auth_request that refuses: its 401 or 403, and nobody is asked',
    'as a limit_req key the hash is empty, which limits nobody',
    'an auth_request subrequest runs before: it sees nothing and spoils nothing',
);

my $spec = '';
for my $file (qw(phases.t variables.t)) {
    open my $in, '<', "$FindBin::Bin/$file" or die "$file: $!";
    local $/;
    my ($data) = <$in> =~ /^__DATA__\n(.*)\z/ms or die "$file has no blocks";
    for my $block (split /^(?==== )/m, $data) {
        next unless $block =~ /^=== (.*)$/m;
        $spec .= $block unless delete $changed{$1};
    }
}
die 'no such block: ' . join ', ', keys %changed if %changed;
Test::Base::spec_string($spec . do { local $/; <DATA> });

MatrixUserHash::use_steps();
run_tests();

__DATA__

=== deny: 403 after a lookup
--- config
location / { deny all; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = 403 MISS @alice:example.org
asked 1

=== auth_request is told who it is, and may refuse
--- http_config
log_format told 'authenticated $http_x_told';
server {
    listen 127.0.0.1:$TEST_NGINX_FREE1;
    access_log logs/access.log told;
    location / { return 204; }
    location /no { return 403; }
}
--- config
location / {
    auth_request /auth;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
location /never { auth_request /no; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location = /no { proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1; }
location = /auth {
    internal;
    proxy_set_header X-Told "hash($matrix_user_hash) status($matrix_user_hash_status)";
    proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1;
}
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /never {alice/phone} = 403 HIT @alice:example.org
asked 1
--- access_log
authenticated hash(86f01aef21b1acd3) status(MISS)

=== limit_req by user: the user's other devices count, other users do not
--- http_config
limit_req_zone $matrix_user_hash zone=person:64k rate=1r/m;
--- config
location / { limit_req zone=person; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/laptop} = 503 MISS @alice:example.org
GET /sync {alice/phone} = 503 HIT @alice:example.org
GET /sync {bob/phone} = MISS @bob:example.org
GET /sync = ANONYMOUS -
GET /sync = ANONYMOUS -
asked 3

=== limit_req by user with a delay: it is resolved once, and goes on
--- http_config
limit_req_zone $matrix_user_hash zone=person:64k rate=4r/s;
--- config
location / { limit_req zone=person burst=5; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org
POST /sync {alice/laptop} = MISS @alice:example.org
asked 2

=== what limits refuse is handled as ever
--- http_config
limit_req_zone $matrix_user_hash zone=person:64k rate=1r/m;
limit_req_status 429;
--- config
location / {
    limit_req zone=person;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    error_page 429 /limited;
    proxy_pass http://sync_workers;
}
location = /limited { internal; return 429 "limited $matrix_user_hash\n"; }
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync {alice/phone} = 429 HIT @alice:example.org ~ ^limited 86f01aef21b1acd3
asked 1

=== an internal redirect into such a location, and out of it
--- http_config
limit_req_zone $matrix_user_hash zone=person:64k rate=1r/m;
--- config
location /in { root html; try_files /none /sync?$args; }
location /sync { limit_req zone=person; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location /out {
    root html;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    try_files /none @elsewhere;
}
location @elsewhere { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /in {alice/phone} = MISS @alice:example.org ~ ^worker
GET /in {alice/laptop} = 503 MISS @alice:example.org
GET /out {bob/phone} = MISS @bob:example.org ~ ^worker
asked 3

=== each location has its own phase
--- http_config
limit_req_zone $matrix_user_hash zone=person:64k rate=1r/m;
--- config
location /late {
    limit_req zone=person;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    matrix_user_hash_phase precontent;
    proxy_pass http://sync_workers;
}
location /early { limit_req zone=person; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
location /off { limit_req zone=person; matrix_user_hash off; proxy_pass http://sync_workers; }
--- steps
GET /late {alice/phone} = MISS @alice:example.org
GET /late {alice/phone} = HIT @alice:example.org
GET /off {alice/phone} = - -
GET /off {alice/phone} = - -
GET /early {alice/phone} = HIT @alice:example.org
GET /early {alice/phone} = 503 HIT @alice:example.org
asked 1

=== whoami fails: the fallback is the key of the limit
--- http_config
limit_req_zone $matrix_user_hash zone=person:64k rate=1r/m;
--- config
location / { limit_req zone=person; matrix_user_hash http://$TEST_NGINX_DEAD; proxy_pass http://sync_workers; }
--- steps
GET /sync {alice/phone} = ERROR token
GET /sync {alice/phone} = 503 ERROR token
GET /sync {alice/laptop} = ERROR token

=== the real IP module of the location has worked before
--- skip_eval: 1: MatrixUserHash::nginx_says() !~ /--with-http_realip_module/
--- config
location / {
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Real;
    matrix_user_hash http://$TEST_NGINX_WHOAMI;
    proxy_pass http://sync_workers;
}
--- steps
GET /sync {alice/phone} "X-Real: 192.0.2.7" = MISS @alice:example.org
GET /__log = 200 ~ 192\.0\.2\.7
