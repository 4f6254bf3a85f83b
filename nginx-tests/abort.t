# Clients that leave while their request waits for an answer.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get connect_to bearer shown);
use Test::More;
use Time::HiRes qw(sleep);

my $nginx = MatrixUserHash::Instance->start(log_format => 'matrix', server => <<'.');
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_timeout 1s; proxy_pass http://sync_workers; post_action /after; }
        location /patient { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_ignore_client_abort on; proxy_pass http://sync_workers; }
        location /moved { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_max_lookups 1; proxy_pass http://sync_workers; post_action @moved; }
        location @moved { set $args "access_token=$arg_other"; rewrite ^ /echo/after break; proxy_pass http://$TEST_NGINX_WHOAMI; }
        location /after { proxy_pass http://$TEST_NGINX_WHOAMI/echo/after; }
        location /resolved { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_timeout 1s; proxy_pass http://sync_workers; post_action /resolved/after; }
        location /resolved/after { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://$TEST_NGINX_WHOAMI/echo/after; }
.
my $port = $nginx->port;

# How often the nginx says that it connected for the post_action of those who left.
sub afterwards { my @n = grep { m{^/(?:resolved/)?after } } split /\n/, $nginx->access_log; return scalar @n }

for my $path ('/', '/resolved') {
    sleep 0.3;    # for the post_action of the request before
    my $before = afterwards();
    whoami_set(delay => 0.4);
    my $sock = connect_to($port);
    syswrite $sock, bearer($path, token("alice$path"));
    sleep 0.1;
    close $sock;
    sleep 1.5;
    whoami_set(delay => 0);
    is(afterwards() - $before, 1, "$path: the post_action of a client that left while it waited runs once, and is not run again by the answer");
    is(shown(get($port, $path, token("alice$path"))), 'HIT ' . hash_of('@alice:example.org'), '… and the answer is kept');
}

# A hundred that leave in the middle of a lookup, by threes for one token.
whoami_set(delay => 0.3);
my @socks = map { my $s = connect_to($port); syswrite $s, bearer('/', token('bob/' . int($_ / 3))); $s } 1 .. 100;
sleep 0.1;
close $_ for @socks;
sleep 0.6;
whoami_set(delay => 0);
# A lookup that still waits for its turn when nobody waits for it any more is not made.
cmp_ok(scalar(grep { shown(get($port, '/', token("bob/$_"))) eq 'HIT ' . hash_of('@bob:example.org') } 0 .. 33), '>', 30,
    'the answers for clients that have left are kept');
# A client that closes its side once it has asked, and reads on (`nc -N`): with proxy_ignore_client_abort on it is answered,
# whether its token is known or not.
for my $title ('an unknown token', 'a known one') {
    whoami_set(delay => 0.2) if $title =~ /unknown/;
    my $sock = connect_to($port);
    syswrite $sock, bearer('/patient', token('erin/half'));
    shutdown $sock, 1;
    my $answer = '';
    while (sysread $sock, my $part, 65536) { $answer .= $part }
    whoami_set(delay => 0);
    like($answer, qr{^HTTP/1\.1 200 }, "a client that closes its side gets its answer: $title");
}

# A request that moved on while it waited for its turn: what it has now is not what it asked about.
{
    my $mallory = token('mallory/moved');
    whoami_set(delay => 0.5);
    my $hog = connect_to($port);
    syswrite $hog, bearer('/moved', token('hog/moved'));
    sleep 0.1;
    my $sock = connect_to($port);
    syswrite $sock, "GET /moved?access_token=" . token('frank/moved') . "&other=$mallory HTTP/1.1\r\nHost: matrix.example.org\r\n\r\n";
    sleep 0.1;
    close $sock;
    sleep 1;
    whoami_set(delay => 0);
    sleep 1.2;
    is(shown(get($port, '/moved', token('frank/moved'))) =~ s/^(?:MISS|HIT) //r, hash_of('@frank:example.org'),
        'nobody is taken for the user of a token that a request had later');
}

is_deeply([grep { /\[(?:crit|alert|emerg)\]|panick/ } split /\n/, $nginx->error_log], [], 'and nothing of this is critical to nginx');

done_testing();
