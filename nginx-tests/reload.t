# The cache over a reload, over a reload that changes the zone's size, and over a full restart with a state file.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use JSON::PP qw(decode_json);
use MatrixUserHash::Http qw(shown get connect_to bearer read_answer);
use Test::More;
use Time::HiRes qw(sleep);

my $state  = "/tmp/matrix-user-hash-reload-$$";
my $server = <<'.';
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
        location = /figures { matrix_user_hash_metrics; }
.
my $nginx = MatrixUserHash::Instance->start(workers => 2, server => $server, http => "matrix_user_hash_zone users:1m;");
my $port  = $nginx->port;
my @users = map { "user$_" } 1 .. 20;

# How many of the users are answered with that status and their own hash, and how often whoami was asked for that.
sub known {
    my ($status) = @_;
    whoami_reset();
    my $n = grep {
        my $hash = hash_of("\@$_:example.org");
        shown(get($port, '/', token("$_/phone"))) =~ /^(?:$status) $hash$/;
    } @users;
    return "$n, asked " . whoami_stats()->{requests};
}

sub figures { return decode_json(get($port, '/figures')->{body})->{zones}{users} }

is(known('MISS'), '20, asked 20', 'twenty users are looked up');
is(known('HIT'), '20, asked 0', '… and known');
my $before = figures();

ok($nginx->reload, 'after a reload');
is(known('HIT'), '20, asked 0', '… they still are');
is(figures()->{requests}{hit}, $before->{requests}{hit} + 20, '… and the counters go on');

$nginx->write(http => "matrix_user_hash_zone users:1m inactive=1h; matrix_user_hash_valid 200 2h;");
ok($nginx->reload, 'after a reload with other times');
is(known('HIT'), '20, asked 0', '… they still are');

$nginx->write(http => "matrix_user_hash_zone users:1m; matrix_user_hash_zone more:1m;");
ok($nginx->reload, 'after a reload that adds a zone');
is(known('HIT'), '20, asked 0', '… they still are');

{
    # A lookup that is in flight during the reload is answered by the old worker.
    whoami_set(delay => 0.7);
    my $sock = connect_to($port);
    syswrite $sock, bearer('/', token('alice/inflight'));
    sleep 0.2;
    ok($nginx->reload, 'a reload during a lookup');
    my $got = read_answer($sock);
    whoami_set(delay => 0);
    is(shown($got), 'MISS ' . hash_of('@alice:example.org'), '… which is answered');
    is(shown(get($port, '/', token('alice/inflight'))), 'HIT ' . hash_of('@alice:example.org'), '… and remembered for the new workers');
}

$nginx->write(http => "matrix_user_hash_zone users:2m;");
ok($nginx->reload, 'after a reload that changes the size');
like(known('HIT|MISS') . known('HIT'), qr/20, asked 0$/, '… they are known again at the latest when they come back');
is_deeply([grep { /\[(?:crit|alert|emerg)\]|panick|signal 11|signal 6/ } split /\n/, $nginx->error_log], [], '… and nothing crashed');

$nginx->write(http => "matrix_user_hash_zone users:2m;", server => <<'.');
        location / { proxy_pass http://sync_workers; }
.
ok($nginx->reload, 'after a reload that takes the directive away');
is(shown(get($port, '/', token('user1/phone'))), '- -', '… nothing is resolved');
$nginx->write(server => $server);
ok($nginx->reload, '… and back again');
like(shown(get($port, '/', token('user1/phone'))), qr/^(?:HIT|MISS) @{[hash_of('@user1:example.org')]}$/, '… it is');

$nginx->write(http => "matrix_user_hash_zone users:nonsense;");
kill HUP => $nginx->{pid};
sleep 0.5;
like(shown(get($port, '/', token('user1/phone'))), qr/^HIT/, 'a reload with a mistake leaves the old configuration running');
$nginx->stop;

# The state file.
for my $signal (qw(QUIT TERM)) {
    unlink $state;
    my %conf = (workers => 2, server => $server, http => "matrix_user_hash_zone users:1m state=$state;");
    $nginx = MatrixUserHash::Instance->start(%conf);
    is(known('MISS'), '20, asked 20', 'with a state file: looked up');
    $nginx->stop($signal);
    ok(-s $state, "… and written down at SIG$signal");
    is((stat $state)[2] & 07777, 0600, '… for its owner only') if -e $state;
    $nginx = MatrixUserHash::Instance->start(%conf);
    is(known('HIT'), '20, asked 0', '… after a full restart nobody is asked');
    $nginx->stop;
}

# Files that are no state of ours: one warning, an empty cache, nothing else.
{
    open my $in, '<:raw', $state or die $!;
    my $good = do { local $/; <$in> };
    my $flipped = $good;
    substr($flipped, length($good) / 2, 1) ^= "\x01";
    my %foreign = ('truncated' => substr($good, 0, length($good) - 7), 'empty' => '', 'another program\'s' => "SQLite format 3\0" . 'x' x 5000,
        'damaged' => $flipped, 'a few bytes' => substr($good, 0, 5));
    for my $what (sort keys %foreign) {
        open my $out, '>:raw', $state or die $!;
        print $out $foreign{$what};
        close $out;
        $nginx = MatrixUserHash::Instance->start(workers => 1, server => $server, http => "matrix_user_hash_zone users:1m state=$state;");
        is(known('MISS'), '20, asked 20', "a state file that is $what: an empty cache");
        my @warned = grep { /\Q$state\E/ && /\[(?:warn|error)\]/ } split /\n/, $nginx->error_log;
        is(scalar @warned, 1, '… and one warning') or diag(join "\n", @warned);
        $nginx->stop;
    }
    unlink $state;
}

{
    # The module comes with a reload, goes with one, and comes back.
    my $loaded = $ENV{TEST_NGINX_LOAD_MODULES};
    my $plain  = '        location / { return 200; }';
    my $late   = do { local $ENV{TEST_NGINX_LOAD_MODULES} = ''; MatrixUserHash::Instance->new(workers => 1, bare => 1, http => '') };
    my $with   = 'matrix_user_hash_zone users:1m; server { listen 127.0.0.1:' . $late->port . "; location / { matrix_user_hash http://127.0.0.1:@{[whoami_port()]} zone=users; add_header X-Status \$matrix_user_hash_status; return 200; } }";
    my $without = 'server { listen 127.0.0.1:' . $late->port . '; location / { return 200; } }';
    for my $first (['without an http{} block', ''], ['without the module', $without]) {
        my ($title, $http) = @$first;
        $ENV{TEST_NGINX_LOAD_MODULES} = '';
        $late->write(http => $http);
        $late->run;
        my $pid = $late->{pid};
        for my $step (['a reload that adds the module', $loaded, $with], ['one that takes it away', '', $without], ['one that brings it back', $loaded, $with]) {
            ($ENV{TEST_NGINX_LOAD_MODULES}) = $step->[1];
            $late->write(http => $step->[2]);
            ok($late->reload && kill(0 => $pid), "$title, then $step->[0]: new workers serve and the master lives");
        }
        is(get($late->port, '/', token('alice/phone'))->{status}, 200, '… and requests are answered');
        $late->stop('QUIT');
    }
    $ENV{TEST_NGINX_LOAD_MODULES} = $loaded;
}

done_testing();
