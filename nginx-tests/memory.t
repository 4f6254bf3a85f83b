# Without memory a request is proxied by the fallback, and the worker process goes on. docs/requests.md, 6.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get gather bearer shown);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep);

plan skip_all => 'a preloaded malloc and a sanitizer do not go together'
    if $ENV{TEST_NGINX_USE_VALGRIND} || $ENV{ASAN_OPTIONS};

# lib/scarce.c stands before the malloc of nginx's libc.
my $compiler = is_musl() && qx(which musl-gcc) ? 'musl-gcc' : 'gcc';
my $flag     = "/tmp/matrix-user-hash-scarce-$$";
my $library  = "$flag.so";
system($compiler, '-shared', '-fPIC', '-O1', "-DFLAG=\"$flag\"", '-o', $library, "$FindBin::Bin/lib/scarce.c", '-ldl') == 0
    or die 'cannot build scarce.c';
END { unlink $flag, $library if $flag }

# The stand-in homeserver starts now, without the library: it may be of another libc than nginx.
whoami_reset();
my $nginx = do {
    local $ENV{LD_PRELOAD} = $library;
    MatrixUserHash::Instance->start(server => <<'.');
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
.
};
my $port = $nginx->port;
is(shown(get($port, '/', token('alice/before'))), 'MISS ' . hash_of('@alice:example.org'), 'with memory, a user is looked up');
my ($pid) = $nginx->worker_pids;

sub scarce { my ($on) = @_; if ($on) { open my $out, '>', $flag or die $! } else { unlink $flag } }

scarce(1);
whoami_reset();
my @got = gather($port, [map { bearer('/', token("bob/scarce$_")) } 1 .. 40]);
is(scalar(grep { $_->{status} == 200 } @got), 40, 'without memory for a lookup, requests are proxied');
is(scalar(grep { $_->{headers}{'x-status'} eq 'ERROR' } @got), 40, '… as ERROR');
is($got[0]{headers}{'x-hash'}, hash_of(token('bob/scarce1')), '… by the hash of the token');
is(whoami_stats()->{requests}, 0, '… and nobody was asked');
is(shown(get($port, '/', token('alice/before'))), 'HIT ' . hash_of('@alice:example.org'), '… while who is known still is');
my $escaped = join '', map { sprintf '%%%02X', ord } split //, token('dave/scarce');
is(shown(get($port, "/?access_token=$escaped")), 'ERROR ' . hash_of(token('dave/scarce')), '… and a token in a query that must be decoded is one');
scarce(0);

# The memory goes while a request waits.
whoami_set(delay => 0.4);
if (!fork) { sleep 0.2; scarce(1); POSIX::_exit(0) }
$escaped = join '', map { sprintf '%%%02X', ord } split //, token('erin/waits');
is(shown(get($port, "/?access_token=$escaped")), 'MISS ' . hash_of('@erin:example.org'), 'a request that waits for an answer gets it when there is no memory any more');
wait;
scarce(0);
whoami_reset();

# serde_json takes memory for escapes, for lists in lists and for a mistake, and would end the process without it.
for my $case (
    ['escaped', 'an answer with escapes',        'MISS'],
    ['decoy',   'an answer with nested objects', 'MISS'],
    ['html',    'an answer that is a mistake',   'ERROR'],
    ['user-id-number', 'an answer without a user id', 'ERROR'],
) {
    my ($kind, $title, $status) = @$case;
    my $token = token("alice/$kind");
    whoami_set(kind => $kind, delay => 0.4);
    if (!fork) { sleep 0.2; scarce(1); POSIX::_exit(0) }
    my $hash = hash_of($status eq 'MISS' ? '@alice:example.org' : $token);
    is(shown(get($port, '/', $token)), "$status $hash", "$title is read when there is no memory any more");
    wait;
    scarce(0);
    whoami_reset();
}

is(shown(get($port, '/', token('carol/after'))), 'MISS ' . hash_of('@carol:example.org'), 'with memory again, users are looked up again');
is(join(' ', $nginx->worker_pids), $pid, 'by the same worker process');
is_deeply([grep { /\[(?:crit|alert|emerg)\]|panick/ } split /\n/, $nginx->error_log], [], 'and nothing of this is critical to nginx');

# A reload that has no memory for the configuration leaves nginx as it is.
scarce(1);
kill HUP => $nginx->{pid};
my $end = time + 10;
sleep 0.05 until $nginx->error_log =~ /\[emerg\]/ || time > $end;
like($nginx->error_log, qr/\[emerg\] .*matrix_user_hash: there is no memory for the configuration/, 'a reload without memory says so');
is(join(' ', $nginx->worker_pids), $pid, '… and leaves the worker process');
scarce(0);
is(shown(get($port, '/', token('alice/before'))), 'HIT ' . hash_of('@alice:example.org'), '… which serves');

done_testing();
