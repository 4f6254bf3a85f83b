# The request that whoami receives, and the way to it: docs/requests.md, 3, and the upstream
# family of directives.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Http qw(get request);
use MatrixUserHash::Instance;
use Test::More;

my $nginx = MatrixUserHash::Instance->start(http => <<'.', server => <<'..');
    upstream group { server $TEST_NGINX_WHOAMI; }
    upstream kept { server $TEST_NGINX_WHOAMI; keepalive 8; }
    upstream two { server $TEST_NGINX_DEAD max_fails=0; server $TEST_NGINX_WHOAMI max_fails=0; }
    upstream dead_first { server $TEST_NGINX_DEAD max_fails=0 weight=100; server $TEST_NGINX_WHOAMI max_fails=0; }
    upstream backup { server $TEST_NGINX_DEAD; server $TEST_NGINX_WHOAMI backup; }
.
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
        location /path { matrix_user_hash http://$TEST_NGINX_WHOAMI/_matrix/client/r0/account/whoami; proxy_pass http://sync_workers; }
        location /group { matrix_user_hash http://group; proxy_pass http://sync_workers; }
        location /group-path { matrix_user_hash http://group/_matrix/client/unstable/account/whoami; proxy_pass http://sync_workers; }
        location /kept { matrix_user_hash http://kept; proxy_pass http://sync_workers; }
        location /unix { matrix_user_hash http://unix:$TEST_NGINX_WHOAMI_SOCK; proxy_pass http://sync_workers; }
        location /unix-path { matrix_user_hash http://unix:$TEST_NGINX_WHOAMI_SOCK:/_matrix/client/r0/account/whoami; proxy_pass http://sync_workers; }
        location /two { matrix_user_hash http://two; proxy_pass http://sync_workers; }
        location /one-try { matrix_user_hash http://dead_first; matrix_user_hash_next_upstream_tries 1; proxy_pass http://sync_workers; }
        location /no-next { matrix_user_hash http://dead_first; matrix_user_hash_next_upstream off; proxy_pass http://sync_workers; }
        location /backup { matrix_user_hash http://backup; proxy_pass http://sync_workers; }
        location /bind { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_bind 127.0.0.2; proxy_pass http://sync_workers; }
        location /alive { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_socket_keepalive on; proxy_pass http://sync_workers; }
        location /remote { matrix_user_hash_forwarded_for $remote_addr; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
        location /written { matrix_user_hash_forwarded_for "$http_x_mine"; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
        location /real { set_real_ip_from 127.0.0.1; real_ip_header X-Real; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
..
my $port = $nginx->port;
my $n    = 0;

# A token that nobody has asked for yet.
sub fresh { return token('alice/lookup' . $n++) }

# What whoami got when that request came: the raw head, and the log's whole record.
sub asked {
    my ($target, $token, @headers) = @_;
    whoami_reset();
    my $got = get($port, $target, $token, @headers);
    my @log = whoami_log();
    return ($log[0]{raw} // '', $log[0] // {}, $got, scalar @log);
}

sub values_of { my ($raw, $name) = @_; return $raw =~ /^\Q$name\E: *(.*?) *\r$/gmi }

{
    my $token = fresh();
    my ($raw, $record, $got, $times) = asked('/sync?since=s1_2&filter=7', $token,
        'User-Agent: Element/1.11.90 (Linux; x64)', 'Cookie: session=c0ffee', 'Accept-Language: de', 'X-Custom: yes',
        'Referer: https://app.example.org/', 'Accept-Encoding: gzip, br', 'Accept: text/html', 'Range: bytes=0-1',
        'If-None-Match: "x"', 'Origin: https://app.example.org', 'X-Requested-With: im.vector.app');
    is($got->{headers}{'x-status'}, 'MISS', 'a lookup took place');
    is($times, 1, 'one request is made');
    like($raw, qr{\AGET /_matrix/client/v3/account/whoami HTTP/1\.1\r\n}, 'it is GET of the default path, without the client\'s arguments');
    is_deeply([values_of($raw, 'Authorization')], ["Bearer $token"], 'one Authorization header with the token');
    is_deeply([values_of($raw, 'Accept')], ['application/json'], 'Accept: application/json');
    is_deeply([values_of($raw, 'Accept-Encoding')], ['identity'], 'Accept-Encoding: identity');
    is_deeply([values_of($raw, 'User-Agent')], ['Element/1.11.90 (Linux; x64)'], 'the client\'s User-Agent');
    is_deeply([values_of($raw, 'X-Forwarded-For')], ['127.0.0.1'], 'X-Forwarded-For is the client\'s address');
    is_deeply([values_of($raw, 'X-Forwarded-Proto')], ['http'], 'X-Forwarded-Proto is the scheme');
    is(scalar(my @hosts = values_of($raw, 'Host')), 1, 'one Host header');
    my %known = map { $_ => 1 } qw(host authorization accept accept-encoding user-agent x-forwarded-for x-forwarded-proto connection);
    is_deeply([grep { !$known{lc $_} } $raw =~ /^([\w-]+):/gm], [], 'and nothing else of the client\'s request');
}

{
    my ($raw) = asked('/sync', fresh());
    is_deeply([values_of($raw, 'User-Agent')], [], 'no User-Agent when the client has none');
}

{
    my ($raw) = asked('/sync', fresh(), 'X-Forwarded-For: 203.0.113.7');
    is_deeply([values_of($raw, 'X-Forwarded-For')], ['203.0.113.7, 127.0.0.1'], 'X-Forwarded-For is continued');
    ($raw) = asked('/sync', fresh(), 'X-Forwarded-For: 203.0.113.7, 198.51.100.2');
    is_deeply([values_of($raw, 'X-Forwarded-For')], ['203.0.113.7, 198.51.100.2, 127.0.0.1'], '… also when it is a list');
    ($raw) = asked('/sync', fresh(), 'X-Forwarded-For: 203.0.113.7', 'X-Forwarded-For: 198.51.100.2');
    is_deeply([values_of($raw, 'X-Forwarded-For')], ['203.0.113.7, 198.51.100.2, 127.0.0.1'], '… or several headers');
    ($raw) = asked('/real', fresh(), 'X-Real: 192.0.2.44');
    is_deeply([values_of($raw, 'X-Forwarded-For')], ['192.0.2.44'], 'the address is the one that the realip module found');
}

{
    my $token = fresh();
    (my $encoded = $token) =~ s/_/%5F/g;
    my ($raw, $record) = asked("/sync?access_token=$encoded&user_id=%40mallory%3Aexample.org", $token x 0 || undef);
    is_deeply([values_of($raw, 'Authorization')], ["Bearer $token"], 'a query token is asked for in the header, decoded');
    unlike($raw, qr/\?/, '… and nothing of the query goes along');
}

{
    my $body  = 'x' x 100_000;
    my $token = fresh();
    whoami_reset();
    my $got = request($port, "POST /sync HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer $token\r\n"
        . "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n$body");
    my ($raw) = map { $_->{raw} } whoami_log();
    like($raw, qr{\AGET }, 'a POST asks with GET');
    unlike($raw, qr/^Content-|^Transfer-Encoding|^Expect/mi, '… without body or its headers');
    is($got->{status}, 200, '… and is answered');
}

is((asked('/path', fresh()))[1]{target}, '/_matrix/client/r0/account/whoami', 'a path in the URL is asked');
is((asked('/group', fresh()))[1]{target}, '/_matrix/client/v3/account/whoami', 'an upstream group with the default path');
is((asked('/group-path', fresh()))[1]{target}, '/_matrix/client/unstable/account/whoami', '… and with another');
is((asked('/unix', fresh()))[1]{port}, 'unix', 'a unix socket');
is((asked('/unix-path', fresh()))[1]{target}, '/_matrix/client/r0/account/whoami', '… and with a path');
is((asked('/bind', fresh()))[1]{from}, '127.0.0.2', 'matrix_user_hash_bind sets the source address');
is((asked('/alive', fresh()))[2]{headers}{'x-status'}, 'MISS', 'matrix_user_hash_socket_keepalive on still works');

{
    whoami_reset();
    get($port, '/kept', fresh()) for 1 .. 10;
    my @log = whoami_log();
    my %conns = map { $_->{conn} => 1 } @log;
    is(scalar @log, 10, 'ten lookups over a group with keepalive');
    is(scalar keys %conns, 1, '… use one connection');
    unlike($log[0]{raw}, qr/^Connection: close/mi, '… which the request does not ask to close');
}

{
    my @status = map { (asked('/two', fresh()))[2]{headers}{'x-status'} } 1 .. 4;
    is("@status", 'MISS MISS MISS MISS', 'a server that refuses connections: the next one is asked');
    # An answer in between: after five failures in a row the module would stop asking for a while.
    get($port, '/two', fresh());
    my @one = map { (asked('/one-try', fresh()))[2]{headers}{'x-status'} } 1 .. 3;
    is("@one", 'ERROR ERROR ERROR', 'matrix_user_hash_next_upstream_tries 1: it is not');
    get($port, '/two', fresh());
    my @off = map { (asked('/no-next', fresh()))[2]{headers}{'x-status'} } 1 .. 3;
    is("@off", 'ERROR ERROR ERROR', 'matrix_user_hash_next_upstream off: it is not');
    get($port, '/two', fresh());
    is((asked('/backup', fresh()))[2]{headers}{'x-status'}, 'MISS', 'a backup server takes over');
}

is_deeply([grep { !/connect\(\) failed|upstream server temporarily disabled|no connection to any of its servers|body is buffered/ } $nginx->complaints], [],
    'the log complains of the refused connections only');

for (['/sync', '203.0.113.7, 127.0.0.1', 'the default goes on with the client\'s list'], ['/remote', '127.0.0.1', '$remote_addr leaves it out'],
    ['/written', '198.51.100.3', 'a header'], ['/written', '127.0.0.1', 'an empty value is the client\'s address', ''],
    ['/written', '127.0.0.1', '… and so is one that cannot be in a header', "caf\xe9"]) {
    my ($path, $expected, $title, $mine) = @$_;
    my ($raw) = asked($path, fresh(), 'X-Forwarded-For: 203.0.113.7', 'X-Mine: ' . ($mine // '198.51.100.3'));
    is(join('|', values_of($raw, 'X-Forwarded-For')), $expected, "matrix_user_hash_forwarded_for: $title");
}

done_testing();
