# matrix_user_hash_shift: who is sent to the old group and who to the new one, and when. docs/directives.md.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use JSON::PP qw(decode_json);
use MatrixUserHash::Http qw(get gather bearer);
use Math::BigInt;
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(sleep time);

# The user's moment, in seconds since 1970, worked out as the documentation says.
sub moment {
    my ($hash, $start, $over) = @_;
    my $mask = Math::BigInt->new(2)->bpow(64)->bsub(1);
    my $bits = Math::BigInt->from_hex($hash);
    for ([30, '0xbf58476d1ce4e5b9'], [27, '0x94d049bb133111eb'], [31, '0x1']) {
        my $shifted = $bits->copy->brsft($_->[0]);
        $bits->bxor($shifted)->bmul(Math::BigInt->from_hex($_->[1]))->band($mask);
    }
    return $start + $bits->bmul(int($over * 1000))->brsft(64)->numify / 1000;
}

sub rfc3339 { return strftime('%Y-%m-%dT%H:%M:%SZ', gmtime $_[0]) }

# An nginx with those shifts; $group says where a request goes.
sub instance {
    my ($free, $shifts) = @_;
    my $listen = free_port($free);
    my $nginx  = MatrixUserHash::Instance->start(workers => 2, bare => 1, http => <<"..");
    matrix_user_hash_zone users:1m;
    $shifts
    log_format told '\$group \$msec';
    upstream old { server 127.0.0.1:@{[free_port($free + 1)]}; }
    upstream new { server 127.0.0.1:@{[free_port($free + 2)]}; }
    server { listen 127.0.0.1:@{[free_port($free + 1)]}; location / { return 200 old; } }
    server { listen 127.0.0.1:@{[free_port($free + 2)]}; location / { return 200 new; } }
    server {
        listen 127.0.0.1:$listen reuseport;
        add_header X-Status \$matrix_user_hash_status;
        location / { matrix_user_hash http://\$TEST_NGINX_WHOAMI zone=users; proxy_pass http://\$group; }
        location /dead { matrix_user_hash http://\$TEST_NGINX_DEAD zone=users; proxy_pass http://\$group; }
        location /early {
            set \$early "[\$group]";
            matrix_user_hash http://\$TEST_NGINX_WHOAMI zone=users;
            add_header X-Early \$early;
            proxy_pass http://\$group;
        }
        location /slow {
            matrix_user_hash http://\$TEST_NGINX_WHOAMI zone=users;
            limit_rate 50;
            access_log logs/slow.log told;
            proxy_pass http://\$group;
        }
        location /off { add_header X-Group "[\$group]"; return 204; }
        location = /figures { matrix_user_hash_metrics; }
        location = /prometheus { matrix_user_hash_metrics prometheus; }
    }
..
    for (1 .. 200) {
        last if eval { get($listen, '/off') };
        sleep 0.05;
    }
    return ($nginx, $listen);
}

sub where_to {
    my ($port, @users) = @_;
    return map { $_->{body} } gather($port, [map { bearer('/sync', token("$_/phone")) } @users]);
}

my @users = map { "user$_" } 1 .. 200;

{
    # Two nginx, one line: the share that has moved, each user by the documented arithmetic.
    my $now   = int time;
    my $start = $now - 600;
    my ($one, $port)  = instance(1, "matrix_user_hash_shift \$group old new start=@{[rfc3339($start)]} over=20m;");
    my ($two, $other) = instance(4, "matrix_user_hash_shift \$group old new start=$start over=1200s;");
    my %moment = map { $_ => moment(hash_of("\@$_:example.org"), $start, 1200) } @users;
    my $before = time;
    my @first  = where_to($port, @users);
    my @second = where_to($other, @users);
    my $after  = time;
    my @sure   = grep { $moment{ $users[$_] } < $before - 1 || $moment{ $users[$_] } > $after + 1 } 0 .. $#users;
    cmp_ok(scalar @sure, '>', 190, 'nearly all users move some time before or after');
    my @expected = map { $moment{ $users[$_] } < $before ? 'new' : 'old' } @sure;
    is_deeply([@first[@sure]], \@expected, 'each user is where the arithmetic says');
    is_deeply([@second[@sure]], \@expected, '… in an other nginx as well, told the same in other words');
    my $moved = grep { $_ eq 'new' } @first;
    ok($moved > 60 && $moved < 140, "… $moved of 200 have moved at half time");
    my $figures = decode_json(get($port, '/figures')->{body})->{shifts}{group};
    ok(abs($figures->{moved} - 0.5) < 0.01, "the figures say so: $figures->{moved}");
    is("$figures->{start} $figures->{end}", join(' ', $start, $start + 1200), '… with start and end');
    my $text = get($port, '/prometheus')->{body};
    like($text, qr/^matrix_user_hash_shift_moved_ratio\{variable="group"\} 0\.5/m, '… Prometheus too');
    like($text, qr/^matrix_user_hash_shift_end_timestamp_seconds\{variable="group"\} @{[$start + 1200]}$/m, '… with the end');

    is(get($port, '/sync')->{body}, 'new', 'no token: the new one');
    for my $n (1 .. 20) {
        my $token = token("stranger$n/phone");
        my $moves = moment(hash_of($token), $start, 1200);
        next if abs($moves - time) < 2;
        my $got = get($port, '/dead', $token);
        is("$got->{body} $got->{headers}{'x-status'}", ($moves < time ? 'new' : 'old') . ' ERROR', 'a fallback goes by the hash of its token');
        last if $n >= 4;
    }
    my $early = get($port, '/early', token('user1/phone'));
    is($early->{headers}{'x-early'}, '[]', 'read too early it is empty');
    is($early->{body}, $first[0], '… and that is not remembered');
    is(get($port, '/off', token('user1/phone'))->{headers}{'x-group'}, '[]', 'empty where the directive is off');
    is_deeply([$one->complaints(qr/connect\(\) failed|matrix_user_hash: .*connect/)], [], 'no other complaint in the error log');
}

{
    # While it runs: nobody goes back, everyone moves at one moment, and no reload is needed.
    my $start = int(time) + 3;
    my ($one, $port)  = instance(1, "matrix_user_hash_shift \$group old new start=$start over=3s;");
    my ($two, $other) = instance(4, "matrix_user_hash_shift \$group old new start=@{[rfc3339($start)]} over=3s;");
    my @some = @users[0 .. 29];
    my (%seen, @wrong);
    while (time < $start + 3.5) {
        for my $server ($port, $other) {
            my $before = time;
            my @now    = where_to($server, @some);
            my $after  = time;
            for (0 .. $#some) {
                my $moves = moment(hash_of("\@$some[$_]:example.org"), $start, 3);
                # nginx reads the clock once in each turn of its event loop.
                push @wrong, "$some[$_] early" if $now[$_] eq 'new' && $after < $moves - 0.05;
                push @wrong, "$some[$_] late"  if $now[$_] eq 'old' && $before > $moves + 0.5;
                push @wrong, "$some[$_] back"  if $now[$_] eq 'old' && ($seen{$server}{ $some[$_] } // '') eq 'new';
                $seen{$server}{ $some[$_] } = $now[$_];
            }
        }
        sleep 0.1;
    }
    is_deeply(\@wrong, [], 'while a shift runs, each user moves once, at their moment, in both nginx');
    is_deeply([(where_to($port, @users)), where_to($other, @users)], [('new') x 400], 'at the end all have moved');
}

{
    # A request that began before its user's moment and ends after it.
    # The shift is after nginx has started, which takes seconds under valgrind, and before the answer of 50 bytes a second ends.
    my $start = int(time) + ($ENV{TEST_NGINX_USE_VALGRIND} ? 5 : 2);
    my ($nginx, $port) = instance(1, "matrix_user_hash_shift \$group old new start=$start over=10ms;");
    my $got = get($port, '/slow', token('user1/phone'));
    sleep 0.1;
    my ($group, $end) = split ' ', $nginx->slurp('slow.log');
    is("$got->{body} $group", 'old old', 'what a request was told first it is told to its end');
    cmp_ok($end, '>', $start + 0.1, '… which was after the shift');
}

{
    # Several shifts; a fixed share is the same users every time.
    my $future = int(time) + 86400;
    my ($nginx, $port) = instance(1, <<".");
    matrix_user_hash_shift \$group old new at=25%;
    matrix_user_hash_shift \$more old new at=50%;
    matrix_user_hash_shift \$none old new at=0%;
    matrix_user_hash_shift \$later old new start=$future over=1h;
.
    my @first = where_to($port, @users);
    my $moved = grep { $_ eq 'new' } @first;
    ok($moved > 25 && $moved < 75, "at=25%: $moved of 200");
    is_deeply([where_to($port, @users)], \@first, '… and it stays so');
    ok($nginx->reload, '… over a reload');
    is_deeply([where_to($port, @users)], \@first, '… too');
    my $shifts = decode_json(get($port, '/figures')->{body})->{shifts};
    is_deeply([map { $shifts->{$_}{moved} } qw(group more none later)], [0.25, 0.5, 0, 0], 'each shift has its figures');
    is($shifts->{group}{start}, undef, '… without a time where there is none');
}

# What `nginx -t` says of that line.
sub mistake {
    my ($line) = @_;
    my ($taken, $said) = MatrixUserHash::Instance->new(bare => 1, http => $line)->check;
    return $taken ? 'taken' : $said;
}

for (
    ['$g a b start=now over=1h', '"start=now"', qr/it must be a time such as "2026-11-25T15:00:00Z", or seconds since 1970/],
    ['$g a b start=2026-02-30T00:00:00Z over=1h', '"start=2026-02-30T00:00:00Z"', qr/it must be a time/],
    ['$g a b start=2026-11-25T15:00:00 over=1h', '"start=2026-11-25T15:00:00"', qr/it must be a time/],
    ['$g a b start=0 over=0', '"over=0"', qr/more than 0/],
    ['$g a b start=0 over=-1h', '"over=-1h"', qr/more than 0/],
    ['$g a b start=0 over=366d', '"over=366d"', qr/at most 365d/],
    ['$g a b start=9999-12-31T23:00:00Z over=2h', '"over=2h"', qr/after the year 9999/],
    ['$g a b start=0 end=1', '"end=1"', qr/"start=TIME over=TIME" or "at=PERCENT"/],
    ['$g a b start=0', '"start=0"', qr/"over=TIME" is missing/],
    ['$g a b over=1h', '"over=1h"', qr/"start=TIME" is missing/],
    ['$g a b at=5% over=1h', '"over=1h"', qr/or "at=PERCENT"/],
    ['$g a b at=1% at=2%', '"at=2%"', qr/duplicate/],
    ['$g a b at=25', '"at=25"', qr/from "0%" to "100%"/],
    ['$g a b at=101%', '"at=101%"', qr/from "0%" to "100%"/],
    ['$g a a at=5%', '"a"', qr/nobody would move/],
    ['$g $a b at=5%', '"\$a"', qr/not evaluated/],
    ['$g at=5% a b', '"at=5%"', qr/it must be a word/],
    ['g a b at=5%', '"g"', qr/it must be a variable/],
    ['$ a b at=5%', '"\$"', qr/it must be a variable/],
    ['$host a b at=5%', '"\$host"', qr/such a variable already/],
    ['$matrix_user_hash a b at=5%', '"\$matrix_user_hash"', qr/such a variable already/],
    ['$g a b at=5%; matrix_user_hash_shift $G a b at=6%', '"\$G"', qr/duplicate/],
    ['$g a b at=5%; map $host $g { default x; } matrix_user_hash_shift $h a b at=5%', '"g"', qr/duplicate/],
) {
    my ($line, $value, $reason) = @$_;
    my ($emerg) = grep { /\[emerg\].*$value/ && $_ =~ $reason } split /\n/, mistake("matrix_user_hash_shift $line;");
    ok(defined $emerg && ($emerg =~ /matrix_user_hash_shift/ || $line =~ /map/), "nginx -t: $line") or diag mistake("matrix_user_hash_shift $line;");
}
like(mistake('map $host $g { default x; } matrix_user_hash_shift $g a b at=5%;'), qr/"\$g" in "matrix_user_hash_shift" directive: there is such a variable/,
    'nginx -t: a variable that a map makes');
like(mistake('matrix_user_hash_shift $g a b;'), qr/\[emerg\] .*invalid number of arguments in "matrix_user_hash_shift"/, 'nginx -t: too few');
like(mistake('server { listen 127.0.0.1:1; matrix_user_hash_shift $g a b at=1%; }'), qr/"matrix_user_hash_shift" directive is not allowed here/, 'nginx -t: not in a server');
is(mistake('matrix_user_hash_shift $g a b start=1995-05-23T07:00:00.5+02:00 over=1h30m;'), 'taken', 'nginx -t: an offset and a fraction');

done_testing();
