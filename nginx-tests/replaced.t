# What a reload does after the file of the module was replaced: glibc goes on with the library that it has loaded, musl loads the
# new one. Either way nothing is lost, no memory has two layouts, and the log says it. docs/operations.md.
#
# MATRIX_USER_HASH_OTHER_MODULE may name a module with another layout of the zone; without it, a copy takes the place of the file.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Copy qw(copy);
use IO::Select;
use JSON::PP qw(decode_json);
use MatrixUserHash;
use MatrixUserHash::Instance;
use MatrixUserHash::Http qw(shown get connect_to bearer read_answer);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep);

my $own    = $ENV{TEST_NGINX_LOAD_MODULES};
my $other  = $ENV{MATRIX_USER_HASH_OTHER_MODULE} || $own;
my $musl   = is_musl();
my $folder = "/tmp/matrix-user-hash-replaced-$$";
my $file   = "$folder/module.so";
my $second = "$folder/second.so";
mkdir $folder or die $!;
my $owner = $$;
END { system 'rm', '-rf', $folder if $owner == $$ }

# As docs/operations.md says: by a rename.
sub put { my ($from, $to) = @_; copy($from, "$to.new") && rename("$to.new", $to) or die "$to: $!" }

put($own, $file);
$ENV{TEST_NGINX_LOAD_MODULES} = $file;
my $nginx = MatrixUserHash::Instance->start(workers => 2, http => "matrix_user_hash_zone users:1m state=$folder/users.state;", server => <<'.');
        location / { matrix_user_hash http://$TEST_NGINX_WHOAMI zone=users; proxy_pass http://sync_workers; }
        location = /figures { matrix_user_hash_metrics; }
.
my $port  = $nginx->port;
my @users = map { "user$_" } 1 .. 50;

# How many of the users are answered with that status and their own hash, and how often whoami was asked for that.
sub known {
    my ($status) = @_;
    whoami_reset();
    my $n = grep { shown(get($port, '/', token("$_/phone"))) eq "$status " . hash_of("\@$_:example.org") } @users;
    return "$n, asked " . whoami_stats()->{requests};
}

# Asks for the users again and again in a process of its own while `body` runs: how many answers it got, and how many were not
# at once their own.
sub under_load {
    my ($body) = @_;
    pipe my $stop, my $end or die $!;
    my $pid = open(my $from, '-|') // die $!;
    if (!$pid) {
        close $end;
        my ($all, $wrong) = (0, 0);
        do {
            my $user = $users[$all % @users];
            my $got  = get($port, '/', token("$user/phone"));
            # An nginx worker process that ends closes a connection on which nothing has come yet.
            if ($got->{raw} ne '') {
                $all++;
                $wrong++ if shown($got) ne 'HIT ' . hash_of("\@$user:example.org");
            }
        } until IO::Select->new($stop)->can_read(0);
        print "$all $wrong\n";
        close STDOUT;
        POSIX::_exit(0);
    }
    sleep 0.3;
    $body->();
    sleep 0.3;
    close $end;
    my ($all, $wrong) = split ' ', <$from>;
    return ($all, $wrong);
}

my $read = 0;
# The lines of the module that were logged since the last call.
sub said {
    my $new = substr $nginx->error_log, $read;
    $read += length $new;
    return join "\n", grep { /matrix_user_hash:/ } split /\n/, $new;
}

# reloads(TITLE, TAKES): a reload under load, after which a library takes over from another, or goes on.
sub reloads {
    my ($title, $takes) = @_;
    my $hits = figure('hit');
    my ($all, $wrong) = under_load(sub { ok($nginx->reload, $title) });
    is($wrong, 0, "… under load: $all requests, all answered with the user's hash and without a lookup");
    is(known('HIT'), scalar(@users) . ', asked 0', '… and afterwards too');
    my $said = said();
    if ($takes) {
        like($said, qr/\[notice\].* zone "users" taken over from another library \(\S+ built for .+\) with 5[01] entries/, '… the log says who took over');
        ok(figure('hit') < $hits + $all + @users, '… the figures begin anew, in new memory');
    }
    else {
        is(figure('hit'), $hits + $all + @users, '… the figures go on, in the same memory');
    }
    return $said;
}

sub figure { return decode_json(get($port, '/figures')->{body})->{zones}{users}{requests}{ $_[0] } }

my $warning = qr/\[warn\].* the file "\Q$file\E" was replaced or removed after it was loaded: this nginx goes on with the library that it has, \S+ built for /;

is(known('MISS'), '50, asked 50', 'fifty users are looked up');
said();
unlike(reloads('a reload', 0), qr/replaced|taken over/, '… and nothing is said of the library');

{
    put($other, $file);
    # Looked up by the old worker, while the new ones begin.
    whoami_reset();
    whoami_set(delay => 0.7);
    my $sock = connect_to($port);
    syswrite $sock, bearer('/', token('alice/inflight'));
    for (1 .. 200) { last if whoami_stats()->{requests}; sleep 0.05 }
    my $said = reloads('a reload after the file was replaced', $musl);
    $musl ? unlike($said, $warning, '… nor is the new library one that was replaced') : like($said, $warning, '… the log says that the old one runs');
    is(shown(read_answer($sock)), 'MISS ' . hash_of('@alice:example.org'), '… a lookup in flight is answered');
    whoami_set(delay => 0);
}
unlike(reloads('another reload', 0), qr/taken over/, '… with the same library');

put($own, $file);
reloads('a reload after the first version was put back', $musl);

put($other, $second);
$ENV{TEST_NGINX_LOAD_MODULES} = $second;
$nginx->write;
unlike(reloads('a reload that names another file', 1), qr/replaced/, '… which is nothing to warn of');
$ENV{TEST_NGINX_LOAD_MODULES} = $file;
$nginx->write;
reloads('a reload that names the first file again', 1);

is_deeply([grep { /\[(?:crit|alert|emerg)\]|panick|signal 11|signal 6/ } split /\n/, $nginx->error_log], [], 'nothing of this is critical to nginx');

unlink $file or die $!;
if ($musl) {
    my ($all, $wrong) = under_load(sub { kill HUP => $nginx->{pid}; sleep 0.5 });
    like($nginx->error_log, qr/\[emerg\].*dlopen\(\) "\Q$file\E" failed/, 'a reload without the file fails');
    is($wrong, 0, '… and the old configuration goes on');
}
else {
    like(reloads('a reload without the file', 0), $warning, '… the log says so');
}
is(known('HIT'), '50, asked 0', '… all are known');

put($other, $file);
$nginx->stop('QUIT');
$nginx->run;
is(known('HIT'), '50, asked 0', 'after a restart the new library reads the state of the old one');
$nginx->stop;

done_testing();
