# https:// to whoami: verified by default, with SNI. Good, wrong-name, expired and self-signed certificates.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get);
use File::Path qw(make_path);
use Test::More;

plan skip_all => 'nginx without TLS' unless nginx_says() =~ /http_ssl_module/;

# A small authority, and certificates of each kind. openssl ca is what can date a certificate back.
my $pki = "/tmp/matrix-user-hash-pki-$$";
make_path("$pki/new");
END { system 'rm', '-rf', $pki if $pki }

sub quiet { my $out = `$_[0] 2>&1`; die "$_[0]: $out" if $? }

{
    open my $out, '>', "$pki/ca.cnf" or die $!;
    print $out <<".";
[ca]
default_ca = here
[here]
dir = $pki
database = $pki/index.txt
new_certs_dir = $pki/new
serial = $pki/serial
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
.
    close $out;
    quiet("touch $pki/index.txt && echo 01 > $pki/serial");
    quiet("openssl req -x509 -newkey rsa:2048 -nodes -keyout $pki/ca.key -out $pki/ca.pem -days 30 -subj '/CN=Test authority'");
    for (['good', 'matrix.example.org', ''], ['wrong', 'elsewhere.example.com', ''],
        ['expired', 'matrix.example.org', '-startdate 20200101000000Z -enddate 20200201000000Z']) {
        my ($name, $host, $dates) = @$_;
        quiet("openssl req -new -newkey rsa:2048 -nodes -keyout $pki/$name.key -out $pki/$name.csr -subj /CN=$host -addext subjectAltName=DNS:$host");
        quiet("openssl ca -batch -config $pki/ca.cnf -cert $pki/ca.pem -keyfile $pki/ca.key -in $pki/$name.csr -out $pki/$name.pem -notext "
            . ($dates || '-days 30'));
    }
    # A chain as the commonest authorities have it: two intermediates between the root and the server.
    my ($issuer, $key) = ("$pki/ca.pem", "$pki/ca.key");
    for (['first', 'First intermediate'], ['second', 'Second intermediate']) {
        my ($name, $subject) = @$_;
        quiet("openssl req -new -newkey rsa:2048 -nodes -keyout $pki/$name.key -out $pki/$name.csr -subj '/CN=$subject' -addext basicConstraints=critical,CA:TRUE");
        quiet("openssl ca -batch -config $pki/ca.cnf -cert $issuer -keyfile $key -in $pki/$name.csr -out $pki/$name.pem -notext -days 30");
        ($issuer, $key) = ("$pki/$name.pem", "$pki/$name.key");
    }
    quiet("openssl req -new -newkey rsa:2048 -nodes -keyout $pki/chain.key -out $pki/chain.csr -subj /CN=matrix.example.org -addext subjectAltName=DNS:matrix.example.org");
    quiet("openssl ca -batch -config $pki/ca.cnf -cert $issuer -keyfile $key -in $pki/chain.csr -out $pki/leaf.pem -notext -days 30");
    quiet("cat $pki/leaf.pem $pki/second.pem $pki/first.pem > $pki/chain.pem");
    quiet("openssl req -x509 -newkey rsa:2048 -nodes -keyout $pki/self.key -out $pki/self.pem -days 30 -subj /CN=matrix.example.org -addext subjectAltName=DNS:matrix.example.org");
}

my %port = (good => free_port(1), wrong => free_port(2), expired => free_port(3), self => free_port(4), chain => free_port(5));
my $unkept = keeps_by_default() ? 'keepalive 0;' : '';
my $homeservers = join '', map { <<"." } sort keys %port;
    server {
        listen 127.0.0.1:$port{$_} ssl;
        server_name matrix.example.org;
        ssl_certificate $pki/$_.pem;
        ssl_certificate_key $pki/$_.key;
        location / {
            proxy_set_header X-Sni "\$ssl_server_name \$ssl_protocol \$host";
            proxy_set_header X-Tls "connection=\$connection resumed=\$ssl_session_reused";
            proxy_pass http://\$TEST_NGINX_WHOAMI;
        }
        location /tls { add_header X-Tls "connection=\$connection resumed=\$ssl_session_reused"; return 200 ok; }
    }
    # One group, with nginx's default of max_fails, for all ways of verifying and for proxy_pass.
    upstream $_.example { server 127.0.0.1:$port{$_}; $unkept }
    upstream $_.kept { server 127.0.0.1:$port{$_}; keepalive 8; }
.
my $locations = join '', map { <<"." } sort keys %port;
        location = /$_ {
            matrix_user_hash https://$_.example;
            matrix_user_hash_ssl_name matrix.example.org;
            matrix_user_hash_ssl_trusted_certificate $pki/ca.pem;
            proxy_pass http://sync_workers;
        }
        location = /$_/unverified {
            matrix_user_hash https://$_.example;
            matrix_user_hash_ssl_verify off;
            proxy_pass http://sync_workers;
        }
        location = /$_/untrusted {
            matrix_user_hash https://$_.example;
            matrix_user_hash_ssl_name matrix.example.org;
            matrix_user_hash_ssl_trusted_certificate $pki/self.pem;
            proxy_pass http://sync_workers;
        }
        location = /$_/kept {
            matrix_user_hash https://$_.kept;
            matrix_user_hash_ssl_name matrix.example.org;
            matrix_user_hash_ssl_trusted_certificate $pki/ca.pem;
            proxy_pass http://sync_workers;
        }
        location = /$_/proxied { proxy_ssl_server_name on; proxy_pass https://$_.example/tls; }
        location = /$_/kept/proxied { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass https://$_.kept/tls; }
.
my $nginx = MatrixUserHash::Instance->start(http => $homeservers . <<"..", server => $locations . <<"...");
    upstream nameless { server 127.0.0.1:$port{good}; }
    upstream old { server 127.0.0.1:$port{good}; }
    upstream kept { server 127.0.0.1:$port{good}; keepalive 4; }
    upstream matrix.example.org { server 127.0.0.1:$port{good}; }
..
        location /by-name { matrix_user_hash https://matrix.example.org; matrix_user_hash_ssl_trusted_certificate $pki/ca.pem; proxy_pass http://sync_workers; }
        location /no-sni { matrix_user_hash https://nameless; matrix_user_hash_ssl_name matrix.example.org; matrix_user_hash_ssl_server_name off; matrix_user_hash_ssl_trusted_certificate $pki/ca.pem; proxy_pass http://sync_workers; }
        location /kept { matrix_user_hash https://kept; matrix_user_hash_ssl_name matrix.example.org; matrix_user_hash_ssl_trusted_certificate $pki/ca.pem; proxy_pass http://sync_workers; }
        location /tls12 { matrix_user_hash https://old; matrix_user_hash_ssl_name matrix.example.org; matrix_user_hash_ssl_protocols TLSv1.2; matrix_user_hash_ssl_ciphers ECDHE-RSA-AES128-GCM-SHA256; matrix_user_hash_ssl_trusted_certificate $pki/ca.pem; proxy_pass http://sync_workers; }
        location /depth1 { matrix_user_hash https://chain.example; matrix_user_hash_ssl_verify_depth 1; matrix_user_hash_ssl_name matrix.example.org; matrix_user_hash_ssl_trusted_certificate $pki/ca.pem; proxy_pass http://sync_workers; }
        location /depth2 { matrix_user_hash https://chain.example; matrix_user_hash_ssl_verify_depth 2; matrix_user_hash_ssl_name matrix.example.org; matrix_user_hash_ssl_trusted_certificate $pki/ca.pem; proxy_pass http://sync_workers; }
        location /plain { matrix_user_hash http://127.0.0.1:$port{good}; proxy_pass http://sync_workers; }
...
my $port = $nginx->port;
my $n    = 0;

# The outcome for a token that nobody asked for yet, and how often whoami was reached.
sub outcome {
    my ($path) = @_;
    # An answer in between: after five failures in a row the module would stop asking for a while.
    get($port, '/good', token('bob/tls' . $n));
    whoami_reset();
    my $token = token('alice/tls' . $n++);
    my $got   = get($port, $path, $token);
    my %name  = (hash_of('@alice:example.org') => 'alice', hash_of($token) => 'token');
    return join ' ', $got->{status}, $got->{headers}{'x-status'}, $name{ $got->{headers}{'x-hash'} } // '-',
        'asked ' . whoami_stats()->{requests};
}

# The line that the homeserver's nginx wrote of the TLS connection: server name, protocol, Host.
sub seen { my ($record) = reverse whoami_log(); return $record->{raw} =~ /^X-Sni: (.*?)\r$/m ? $1 : '' }

is(outcome('/good'), '200 MISS alice asked 1', 'a good certificate');
like(seen(), qr/^matrix\.example\.org TLSv1\.[23] /, '… asked for by name (SNI)');
is(outcome("/$_"), '200 ERROR token asked 0', "a certificate that is $_: the token is not sent, the request goes on") for qw(wrong expired self);
is(outcome("/$_/unverified"), '200 MISS alice asked 1', "… and with matrix_user_hash_ssl_verify off it is accepted: $_") for qw(wrong expired self);
is(outcome('/good/untrusted'), '200 ERROR token asked 0', 'a good certificate of an authority that is not trusted');
is(outcome('/self/untrusted'), '200 MISS alice asked 1', 'a self-signed certificate that is trusted itself');
is(outcome('/by-name'), '200 MISS alice asked 1', 'the name to verify is the URL\'s, unless told otherwise');
is(outcome('/no-sni'), '200 MISS alice asked 1', 'matrix_user_hash_ssl_server_name off');
like(seen(), qr/^ TLSv1/, '… sends no name');
is(outcome('/tls12'), '200 MISS alice asked 1', 'matrix_user_hash_ssl_protocols and _ciphers');
like(seen(), qr/TLSv1\.2/, '… are kept to');
is(outcome('/chain'), '200 MISS alice asked 1', 'a chain with two intermediates');
is(outcome('/depth2'), '200 MISS alice asked 1', '… also with matrix_user_hash_ssl_verify_depth 2');
is(outcome('/depth1'), '200 ERROR token asked 0', '… and not with 1');
is(outcome('/plain'), '200 ERROR token asked 0', 'http:// to a TLS port is an error');
is(outcome('/kept'), '200 MISS alice asked 1', 'a group with keepalive') for 1 .. 3;

# The group belongs to others as well: what they do with it does not reach lookups, and the other way round.
sub proxied { my $got = get($port, "$_[0]/proxied"); return $got->{status} . ' ' . ($got->{headers}{'x-tls'} // '') }
sub tls_of { my ($record) = reverse whoami_log(); return $record->{raw} =~ /^X-Tls: (.*?)\r$/m ? $1 : '' }
sub connection_of { return $_[0] =~ /connection=(\d+)/ ? $1 : die "no connection: $_[0]" }

is((proxied("/$_"))[0] =~ /^(\d+)/ && $1, 200, "requests are proxied to a server whose certificate lookups refused: $_") for qw(wrong expired self);
for (1 .. 3) {
    proxied('/good');
    like(outcome('/good'), qr/MISS alice/, "a lookup after a request that was proxied without verifying ($_)");
}
like(tls_of(), qr/resumed=r/, '… and it resumed a session: one of a lookup');
is(outcome('/self'), '200 ERROR token asked 0', 'a lookup does not resume a session of a proxied request');
proxied('/self/kept');
is(outcome('/self/kept'), '200 ERROR token asked 0', '… nor sends a token over a connection that a proxied request left open');
outcome('/good/kept');
my @connections = map { outcome('/good/kept'); connection_of(tls_of()) } 1 .. 3;
is("@connections", join(' ', ($connections[0]) x 3), 'lookups use the connection that a lookup left open');
my $other = connection_of(proxied('/good/kept'));
isnt($other, $connections[0], '… and a proxied request has another one');
is(connection_of(proxied('/good/kept')), $other, '… which the group keeps for proxied requests');
outcome('/good/kept');
is(connection_of(tls_of()), $connections[0], '… and lookups go on with theirs');

my $log = $nginx->error_log;
like($log, qr/matrix_user_hash: lookup at "\S+" failed: its certificate /, 'the log says what is wrong with a certificate');

{
    my $check = MatrixUserHash::Instance->new(bare => 1, http => <<".");
    server { listen 127.0.0.1:@{[free_port(8)]}; location / { matrix_user_hash https://127.0.0.1:$port{good}; matrix_user_hash_ssl_trusted_certificate $pki/missing.pem; } }
.
    my ($ok, $said) = $check->check;
    ok(!$ok && $said =~ /\[emerg\].*missing\.pem/, 'a trusted certificate that does not exist is an [emerg] that names it');
    $check = MatrixUserHash::Instance->new(bare => 1, http => <<".");
    server { listen 127.0.0.1:@{[free_port(8)]}; location / { matrix_user_hash https://127.0.0.1:$port{good}; matrix_user_hash_ssl_protocols TLSv9; } }
.
    ($ok, $said) = $check->check;
    ok(!$ok && $said =~ /\[emerg\].*TLSv9/, 'a protocol that does not exist, likewise');
}

done_testing();
