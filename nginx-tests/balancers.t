# Each way of balancing that this nginx has, in the group that answers whoami and in that of the sync workers; what newer
# ones have for groups: sticky, drain, HTTP/2, keepalive by default; and what they have for a reload and for bodies.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Http qw(get request shown);
use MatrixUserHash::Instance;
use Digest::SHA qw(sha256_hex);
use IO::Socket::UNIX;
use Test::More;
use Time::HiRes qw(sleep time);

# Whether this nginx knows a directive: it accepts the configuration.
sub knows {
    my ($http) = @_;
    my ($ok) = MatrixUserHash::Instance->new(bare => 1, http => $http)->check;
    return $ok;
}

my $two = 'server 127.0.0.1:1; server 127.0.0.1:2;';
# The parameter of a server that names it for `sticky route`: nginx's, or Angie's older one.
my ($route) = grep { knows("upstream u { server 127.0.0.1:1 $_=a; server 127.0.0.1:2 $_=b; sticky route \$arg_route; }") } 'route', 'sid';
my %has = (
    sticky => defined $route,
    learn  => knows("upstream u { zone u 256k; $two sticky learn zone=s:1m create=\$arg_s lookup=\$arg_s; }"),
    drain  => knows('upstream u { server 127.0.0.1:1; server 127.0.0.1:2 drain; }'),
    http2  => nginx_says() =~ /http_v2_module/ && knows("server { listen 127.0.0.1:@{[free_port(9)]}; http2 on; location / { proxy_http_version 2; proxy_pass http://127.0.0.1:1; } }"),
    early  => knows("server { listen 127.0.0.1:@{[free_port(9)]}; client_body_early_read 1; }"),
);
my @balancers = grep { knows("upstream u { $_; $two }") } 'least_conn', 'ip_hash', 'hash $remote_addr', 'hash $request_uri consistent',
    'random', 'random two least_conn', 'least_time header', 'least_time header inflight', 'least_time last_byte', 'least_time last_byte inflight';
my $has_zone = knows("upstream u { zone u 256k; $two }");
my $n = 0;

# Names of users nobody has asked for yet.
sub users { my ($count) = @_; return map { 'user' . $n++ } 1 .. $count }

# The worker that answers each of these devices; dies if one is not looked up, or not to its user.
sub workers {
    my ($port, $path, @devices) = @_;
    return map {
        my ($user) = split m{/};
        my $got = get($port, $path, token($_));
        my $hash = hash_of("\@$user:example.org");
        die "$path, $_: " . shown($got) unless shown($got) =~ /^(?:MISS|HIT) $hash$/;
        $got->{headers}{'x-worker'};
    } @devices;
}

sub differ { my %seen = map { $_ => 1 } @_; return scalar keys %seen }

# The workers, and the servers of whoami, as lines of a group; `more` has parameters by number.
sub sync_servers { my %more = @_; return join ' ', map { "server \$TEST_NGINX_SYNC$_" . ($more{$_} ? " $more{$_}" : '') . ';' } 1 .. 4 }
$ENV{"TEST_NGINX_SYNC$_"} = "127.0.0.1:" . $ENV{"TEST_NGINX_WORKER$_"} for 1 .. 4;
my $whoami = 'server $TEST_NGINX_WHOAMI; server $TEST_NGINX_WHOAMI2;';

{
    my ($http, $server) = ('', '');
    for my $i (0 .. $#balancers) {
        $http .= "upstream whoami$i { @{[$has_zone ? qq(zone whoami$i 256k;) : '']} $balancers[$i]; $whoami }\n"
            . "upstream sync$i { $balancers[$i]; @{[sync_servers()]} }\n";
        $server .= "location = /$i { matrix_user_hash http://whoami$i; proxy_pass http://sync$i; }\n";
    }
    my $nginx = MatrixUserHash::Instance->start(http => $http, server => $server);
    for my $i (0 .. $#balancers) {
        my @users = users(8);
        my @by = eval { workers($nginx->port, "/$i", map { "$_/phone" } @users) };
        is(scalar @by, 8, "$balancers[$i]: eight users are looked up and proxied") or diag($@);
    }
    is(join("\n", $nginx->complaints), '', 'nothing is in the error log');
}

subtest 'sticky' => sub {
    plan skip_all => 'this nginx has no sticky' unless $has{sticky};
    my $routes = sync_servers(map { $_ => "$route=r$_" } 1 .. 4);
    my @learn = $has{learn} ? (<<".", <<'..') : ('', '');
    upstream learn { zone learn 256k; $routes sticky learn zone=sessions:1m create=\$matrix_user_hash lookup=\$matrix_user_hash; }
    upstream whoami_learn { zone whoami_learn 256k; $whoami sticky learn zone=clients:1m create=\$remote_addr lookup=\$remote_addr; }
.
        location = /learn { matrix_user_hash http://whoami_learn; proxy_pass http://learn; }
..
    my $nginx = MatrixUserHash::Instance->start(http => <<"." . $learn[0], server => <<'..' . $learn[1]);
    upstream cookie { sticky cookie worker; @{[sync_servers()]} }
    upstream route { hash \$matrix_user_hash consistent; $routes sticky route \$arg_route; }
    upstream whoami_cookie { $whoami sticky cookie homeserver; }
    upstream whoami_route { $whoami sticky route \$matrix_user_hash \$cookie_x; }
.
        location = /cookie { matrix_user_hash http://whoami_cookie; proxy_pass http://cookie; }
        location = /route { matrix_user_hash http://whoami_route; proxy_pass http://route; }
..
    my $port = $nginx->port;
    my $got = get($port, '/cookie', token('alice/sticky'));
    is(shown($got), 'MISS ' . hash_of('@alice:example.org'), 'a cookie in both groups: a user is looked up');
    my @cookies = $got->{raw} =~ /^set-cookie: (\w+)=/mgi;
    is("@cookies", 'worker', '… and the client gets the cookie of the group that proxy_pass names, and no other');

    my @users = users(12);
    my @by_hash = workers($port, '/route', map { "$_/phone" } @users);
    cmp_ok(differ(@by_hash), '>', 1, 'without a route, the hash decides');
    is(join(' ', workers($port, '/route', map { "$_/tablet" } @users)), "@by_hash", '… and all devices of a user come to one worker');
    is(join(' ', workers($port, '/route?route=r3', map { "$_/phone" } @users)), join(' ', (3) x @users), 'with a route, the route decides');

    if ($has{learn}) {
        whoami_reset();
        my @learned = workers($port, '/learn', map { "$_/learn" } @users);
        is(differ(@learned), 4, 'a group that learns: users are spread in turns');
        is(join(' ', workers($port, '/learn', map { "$_/other" } reverse @users)), join(' ', reverse @learned),
            '… and all devices of a user come to the worker that it learned');
        is(differ(map { $_->{port} } whoami_log()), 1, '… while whoami\'s group sends a client\'s lookups to one homeserver');
    }
    is(join("\n", $nginx->complaints), '', 'nothing is in the error log');
};

subtest 'drain' => sub {
    plan skip_all => 'this nginx has no drain' unless $has{drain};
    my $nginx = MatrixUserHash::Instance->start(http => <<".", server => <<'..');
    upstream whole { hash \$matrix_user_hash consistent; @{[sync_servers()]} }
    upstream drained { hash \$matrix_user_hash consistent; @{[sync_servers(2 => 'drain')]} }
    upstream down { hash \$matrix_user_hash consistent; @{[sync_servers(2 => 'down')]} }
    upstream learned { hash \$matrix_user_hash consistent; @{[sync_servers(2 => $has{sticky} ? "$route=r2 drain" : 'drain')]} @{[$has{sticky} ? 'sticky route $arg_route;' : '']} }
    upstream whoami_drained { server \$TEST_NGINX_WHOAMI drain; server \$TEST_NGINX_WHOAMI2; }
.
        matrix_user_hash http://whoami_drained;
        location = /whole { proxy_pass http://whole; }
        location = /drained { proxy_pass http://drained; }
        location = /down { proxy_pass http://down; }
        location = /learned { proxy_pass http://learned; }
..
    my $port = $nginx->port;
    my @devices = map { "$_/phone" } users(40);
    whoami_reset();
    my @before = workers($port, '/whole', @devices);
    my @after = workers($port, '/drained', @devices);
    cmp_ok(scalar(grep { $_ == 2 } @before), '>', 0, 'some users are on the second worker');
    is(scalar(grep { $_ == 2 } @after), 0, '… and nobody is once it drains');
    is(scalar(grep { $before[$_] != 2 && $before[$_] != $after[$_] } 0 .. $#devices), 0, '… while all others stay where they are');
    is(join(' ', workers($port, '/down', @devices)), "@after", 'a hash knows no difference between drain and down');
    is(join(' ', workers($port, '/learned?route=r2', @devices[0 .. 3])), '2 2 2 2', 'a session of sticky stays on a worker that drains') if $has{sticky};
    is(join(' ', sort { $a <=> $b } keys %{ { map { $_->{port} => 1 } whoami_log() } }), whoami_port() + 1, 'a homeserver that drains is asked nothing');
};

subtest 'HTTP/2 to the workers' => sub {
    plan skip_all => 'this nginx has no HTTP/2 to upstreams' unless $has{http2};
    my @ports = map { free_port($_) } 1 .. 3;
    my $servers = join ' ', map { "server 127.0.0.1:$_;" } @ports;
    my $workers = join '', map { <<"." } 0 .. 2;
    server {
        listen 127.0.0.1:$ports[$_];
        http2 on;
        location / { add_header X-Worker $_; add_header X-Protocol \$server_protocol; proxy_pass http://127.0.0.1:@{[free_port(4)]}; }
    }
.
    my $nginx = MatrixUserHash::Instance->start(http => <<".", server => <<'..');
    $workers
    server { listen 127.0.0.1:@{[free_port(4)]}; location / { proxy_pass http://\$TEST_NGINX_WHOAMI; } }
    upstream h2 { hash \$matrix_user_hash consistent; $servers }
.
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_http_version 2; proxy_pass http://h2; }
..
    my $port = $nginx->port;
    my @users = users(12);
    my @first = workers($port, '/echo', map { "$_/phone" } @users);
    cmp_ok(differ(@first), '>', 1, 'users are spread over the workers');
    is(join(' ', workers($port, '/echo', map { "$_/tablet" } @users)), "@first", '… and all devices of a user come to one');
    my $body = 'x' x 100_000;
    my $token = token('alice/h2');
    my $got = request($port, ["POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer $token\r\nContent-Length: 100000\r\n\r\n", \0.05, $body]);
    is(shown($got), 'MISS ' . hash_of('@alice:example.org'), 'a request with a body is looked up');
    is($got->{headers}{'x-protocol'}, 'HTTP/2.0', '… and reaches its worker as HTTP/2');
    like($got->{body}, qr/@{[sha256_hex($body)]}/, '… with its body');
    is(join("\n", $nginx->complaints(qr/a client request body is buffered/)), '', 'nothing is in the error log');
};

subtest 'a body that is read before the location is chosen' => sub {
    plan skip_all => 'this nginx has no client_body_early_read' unless $has{early};
    my $nginx = MatrixUserHash::Instance->start(http => 'client_body_early_read 1;', server => <<'.');
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://$TEST_NGINX_WHOAMI; }
.
    for my $length (10, 100_000) {
        my ($token, $body) = (token("alice/early$length"), 'y' x $length);
        whoami_set(delay => 0.2);
        my $head = "POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer $token\r\nContent-Length: $length\r\n\r\n";
        my $got = request($nginx->port, [$head, \0.05, $body]);
        whoami_set(delay => 0);
        is(shown($got), 'MISS ' . hash_of('@alice:example.org'), "$length bytes: the request is looked up");
        like($got->{body}, qr/@{[sha256_hex($body)]}/, '… and its body is whole');
    }
};

# One request of the control API, as curl --unix-socket sends it.
sub control {
    my ($path, $method, $target) = @_;
    my $socket = IO::Socket::UNIX->new(Peer => $path) or die "$path: $!";
    syswrite $socket, "$method $target HTTP/1.1\r\nHost: localhost\r\n\r\n";
    return MatrixUserHash::Http::read_answer($socket);
}

subtest 'a reload by the control API' => sub {
    plan skip_all => 'this nginx has no control API (configure --with-control-api)' unless nginx_says() =~ /--with-control-api/;
    my $path = "/tmp/matrix-user-hash-control-$$.sock";
    my %conf = (workers => 2, arguments => ['-l', "unix:$path"], server => <<'.');
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
.
    my $nginx = MatrixUserHash::Instance->start(%conf, http => 'matrix_user_hash_zone users:1m;');
    my $port = $nginx->port;
    my @devices = map { "$_/phone" } users(10);
    my @before = workers($port, '/', @devices);
    for my $http ('matrix_user_hash_zone users:1m;', 'matrix_user_hash_zone users:2m;', 'matrix_user_hash_zone users:2m; matrix_user_hash_zone more:1m;') {
        my %old = map { $_ => 1 } $nginx->worker_pids;
        $nginx->write(http => $http);
        my $got = control($path, 'PATCH', '/1/control/config');
        is($got->{status}, 200, "$http: reloaded") or diag($got->{raw});
        my $end = time + 10;
        sleep 0.05 while time < $end && (!$nginx->worker_pids || grep { $old{$_} } $nginx->worker_pids);
        whoami_reset();
        is(join(' ', workers($port, '/', @devices)), "@before", '… and all users are where they were');
        is(whoami_stats()->{requests}, 0, '… and nobody was asked again');
    }
    $nginx->write(http => 'matrix_user_hash_zone users:nonsense;');
    my $got = control($path, 'PATCH', '/1/control/config');
    is($got->{status}, 422, 'a mistake is refused');
    like($got->{body}, qr/matrix_user_hash_zone.*nonsense|nonsense.*matrix_user_hash_zone/, '… in the words that the module has for it');
    is(join(' ', workers($port, '/', @devices)), "@before", '… and the configuration before it goes on');
    is_deeply([grep { /\[(?:crit|alert)\]|panick|exited on signal/ } split /\n/, $nginx->error_log], [], 'nothing crashed');
    unlink $path;
};

done_testing();
