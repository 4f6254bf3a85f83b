# Which token a request has: docs/requests.md, 1; the rows are Synapse's own answers.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use Test::Nginx::Socket 'no_plan';

MatrixUserHash::use_steps();

# One location for all: what a block is about is its request.
add_block_preprocessor(sub {
    my ($block) = @_;
    $block->set_value(config => <<'.');
        location / {
            matrix_user_hash http://$TEST_NGINX_WHOAMI;
            proxy_pass http://sync_workers;
        }
.
});

# The token in a query, with these of its characters as %XX.
sub percent {
    my ($token, $which) = @_;
    $token =~ s/($which)/sprintf '%%%02x', ord $1/ge;
    return $token;
}

# A token of exactly that many bytes, which the stand-in does not know.
sub long_token { return 'mat_stranger_' . 'x' x ($_[0] - 13) }

run_tests();

__DATA__

=== a Bearer token in the header is looked up, and what it gives is the user's hash
--- steps
GET /_matrix/client/v3/sync {alice/phone} = MISS @alice:example.org
asked 1

=== the hash is the first 16 hex digits of SHA-256 of the user id (printf %s @alice:example.org | sha256sum)
--- request
GET /_matrix/client/v3/sync
--- more_headers eval
'Authorization: Bearer ' . ::token('alice/phone')
--- response_headers
X-Hash: 86f01aef21b1acd3
X-Status: MISS

=== an opaque token of MAS gives the same hash as a native one of the same user
--- steps
GET /sync "Authorization: Bearer mat_x5ZLr2cVtaP0nNqWfE3yKdJ7uGhB1s_aQ4mT2" = MISS @alice:example.org
GET /sync {alice/phone} = MISS @alice:example.org

=== the header's name is case-insensitive
--- steps
GET /sync "AUTHORIZATION: Bearer {alice/phone}" = MISS @alice:example.org
GET /sync "authorization: Bearer {alice/phone}" = HIT @alice:example.org

=== spaces after the token are nginx's to strip: Synapse accepts them too
--- raw_request eval
"GET /sync HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer " . ::token('alice/phone') . " \r\n\r\n"
--- response_headers
X-Hash: 86f01aef21b1acd3
X-Status: MISS

=== the scheme is case-sensitive
--- steps
GET /sync "Authorization: bearer {alice/phone}" = ANONYMOUS -
GET /sync "Authorization: BEARER {alice/phone}" = ANONYMOUS -
asked 0

=== there is exactly one space after the scheme
--- steps
GET /sync "Authorization: Bearer  {alice/phone}" = ANONYMOUS -
GET /sync "Authorization: Bearer{alice/phone}" = ANONYMOUS -
asked 0

=== a TAB after the scheme is no space
--- raw_request eval
"GET /sync HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer\t" . ::token('alice/phone') . "\r\n\r\n"
--- response_headers
! X-Hash
X-Status: ANONYMOUS

=== nothing may follow the token
--- steps
GET /sync "Authorization: Bearer {alice/phone} extra" = ANONYMOUS -
asked 0

=== another scheme is no token, and neither is a bare token
--- steps
GET /sync "Authorization: Basic YWxpY2U6c2VjcmV0" = ANONYMOUS -
GET /sync "Authorization: {alice/phone}" = ANONYMOUS -
GET /sync "Authorization: X-Matrix origin=example.org,key=\"ed25519:1\",sig=\"x\"" = ANONYMOUS -
asked 0

=== an empty token is none
--- steps
GET /sync "Authorization: Bearer" = ANONYMOUS -
GET /sync "Authorization:" = ANONYMOUS -
GET /sync?access_token= = ANONYMOUS -
GET /sync?access_token = ANONYMOUS -
asked 0

=== no token at all
--- steps
GET /sync = ANONYMOUS -
GET /sync?since=s72595_4483_1934&timeout=30000 = ANONYMOUS -
asked 0

=== several Authorization headers are none, even when they agree
--- raw_request eval
"GET /sync HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" . ("Authorization: Bearer " . ::token('alice/phone') . "\r\n") x 2 . "\r\n"
--- error_code_like: ^(?:200|400)$
--- response_headers
! X-Hash

=== the access_token argument is a token, wherever it stands in the query
--- steps
GET /sync?access_token={alice/phone} = MISS @alice:example.org
GET /sync?since=s1&access_token={alice/phone}&timeout=0 = HIT @alice:example.org
GET /sync?timeout=0&access_token={alice/phone} = HIT @alice:example.org
asked 1

=== header and query are two ways of saying the same token
--- steps
GET /sync {alice/phone} = MISS @alice:example.org
GET /sync?access_token={alice/phone} = HIT @alice:example.org
asked 1

=== names that only look like access_token are none
--- steps
GET /sync?xaccess_token={alice/phone} = ANONYMOUS -
GET /sync?access_tokens={alice/phone} = ANONYMOUS -
GET /sync?Access_Token={alice/phone} = ANONYMOUS -
GET /sync?filter=access_token%3D{alice/phone} = ANONYMOUS -
asked 0

=== the argument's value is percent-decoded
--- steps eval
my $t = ::token('alice/phone');
'GET /sync {alice/phone} = MISS @alice:example.org
GET /sync?access_token=' . ::percent($t, '[a-z]') . ' = HIT @alice:example.org
GET /sync?access_token=' . ::percent($t, '.') . ' = HIT @alice:example.org
GET /sync?access_token=' . ::percent($t, '_') . ' = HIT @alice:example.org
asked 1'

=== hex digits of a percent-encoding are of either case
--- steps eval
(my $t = ::token('alice/phone')) =~ s/_/%5F/g;
(my $u = ::token('alice/phone')) =~ s/_/%5f/g;
"GET /sync?access_token=$t = MISS \@alice:example.org
GET /sync?access_token=$u = HIT \@alice:example.org
asked 1"

=== the argument's name may be percent-encoded too
--- steps
GET /sync?access%5Ftoken={alice/phone} = MISS @alice:example.org
GET /sync?%61%63cess_token={alice/phone} = HIT @alice:example.org
GET /sync?acces%73_toke%6e={alice/phone} = HIT @alice:example.org
asked 1

=== a plus in the query is a space, and no token has a space
--- steps
GET /sync?access_token={alice/phone}+ = ANONYMOUS -
GET /sync?access_token=+{alice/phone} = ANONYMOUS -
asked 0

=== a percent-encoded plus is a plus: another token
--- steps
GET /sync?access_token={alice/phone}%2B = REFUSED other
asked 1

=== the first of two query tokens counts, as Synapse has it
--- steps
GET /sync?access_token={alice/phone}&access_token={bob/phone} = MISS @alice:example.org
asked 1

=== header and query together are none, even when they agree
--- steps
GET /sync?access_token={alice/phone} {alice/phone} = ANONYMOUS -
GET /sync?access_token={bob/phone} {alice/phone} = ANONYMOUS -
GET /sync?access_token= {alice/phone} = ANONYMOUS -
GET /sync?access%5Ftoken={alice/phone} {alice/phone} = ANONYMOUS -
asked 0

=== a header of another scheme and a query token are two ways at once
--- steps
GET /sync?access_token={alice/phone} "Authorization: Basic YWxpY2U6c2VjcmV0" = ANONYMOUS -
asked 0

=== a token of 4096 bytes is looked up
--- steps eval
my $t = ::long_token(4096);
"GET /sync \"Authorization: Bearer $t\" = REFUSED @{[::hash_of($t)]}
GET /sync?access_token=$t = REFUSED @{[::hash_of($t)]}
asked 1"

=== a token of 4097 bytes is not
--- steps eval
my $t = ::long_token(4097);
"GET /sync \"Authorization: Bearer $t\" = ANONYMOUS -
GET /sync?access_token=$t = ANONYMOUS -
asked 0"

=== the length counts after decoding
--- steps eval
my $t = ::long_token(4096);
"GET /sync?access_token=@{[::percent($t, '[Y_]')]} = REFUSED @{[::hash_of($t)]}
asked 1"

=== bytes outside visible ASCII make no token
--- steps eval
"GET /sync \"Authorization: Bearer syt_YWxpY2U_\xc3\xa9\" = ANONYMOUS -
GET /sync \"Authorization: Bearer syt_YWxpY2U_\x7f\" = ANONYMOUS -
GET /sync?access_token=syt_YWxpY2U_%C3%A9 = ANONYMOUS -
GET /sync?access_token=syt_YWxpY2U_%00 = ANONYMOUS -
GET /sync?access_token=syt_YWxpY2U_%0d%0aX-Evil:%20yes = ANONYMOUS -
GET /sync?access_token=syt_YWxpY2U_%7f = ANONYMOUS -
GET /sync?access_token=syt_YWxpY2U_%20 = ANONYMOUS -
asked 0"

=== a token that Synapse refuses is REFUSED, and its hash is the token's own
--- steps
GET /sync {revoked/phone} = REFUSED token
GET /sync?access_token={revoked/tablet} = REFUSED token
asked 2

=== the hash of a refused token that was percent-encoded is the decoded token's
--- steps eval
"GET /sync {revoked/phone} = REFUSED token
GET /sync?access_token=" . ::percent(::token('revoked/phone'), '_') . " \"X-Same: {revoked/phone}\" = REFUSED token
asked 1"
