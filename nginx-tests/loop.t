# A URL that names this very nginx: its own lookups are not looked up.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get shown);
use Test::More;

my $port  = MatrixUserHash::Instance::port();
my $nginx = MatrixUserHash::Instance->start(log_level => 'notice', server => <<".");
        matrix_user_hash http://127.0.0.1:$port;
        location / { proxy_pass http://\$TEST_NGINX_WHOAMI; }
        location /sync { proxy_pass http://sync_workers; }
.
is(shown(get($port, '/sync', token('alice/loop'))), 'MISS ' . hash_of('@alice:example.org'), 'a request is resolved through a loop');
whoami_reset();
my @answers = map { shown(get($port, '/sync', token("bob/loop$_"))) } 1 .. 20;
is(scalar(grep { $_ eq 'MISS ' . hash_of('@bob:example.org') } @answers), 20, '… and so are twenty');
is(whoami_stats()->{requests}, 20, '… with one lookup each');
my @said = grep { /is not resolved/ } split /\n/, $nginx->error_log;
is(scalar(@said), 1, 'it is said once');
like($said[0], qr{\[notice\].*/_matrix/client/v3/account/whoami.*should name the homeserver}, '… with what to do');
my $got = get($port, '/_matrix/client/v3/account/whoami', token('alice/loop'));
is(($got->{headers}{'x-status'} // '') . ' ' . $got->{status}, '- 200', 'a client\'s own whoami is not resolved either');
is(join("\n", $nginx->complaints), '', 'nothing fails');

done_testing();
