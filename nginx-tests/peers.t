# A client can provoke 400, 403, 500, 503 and a bare close from a healthy Synapse: none of these may mark the whoami
# upstream as down. A server that refuses connections is down.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get gather bearer);
use IO::Select;
use IO::Socket::INET;
use Test::More;

my $nginx = MatrixUserHash::Instance->start(http => <<'.', server => <<'..');
    upstream both { server $TEST_NGINX_WHOAMI max_fails=1 fail_timeout=60s; server $TEST_NGINX_WHOAMI2 max_fails=1 fail_timeout=60s; }
    upstream half { server $TEST_NGINX_DEAD max_fails=1 fail_timeout=60s; server $TEST_NGINX_WHOAMI max_fails=1 fail_timeout=60s; }
    upstream forgiving { server $TEST_NGINX_DEAD max_fails=0; server $TEST_NGINX_WHOAMI max_fails=0; }
    upstream shared { zone shared 256k; server $TEST_NGINX_WHOAMI max_fails=1 fail_timeout=60s; server $TEST_NGINX_WHOAMI2 max_fails=1 fail_timeout=60s; }
    upstream kept { server $TEST_NGINX_WHOAMI max_fails=1 fail_timeout=60s; server $TEST_NGINX_WHOAMI2 max_fails=1 fail_timeout=60s; keepalive 4; }
    upstream patient { server $TEST_NGINX_WHOAMI max_fails=1 fail_timeout=60s; server $TEST_NGINX_WHOAMI2 backup; }
    matrix_user_hash_zone operators:1m;
    matrix_user_hash_zone operators_hash:1m;
    matrix_user_hash_zone operators_backup:1m;
    upstream operators { server $TEST_NGINX_WHOAMI; server $TEST_NGINX_WHOAMI2; keepalive 4; }
    upstream operators_hash { hash $http_x consistent; server $TEST_NGINX_WHOAMI; server $TEST_NGINX_WHOAMI2; }
    upstream operators_backup { zone operators_backup_servers 256k; server $TEST_NGINX_WHOAMI; server $TEST_NGINX_WHOAMI2 backup; }
    upstream picky { server $TEST_NGINX_WHOAMI max_fails=0; server $TEST_NGINX_WHOAMI2 backup; }
    matrix_user_hash_read_timeout 300ms;
.
        location /both { matrix_user_hash http://both/as-token/whoami; proxy_pass http://sync_workers; }
        location /half { matrix_user_hash http://half; proxy_pass http://sync_workers; }
        location /forgiving { matrix_user_hash http://forgiving; proxy_pass http://sync_workers; }
        location /shared { matrix_user_hash http://shared/as-token/whoami; proxy_pass http://sync_workers; }
        location ~ ^/(?<group>operators\w*)/echo { rewrite ^ /echo break; proxy_pass http://$group; }
        location /operators/ { matrix_user_hash http://operators zone=operators; proxy_pass http://sync_workers; }
        location /operators_hash/ { matrix_user_hash http://operators_hash zone=operators_hash; proxy_pass http://sync_workers; }
        location /operators_backup/ { matrix_user_hash http://operators_backup zone=operators_backup; matrix_user_hash_timeout 500ms; matrix_user_hash_read_timeout 5s; proxy_pass http://sync_workers; }
        location /patient { matrix_user_hash http://patient; matrix_user_hash_read_timeout 5s; matrix_user_hash_timeout 600ms; proxy_pass http://sync_workers; }
        location /picky { matrix_user_hash http://picky/as-token/whoami; matrix_user_hash_next_upstream http_503 timeout; proxy_pass http://sync_workers; }
        location /kept { matrix_user_hash http://kept/as-token/whoami; proxy_pass http://sync_workers; }
..
my $port = $nginx->port;
my $n    = 0;

# The kinds that a request of a client can make of a healthy server; the stand-in takes them from the token.
my @provoked = qw(status-400 status-403 status-500 status-503 close close-head);

for my $group (qw(both shared kept)) {
    for my $kind (@provoked) {
        for (1 .. 4) {
            my $token = token("$kind/t" . $n++);
            my $got = get($port, "/$group", $token);
            is("$got->{headers}{'x-status'} $got->{headers}{'x-hash'} $got->{status}", 'ERROR ' . hash_of($token) . ' 200',
                "$group: a token that provokes $kind falls back") if $_ == 1;
        }
    }
    whoami_reset();
    my @status = map { get($port, "/$group", token('alice/' . $n++))->{headers}{'x-status'} } 1 .. 6;
    is("@status", 'MISS MISS MISS MISS MISS MISS', "$group: and everybody else is still resolved");
    my %ports = map { $_->{port} => 1 } whoami_log();
    is(scalar keys %ports, 2, "$group: by both servers");
}
unlike($nginx->error_log, qr/no live upstreams|temporarily disabled/, 'no server was marked as down by them');

# A server that refuses connections, and then listens: whether a lookup comes says whether it was taken out.
for (['/half', 0, 'max_fails=1 took it out'], ['/forgiving', 1, 'with max_fails=0 it is asked again']) {
    my ($path, $asked, $title) = @$_;
    my @status = map { get($port, $path, token('bob/' . $n++))->{headers}{'x-status'} } 1 .. 4;
    is("@status", 'MISS MISS MISS MISS', "$path: one server refuses connections: all are resolved by the other");
    my $revived = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => whoami_port() + 2, Listen => 16, ReuseAddr => 1) or die $!;
    get($port, $path, token('bob/' . $n++)) for 1 .. 4;
    is(scalar(my @came = IO::Select->new($revived)->can_read(0.1)), $asked, "… and $title");
    close $revived;
}

# An operator's group, with nginx's default of one failure in ten seconds: whoami hangs, everything else is answered.
for my $group (qw(operators operators_hash operators_backup)) {
    whoami_set(kind => 'hang');
    my @status = map { get($port, "/$group/x", token('erin/' . $n++))->{headers}{'x-status'} } 1 .. 2;
    whoami_set(kind => '');
    is("@status", 'TIMEOUT TIMEOUT', "$group: whoami hangs on each server");
    my %codes = map { get($port, "/$group/echo", undef)->{status} => 1 } 1 .. 6;
    is(join(' ', sort keys %codes), 200, '… and no other request of the group notices');
}

# A server that holds lookups until the request's own time is up is avoided by lookups, or nobody would ever ask the next.
{
    whoami_set(kind => 'hang');
    my $got = get($port, '/patient', token('carol/' . $n++));
    whoami_set(kind => '');
    is($got->{headers}{'x-status'}, 'TIMEOUT', 'a server that hangs for all of matrix_user_hash_timeout');
    whoami_reset();
    is(get($port, '/patient', token('carol/' . $n++))->{headers}{'x-status'}, 'MISS', '… is avoided for a while: the backup is asked');
    is((whoami_log())[0]{port}, whoami_port() + 1, '… and answers');
}

# An answer whose end is the end of the connection is tried elsewhere like any other.
for (['http10-503-late', 'a 503 without a length'], ['http10-hang', 'an answer that breaks off in silence']) {
    my ($kind, $title) = @$_;
    whoami_reset();
    get($port, '/picky', token("$kind/" . $n++));
    is(join(' ', map { $_->{port} - whoami_port() } whoami_log()), '0 1', "$title: the backup is asked");
}
is(get($port, '/picky', token('http10-late/' . $n++))->{headers}{'x-hash'}, hash_of('@http10-late:example.org'),
    'and one that comes in pieces is put together');

done_testing();
