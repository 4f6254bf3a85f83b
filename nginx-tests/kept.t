# Connections that lookups leave open are their own: a group with keepalive may serve HTTP/2 and HTTP/1.1 at once.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get);
use Test::More;
use Time::HiRes qw(sleep);

my $says = nginx_says();
plan skip_all => 'nginx without HTTP/2 over cleartext' unless $says =~ /http_v2_module/ && nginx_is_from(1, 25, 1);

# The server of the group: HTTP/1.1 and HTTP/2 on one port, and it says on which connection each request came.
my $both = free_port(1);
my $v2   = nginx_is_from(1, 29, 4);
my $more = $v2 ? 'location = /v2 { proxy_http_version 2; proxy_pass http://v2/who; }' : '';
my $nginx = MatrixUserHash::Instance->start(http => <<".", server => <<"..");
    server {
        listen 127.0.0.1:$both;
        http2 on;
        location / { proxy_set_header X-Seen "connection=\$connection protocol=\$server_protocol"; proxy_pass http://\$TEST_NGINX_WHOAMI; }
        location = /who { add_header X-Seen "connection=\$connection protocol=\$server_protocol"; return 200 ok; }
    }
    upstream v1 { server 127.0.0.1:$both; keepalive 4; }
    upstream v2 { server 127.0.0.1:$both; keepalive 4; }
    upstream grpc { server 127.0.0.1:$both; keepalive 4; }
    upstream brief { server 127.0.0.1:$both; keepalive 4; keepalive_timeout 200ms; }
    upstream few { server 127.0.0.1:$both; keepalive 4; keepalive_requests 2; }
    upstream none { server 127.0.0.1:$both; }
.
        location = /v1 { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://v1/who; }
        location = /grpc { rewrite ^ /who break; grpc_pass grpc://grpc; }
        location = /lookup/v1 { matrix_user_hash http://v1; proxy_pass http://sync_workers; }
        location = /lookup/v2 { matrix_user_hash http://v2; proxy_pass http://sync_workers; }
        location = /lookup/grpc { matrix_user_hash http://grpc; proxy_pass http://sync_workers; }
        location = /brief { matrix_user_hash http://brief; proxy_pass http://sync_workers; }
        location = /few { matrix_user_hash http://few; proxy_pass http://sync_workers; }
        location = /none { matrix_user_hash http://none; proxy_pass http://sync_workers; }
        $more
..
my $port = $nginx->port;
my $n    = 0;

# The connection on which a lookup for a new token came.
sub lookup {
    my ($path) = @_;
    my $got = get($port, $path, token('alice/kept' . $n++));
    is($got->{headers}{'x-status'}, 'MISS', "$path: a lookup is answered");
    my ($record) = reverse whoami_log();
    return $record->{raw} =~ /^X-Seen: connection=(\d+) protocol=HTTP\/1\.1\r$/m ? $1 : die 'not seen';
}

sub proxied {
    my ($path) = @_;
    my $got = get($port, $path);
    is($got->{status}, 200, "$path: a proxied request is answered");
    return $got->{headers}{'x-seen'} =~ /connection=(\d+)/ ? $1 : die 'not seen';
}

for my $protocol (qw(v1 grpc), $v2 ? 'v2' : ()) {
    my $first = lookup("/lookup/$protocol");
    my $other = proxied("/$protocol");
    isnt($other, $first, 'no other request comes on the connection of lookups');
    for (1 .. 2) {
        is(lookup("/lookup/$protocol"), $first, '… on which the next lookup comes');
        is(proxied("/$protocol"), $other, '… and the others have theirs');
    }
}

my $before = lookup('/brief');
is(lookup('/brief'), $before, 'a group with keepalive_timeout 200ms: a connection is used again');
sleep 0.5;
isnt(lookup('/brief'), $before, '… and not after that time');
my @few = map { lookup('/few') } 1 .. 4;
ok($few[0] == $few[1] && $few[1] != $few[2] && $few[2] == $few[3], "keepalive_requests 2: two lookups on each connection (@few)");
if (keeps_by_default()) {
    is(lookup('/none'), lookup('/none'), 'a group without a word about keepalive: it keeps connections, by default');
} else {
    isnt(lookup('/none'), lookup('/none'), 'a group without keepalive: a connection for each lookup');
}
is(join("\n", $nginx->complaints), '', 'nothing in the error log');

done_testing();
