package MatrixUserHash;

# What every test file needs: ports of its own, tokens that look real, the hashes they must give, the stand-in
# homeserver (tests/bed/standin.py), and for Test::Nginx blocks a `--- steps` section that reads as a specification.
#
# In:  TEST_NGINX_BINARY and TEST_NGINX_LOAD_MODULES, as scripts/nginx-tests sets them; MATRIX_USER_HASH_PORTS, the
#      first of the ports that the suite may use (19000); MATRIX_USER_HASH_OFF=1 turns the directive off everywhere,
#      and then every file must fail; MATRIX_USER_HASH_PHASE is a matrix_user_hash_phase for all configurations.
# Out: exported functions below; environment variables that Test::Nginx expands in a block's config:
#      $TEST_NGINX_WHOAMI, $TEST_NGINX_WHOAMI2 (HOST:PORT of the stand-in, twice), $TEST_NGINX_WHOAMI_SOCK,
#      $TEST_NGINX_DEAD (HOST:PORT where nobody listens), $TEST_NGINX_WORKER1 … 4, $TEST_NGINX_FREE1 … 9 (ports).
#
# A line of `--- steps` is one request on a connection of its own, in order:
#
#     METHOD URL [TOKEN] ["Header: value"]... = [CODE] STATUS HASH [~ REGEX of the body]
#
# TOKEN is {user/device}: a made-up native token, sent as a Bearer header; in URL or a header it is just put in.
# STATUS is $matrix_user_hash_status, alternatives with `|`, `-` for empty. HASH is @user:server (the hash of that
# user), `token` (the hash of the token), sixteen digits, `other` (some hash, but not the token's), or `-` (empty).
# `= CODE` alone checks nothing else. And:
#
#     asked N              so far whoami was asked N times (or `asked N..M`)
#     homeserver K=V       what the stand-in does from now on: `kind=hang`, `delay=0.2`
#     wait SECONDS

use strict;
use warnings;
use v5.10.1;

use Digest::SHA qw(sha256_hex sha256);
use Exporter qw(import);
use File::Basename qw(basename dirname);
use File::Spec;
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use MatrixUserHash::Http qw(request);

our @EXPORT = qw(token hash_of whoami_log whoami_stats whoami_set whoami_reset
                 free_port whoami_port common_http common_server switch_off expand nginx_says is_musl
                 nginx_is_from keeps_by_default);

our ($Base, $Root, $Mock);

BEGIN {
    my $lib   = dirname(File::Spec->rel2abs(__FILE__));
    my $tests = dirname($lib);
    $Root = $ENV{MATRIX_USER_HASH_SERVROOT} || "$tests/servroot";
    # Each file has thirty ports of its own, by its place in the directory, so that files may run side by side.
    my @files = map { basename $_ } sort glob "$tests/*.t";
    my $name  = basename $0;
    my ($slot) = grep { $files[$_] eq $name } 0 .. $#files;
    $slot //= scalar @files;
    $Base = ($ENV{MATRIX_USER_HASH_PORTS} || 19000) + 30 * $slot;
    (my $stem = $name) =~ s/\.t$//;
    $Root .= "-$stem";

    $ENV{TEST_NGINX_SERVER_PORT}   = $Base;
    $ENV{TEST_NGINX_SERVROOT}      = $Root;
    $ENV{TEST_NGINX_FAST_SHUTDOWN} = 1;
    $ENV{TEST_NGINX_TIMEOUT}     //= 15;
    $ENV{"TEST_NGINX_WORKER$_"}    = $Base + $_ for 1 .. 4;
    $ENV{TEST_NGINX_WHOAMI}        = "127.0.0.1:" . ($Base + 5);
    $ENV{TEST_NGINX_WHOAMI2}       = "127.0.0.1:" . ($Base + 6);
    $ENV{TEST_NGINX_DEAD}          = "127.0.0.1:" . ($Base + 7);
    $ENV{TEST_NGINX_WHOAMI_SOCK}   = File::Spec->tmpdir . "/matrix-user-hash-$Base.sock";
    $ENV{"TEST_NGINX_FREE$_"}      = $Base + 10 + $_ for 1 .. 9;
}

# The port of the stand-in homeserver, and others that the test file may use as it likes.
sub whoami_port { $Base + 5 }
sub free_port   { $Base + 10 + $_[0] }

# A native token of that device, "alice/phone": the same name, the same token.
sub token {
    my ($name) = @_;
    my ($local) = split m{/}, $name;
    (my $head = encode_base64($local, '')) =~ s/=+$//;
    my @letters = ('A' .. 'Z', 'a' .. 'z');
    my $tail = join '', map { $letters[$_ % 52] } unpack 'C26', sha256($name);
    return sprintf 'syt_%s_%s_%s', $head, substr($tail, 0, 20), substr($tail, 20);
}

# What $matrix_user_hash is for that user id, or that token: printf %s … | sha256sum | cut -c1-16.
sub hash_of { substr sha256_hex($_[0]), 0, 16 }

# {user/device} becomes the token.
sub expand {
    my ($text) = @_;
    $text =~ s/\{([\w.=-]+\/[\w.-]+)\}/token($1)/ge;
    return $text;
}

# --- the stand-in homeserver ---

sub start_whoami {
    return if $Mock;
    my @cmd = (qw(/usr/bin/python3 -B -m tests.bed.standin), join(',', $Base + 5, $Base + 6), '--socket',
               $ENV{TEST_NGINX_WHOAMI_SOCK});
    local $ENV{PYTHONPATH} = File::Spec->rel2abs(dirname(__FILE__) . '/../..');
    unlink $ENV{TEST_NGINX_WHOAMI_SOCK};
    $Mock = open(my $out, '-|', @cmd) // die "cannot start the stand-in homeserver: $!";
    my $line = <$out> // '';
    die "the stand-in homeserver did not start" unless $line eq "ready\n";
    chmod 0777, $ENV{TEST_NGINX_WHOAMI_SOCK};
    $MatrixUserHash::Keep = $out;
    $MatrixUserHash::Owner = $$;
}

sub stop_whoami {
    return unless $Mock && $MatrixUserHash::Owner == $$;
    local $?;
    kill TERM => $Mock;
    waitpid $Mock, 0;
    unlink $ENV{TEST_NGINX_WHOAMI_SOCK};
    undef $Mock;
}

END { stop_whoami() }

sub ask {
    my ($target) = @_;
    start_whoami();
    my $got = request(whoami_port(), "GET $target HTTP/1.1\r\nHost: control\r\n\r\n", timeout => 10);
    return JSON::PP::decode_json($got->{body});
}

# The list of whoami requests so far: raw, target, token, query, conn, from, port, time.
sub whoami_log   { @{ ask('/__log') } }
sub whoami_stats { ask('/__stats') }
sub whoami_reset { ask('/__reset') }
sub whoami_set   { my %o = @_; ask('/__set?' . join '&', map { "$_=$o{$_}" } sort keys %o) }

# --- configuration that every instance shares ---

# What `nginx -V` says of itself: version and configure arguments.
sub nginx_says { my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx'; return scalar `$binary -V 2>&1` }

# Whether nginx has musl for its libc: then the file names musl's loader.
sub is_musl {
    open my $in, '<:raw', $ENV{TEST_NGINX_BINARY} || die 'no TEST_NGINX_BINARY' or die $!;
    local $/;
    return <$in> =~ m{/ld-musl-};
}

# Whether it is that version of nginx or a newer one: nginx_is_from(1, 29, 7). Angie has a line for the nginx that it is based
# on, and freenginx says freenginx/1.27.2.
sub nginx_is_from {
    my @wanted = @_;
    my @has = nginx_says() =~ m{nginx/(\d+)\.(\d+)\.(\d+)} or die 'no version';
    return sprintf('%03d%03d%03d', @has) ge sprintf('%03d%03d%03d', @wanted);
}

# Whether groups keep connections unless told otherwise: nginx since 1.29.7, and not Angie.
sub keeps_by_default { return nginx_is_from(1, 29, 7) && nginx_says() !~ /^Angie/ }

# Four sync workers that say who they are and what they were told, the group over them, and log formats.
sub common_http {
    my $workers = join '', map { <<"." } 1 .. 4;
    server {
        listen 127.0.0.1:@{[$Base + $_]};
        location / {
            add_header X-Worker $_;
            add_header X-Told "\$http_x_told";
            add_header X-Accel-Redirect "\$arg_accel";
            return 200 "worker $_ \$request_method \$request_uri\\n";
        }
    }
.
    my $servers = join ' ', map { "server 127.0.0.1:@{[$Base + $_]};" } 1 .. 4;
    my $phase = $ENV{MATRIX_USER_HASH_PHASE} ? "matrix_user_hash_phase $ENV{MATRIX_USER_HASH_PHASE};" : '';
    return <<"." . $workers;
    $phase
    upstream sync_workers { hash \$matrix_user_hash consistent; $servers }
    log_format matrix '\$uri hash=\$matrix_user_hash status=\$matrix_user_hash_status time=\$matrix_user_hash_lookup_time';
.
}

# Response headers that show the variables, and the way to the stand-in's control paths.
sub common_server { return <<"." }
        add_header X-Hash \$matrix_user_hash always;
        add_header X-Status \$matrix_user_hash_status always;
        add_header X-Lookup-Time \$matrix_user_hash_lookup_time always;
        location /__ { proxy_pass http://127.0.0.1:@{[whoami_port()]}; }
.

# With MATRIX_USER_HASH_OFF, the configuration with the directive turned off: what holds then proves nothing.
sub switch_off {
    my ($config) = @_;
    $config =~ s/(?<![\$\w])matrix_user_hash\s+(?:"[^"]*"|[^;"])+;/matrix_user_hash off;/g if $ENV{MATRIX_USER_HASH_OFF};
    return $config;
}

# --- `--- steps` for Test::Nginx ---

sub hash_pattern {
    my ($hash, $used) = @_;
    return '' if $hash eq '-';
    return '(?!' . hash_of($used->[0] // '') . ')[0-9a-f]{16}' if $hash eq 'other';
    return hash_of($used->[0] // die "`token` without a token") if $hash eq 'token';
    return $hash if $hash =~ /^[0-9a-f]{16}$/;
    return hash_of($hash) if $hash =~ /^@/;
    die "bad hash in a step: $hash";
}

# One step as what Test::Nginx wants of a request: [request, headers, code, response headers that match, body].
sub parse_step {
    my ($line) = @_;
    if ($line =~ /^asked (\d+)(?:\.\.(\d+))?$/) {
        my $counts = join '|', $1 .. ($2 // $1);
        return ['GET /__stats', '', 200, '', qr/"requests": (?:$counts)\b/];
    }
    return ["GET /__set?$1", '', 200, '', qr/./] if $line =~ /^homeserver (\S+)$/;
    return ["GET /__sleep?seconds=$1", '', 200, '', qr/./] if $line =~ /^wait ([\d.]+)$/;

    my ($left, $right) = $line =~ /^(.*\S)\s+=\s+(.*)$/ or die "bad step: $line";
    my @used = map { token($_) } $left =~ /\{([\w.=-]+\/[\w.-]+)\}/g;
    my @headers;
    push @headers, expand($1) while $left =~ s/\s+"([^"]*)"//;
    unshift @headers, 'Authorization: Bearer ' . token($1) if $left =~ s/\s+\{([\w.=-]+\/[\w.-]+)\}$//;
    my $body = $right =~ s/\s*~\s+(.*)$// ? qr/$1/s : qr//;
    my ($code, $status, $hash) = $right =~ /^(?:(\d{3})\b)?\s*(?:(\S+)\s+(\S+))?$/ or die "bad step: $line";
    # An absent header is an empty value to Test::Nginx.
    my $like = !defined $status ? '' : sprintf "X-Status: (?:%s)\nX-Hash: (?:%s)\n",
        $status eq '-' ? '' : $status, hash_pattern($hash, \@used);
    return [expand($left), join("\n", @headers), $code // 200, $like, $body];
}

sub prepare {
    my ($block) = @_;
    start_whoami();
    whoami_reset();
    $block->set_value(http_config => switch_off(common_http() . ($block->http_config // '')));
    $block->set_value(config => switch_off(common_server() . $block->config)) if defined $block->config;
    my $steps = $block->steps // return;
    my @steps = map { parse_step($_) } grep { /\S/ && !/^\s*#/ } split /\n/, $steps;
    my @names = qw(request more_headers error_code response_headers_like response_body_like);
    for my $i (0 .. $#names) {
        $block->set_value($names[$i] => [map { $_->[$i] } @steps]);
    }
}

# Called by a file that uses Test::Nginx::Socket, before run_tests().
sub use_steps {
    require Test::Nginx::Util;
    Test::Nginx::Util::add_block_preprocessor(\&prepare);
    Test::Nginx::Util::no_shuffle();
    Test::Nginx::Util::no_root_location();
    Test::Nginx::Util::worker_connections(256);
}

1;
