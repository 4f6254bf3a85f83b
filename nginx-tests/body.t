# The client's body is untouched by a lookup and reaches the worker whole, however it is framed and however slow whoami
# is: sliding sync is a POST. And protocols: HTTP/2, Expect: 100-continue, websocket upgrades.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use Digest::SHA qw(sha256_hex);
use JSON::PP qw(decode_json);
use MatrixUserHash::Http qw(request read_answer connect_to parse);
use Test::More;
use Time::HiRes qw(sleep time);

my ($http2_line, $http2_listen) = ('', '');
{
    my $version = nginx_says();
    my ($major, $minor, $patch) = $version =~ m{nginx/(\d+)\.(\d+)\.(\d+)};
    if ($version =~ /http_v2_module/ && $version =~ /http_ssl_module/) {
        my $new = $major * 1_000_000 + $minor * 1000 + $patch >= 1_025_001;
        ($http2_line, $http2_listen) = $new ? ('http2 on;', '') : ('', ' http2');
    }
}
my $http2 = "$http2_line$http2_listen" ne '';

# Several streams at once over HTTP/2 are tried over TLS: curl 7.88 cannot multiplex with prior knowledge.
my $tls = "/tmp/matrix-user-hash-h2-$$";
END { unlink "$tls.pem", "$tls.key" if $tls }
my $tls_lines = $http2 ? <<"." : '';
        listen 127.0.0.1:\$TEST_NGINX_FREE2 ssl$http2_listen;
        ssl_certificate $tls.pem;
        ssl_certificate_key $tls.key;
.
system "openssl req -x509 -newkey rsa:2048 -nodes -keyout $tls.key -out $tls.pem -days 30 -subj /CN=localhost 2>/dev/null";

# The stand-in's /echo and /ws are the worker here: it tells method, length and digest of what it got.
my $locations = <<'.';
        client_max_body_size 64m;
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://$TEST_NGINX_WHOAMI/echo; }
        location /unbuffered {
            matrix_user_hash http://$TEST_NGINX_WHOAMI;
            proxy_request_buffering off;
            proxy_http_version 1.1;
            proxy_pass http://$TEST_NGINX_WHOAMI/echo;
        }
        location /small-buffer {
            client_body_buffer_size 1k;
            matrix_user_hash http://$TEST_NGINX_WHOAMI;
            proxy_pass http://$TEST_NGINX_WHOAMI/echo;
        }
        location /failing { matrix_user_hash http://$TEST_NGINX_DEAD; proxy_pass http://$TEST_NGINX_WHOAMI/echo; }
        location /hanging {
            matrix_user_hash http://$TEST_NGINX_WHOAMI/hang/whoami;
            matrix_user_hash_timeout 300ms;
            proxy_pass http://$TEST_NGINX_WHOAMI/echo;
        }
        location /limited { client_max_body_size 1k; matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://$TEST_NGINX_WHOAMI/echo; }
        location /ws {
            matrix_user_hash http://$TEST_NGINX_WHOAMI;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_pass http://$TEST_NGINX_WHOAMI;
        }
.
my $nginx = MatrixUserHash::Instance->start(log_level => 'debug', server => $locations, http => <<".");
    server {
        listen 127.0.0.1:\$TEST_NGINX_FREE1$http2_listen;
$tls_lines
        $http2_line
        add_header X-Hash \$matrix_user_hash;
        add_header X-Status \$matrix_user_hash_status;
$locations
    }
.
my $port  = $nginx->port;
my $n     = 0;
my $alice = hash_of('@alice:example.org');

sub fresh { return token('alice/body' . $n++) }

# Bytes that look like nothing in particular, the same every time.
sub bytes_of { my ($size) = @_; my $seed = pack 'C*', map { ($_ * 167 + 13) % 256 } 0 .. 1022; return substr $seed x (1 + $size / 1023), 0, $size }

sub chunked {
    my ($body, $piece) = @_;
    my $out = '';
    for (my $at = 0; $at < length $body; $at += $piece) {
        my $part = substr $body, $at, $piece;
        $out .= sprintf "%x\r\n%s\r\n", length $part, $part;
    }
    return "$out" . "0\r\n\r\n";
}

sub post {
    my ($path, $token, $framing, @bytes) = @_;
    return request($port, ["POST $path HTTP/1.1\r\nHost: matrix.example.org\r\nConnection: close\r\n"
        . "Authorization: Bearer $token\r\n$framing\r\n\r\n", @bytes]);
}

sub arrived {
    my ($got, $body, $status, $title) = @_;
    my $told = eval { decode_json($got->{body}) } // {};
    is(join(' ', map { $_ // '-' } $got->{status}, @$told{qw(method length sha256)}),
        join(' ', 200, 'POST', length $body, sha256_hex($body)), "$title: whole");
    like($got->{headers}{'x-status'}, qr/^(?:$status)$/, '… and resolved');
}

whoami_set(delay => 0.2);
for my $size (0, 1, 1000, 64 * 1024, 5 * 1024 * 1024) {
    my $body = bytes_of($size);
    for my $path ('/', '/unbuffered', '/small-buffer') {
        my $got = post($path, fresh(), "Content-Length: $size", $body);
        arrived($got, $body, 'MISS', "$size bytes with Content-Length, $path, slow whoami");
        is($got->{headers}{'x-hash'}, $alice, '… to the user\'s hash');
        next if $size == 0 && $path ne '/';
        arrived(post($path, fresh(), 'Transfer-Encoding: chunked', chunked($body, 30_000)), $body, 'MISS', "$size bytes in chunks, $path");
    }
}
whoami_set(delay => 0);

{
    my $body  = bytes_of(100_000);
    my $token = fresh();
    arrived(post('/', $token, 'Content-Length: 100000', $body), $body, 'MISS', 'cold');
    arrived(post('/', $token, 'Content-Length: 100000', $body), $body, 'HIT', 'warm');
    arrived(post('/failing', fresh(), 'Content-Length: 100000', $body), $body, 'ERROR', 'whoami refuses');
    arrived(post('/hanging', fresh(), 'Content-Length: 100000', $body), $body, 'TIMEOUT', 'whoami hangs');
    arrived(post('/hanging', fresh(), 'Transfer-Encoding: chunked', chunked($body, 777)), $body, 'TIMEOUT', 'whoami hangs, chunks');
}

{
    # The body comes during the lookup, and after it.
    whoami_set(delay => 0.3);
    my $body = bytes_of(9000);
    my @slow = map { (substr($body, $_ * 1000, 1000), \0.06) } 0 .. 8;
    for my $path ('/', '/unbuffered') {
        arrived(post($path, fresh(), 'Content-Length: 9000', @slow), $body, 'MISS', "a body that arrives in pieces around the lookup, $path");
    }
    whoami_set(delay => 0);
}

{
    # Expect: 100-continue: the client waits for permission, and gets it.
    whoami_set(delay => 0.2);
    my $body = bytes_of(5000);
    my $sock = connect_to($port);
    syswrite $sock, "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer @{[fresh()]}\r\n"
        . "Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n";
    my $first = '';
    eval { local $SIG{ALRM} = sub { die }; alarm 5; sysread $sock, $first, 4096; alarm 0 };
    like($first, qr{^HTTP/1\.1 100 Continue\r\n\r\n}, 'Expect: 100-continue is answered although the lookup takes its time');
    syswrite $sock, $body;
    arrived(read_answer($sock), $body, 'MISS', '… and then the body');
    whoami_set(delay => 0);
}

is(post('/limited', fresh(), 'Content-Length: 5000', bytes_of(5000))->{status}, 413, 'client_max_body_size is kept');

SKIP: {
    my $curl = `curl -V 2>/dev/null`;
    skip 'needs curl with HTTP/2, and nginx too', 9 unless $http2 && $curl =~ /\bHTTP2\b/;
    my $url = "http://127.0.0.1:" . free_port(1);
    my $at  = $nginx->root;
    for my $size (1, 64 * 1024, 5 * 1024 * 1024) {
        my $body = bytes_of($size);
        open my $out, '>', "$at/body" or die $!;
        binmode $out; print $out $body; close $out;
        whoami_set(delay => 0.2);
        my $said = `curl -s -i -m 20 --http2-prior-knowledge -H 'Authorization: Bearer @{[fresh()]}' --data-binary \@$at/body $url/`;
        whoami_set(delay => 0);
        my ($head, $json) = split /\r\n\r\n/, $said, 2;
        my $told = eval { decode_json($json // '') } // {};
        is(join(' ', map { $_ // '-' } @$told{qw(method length sha256)}), join(' ', 'POST', $size, sha256_hex($body)), "HTTP/2: $size bytes, whole");
        like($head // '', qr/^x-hash: $alice\r?$/m, '… to the user\'s hash');
    }
    # Several streams of one connection at once, each with its own token.
    my @tokens = map { fresh() } 1 .. 5;
    whoami_set(delay => 0.2);
    my $list = join ' ', map { "-o /dev/null 'https://127.0.0.1:@{[free_port(2)]}/?access_token=$_'" } @tokens;
    my $said = `curl -s -k -Z -m 20 --http2 -w '%{http_code} %{http_version} ' $list 2>/dev/null`;
    my %seen = map { $_->{token} => 1 } whoami_log();
    whoami_set(delay => 0);
    is($said, '200 2 ' x 5, 'HTTP/2: five streams at once');
    is(scalar(grep { $seen{$_} } @tokens), 5, '… each with its own token');
    my ($log) = scalar(() = $nginx->error_log =~ /\[(?:alert|crit|emerg)\]/g);
    is($log, 0, 'HTTP/2: nothing critical in the log');
}

{
    whoami_set(delay => 0.2);
    my $sock = connect_to($port);
    syswrite $sock, "GET /ws HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer @{[fresh()]}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        . "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    my $got = parse(do { my $raw = ''; eval { local $SIG{ALRM} = sub { die }; alarm 5; sysread $sock, $raw, 4096; alarm 0 }; $raw });
    whoami_set(delay => 0);
    is($got->{status}, 101, 'a websocket is upgraded');
    is($got->{headers}{'x-hash'}, $alice, '… after it was resolved');
    for my $said ("\x81\x05hello", bytes_of(3000)) {
        syswrite $sock, $said;
        my $back = '';
        eval { local $SIG{ALRM} = sub { die }; alarm 5; while (length $back < length $said) { sysread $sock, $back, 8192, length $back or last } alarm 0 };
        is(length $back, length $said, '… and bytes go both ways');
        is($back, $said, '… unchanged');
    }
    close $sock;
}

is_deeply([grep { /\[(?:crit|alert|emerg)\]/ } $nginx->complaints], [], 'nothing of this is critical to nginx');

done_testing();
