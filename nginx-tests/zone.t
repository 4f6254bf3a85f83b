# The shared zones: one that the module makes itself, several, each for its homeserver, and their bounds.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use JSON::PP qw(decode_json);
use MatrixUserHash::Http qw(shown get request);
use Test::More;
use Time::HiRes qw(sleep);

# No zone declared: one line is enough.
{
    my $nginx = MatrixUserHash::Instance->start(workers => 2, listen => 'reuseport', server => <<'.');
        location /sync { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
        location /other { matrix_user_hash http://$TEST_NGINX_WHOAMI2; proxy_pass http://sync_workers; }
        location = /figures { matrix_user_hash_metrics; }
.
    my ($port, $alice) = ($nginx->port, hash_of('@alice:example.org'));
    is(shown(get($port, '/sync', token('alice/phone'))), "MISS $alice", 'no zone is declared: it works');
    my @again = map { shown(get($port, '/sync', token('alice/phone'))) } 1 .. 10;
    is_deeply(\@again, [("HIT $alice") x 10], '… and is shared by all worker processes');
    is(shown(get($port, '/other', token('alice/phone'))), "HIT $alice", '… and by all locations');
    my $zones = eval { decode_json(get($port, '/figures')->{body})->{zones} } // {};
    is_deeply([keys %$zones], ['matrix_user_hash'], '… under the name matrix_user_hash');
    cmp_ok($zones->{matrix_user_hash}{capacity} // 0, '>=', 4 * 28_000, '… of 4m: room for at least 28,000 tokens per MiB');
}

# Several zones: what one homeserver said is nothing to the other.
{
    my $nginx = MatrixUserHash::Instance->start(http => <<'.', server => <<'..');
    matrix_user_hash_zone one:1m;
    matrix_user_hash_zone two:1m inactive=1h;
.
        location /one { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=one; proxy_pass http://sync_workers; }
        location /two { matrix_user_hash http://$TEST_NGINX_WHOAMI2 zone=two; proxy_pass http://sync_workers; }
        location /refused { matrix_user_hash http://$TEST_NGINX_WHOAMI2 zone=two; proxy_pass http://sync_workers; }
        location = /figures { matrix_user_hash_metrics; }
..
    my ($port, $alice) = ($nginx->port, hash_of('@alice:example.org'));
    whoami_reset();
    is(shown(get($port, '/one', token('alice/phone'))), "MISS $alice", 'zone one asks its homeserver');
    is(shown(get($port, '/two', token('alice/phone'))), "MISS $alice", '… and zone two its own, for the same token');
    is(shown(get($port, '/one', token('alice/phone'))), "HIT $alice", '… each remembers');
    is(join(' ', map { $_->{port} } whoami_log()), join(' ', whoami_port(), whoami_port() + 1), '… what it was told');
    get($port, '/one', token('revoked/phone'));
    whoami_reset();
    get($port, '/two', token('revoked/phone'));
    is(whoami_stats()->{requests}, 1, 'a token refused by one homeserver is asked of the other');
    my $zones = eval { decode_json(get($port, '/figures')->{body})->{zones} } // {};
    is_deeply([sort keys %$zones], [qw(one two)], 'the figures are by zone');
    is($zones->{one}{entries}, 1, '… a refused token takes no entry');
}

# inactive: what is not used so long may go; what is used stays.
{
    my $nginx = MatrixUserHash::Instance->start(http => <<'.', server => <<'..');
    matrix_user_hash_zone short:1m inactive=2s;
.
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=short; proxy_pass http://sync_workers; }
..
    my $port = $nginx->port;
    is(shown(get($port, '/', token('alice/phone'))), 'MISS ' . hash_of('@alice:example.org'), 'inactive=2s: known');
    is(shown(get($port, '/', token('alice/phone'))), 'HIT ' . hash_of('@alice:example.org'), '… and in use');
    sleep 4.2;
    whoami_reset();
    like(shown(get($port, '/', token('alice/phone'))), qr/^(?:MISS|HIT|STALE) @{[hash_of('@alice:example.org')]}$/, '… after four seconds it may have gone, and is right all the same');
}

# A full zone goes on: the least recently used go, nothing is logged as an error, the last ones are there.
{
    my $nginx = MatrixUserHash::Instance->start(http => <<'.', server => <<'..');
    matrix_user_hash_zone small:128k;
    upstream kept { server $TEST_NGINX_WHOAMI; keepalive 8; }
    keepalive_requests 100000;
.
        location / { matrix_user_hash http://kept zone=small; proxy_pass http://sync_workers; }
        location = /figures { matrix_user_hash_metrics; }
..
    my $port     = $nginx->port;
    my $capacity = decode_json(get($port, '/figures')->{body})->{zones}{small}{capacity};
    my $n = $ENV{TEST_NGINX_USE_VALGRIND} ? 200 : $capacity + 500;
    for (my $i = 1; $i <= $n; $i += 100) {
        my $last = $i + 99 < $n ? $i + 99 : $n;
        request($port, join('', map { "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer @{[token(qq(full$_/phone))]}\r\n"
            . ($_ == $last ? "Connection: close\r\n" : '') . "\r\n" } $i .. $last), whole => 1, timeout => 30);
    }
    my $figures = decode_json(get($port, '/figures')->{body})->{zones}{small};
    cmp_ok($figures->{entries}, '<=', $capacity, "$n tokens in a zone of $capacity: never more than it holds");
    my $hits = grep { shown(get($port, '/', token("full$_/phone"))) =~ /^HIT/ } $n - 99 .. $n;
    cmp_ok($hits, '>=', 99, "… and of the last hundred $hits are there");
    SKIP: {
        skip 'too few under valgrind', 1 if $ENV{TEST_NGINX_USE_VALGRIND};
        cmp_ok($figures->{evictions}, '>', 0, '… evictions are counted');
    }
    is_deeply([grep { /\[(?:error|crit|alert|emerg)\]/ } $nginx->complaints], [], '… and no error is logged');
}

done_testing();
