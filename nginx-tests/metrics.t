# The figures of matrix_user_hash_metrics, as JSON and for Prometheus. docs/metrics.md.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use JSON::PP qw(decode_json);
use MatrixUserHash::Http qw(get request gather bearer);
use Test::More;
use Time::HiRes qw(sleep);

my $nginx = MatrixUserHash::Instance->start(workers => 2, listen => 'reuseport', http => <<'.', server => <<'..');
    matrix_user_hash_zone users:1m;
    matrix_user_hash_zone others:1m;
    matrix_user_hash_timeout 1s;
    matrix_user_hash_read_timeout 2s;
    upstream kept { server $TEST_NGINX_WHOAMI; keepalive 4; }
.
        location /sync { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
        location /soon { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; matrix_user_hash_valid 200 2s; proxy_pass http://sync_workers; }
        location /dead { matrix_user_hash http://$TEST_NGINX_DEAD zone=users; proxy_pass http://sync_workers; }
        location /status { matrix_user_hash http://$TEST_NGINX_WHOAMI/status-500/whoami zone=users; proxy_pass http://sync_workers; }
        location /head { matrix_user_hash http://$TEST_NGINX_WHOAMI/garbage-text/whoami zone=users; proxy_pass http://sync_workers; }
        location /html { matrix_user_hash http://$TEST_NGINX_WHOAMI/html/whoami zone=users; proxy_pass http://sync_workers; }
        location /large { matrix_user_hash http://$TEST_NGINX_WHOAMI/megabyte/whoami zone=users; proxy_pass http://sync_workers; }
        location /hang { matrix_user_hash http://$TEST_NGINX_WHOAMI/hang/whoami zone=users; matrix_user_hash_timeout 200ms; matrix_user_hash_read_timeout 400ms; proxy_pass http://sync_workers; }
        location = /json { matrix_user_hash_metrics json; }
        location = /default { matrix_user_hash_metrics; }
        location = /prometheus { matrix_user_hash_metrics prometheus; if ($arg_x) { add_header X-If 1; } }
        location = /page.shtml { ssi on; ssi_types *; root html; }
..
my $port = $nginx->port;
my $n    = 0;

sub fresh { return token('alice/metrics' . $n++) }

# The figures of zone users, with requests by status and errors by kind side by side.
sub figures {
    my $users = decode_json(get($port, '/json')->{body})->{zones}{users};
    return {
        %$users, %{ $users->{requests} },
        map { ("error_$_" => $users->{errors}{$_}) } keys %{ $users->{errors} },
    };
}

# What a piece of traffic adds to the figures; those that it need not name may be anything.
sub adds {
    my ($title, $traffic, %expected) = @_;
    my $before = figures();
    $traffic->();
    my $after = figures();
    my %got = map { $_ => $after->{$_} - $before->{$_} } keys %expected;
    is_deeply(\%got, \%expected, $title);
}

{
    my $got = get($port, '/json');
    is("$got->{status} $got->{headers}{'content-type'}", '200 application/json', 'JSON');
    my $zones = eval { decode_json($got->{body})->{zones} };
    is_deeply([sort keys %{ $zones // {} }], [qw(others users)], '… with every zone');
    my %has = map { $_ => 1 } keys %{ $zones->{users} };
    my @named = qw(entries capacity requests errors evictions lookups_in_flight);
    is_deeply([grep { !$has{$_} } @named], [], '… and every figure that the interface names');
    is_deeply([sort keys %{ $zones->{users}{requests} }], [sort qw(hit miss shared stale refused error timeout anonymous)], '… requests by status');
    is_deeply([sort keys %{ $zones->{users}{errors} }], [sort qw(connect timeout status head body too_large local)], '… errors by kind');
    my $default = get($port, '/default');
    ok($default->{status} == 200 && ($default->{headers}{'content-type'} eq 'application/json' || $default->{body} =~ /^# HELP/), 'a format is the default');
    is(request($port, "HEAD /json HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", head => 1)->{body}, '', 'HEAD has no body');
    is(request($port, "POST /json HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")->{status}, 405, 'POST is not allowed');
}

my $known = fresh();
adds('a lookup', sub { get($port, '/sync', $known) }, miss => 1, hit => 0, entries => 1, lookups => 1);
adds('three hits', sub { get($port, '/sync', $known) for 1 .. 3 }, hit => 3, miss => 0, entries => 0, lookups => 0);
adds('no token', sub { get($port, '/sync') }, anonymous => 1, miss => 0, hit => 0, lookups => 0);
adds('a refused token, twice', sub { my $t = token('revoked/a'); get($port, '/soon', $t) for 1 .. 2 }, refused => 2, entries => 0);
adds('connection refused', sub { get($port, '/dead', fresh()) }, error_connect => 1, error => 1, miss => 0);
adds('status 500', sub { get($port, '/status', fresh()) }, error_status => 1, error => 1);
adds('no HTTP', sub { get($port, '/head', fresh()) }, error_head => 1, error => 1);
adds('HTML', sub { get($port, '/html', fresh()) }, error_body => 1, error => 1);
adds('a megabyte', sub { get($port, '/large', fresh()) }, error_too_large => 1, error => 1);
adds('a timeout of the request', sub { get($port, '/hang', fresh()); sleep 0.5 }, timeout => 1, error_timeout => 1);

{
    my $token = fresh();
    get($port, '/soon', $token);
    sleep 3.1;
    adds('a stale answer and its refresh', sub { get($port, '/soon', $token); sleep 0.3 }, stale => 1, miss => 0, refreshes => 1);
}

{
    whoami_set(delay => 0.5);
    my $token = fresh();
    adds('ten at once', sub { gather($port, [(bearer('/sync', $token)) x 10]) }, miss => 1, shared => 9, lookups => 1);
    whoami_set(delay => 0);
}

{
    whoami_set(delay => 0.6);
    my $pid = fork // die;
    if (!$pid) { get($port, '/sync', token('bob/flying')); require POSIX; POSIX::_exit(0) }
    sleep 0.3;
    is(figures()->{lookups_in_flight}, 1, 'a lookup in flight');
    waitpid $pid, 0;
    is(figures()->{lookups_in_flight}, 0, '… and after it');
    whoami_set(delay => 0);
}

my $prometheus = get($port, '/prometheus');
my $text = $prometheus->{body};
is($prometheus->{status}, 200, 'Prometheus');
like($prometheus->{headers}{'content-type'}, qr{^text/plain; version=0\.0\.4}, '… with its content type');
my $figures = figures();
for my $status (qw(hit miss shared stale refused error timeout anonymous)) {
    my ($value) = $text =~ /^matrix_user_hash_requests_total\{zone="users",status="$status"\} (\d+)$/m;
    is($value, $figures->{requests}{$status}, "… matrix_user_hash_requests_total with status $status agrees with JSON");
}
for my $name (qw(lookups evictions)) {
    my ($value) = $text =~ /^matrix_user_hash_${name}_total\{zone="users"\} (\d+)$/m;
    is($value, $figures->{$name}, "… matrix_user_hash_${name}_total agrees with JSON");
}
for my $name (qw(entries capacity)) {
    my ($value) = $text =~ /^matrix_user_hash_$name\{zone="users"\} (\d+)$/m;
    is($value, $figures->{$name}, "… matrix_user_hash_$name agrees with JSON");
}
{
    my ($count) = $text =~ /^matrix_user_hash_\w+_seconds_count\{zone="users"\} (\d+)$/m;
    my ($inf)   = $text =~ /^matrix_user_hash_\w+_seconds_bucket\{zone="users",le="\+Inf"\} (\d+)$/m;
    cmp_ok($count // 0, '>', 5, '… a histogram of whoami');
    is($inf, $count, '… whose last bucket is its count');
    my @buckets = $text =~ /^matrix_user_hash_\w+_seconds_bucket\{zone="users",le="[^"]*"\} (\d+)$/mg;
    is_deeply(\@buckets, [sort { $a <=> $b } @buckets], '… and whose buckets are cumulative');
}
is_deeply([grep { !/^(?:# (?:HELP|TYPE) )?matrix_user_hash_/ } split /\n/, $text], [], '… and all names begin with matrix_user_hash_');

SKIP: {
    my $promtool = $ENV{PROMTOOL} || 'promtool';
    skip 'no promtool', 1 unless `$promtool --version 2>&1` =~ /promtool/;
    my $file = $nginx->root . '/metrics';
    open my $out, '>', $file or die $!;
    print $out $text;
    close $out;
    my $said = `$promtool check metrics < $file 2>&1`;
    is("$? $said", '0 ', '… and promtool check metrics has nothing to say');
}

{
    my $before = figures();
    my ($pid) = $nginx->worker_pids;
    kill KILL => $pid;
    sleep 0.5;
    my $after = figures();
    is_deeply([map { $after->{$_} } qw(hit miss anonymous)], [map { $before->{$_} } qw(hit miss anonymous)], 'the counters survive the death of a worker process');
}

{
    my $got = get($port, '/prometheus?x=1');
    like("$got->{headers}{'x-if'} $got->{headers}{'content-type'} $got->{body}", qr{^1 text/plain.*# HELP }s, 'within an "if" the figures keep their format');
    open my $page, '>', $nginx->root . '/html/page.shtml' or die $!;
    print $page 'BEFORE <!--#include virtual="/json" --> AFTER';
    close $page;
    $got = get($port, '/page.shtml');
    like($got->{body}, qr/^BEFORE \{.*\}\s* AFTER$/s, 'a page that includes them (SSI) goes on behind them');
}

done_testing();
