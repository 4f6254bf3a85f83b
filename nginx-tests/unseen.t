# A lookup is no client's request: nothing that counts or logs requests shows it.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get connect_to bearer read_answer);
use Test::More;
use Time::HiRes qw(sleep);

my $nginx = MatrixUserHash::Instance->start(http => 'log_subrequest on;', log_format => 'matrix', server => <<'.');
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
        location = /figures { stub_status; }
.
my $port = $nginx->port;

# active, accepts, handled, requests, reading, writing, waiting.
sub figures { return [get($port, '/figures')->{body} =~ /(\d+)/g] }

get($port, '/', token("alice/$_")) for 1 .. 5;
sleep 0.3;    # a line is written after the answer
my @lines = split /\n/, $nginx->access_log;
is(scalar(grep { m{^/ hash=86f01aef21b1acd3 status=MISS} } @lines), 5, 'five requests that were looked up are five lines in the access log');
is(scalar(grep { /matrix_user_hash / || !m{^/} } @lines), 0, '… and their lookups are none, even with log_subrequest on');

my $before = figures();
get($port, '/', token("bob/$_")) for 1 .. 5;
my $after = figures();
# Each figure is a request itself, and each of the five has one more at the worker, which is this nginx as well.
is($after->[4], $before->[4], 'no lookup is left in what stub_status calls reading');
is($after->[3] - $before->[3], 11, '… nor is one a request');

whoami_set(delay => 0.5);
my $sock = connect_to($port);
syswrite $sock, bearer('/', token('carol/slow'));
sleep 0.2;
is(figures()->[4], $before->[4], 'nor is one being read while it is under way');
whoami_set(delay => 0);
is(read_answer($sock)->{status}, 200, '… and its request goes on');

done_testing();
