# Which answers of whoami are a user and which are an error: docs/requests.md, 4.
# Each kind is a location whose whoami URL names the kind to the stand-in (tests/bed/answers.py).

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Http qw(get);
use MatrixUserHash::Instance;
use Test::More;

my @good = (
    ['chunked'           => 'chunked, as Synapse sends it'],
    ['chunked-pieces'    => 'chunked in pieces, with an extension, a trailer and the coding in another case'],
    ['chunked-split'     => 'chunked, arriving seven bytes at a time'],
    ['content-length'    => 'with Content-Length'],
    ['lower-case'        => 'with header names in lower case'],
    ['closed'            => 'ended by closing'],
    ['http10'            => 'HTTP/1.0, ended by closing'],
    ['http10-length'     => 'HTTP/1.0 with Content-Length'],
    ['continue-first'    => 'after a 100'],
    ['early-hints-first' => 'after a 103'],
    ['drip-fast'         => 'arriving byte by byte'],
    ['escaped'           => 'a user id with escaped characters'],
    ['decoy'             => 'other user ids deeper in the JSON and inside its strings'],
    ['spaces'            => 'JSON with spaces and line ends'],
    ['trailing'          => 'with a second response behind it, which is nobody\'s answer'],
);

my @bad = (
    (map { ["status-$_" => "status $_"] } 204, 206, 301, 302, 307, 400, 403, 404, 429, 500, 502, 503),
    ['close'             => 'closed without a byte'],
    ['close-head'        => 'closed within the head'],
    ['truncated-length'  => 'closed before Content-Length bytes'],
    ['truncated-chunked' => 'closed before the last chunk'],
    ['html'              => 'HTML with status 200'],
    ['gzip'              => 'gzip, although identity was asked for'],
    ['megabyte'          => 'a megabyte of JSON'],
    ['megabyte-head'     => 'a megabyte of headers'],
    ['megabyte-chunked'  => 'a megabyte in chunks'],
    ['garbage'           => 'random bytes'],
    ['garbage-text'      => 'another protocol'],
    ['no-status'         => 'a status line without a status'],
    ['bad-chunk'         => 'a chunk size that is no number'],
    ['huge-chunk'        => 'a chunk size beyond 64 bits'],
    ['bad-length'        => 'a Content-Length that is no number'],
    ['negative-length'   => 'a negative Content-Length'],
    ['two-lengths'       => 'two Content-Lengths that differ'],
    ['length-and-chunks' => 'Content-Length and Transfer-Encoding together'],
    ['said-gzip'         => 'JSON that is said to be gzip'],
    ['empty-body'        => 'an empty body'],
    ['half-json'         => 'half of a JSON object'],
    ['not-utf8'          => 'JSON that is not UTF-8'],
    ['user-id-none'      => 'JSON without user_id'],
    ['user-id-number'    => 'a user_id that is a number'],
    ['user-id-null'      => 'a user_id that is null'],
    ['user-id-empty'     => 'an empty user_id'],
    ['user-id-no-colon'  => 'a user_id without a colon'],
    ['user-id-no-at'     => 'a user_id without an @'],
    ['user-id-nested'    => 'a user_id only inside another object'],
    ['user-id-array'     => 'a JSON array'],
);

# A token of its own for each kind, all of them alice's, so that nothing is remembered from one to the next.
sub of_kind { my ($kind) = @_; return token("alice/$kind") }

# Hundreds of wake-ups, one for each byte: seconds on a busy machine. nginx counts a read timeout over the whole head.
my %patience = (map({ $_->[0] => '' } @good, @bad), 'drip-fast' => 'matrix_user_hash_timeout 9s; matrix_user_hash_read_timeout 9s;');
my $locations = join '', map { <<"." } map { $_->[0] } @good, @bad;
        location = /$_ { matrix_user_hash http://\$TEST_NGINX_WHOAMI/$_/whoami; proxy_pass http://sync_workers; $patience{$_} }
.
my $nginx = MatrixUserHash::Instance->start(http => <<'.', server => $locations . <<'..');
    matrix_user_hash_timeout 3s;
    matrix_user_hash_read_timeout 1s;
    upstream kept { server $TEST_NGINX_WHOAMI; keepalive 4; }
.
        location /smuggled { matrix_user_hash http://kept/trailing/whoami; proxy_pass http://sync_workers; }
        location /reused { matrix_user_hash http://kept/; proxy_pass http://sync_workers; }
        location /two-k { matrix_user_hash http://$TEST_NGINX_WHOAMI/padded/whoami; matrix_user_hash_buffer_size 2k; proxy_pass http://sync_workers; }
        location /half-k { matrix_user_hash http://$TEST_NGINX_WHOAMI/padded/whoami; matrix_user_hash_buffer_size 512; proxy_pass http://sync_workers; }
..
my $port = $nginx->port;

# Status, hash, and whether the worker's own answer reached the client.
sub outcome {
    my ($path, $token) = @_;
    my $got = get($port, $path, $token);
    return join ' ', $got->{headers}{'x-status'}, $got->{headers}{'x-hash'},
        $got->{status} == 200 && $got->{body} =~ /^worker \d/ ? 'proxied' : "answered $got->{status}";
}

my $alice = hash_of('@alice:example.org');

for (@good) {
    my ($kind, $title) = @$_;
    is(outcome("/$kind", of_kind($kind)), "MISS $alice proxied", "an answer: $title");
}

for (@bad) {
    my ($kind, $title) = @$_;
    my $token = of_kind($kind);
    whoami_reset();
    is(outcome("/$kind", $token), 'ERROR ' . hash_of($token) . ' proxied', "an error, then the fallback: $title");
    is(whoami_stats()->{requests}, 1, '… after it was asked');
}

{
    my $token = token('revoked/phone');
    is(outcome('/content-length', $token), 'REFUSED ' . hash_of($token) . ' proxied', '401 M_UNKNOWN_TOKEN is REFUSED');
    $token = token('expired/phone');
    is(outcome('/chunked', $token), 'REFUSED ' . hash_of($token) . ' proxied', '… and with soft_logout too');
    $token = token('locked/phone');
    is(outcome('/chunked', $token), 'ERROR ' . hash_of($token) . ' proxied', '401 M_USER_LOCKED is no fact about the token');
    $token = token('missing/phone');
    is(outcome('/chunked', $token), 'ERROR ' . hash_of($token) . ' proxied', '401 M_MISSING_TOKEN is none either');
}

{
    is(outcome('/smuggled', token('alice/s')), "MISS $alice proxied", 'a second response behind the first on a kept connection');
    is(outcome('/smuggled', token('alice/t')), "MISS $alice proxied", '… is not the answer to the next lookup');
    my %mine = map { token($_) => 1 } 'alice/s', 'alice/t';
    my @conns = map { $_->{conn} } grep { $mine{ $_->{token} } } whoami_log();
    isnt($conns[0], $conns[1], '… because that connection is not used again');
}

{
    my $token = token('alice/buffer');
    is(outcome('/half-k', $token), 'ERROR ' . hash_of($token) . ' proxied', 'an answer larger than matrix_user_hash_buffer_size is an error');
    is(outcome('/two-k', token('alice/fits')), "MISS $alice proxied", '… and one that fits is not');
}

my @loud = $nginx->complaints;
is_deeply([grep { /\[(?:crit|alert|emerg)\]/ } @loud], [], 'none of this is critical to nginx');

done_testing();
