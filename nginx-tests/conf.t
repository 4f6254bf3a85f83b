# nginx -t: a mistake in any directive is an [emerg] that names the directive, the value and the reason.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use Test::More;

# What `nginx -t` says of that text at http level, and of that in a location.
sub check {
    my ($http, $location) = @_;
    my $nginx = MatrixUserHash::Instance->new(bare => 1, http => <<".");
    upstream synapse { server 127.0.0.1:8008; }
    $http
    server { listen 127.0.0.1:\$TEST_NGINX_FREE1; location / { $location } }
.
    return $nginx->check;
}

# [http, location, value that the message names, what else it says]
my @wrong = (
    ['unknown zone', '', 'matrix_user_hash http://synapse zone=nobody;', 'nobody', qr/unknown|not declared/],
    ['empty zone name', '', 'matrix_user_hash http://synapse zone=;', 'zone=', qr/zone/],
    ['unknown parameter', '', 'matrix_user_hash http://synapse cache=users;', 'cache=users', qr/zone=NAME|invalid/],
    ['no URL', '', 'matrix_user_hash;', undef, qr/invalid number of arguments/],
    ['too many arguments', '', 'matrix_user_hash http://synapse zone=a b;', undef, qr/invalid number of arguments/],
    ['no scheme', '', 'matrix_user_hash synapse;', 'synapse', qr/http/],
    ['a scheme that is none', '', 'matrix_user_hash ftp://synapse;', 'ftp://synapse', qr/http/],
    ['no host', '', 'matrix_user_hash http://;', 'http://', qr/host/],
    ['only a path', '', 'matrix_user_hash http:///whoami;', 'http:///whoami', qr/host/],
    ['a port that is none', '', 'matrix_user_hash http://127.0.0.1:http;', '127.0.0.1:http', qr/port/],
    ['a port over 65535', '', 'matrix_user_hash http://127.0.0.1:65536;', '127.0.0.1:65536', qr/port/],
    ['a variable in the URL', '', 'matrix_user_hash http://$host;', '$host', qr/variable/],
    ['a name that does not resolve', '', 'matrix_user_hash http://synapse-main.invalid;', 'synapse-main.invalid', qr/not found|resolve/],
    ['a unix socket without a path', '', 'matrix_user_hash http://unix:;', 'unix:', qr/path|no host|invalid/],
    ['twice in a block', '', 'matrix_user_hash http://synapse; matrix_user_hash off;', undef, qr/duplicate/],
    ['off with a zone', '', 'matrix_user_hash off zone=a;', 'off', qr/./],
    ['a zone without a size', 'matrix_user_hash_zone users;', '', 'users', qr/size|SIZE/],
    ['a zone with a size that is none', 'matrix_user_hash_zone users:big;', '', 'users:big', qr/size/],
    ['a zone with a negative size', 'matrix_user_hash_zone users:-4m;', '', 'users:-4m', qr/size/],
    ['a zone that is too small', 'matrix_user_hash_zone users:4k;', '', 'users', qr/too small/],
    ['a zone without a name', 'matrix_user_hash_zone :4m;', '', ':4m', qr/name/],
    ['two zones of one name', 'matrix_user_hash_zone users:1m; matrix_user_hash_zone users:2m;', '', 'users', qr/duplicate|already/],
    ['a zone of a name that another module has', 'limit_req_zone $uri zone=users:1m rate=1r/s; matrix_user_hash_zone users:1m;', '', 'users', qr/already|another|bound/],
    ['a zone in a location', '', 'matrix_user_hash_zone users:1m;', undef, qr/not allowed here/],
    ['inactive that is no time', 'matrix_user_hash_zone users:1m inactive=soon;', '', 'inactive=soon', qr/time/],
    ['inactive of 0', 'matrix_user_hash_zone users:1m inactive=0;', '', 'inactive=0', qr/time/],
    ['inactive twice', 'matrix_user_hash_zone users:1m inactive=1h inactive=2h;', '', 'inactive=2h', qr/duplicate/],
    ['an unknown zone parameter', 'matrix_user_hash_zone users:1m ttl=1h;', '', 'ttl=1h', qr/inactive=|invalid/],
    ['a state file in no directory', 'matrix_user_hash_zone users:1m state=/no/such/directory/state;', '', '/no/such/directory/state', qr/directory/],
    ['an empty state file name', 'matrix_user_hash_zone users:1m state=;', '', 'state=', qr/file/],
    ['valid with no time', '', 'matrix_user_hash http://synapse; matrix_user_hash_valid never;', 'never', qr/time/],
    ['valid for a code that is none', '', 'matrix_user_hash_valid 99 1h;', '99', qr/code|status|invalid/],
    ['valid for a word', '', 'matrix_user_hash_valid ok 1h;', 'ok', qr/code|status|invalid/],
    ['valid with a bad time', '', 'matrix_user_hash_valid 200 1parsec;', '1parsec', qr/time/],
    ['errors remembered for longer than a second', '', 'matrix_user_hash_valid any 1m;', '1m', qr/1s/],
    ['stale that is neither on nor off', '', 'matrix_user_hash_stale maybe;', 'maybe', qr/on.*off/],
    ['a timeout that is no time', '', 'matrix_user_hash_timeout quick;', 'quick', qr/time/],
    ['a timeout of 0', '', 'matrix_user_hash_timeout 0;', '0', qr/more than 0|time/],
    ['a timeout twice', '', 'matrix_user_hash_timeout 1s; matrix_user_hash_timeout 2s;', undef, qr/duplicate/],
    ['no lookups', '', 'matrix_user_hash_max_lookups 0;', '0', qr/number/],
    ['lookups that are no number', '', 'matrix_user_hash_max_lookups many;', 'many', qr/number/],
    ['a negative number of lookups', '', 'matrix_user_hash_max_lookups -1;', '-1', qr/number/],
    ['a metrics format that is none', '', 'matrix_user_hash_metrics xml;', 'xml', qr/json|prometheus/],
    ['metrics outside a location', 'matrix_user_hash_metrics;', '', undef, qr/not allowed here/],
    ['a connect timeout that is none', '', 'matrix_user_hash_connect_timeout x;', 'x', qr/time/],
    ['a send timeout that is none', '', 'matrix_user_hash_send_timeout x;', 'x', qr/time/],
    ['a read timeout that is none', '', 'matrix_user_hash_read_timeout x;', 'x', qr/time/],
    ['a buffer size that is none', '', 'matrix_user_hash_buffer_size big;', 'big', qr/size/],
    ['a buffer of 0 bytes', '', 'matrix_user_hash_buffer_size 0;', '0', qr/size/],
    ['a reason for the next upstream that is none', '', 'matrix_user_hash_next_upstream sometimes;', 'sometimes', qr/invalid|must be/],
    ['tries that are no number', '', 'matrix_user_hash_next_upstream_tries few;', 'few', qr/number/],
    ['a next upstream timeout that is none', '', 'matrix_user_hash_next_upstream_timeout x;', 'x', qr/time/],
    ['an address to bind to that is none', '', 'matrix_user_hash_bind here;', 'here', qr/address/],
    ['socket_keepalive that is neither', '', 'matrix_user_hash_socket_keepalive yes;', 'yes', qr/on.*off/],
    ['two addresses to bind to', '', 'matrix_user_hash_bind 127.0.0.1 bogus;', 'bogus', qr/address|bogus/],
    ['a timeout of more than a flight can be held for', '', 'matrix_user_hash_timeout 1h;', '1h', qr/15m/],
    ['a connect timeout of 0', '', 'matrix_user_hash_connect_timeout 0;', '0', qr/more than 0/],
    ['two zones in one file', 'matrix_user_hash_zone a:1m state=/tmp/a.state; matrix_user_hash_zone b:1m state=/tmp/a.state;', '', '"a"', qr/state file/],
    ['a port of a group', 'upstream grouped { server 127.0.0.1:8008; }', 'matrix_user_hash http://grouped:81;', '81', qr/may not have port/],
    ['a directive that does not exist', '', 'matrix_user_hash_retries 3;', undef, qr/unknown directive/],
);

# An nginx without TLS refuses https:// as such.
my $tls = nginx_says() =~ /http_ssl_module/;
push @wrong, (
    ['a certificate that does not exist', '', 'matrix_user_hash https://synapse; matrix_user_hash_ssl_trusted_certificate /no/such.pem;', '/no/such.pem', qr/No such file/],
    ['ciphers that do not exist', '', 'matrix_user_hash https://synapse; matrix_user_hash_ssl_ciphers NOPE;', 'NOPE', qr/cipher/],
) if $tls;
push @wrong, ['https:// without TLS', '', 'matrix_user_hash https://synapse;', 'https://synapse', qr/needs an nginx built with --with-http_ssl_module/]
    unless $tls;

my @good = (
    ['one line', '', 'matrix_user_hash http://synapse;'],
    ['off', '', 'matrix_user_hash off;'],
    ['arguments alone', '', 'matrix_user_hash http://synapse?via=nginx;'],
    ['a path', '', 'matrix_user_hash http://synapse/_matrix/client/r0/account/whoami;'],
    ['an address and a port', '', 'matrix_user_hash http://127.0.0.1:8008;'],
    ['an IPv6 address', '', 'matrix_user_hash http://[::1]:8008;'],
    ['a unix socket', '', 'matrix_user_hash http://unix:/run/synapse.sock;'],
    ['a unix socket and a path', '', 'matrix_user_hash http://unix:/run/synapse.sock:/whoami;'],
    ['a zone that is declared later', '', 'matrix_user_hash http://synapse zone=late;', 'matrix_user_hash_zone late:1m;'],
    ['a zone with everything', 'matrix_user_hash_zone users:4m inactive=7d;', 'matrix_user_hash http://synapse zone=users;'],
    ['a zone that nobody uses', 'matrix_user_hash_zone users:4m;', ''],
    ['several zones', 'matrix_user_hash_zone a:1m; matrix_user_hash_zone b:1m;', 'matrix_user_hash http://synapse zone=b;'],
    ['valid with a time alone', '', 'matrix_user_hash http://synapse; matrix_user_hash_valid 10m;'],
    ['valid with codes', '', 'matrix_user_hash_valid 200 1h; matrix_user_hash_valid 401 30s; matrix_user_hash_valid any 1s;'],
    ['every directive of the upstream family', '', <<'.'],
matrix_user_hash http://synapse; matrix_user_hash_timeout 1500ms; matrix_user_hash_stale off; matrix_user_hash_max_lookups 32;
matrix_user_hash_connect_timeout 100ms; matrix_user_hash_send_timeout 1s; matrix_user_hash_read_timeout 1s;
matrix_user_hash_next_upstream error timeout; matrix_user_hash_next_upstream_tries 2; matrix_user_hash_next_upstream_timeout 1s;
matrix_user_hash_buffer_size 8k; matrix_user_hash_bind 127.0.0.1; matrix_user_hash_socket_keepalive on;
.
    ['next_upstream off', '', 'matrix_user_hash http://synapse; matrix_user_hash_next_upstream off;'],
    ['bind off, and a variable', '', 'matrix_user_hash_bind $server_addr; matrix_user_hash http://synapse;'],
    ['every directive at http', 'matrix_user_hash http://synapse; matrix_user_hash_timeout 1s; matrix_user_hash_valid 200 1h; matrix_user_hash_stale on; matrix_user_hash_max_lookups 8;', ''],
    ['metrics', '', 'matrix_user_hash_metrics;'],
    ['metrics as JSON', '', 'matrix_user_hash_metrics json;'],
    ['metrics for Prometheus', '', 'matrix_user_hash_metrics prometheus;'],
    ['an upstream that is declared later', '', 'matrix_user_hash http://later;', 'upstream later { server 127.0.0.1:8008; }'],
    ['the product in one screen', <<'..', ''],
    matrix_user_hash_zone users:4m;
    upstream main { zone main 256k; server 127.0.0.1:8008; keepalive 8; }
    upstream sync_workers { zone sync_workers 256k; hash $matrix_user_hash consistent; server 127.0.0.1:8083; server 127.0.0.1:8084; keepalive 16; }
    server {
        listen 127.0.0.1:$TEST_NGINX_FREE2;
        location ~ ^/_matrix/client/(r0|v3)/sync$ { matrix_user_hash http://main zone=users; proxy_pass http://sync_workers; }
        location = /matrix_user_hash { allow 127.0.0.1; deny all; matrix_user_hash_metrics; }
    }
..
);

# Without a list of its own, a server is verified by the system's (package ca-certificates).
push @good, ['https, and the authorities of the system', '', 'matrix_user_hash https://synapse;']
    if $tls && -e '/etc/ssl/certs/ca-certificates.crt';

for (@wrong) {
    my ($title, $http, $location, $value, $reason) = @$_;
    my ($directive) = "$http $location" =~ /(matrix_user_hash\w*)[^;]*;\s*$/;
    my ($ok, $said) = check($http, $location);
    # Where nginx itself refuses a value without saying whose it is, a second line of ours does.
    my $emerg = join "\n", grep { /\[emerg\]/ } split /\n/, $said;
    ok(!$ok, "$title: nginx -t fails");
    like($emerg, qr/"\Q$directive\E"/, '… and names the directive');
    like($emerg, qr/\Q$value\E/, '… and the value') if defined $value;
    like($emerg, $reason, '… and the reason');
    unlike($said, qr/panick/, '… in good order');
}

for (@good) {
    my ($title, $http, $location, $after) = @$_;
    my $nginx = MatrixUserHash::Instance->new(bare => 1, http => <<".");
    upstream synapse { server 127.0.0.1:8008; }
    $http
    server { listen 127.0.0.1:\$TEST_NGINX_FREE1; location / { $location } }
    @{[$after // '']}
.
    my ($ok, $said) = $nginx->check;
    ok($ok, "$title: nginx -t succeeds") or diag($said);
    unlike($said, qr/\[(?:warn|error|crit|alert|emerg)\]/, '… with nothing to complain of');
}

done_testing();
