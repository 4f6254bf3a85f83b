# What it is for: every device of a user on one worker. README.md.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Http qw(get);
use MatrixUserHash::Instance;
use Test::More;

my $users   = 40;
my $devices = 5;

my $nginx = MatrixUserHash::Instance->start(workers => 2, http => <<'.', server => <<'..');
    matrix_user_hash_zone users:1m;
    upstream two { hash $matrix_user_hash consistent; server 127.0.0.1:$TEST_NGINX_WORKER1; server 127.0.0.1:$TEST_NGINX_WORKER2; }
.
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
        location /two { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://two; }
        location /plain { proxy_pass http://sync_workers; }
..
my $port = $nginx->port;

# The worker that each of a user's devices is sent to, by header and by query, in a list.
sub workers_of {
    my ($user, $path) = @_;
    return map {
        my $token = token("$user/device$_");
        map { $_->{headers}{'x-worker'} } get($port, $path, $token), get($port, "$path?access_token=$token");
    } 1 .. $devices;
}

sub distinct { my %seen = map { $_ => 1 } @_; my @all = sort keys %seen; return @all }

my (%load, @split);
for my $n (1 .. $users) {
    my @workers = distinct(workers_of("user$n", '/sync'));
    push @split, "user$n: @workers" if @workers != 1;
    $load{$workers[0]}++;
}
is_deeply(\@split, [], "each of $users users with $devices devices, by header and by query, is on one worker");
is(scalar keys %load, 4, 'the users are spread over all four workers');
cmp_ok((sort { $b <=> $a } values %load)[0], '<', $users * 0.6, 'and no worker has most of them');
is(whoami_stats()->{requests}, $users * $devices, 'each token was asked for once');

{
    my %anonymous;
    $anonymous{ get($port, '/sync')->{headers}{'x-worker'} // 'none' }++ for 1 .. 40;
    is(scalar keys %anonymous, 4, 'requests without a token go to the workers in turn');
}

{
    my @workers = map { get($port, '/sync', token('revoked/phone'))->{headers}{'x-worker'} } 1 .. 6;
    is(scalar(my @one = distinct(@workers)), 1, 'a token that is refused stays on one worker');
}

{
    my %stranger;
    $stranger{ get($port, '/sync', token("revoked/device$_"))->{headers}{'x-worker'} }++ for 1 .. 40;
    cmp_ok(scalar keys %stranger, '>', 2, 'different refused tokens are spread');
}

{
    my $differ = grep {
        my @by = workers_of("user$_", '/plain');
        distinct(@by) != 1
    } 1 .. 5;
    cmp_ok($differ, '>', 0, 'without the directive the devices of a user are on several workers');
}

{
    my @split = grep { distinct(workers_of("user$_", '/two')) != 1 } 1 .. 10;
    is_deeply(\@split, [], 'a smaller group has every user on one worker too');
}

is_deeply([$nginx->complaints], [], 'and nothing was worth a warning');

done_testing();
