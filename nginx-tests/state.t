# The state file when it is not what it should be: not readable, no file, a mount, saved by several at once.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(get shown);
use File::Path qw(make_path);
use POSIX qw(mkfifo);
use Test::More;
use Time::HiRes qw(sleep time);

my $dir = "/tmp/matrix-user-hash-states-$$";
make_path($dir);
my $owner = $$;
END { system 'rm', '-rf', $dir if $dir && $$ == $owner }

my $server = <<'.';
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
.
sub with_state { return (http => "matrix_user_hash_zone users:1m state=$_[0];", server => $server) }

# Things that are no file that can be read: a warning, an empty zone, and users are resolved.
mkfifo("$dir/fifo", 0600) or die $!;
mkdir "$dir/folder" or die $!;
for (['fifo', 'a pipe'], ['folder', 'a folder']) {
    my ($name, $title) = @$_;
    my $nginx = MatrixUserHash::Instance->start(with_state("$dir/$name"));
    is(shown(get($nginx->port, '/', token('alice/state'))), 'MISS ' . hash_of('@alice:example.org'), "$title: nginx starts and resolves");
    my @said = grep { /cannot read state file/ } split /\n/, $nginx->error_log;
    is(scalar(@said), 1, '… says once that it cannot read it');
    like($said[0], qr/\[warn\].*\Q$name\E.*(?:not a regular file|directory)/, '… and why');
    my ($ok, $told) = $nginx->check;
    ok($ok && $told =~ /\[warn\].*(?:not a regular file|directory)/, '… as nginx -t does');
    $nginx->reload;
    is(shown(get($nginx->port, '/', token('alice/state'))), 'HIT ' . hash_of('@alice:example.org'), '… and it reloads');
    undef $nginx;
    ok(-p "$dir/fifo" && -d "$dir/folder", '… and it is left as it was');
}

# A file of another owner, for a process without the right to read everything.
SKIP: {
    skip 'no setpriv', 2 if $> != 0 || system('setpriv --reuid 65534 true 2>/dev/null') != 0;
    open my $file, '>', "$dir/theirs" or die $!;
    close $file;
    chmod 0600, "$dir/theirs";
    my $nginx = MatrixUserHash::Instance->new(with_state("$dir/theirs"));
    system 'chown', '-R', '65534', $nginx->root, $dir;
    system 'chown', '0', "$dir/theirs";
    my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx';
    my $said = `setpriv --reuid 65534 --regid 65534 --clear-groups $binary -t -p @{[$nginx->root]}/ -c @{[$nginx->root]}/conf/nginx.conf 2>&1`;
    is($?, 0, 'a state file of another owner does not keep nginx from starting') or diag($said);
    like($said, qr/\[warn\].*theirs.*Permission denied/, '… it is a warning');
}

# Reloads more often than once a minute: the file is written all the same.
{
    my $nginx = MatrixUserHash::Instance->start(with_state("$dir/often"));
    get($nginx->port, '/', token('bob/state'));
    my $end = time + 10;
    sleep 0.1 until -s "$dir/often" || time > $end;
    ok(-s "$dir/often", 'a zone is saved soon after a start, if it never was');
    utime time - 55, time - 55, "$dir/often";
    my $before = (stat "$dir/often")[9];
    $nginx->reload;
    $end = time + 12;
    sleep 0.1 until (stat "$dir/often")[9] != $before || time > $end;
    isnt((stat "$dir/often")[9], $before, '… and a minute after the last time, though a reload came between');
}

# nginx -t only looks.
{
    my $left = "$dir/dry.0123456789abcdef.tmp";
    open my $file, '>', $left or die $!;
    close $file;
    utime 1, 1, $left;
    my $nginx = MatrixUserHash::Instance->new(bare => 1, http => "matrix_user_hash_zone users:2g state=$dir/dry; server { listen 127.0.0.1:@{[free_port(3)]}; }");
    my @cmd = ($ENV{TEST_NGINX_BINARY} || 'nginx', '-t', '-p', $nginx->root . '/', '-c', $nginx->root . '/conf/nginx.conf');
    my $most = `python3 -c 'import resource, subprocess, sys; subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)' @cmd`;
    chomp $most;
    cmp_ok($most, '<', 200_000, "nginx -t does not touch all of a zone of 2 GiB ($most kB)");
    ok(-e $left && !-e "$dir/dry", '… nor a file');
}

# A file that is a mount of its own, as in a container: no other file can take its place.
SKIP: {
    skip 'no mount namespaces', 2 if $> != 0 || $ENV{TEST_NGINX_USE_VALGRIND} || system("unshare --mount true 2>/dev/null") != 0;
    make_path("$dir/in");
    for ("$dir/host", "$dir/in/users") { open my $file, '>', $_ or die $!; close $file }
    my $nginx = MatrixUserHash::Instance->new(with_state("$dir/in/users"));
    my $pid = fork // die $!;
    if (!$pid) {
        exec 'unshare', '--mount', 'sh', '-c', 'mount --bind "$1" "$2" && shift 2 && exec "$@" 2>/dev/null', 'sh', "$dir/host", "$dir/in/users", $nginx->command;
    }
    my $end = time + 10;
    sleep 0.05 until $nginx->listening || time > $end;
    get($nginx->port, '/', token('carol/state'));
    kill QUIT => $pid;
    waitpid $pid, 0;
    cmp_ok(-s "$dir/host", '>', 80, 'a state file that is a mount of its own is written');
    is(join(' ', map { s{.*/}{}r } glob "$dir/in/*"), 'users', '… and nothing is left beside it');
}

done_testing();
