package MatrixUserHash::Http;

# A small HTTP/1.x client for what Test::Nginx's own cannot do: many requests at once, exact bytes in pieces, and the
# time that each took. No redirects, no cookies, nothing kept alive.
#
# In:  a port on 127.0.0.1 and the bytes of a request.
# Out: { status, headers => { lower-case name => last value }, body, raw, time (seconds), error }.

use strict;
use warnings;

use Exporter qw(import);
use IO::Select;
use IO::Socket::INET;
use Socket qw(SO_ERROR SOL_SOCKET);
use Time::HiRes qw(time sleep);

our @EXPORT_OK = qw(request gather get shown bearer connect_to read_answer parse);

sub connect_to {
    my ($port) = @_;
    return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp', Timeout => 5)
        // die "cannot connect to port $port: $!";
}

# A GET with that token, or none, as bytes. Further header lines may follow.
sub bearer {
    my ($target, $token, @headers) = @_;
    my $auth = defined $token ? "Authorization: Bearer $token\r\n" : '';
    return "GET $target HTTP/1.1\r\nHost: matrix.example.org\r\nConnection: close\r\n$auth"
        . join('', map { "$_\r\n" } @headers) . "\r\n";
}

# Whether these bytes hold a whole response (a HEAD's has no body).
sub complete {
    my ($raw, $head_only) = @_;
    while ($raw =~ /\AHTTP\/1\.[01] 1(?!01)\d\d .*?\r\n\r\n/s) { $raw = substr $raw, $+[0] }
    my ($head, $body) = $raw =~ /\A(.*?)\r\n\r\n(.*)\z/s or return 0;
    return 1 if $head_only;
    return length $body >= $1 if $head =~ /^content-length:\s*(\d+)/mi;
    return $body =~ /(?:\A|\r\n)0\r\n\r\n\z/ if $head =~ /^transfer-encoding:\s*chunked/mi;
    return 0;
}

sub parse {
    my ($raw) = @_;
    while ($raw =~ /\AHTTP\/1\.[01] 1(?!01)\d\d .*?\r\n\r\n/s) { $raw = substr $raw, $+[0] }
    my ($head, $body) = $raw =~ /\A(.*?)\r\n\r\n(.*)\z/s or return { status => 0, headers => { 'x-hash' => '-', 'x-status' => '-' }, body => '', raw => $raw };
    my ($line, @lines) = split /\r\n/, $head;
    my %headers = map { /^([^:]+):\s*(.*)$/ ? (lc $1 => $2) : () } @lines;
    if (($headers{'transfer-encoding'} // '') =~ /chunked/i) {
        my $out = '';
        while ($body =~ s/\A([0-9a-fA-F]+)[^\r]*\r\n//) {
            my $n = hex $1 or last;
            $out .= substr $body, 0, $n;
            $body = substr $body, $n + 2;
        }
        $body = $out;
    }
    $headers{$_} //= '-' for qw(x-hash x-status);    # what nginx leaves out because it is empty
    return { status => (split ' ', $line)[1] // 0, headers => \%headers, body => $body, raw => $raw };
}

# Reads one response from a connected socket; with `whole`, everything until it is closed. `head`: it has no body.
sub read_answer {
    my ($sock, %o) = @_;
    my ($raw, $end, $select) = ('', time + ($o{timeout} // 10), IO::Select->new($sock));
    while ($o{whole} || !complete($raw, $o{head})) {
        my $left = $end - time;
        return { %{ parse($raw) }, error => 'timeout' } if $left <= 0;
        next unless $select->can_read($left);
        sysread($sock, my $part, 65536) or last;
        $raw .= $part;
    }
    return parse($raw);
}

# One request, whose bytes may be a list of pieces with pauses (numbers as \0.1) between them.
sub request {
    my ($port, $bytes, %o) = @_;
    my $sock = connect_to($port);
    my $start = time;
    for my $piece (ref $bytes eq 'ARRAY' ? @$bytes : $bytes) {
        if (ref $piece) { sleep $$piece; next }
        local $SIG{PIPE} = 'IGNORE';
        my $sent = 0;
        while ($sent < length $piece) {
            $sent += syswrite($sock, $piece, 65536, $sent) // last;
        }
    }
    my $got = read_answer($sock, %o);
    $got->{time} = time - $start;
    return $got;
}

sub get { my ($port, $target, $token, @headers) = @_; return request($port, bearer($target, $token, @headers)) }

# "STATUS HASH" of an answer, as the tests' servers put the variables in X-Status and X-Hash; `-` for empty.
sub shown { my ($got) = @_; return "$got->{headers}{'x-status'} $got->{headers}{'x-hash'}" }

# Sends all at once, each on a connection of its own, and waits for every answer, in the order of the requests.
# `every`: seconds between two sends.
sub gather {
    my ($port, $requests, %o) = @_;
    my (@got, %by);
    my $select = IO::Select->new;
    my $end = time + ($o{timeout} // 20);
    for my $i (0 .. $#$requests) {
        my $sock = connect_to($port);
        syswrite $sock, $requests->[$i];
        $by{ fileno $sock } = { i => $i, sock => $sock, raw => '', start => time };
        $select->add($sock);
        sleep $o{every} if $o{every};
    }
    while (%by && time < $end) {
        for my $sock ($select->can_read(0.5)) {
            my $one = $by{ fileno $sock };
            my $n = sysread $sock, $one->{raw}, 65536, length $one->{raw};
            next if $n && !complete($one->{raw});
            $got[$one->{i}] = { %{ parse($one->{raw}) }, time => time - $one->{start} };
            delete $by{ fileno $sock };
            $select->remove($sock);
            close $sock;
        }
    }
    $got[$_->{i}] = { %{ parse($_->{raw}) }, error => 'timeout', time => time - $_->{start} } for values %by;
    return @got;
}

1;
