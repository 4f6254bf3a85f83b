# One lookup at a time per token, over every request of every worker process; and no more than matrix_user_hash_max_lookups
# at once. docs/requests.md, 5.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get gather bearer connect_to read_answer);
use Test::More;
use Time::HiRes qw(sleep time);

my $slack = $ENV{TEST_NGINX_USE_VALGRIND} ? 5 : 0.4;
my $nginx = MatrixUserHash::Instance->start(workers => 4, listen => 'reuseport backlog=1024', http => <<'.', server => <<'..');
    matrix_user_hash_zone users:1m;
    matrix_user_hash_zone narrow:1m;
    matrix_user_hash_timeout 4s;
    matrix_user_hash_read_timeout 4s;
.
        location /sync { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; add_header X-Pid $pid; add_header X-Hash $matrix_user_hash; add_header X-Status $matrix_user_hash_status; proxy_pass http://sync_workers; }
        location /narrow { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=narrow; matrix_user_hash_max_lookups 4; proxy_pass http://sync_workers; }
        location /hasty { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=narrow; matrix_user_hash_max_lookups 1; matrix_user_hash_timeout 300ms; proxy_pass http://sync_workers; }
..
my $port  = $nginx->port;
my $alice = hash_of('@alice:example.org');

sub statuses { my %n; $n{ $_->{headers}{'x-status'} }++ for @_; return \%n }
sub slowest { my ($max) = sort { $b <=> $a } map { $_->{time} } @_; return $max }

{
    whoami_set(delay => 1);
    my @got = gather($port, [(bearer('/sync', token('alice/cold'))) x 200]);
    my $n   = statuses(@got);
    my %pids = map { ($_->{headers}{'x-pid'} // 'none') => 1 } @got;
    whoami_set(delay => 0);
    cmp_ok(scalar keys %pids, '>', 1, 'two hundred requests with one cold token, in ' . keys(%pids) . ' worker processes');
    is(whoami_stats()->{requests}, 1, '… ask once');
    is($n->{MISS}, 1, '… one of them looked it up');
    is(($n->{SHARED} // 0) + ($n->{HIT} // 0), 199, '… the others waited for it');
    cmp_ok($n->{SHARED} // 0, '>', 150, '… nearly all as SHARED');
    is(scalar(grep { $_->{headers}{'x-hash'} eq $alice } @got), 200, '… and all have the user\'s hash');
    cmp_ok(slowest(@got), '<', 1 + $slack, sprintf '… with little more wait than the lookup took (%.3f s for 1 s)', slowest(@got));
}

{
    whoami_reset();
    whoami_set(delay => 0.4);
    my $leader = connect_to($port);
    syswrite $leader, bearer('/sync', token('alice/left'));
    sleep 0.1;
    my @socks = map { my $s = connect_to($port); syswrite $s, bearer('/sync', token('alice/left')); $s } 1 .. 20;
    sleep 0.1;
    close $leader;
    my @got = map { read_answer($_) } @socks;
    whoami_set(delay => 0);
    is(scalar(grep { $_->{headers}{'x-hash'} eq $alice } @got), 20, 'the client that asked first goes away: the others still get the answer');
    is(whoami_stats()->{requests}, 1, '… of that one lookup');
}

{
    whoami_reset();
    whoami_set(kind => 'status-500', delay => 0.4);
    my $token = token('alice/failing');
    my @got = gather($port, [(bearer('/sync', $token)) x 30]);
    whoami_set(kind => '', delay => 0);
    is(scalar(grep { $_->{headers}{'x-hash'} eq hash_of($token) } @got), 30, 'the lookup fails: all go on by the fallback');
    cmp_ok(whoami_stats()->{requests}, '<=', 4, '… and do not each ask again');
    cmp_ok(slowest(@got), '<', 4 + $slack, '… within their timeout');
    cmp_ok((statuses(@got))->{ERROR} // 0, '>=', 1, '… as ERROR');
}

{
    whoami_reset();
    whoami_set(delay => 0.5);
    my $token = token('revoked/together');
    my @got = gather($port, [(bearer('/sync', $token)) x 30]);
    whoami_set(delay => 0);
    cmp_ok(whoami_stats()->{requests}, '<=', 4, 'a refused token is asked for at most once per worker process');
    is(scalar(grep { $_->{headers}{'x-hash'} eq hash_of($token) } @got), 30, '… and all have its own hash');
}

sleep 1.2;    # what failed above may be remembered for a second
{
    whoami_reset();
    whoami_set(delay => 0.1);
    my @got = gather($port, [map { bearer('/narrow', token("alice/many$_")) } 1 .. 40]);
    my $s   = whoami_stats();
    whoami_set(delay => 0);
    cmp_ok($s->{most}, '<=', 4, 'matrix_user_hash_max_lookups 4: never more at once, over four worker processes');
    cmp_ok($s->{most}, '>=', 2, '… but several');
    is($s->{requests}, 40, '… and all forty tokens have their turn');
    is_deeply(statuses(@got), { MISS => 40 }, '… within their time');
}

{
    whoami_reset();
    whoami_set(delay => 0.2);
    my @got = gather($port, [map { bearer('/hasty', token("bob/many$_")) } 1 .. 10]);
    my $n   = statuses(@got);
    whoami_set(delay => 0);
    is(scalar(grep { $_->{status} == 200 } @got), 10, 'those whose turn does not come in time are proxied all the same');
    cmp_ok($n->{TIMEOUT} // 0, '>=', 5, '… as TIMEOUT');
    cmp_ok(slowest(@got), '<', 0.3 + $slack, sprintf '… after their timeout (%.3f s)', slowest(@got));
}

{
    # The worker process that has the lookup is killed: its waiters elsewhere take over.
    whoami_reset();
    whoami_set(delay => 1.5);
    my $leader = connect_to($port);
    my $token  = token('carol/killed');
    syswrite $leader, bearer('/sync', $token);
    sleep 0.3;
    my ($pid) = grep { holds_connection_to($_, whoami_port()) } $nginx->worker_pids;
    ok($pid, 'the worker process with the lookup');
    my @socks = map { my $s = connect_to($port); syswrite $s, bearer('/sync', $token); $s } 1 .. 30;
    sleep 0.2;
    whoami_set(delay => 0);
    kill KILL => $pid if $pid;
    my $start = time;
    my @got   = map { read_answer($_, timeout => 8) } @socks;
    my @served = grep { $_->{status} == 200 } @got;
    cmp_ok(scalar @served, '>', 0, 'is killed: ' . @served . ' of 30 waited in another');
    is(scalar(grep { $_->{headers}{'x-hash'} eq hash_of('@carol:example.org') } @served), scalar @served, '… and have the user\'s hash');
    cmp_ok(time - $start, '<', 4 + $slack, '… within their timeout');
    my ($asked) = whoami_stats()->{requests};
    cmp_ok($asked, '<=', 2, "… by one more lookup (in all $asked)");
}

# Whether that process has a TCP connection to that port of 127.0.0.1.
sub holds_connection_to {
    my ($pid, $to) = @_;
    my %inode = map { /socket:\[(\d+)\]/ ? ($1 => 1) : () } map { readlink($_) // '' } glob "/proc/$pid/fd/*";
    open my $in, '<', '/proc/net/tcp' or return 0;
    while (my $line = <$in>) {
        my @f = split ' ', $line;
        return 1 if ($f[2] // '') eq sprintf('0100007F:%04X', $to) && $f[3] eq '01' && $inode{ $f[9] };
    }
    return 0;
}

unlike($nginx->error_log, qr/panick/, 'nothing panicked');
$nginx->stop;

{
    # Who comes first goes first, also when a lookup ends while somebody else arrives.
    my $single = MatrixUserHash::Instance->start(http => <<'.', server => <<'..');
    matrix_user_hash_zone line:1m;
    matrix_user_hash_timeout 10s;
.
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=line; matrix_user_hash_max_lookups 1; proxy_pass http://sync_workers; }
..
    whoami_reset();
    whoami_set(delay => 0.02);
    my @tokens = map { token("dave/line$_") } 1 .. 60;
    my @socks  = map { my $s = connect_to($single->port); syswrite $s, bearer('/', $_); sleep 0.004; $s } @tokens;
    my @got    = map { read_answer($_) } @socks;
    whoami_set(delay => 0);
    is(statuses(@got)->{MISS}, 60, 'sixty requests that come faster than one lookup at a time can go');
    is_deeply([map { $_->{token} } whoami_log()], \@tokens, '… are looked up in the order in which they came');
}

done_testing();
