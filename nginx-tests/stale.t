# Whoami down: whoever is known goes on to their worker with no delay. docs/directives.md, matrix_user_hash_stale.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(shown get gather bearer);
use Test::More;
use Time::HiRes qw(sleep time);

my $slack = $ENV{TEST_NGINX_USE_VALGRIND} ? 3 : 0.15;
my $nginx = MatrixUserHash::Instance->start(workers => 2, listen => 'reuseport', http => <<'.', server => <<'..');
    matrix_user_hash_zone users:1m;
    matrix_user_hash_valid 200 2s;
    matrix_user_hash_read_timeout 5s;
.
        location /sync { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
        location /fresh { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; matrix_user_hash_stale off; proxy_pass http://sync_workers; }
..
my $port = $nginx->port;

my @users = map { "user$_" } 1 .. 10;
my %token = map { $_ => token("$_/phone") } @users;
is(shown(get($port, '/sync', $token{$_})), 'MISS ' . hash_of("\@$_:example.org"), "$_ is known") for @users;

# Each way of being down: the status, and no time lost.
for my $kind (qw(hang status-503 close garbage)) {
    whoami_set(kind => $kind);
    sleep 3.1;
    my @got = map { get($port, '/sync', $token{$_}) } @users;
    my @right = grep { shown($got[$_]) =~ /^(?:STALE|HIT) / && $got[$_]{headers}{'x-hash'} eq hash_of("\@$users[$_]:example.org") } 0 .. $#got;
    is(scalar @right, 10, "whoami: $kind; all ten users keep their hash, their answers being stale");
    my ($slowest) = sort { $b <=> $a } map { $_->{time} } @got;
    cmp_ok($slowest, '<', $slack, sprintf '… and wait for nothing (%.0f ms)', $slowest * 1000);
}

{
    # Back again: one refresh per token, not one per request. The failures above may hold the next attempt back a while.
    whoami_set(kind => '');
    my ($hit, $end) = (0, time + 20);
    while (time < $end) {
        $hit = grep { shown(get($port, '/sync', $token{$_})) =~ /^HIT/ } @users;
        last if $hit == 10;
        sleep 0.25;
    }
    is($hit, 10, 'whoami is back: all ten are refreshed');
}

{
    sleep 3.1;
    whoami_reset();
    whoami_set(delay => 0.5);
    my @got = gather($port, [(bearer('/sync', $token{user1})) x 50]);
    is(scalar(grep { shown($_) eq 'STALE ' . hash_of('@user1:example.org') } @got), 50, 'fifty requests with one expired token are all STALE');
    sleep 0.8;
    is(whoami_stats()->{requests}, 1, '… and refresh it once');
    whoami_set(delay => 0);
    is(shown(get($port, '/sync', $token{user1})), 'HIT ' . hash_of('@user1:example.org'), '… after which it is fresh');
}

{
    sleep 3.1;
    whoami_set(kind => 'status-503');
    is(shown(get($port, '/fresh', $token{user2})), 'ERROR ' . hash_of($token{user2}), 'matrix_user_hash_stale off: the fallback instead');
    whoami_set(kind => '');
}

is_deeply([grep { /\[(?:crit|alert|emerg)\]/ } $nginx->complaints], [], 'nothing of this is critical to nginx');
done_testing();
