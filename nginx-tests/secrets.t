# No variable, log line at any level, response, state file or shared-memory byte ever holds a token or a part of one.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get gather bearer connect_to);
use Test::More;
use Time::HiRes qw(sleep);

# The secret part of a token is what follows the localpart; eight letters of it in a row are a part of it.
my @tokens;
sub secret { my $token = token("$_[0]/secret" . @tokens); push @tokens, $token; return $token }

# Every part of eight bytes of every token used so far, as one pattern.
sub parts {
    my $parts = join '|', map {
        my ($tail) = /^syt_[^_]+_(.*)$/;
        map { substr $tail, $_, 8 } 0 .. length($tail) - 8;
    } @tokens;
    return qr/$parts/;
}

# Those that the text holds.
sub leaks {
    my ($text) = @_;
    my $parts = parts();
    my %found = map { $_ => 1 } $text =~ /($parts)/g;
    return [sort keys %found];
}

# The error log without what nginx itself says of a client that leaves, wherever its request waits.
sub log_of {
    my ($nginx) = @_;
    return join "\n", grep { !/client prematurely closed connection/ } split /\n/, $nginx->error_log;
}

my @failing = qw(status-500 status-403 close close-head html garbage hang half-json megabyte truncated-length bad-chunk);
my $locations = join '', map { "        location = /$_ { matrix_user_hash http://\$TEST_NGINX_WHOAMI/$_/whoami; matrix_user_hash_timeout 200ms; matrix_user_hash_read_timeout 150ms; proxy_pass http://sync_workers; }\n" } @failing;
my $http = <<'.';
    matrix_user_hash_zone users:1m state=STATE;
    upstream two_dead { server $TEST_NGINX_DEAD; server 127.0.0.1:$TEST_NGINX_FREE9; }
.
my $server = $locations . <<'.';
        location /sync { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
        location /dead { matrix_user_hash http://$TEST_NGINX_DEAD zone=users; proxy_pass http://sync_workers; }
        location /two-dead { matrix_user_hash http://two_dead; proxy_pass http://sync_workers; }
        location /hanging { matrix_user_hash http://$TEST_NGINX_WHOAMI/hang/whoami; matrix_user_hash_timeout 300ms; matrix_user_hash_read_timeout 200ms; proxy_pass http://sync_workers; }
        location /figures { matrix_user_hash_metrics; }
        location /told { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_set_header X-Told "$matrix_user_hash $matrix_user_hash_status $matrix_user_hash_lookup_time"; proxy_pass http://sync_workers; }
.

sub start {
    my (%o) = @_;
    my $state = "/tmp/matrix-user-hash-state-$$";
    (my $text = $http) =~ s/STATE/$state/;
    return (MatrixUserHash::Instance->start(http => $text, server => $server, log_format => 'matrix', %o), $state);
}

# What each kind of request does, all with tokens in the query or in the header; returns all answers as one text.
sub exercise {
    my ($port, $style) = @_;
    my $all = '';
    my $ask = sub {
        my ($path, $token) = @_;
        my $got = $style eq 'query' ? get($port, "$path?since=s1&access_token=$token&timeout=0", undef)
            : $style eq 'encoded' ? get($port, "$path?access_token=" . join('', map { sprintf '%%%02X', ord } split //, $token), undef)
            : get($port, $path, $token);
        (my $raw = $got->{raw} // '') =~ s/worker \d \w+ \S+//;    # the stand-in worker repeats the URL
        $all .= $raw;
        return $got;
    };
    my $known = secret('alice');
    $ask->('/sync', $known) for 1 .. 2;
    $ask->('/told', $known);
    $ask->('/sync', secret('revoked')) for 1 .. 2;
    $ask->('/sync', secret('locked'));
    $ask->('/dead', secret('alice'));
    $ask->('/two-dead', secret('alice'));
    for my $kind (@failing) {
        $ask->("/$kind", secret('alice'));
        $ask->('/sync', secret('bob'));    # an answer in between, so that lookups are not suspended
    }
    # Anonymous ones that hold a token all the same.
    my $token = secret('carol');
    $all .= get($port, "/sync?access_token=$token", $token)->{headers}{'x-status'};
    # A client that leaves during the lookup.
    $token = secret('dave');
    my $sock = connect_to($port);
    syswrite $sock, $style eq 'header' ? bearer('/hanging', $token) : bearer("/hanging?access_token=$token", undef);
    sleep 0.1;
    close $sock;
    sleep 0.5;
    $all .= get($port, '/figures')->{body};
    return $all;
}

# Of a worker's memory: what it shares with others, which is the zones; and what is its own.
my $SHARED  = qr/rw-s/;
my $PRIVATE = qr/rw-p.*(?:\[heap\]|0 *$)/;

sub memory {
    no warnings 'portable';    # addresses have more than 32 bits
    my ($pid, $kind) = @_;
    open my $maps, '<', "/proc/$pid/maps" or die "maps: $!";
    open my $mem, '<:raw', "/proc/$pid/mem" or die "mem: $!";
    my $all = '';
    while (<$maps>) {
        my ($from, $to) = /^([0-9a-f]+)-([0-9a-f]+) $kind/ or next;
        sysseek $mem, hex $from, 0;
        my $left = hex($to) - hex $from;
        while ($left > 0) {
            my $n = sysread $mem, my $part, $left < 1 << 20 ? $left : 1 << 20 or last;
            $all .= $part;
            $left -= $n;
        }
    }
    return $all;
}

my $beginning = substr token('alice/phone'), 0, 11;
for my $style (qw(header query encoded)) {
    @tokens = ();
    my ($nginx, $state) = start(log_level => 'info');
    my $answers = exercise($nginx->port, $style);
    cmp_ok(scalar @tokens, '>', 25, "tokens by $style, in " . @tokens . ' requests of every outcome');
    like($nginx->error_log, qr/whoami|matrix_user_hash|upstream/, '… of which the error log tells');
    is_deeply(leaks(log_of($nginx)), [], '… but holds no part of a token at info level');
    is_deeply(leaks($nginx->access_log), [], '… nor does an access log of the variables');
    like($nginx->access_log, qr/hash=[0-9a-f]{16} status=HIT/, '… which are in it');
    is_deeply(leaks($answers), [], '… nor does any response');
    my $memory = memory(($nginx->worker_pids)[0], $SHARED);
    cmp_ok(length $memory, '>', 1 << 20, '… nor do the ' . length($memory) . ' bytes of shared memory:');
    is_deeply(leaks($memory), [], '… no token');
    unlike($memory, qr/alice:example|bob:example/, '… and no user id');
    unlike($memory, qr/\Q$beginning\E/, '… not even a token\'s beginning');
    $nginx->stop('QUIT');
    SKIP: {
        skip 'no state file was written', 2 unless -s $state;
        open my $in, '<:raw', $state or die $!;
        local $/;
        my $bytes = <$in>;
        is_deeply(leaks($bytes), [], '… nor does the state file');
        is((stat $state)[2] & 07777, 0600, '… which only its owner may read');
    }
    unlink $state;
}

{
    # At debug level nginx itself writes the client's request down. What is asked of us: with the module on, no line
    # holds a token that would not be there with the module off. A line is known by its words, without numbers.
    my %shapes;
    for my $on (1, 0) {
        @tokens = ();
        local $ENV{MATRIX_USER_HASH_OFF} = !$on || $ENV{MATRIX_USER_HASH_OFF} ? 1 : '';
        my ($nginx, $state) = start(log_level => 'debug');
        my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx';
        plan skip_all => 'nginx without --with-debug' if `$binary -V 2>&1` !~ /--with-debug/;
        exercise($nginx->port, 'header');
        exercise($nginx->port, 'query');
        sleep 0.2;
        my $parts = parts();
        for my $line (split /\n/, log_of($nginx)) {
            next unless $line =~ $parts;
            next if $line =~ /http (?:posted|finalize) request/;    # the client that left, again
            $line =~ s/syt_\S*/TOKEN/g;
            $line =~ s/^.*?\[(\w+)\] [\d#*: ]+/[$1] /;
            $line =~ s/\b(?=[0-9A-F]*[0-9])[0-9A-F]+\b/N/g;
            $line =~ s/"[^"]*"/""/g;
            $shapes{$on}{$line} = 1;
        }
        unlink $state;
    }
    cmp_ok(scalar keys %{ $shapes{0} }, '>', 0, 'at debug level nginx\'s own lines hold the client\'s token');
    is_deeply([grep { !$shapes{0}{$_} } sort keys %{ $shapes{1} }], [], '… and no other line does because of us');
}

# A token that came percent-encoded: nginx has it encoded, so that whatever holds it decoded is the module's.
SKIP: {
    # AddressSanitizer maps terabytes for itself.
    skip 'the memory is the sanitizer\'s', 2 if $ENV{TEST_NGINX_USE_VALGRIND} || $ENV{ASAN_OPTIONS};
    my $heap = MatrixUserHash::Instance->start(http => 'upstream kept { server $TEST_NGINX_WHOAMI; keepalive 4; }', server => <<'.');
        location /sync { matrix_user_hash http://kept; proxy_pass http://sync_workers; }
        location /dead { matrix_user_hash http://$TEST_NGINX_DEAD; proxy_pass http://sync_workers; }
        location /hang { matrix_user_hash http://$TEST_NGINX_WHOAMI/hang/whoami; matrix_user_hash_timeout 300ms; proxy_pass http://sync_workers; }
.
    my $at = $heap->port;
    my @decoded = map { secret($_) } (('alice') x 20, ('revoked') x 5);
    for my $token (@decoded, secret('dead'), secret('hang')) {
        my $encoded = join '', map { sprintf '%%%02X', ord } split //, $token;
        my $path = $token =~ /^syt_ZGVhZ/ ? '/dead' : $token =~ /^syt_aGFuZ/ ? '/hang' : '/sync';
        get($at, "$path?access_token=$encoded", undef) for 1 .. 2;
    }
    my ($pid) = `ps -o pid= --ppid $heap->{pid}` =~ /(\d+)/;
    my $private = memory($pid, $PRIVATE);
    cmp_ok(length $private, '>', 100_000, 'the memory of a worker');
    my @found = grep { my $tail = substr $_, -30; index($private, $tail) >= 0 } @tokens;
    is(scalar(@found), 0, '… has no token after its request');
}

done_testing();
