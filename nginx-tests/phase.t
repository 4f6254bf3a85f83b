# matrix_user_hash_phase preaccess: limits by user over parallel requests, what they refused, bodies and HTTP/2; and mistakes.
# preaccess.t has what one request after the other can show.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
BEGIN { $ENV{MATRIX_USER_HASH_PHASE} = 'preaccess' }
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get gather bearer);
use JSON::PP qw(decode_json);
use Test::More;

{
    my $nginx = MatrixUserHash::Instance->start(workers => 2, http => <<'.', server => <<'..');
    matrix_user_hash_zone users:1m;
    limit_conn_zone $matrix_user_hash zone=person:64k;
    limit_conn_status 429;
    server { listen 127.0.0.1:$TEST_NGINX_FREE1; location / { limit_rate 100; return 200 slow; } }
.
        location / {
            limit_conn person 2;
            matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users;
            proxy_pass http://127.0.0.1:$TEST_NGINX_FREE1;
        }
..
    my $port = $nginx->port;
    whoami_set(delay => 0.3);
    my @alice = map { bearer('/sync', token("alice/device$_")) } 1 .. 12;
    my @bob   = map { bearer('/sync', token("bob/device$_")) } 1 .. 2;
    my @nobody = map { bearer('/sync') } 1 .. 6;
    my @got = gather($port, [@alice, @bob, @nobody]);
    whoami_set(delay => 0);
    my %alice;
    $alice{ $_->{status} }++ for @got[0 .. 11];
    is_deeply(\%alice, { 200 => 2, 429 => 10 }, 'limit_conn by user: 2 of 12 requests from 12 devices of a user');
    is(join(' ', map { $_->{status} } @got[12, 13]), '200 200', '… and others have their own');
    is(join(' ', map { $_->{status} } @got[14 .. 19]), join(' ', (200) x 6), '… and who has no token is not limited by user');
    is(whoami_stats()->{requests}, 14, '… at one lookup for each token');
    is(get($port, '/sync', token('alice/device1'))->{status}, 200, '… and the places are free again');
    is_deeply([$nginx->complaints(qr/limiting connections/)], [], 'no other complaint in the error log');
}

# Requests that a limit refused are counted by its name, whether they end where they came in or elsewhere.
{
    my $nginx = MatrixUserHash::Instance->start(workers => 2, http => <<'.', server => <<'..');
    matrix_user_hash_zone users:1m;
    matrix_user_hash_zone others:1m;
    limit_req_zone $matrix_user_hash zone=rate:64k rate=1r/m;
    limit_req_status 429;
    map $limit_req_status $limit { default ""; REJECTED $arg_limit; }
.
        matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users;
        location /elsewhere { limit_req zone=rate; error_page 429 @limited; empty_gif; }
        location /here { limit_req zone=rate; matrix_user_hash_limited $limit; empty_gif; }
        location /uncounted { limit_req zone=rate; empty_gif; }
        location /off { limit_req zone=rate; matrix_user_hash off; matrix_user_hash_limited $limit; empty_gif; }
        location @limited { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=others; matrix_user_hash_limited $limit; return 500 '{}'; }
        location = /json { matrix_user_hash_metrics; matrix_user_hash off; }
..
    my $port = $nginx->port;
    my $alice = token('alice/limited');
    my @names = qw(sync sliding_sync send media everything parallel_syncs address);
    is(get($port, '/here?limit=sync', $alice)->{status}, 200, 'a limit by user lets the first request pass');
    my $refused = sub { join ' ', map { get($port, $_, $alice)->{status} } @_ };
    is($refused->(map {"/here?limit=$_"} @names, 'strange', ''), join(' ', (429) x 9), '… and refuses what comes then, in its own location');
    is($refused->('/elsewhere?limit=media', '/elsewhere?limit=media'), '429 429', '… or in another');
    is($refused->('/uncounted?limit=send'), '429', '… or where nothing is said');
    get($port, '/off?limit=send', $alice);
    my $zones = decode_json(get($port, '/json')->{body})->{zones};
    is_deeply($zones->{users}{limited}, { (map { $_ => 1 } @names), other => 1 }, 'each is counted under its name, a strange one as other');
    is_deeply($zones->{others}{limited}, { (map { $_ => 0 } @names), other => 0, media => 2 }, '… in the zone of the location where it ends');
    is($zones->{others}{requests}{$_}, 0, "… which resolves nobody there: $_") for qw(hit miss anonymous);
}

# What `nginx -t` says of that in a location.
sub mistake {
    my ($line) = @_;
    my ($taken, $said) = MatrixUserHash::Instance->new(bare => 1,
        http => "server { listen 127.0.0.1:\$TEST_NGINX_FREE1; location / { $line } }")->check;
    return $taken ? 'taken' : $said;
}

like(mistake('matrix_user_hash_phase access;'),
    qr/\[emerg\] .*invalid value "access" in "matrix_user_hash_phase" directive, it must be "precontent" or "preaccess"/, 'nginx -t: no such phase');
like(mistake('matrix_user_hash_phase preaccess; matrix_user_hash_phase precontent;'), qr/\[emerg\] .*"matrix_user_hash_phase" directive is duplicate/,
    'nginx -t: twice');
is(mistake('matrix_user_hash http://127.0.0.1:8008; matrix_user_hash_phase preaccess;'), 'taken', 'nginx -t: taken');

# Bodies of any size, Expect: 100-continue, upgrades and HTTP/2, as in PRECONTENT. It ends the tests.
do "$FindBin::Bin/body.t" or die $@ || $!;
