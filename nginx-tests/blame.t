# Whose failure it is: what a worker process lacks is not the homeserver's, and the last server's is not the first's.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Http qw(get shown bearer connect_to);
use MatrixUserHash::Instance;
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'valgrind has descriptors of its own' if $ENV{TEST_NGINX_USE_VALGRIND};

{
    my $nginx = MatrixUserHash::Instance->start(http => <<'.', server => <<'..');
    upstream mixed { server $TEST_NGINX_WHOAMI max_fails=0; server $TEST_NGINX_DEAD max_fails=0; }
.
        location /mixed {
            matrix_user_hash http://mixed/hang/whoami;
            matrix_user_hash_read_timeout 300ms;
            proxy_pass http://sync_workers;
        }
        location = /figures { matrix_user_hash_metrics; }
..
    my $port = $nginx->port;
    # The first in turn hangs. (After that, lookups leave it out for a while.)
    is(get($port, '/mixed', token('alice/mixed'))->{headers}{'x-status'}, 'TIMEOUT', 'one server hangs and the last one refuses: a timeout');
    my $figures = get($port, '/figures')->{body};
    like($figures, qr/"timeout":1\b/, '… and counted as one');
}

{
    my $nginx = MatrixUserHash::Instance->start(main => 'worker_rlimit_nofile 40;', server => <<'.');
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; empty_gif; }
        location = /figures { matrix_user_hash_metrics; }
.
    my $port = $nginx->port;
    my $asker = connect_to($port);
    my $ask = sub {
        my ($path, $token) = @_;
        my $auth = defined $token ? "Authorization: Bearer $token\r\n" : '';
        syswrite $asker, "GET $path HTTP/1.1\r\nHost: h\r\n$auth\r\n" or die $!;
        my $got = '';
        my $end = time + 5;
        until ($got =~ /\r\n\r\n/ && $got =~ /content-length: (\d+)/i && length($got) - $+[0] >= $1) {
            die "no answer: $got" if time > $end;
            sysread $asker, $got, 65536, length $got or die $!;
        }
        return $got;
    };
    like($ask->('/', token('alice/before')), qr/^x-status: MISS/mi, 'with descriptors, a user is looked up');
    # Connections that ask nothing, until none can be accepted any more.
    my @idle;
    for (1 .. 60) {
        push @idle, connect_to($port);
        sleep 0.005;
        last if $nginx->error_log =~ /accept4?\(\) failed \(24:/;
    }
    like($nginx->error_log, qr/accept4?\(\) failed \(24:/, 'without descriptors');
    like($ask->('/', token("alice/without$_")), qr/^x-status: ERROR/mi, 'a request goes on by the fallback') for 1 .. 8;
    my $figures = $ask->('/figures');
    like($figures, qr/"local":8\b/, '… and each is counted as the worker process\'s own failure');
    like($figures, qr/"suppressed":0\b/, '… which does not suspend lookups');
    unlike($nginx->error_log, qr/whoami fails repeatedly/, '… nor says that whoami fails');
    like($nginx->error_log, qr/this worker process has no connection, descriptor or memory left for it/, '… but what is lacking');
    close $_ for @idle;
    sleep 0.3;
    like($ask->('/', token('alice/without1')), qr/^x-status: MISS/mi, 'once there are descriptors, the same token is looked up at once');
}

# While whoami fails, nginx's lines about it are left out, but of a log with which somebody debugs. A location's logs have
# levels of their own.
{
    my $nginx = MatrixUserHash::Instance->start(server => <<'.');
        location / {
            error_log logs/debug.log debug;
            error_log logs/info.log info;
            error_log logs/crit.log crit;
            matrix_user_hash http://$TEST_NGINX_DEAD;
            empty_gif;
        }
.
    my $n = 0;
    my $ask = sub { get($nginx->port, '/', token('alice/levels' . $n++)) };
    my $lines = sub { scalar(() = $nginx->slurp("$_[0].log") =~ /\[error\].*connect\(\) failed/g) };
    $ask->();
    is(join(' ', map { $lines->($_) } qw(debug info crit)), '1 1 0', 'what a lookup says at first goes to each log that takes its level');
    my $end = time + 10;
    do { sleep 0.1; $ask->() } until $lines->('debug') >= 3 || time > $end;
    cmp_ok($lines->('debug'), '>=', 3, 'while whoami fails, it goes on in the log for debugging');
    is($lines->('info'), 1, '… and in no other');
}

done_testing;
