# A worker that shuts down waits for lookups, and not longer than worker_shutdown_timeout.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(connect_to bearer get);
use Test::More;
use Time::HiRes qw(sleep time);

my $locations = <<'.';
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; matrix_user_hash_timeout 30s; matrix_user_hash_read_timeout 30s; matrix_user_hash_max_lookups 2; proxy_pass http://sync_workers; }
.
my $nginx = MatrixUserHash::Instance->start(main => 'worker_shutdown_timeout 1s;', server => $locations);
my $port = $nginx->port;

sub alive { return kill 0 => $_[0] }

for my $who ('clients that wait for lookups, and for a place', 'lookups whose clients have left') {
    my ($old) = $nginx->worker_pids;
    whoami_set(kind => 'hang');
    my @socks = map { my $sock = connect_to($port); syswrite $sock, bearer('/', token("alice/$who$_")); $sock } 1 .. 4;
    sleep 0.3;
    @socks = () if $who =~ /left/;
    my $began = time;
    $nginx->reload;
    sleep 0.05 while alive($old) && time - $began < 15;
    my $took = time - $began;
    whoami_set(kind => '');
    cmp_ok($took, '<', 3, "worker_shutdown_timeout 1s holds: $who") or diag("$took s");
}
is(join("\n", grep { /\[(?:alert|emerg)\]/ } split /\n/, $nginx->error_log), '', 'nothing is left open');

done_testing();
