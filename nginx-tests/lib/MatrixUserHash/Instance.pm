package MatrixUserHash::Instance;

# An nginx of the test's own, for what Test::Nginx's one-configuration-one-request blocks cannot say: several worker
# processes, reloads, killed workers, memory, thousands of requests, `nginx -t`.
#
# In:  new(http => "…" [, server => "…", main => "…", workers => N, log_level => L, log_format => F, bare => 1,
#      arguments => […]]); `server` becomes a server {} on port() with the shared boilerplate; `bare` leaves that
#      boilerplate out; `arguments` are nginx's own.
# Out: a running nginx in a servroot of its own; it stops when the object goes.
#
# Like Test::Nginx it honours TEST_NGINX_BINARY, TEST_NGINX_LOAD_MODULES and TEST_NGINX_USE_VALGRIND.

use strict;
use warnings;

use File::Path qw(make_path remove_tree);
use IO::Socket::INET;
use MatrixUserHash;
use Time::HiRes qw(sleep time);

my $Count = 0;

sub new {
    my ($class, %o) = @_;
    my $self = bless { %o, root => $MatrixUserHash::Root . '-' . ++$Count, owner => $$ }, $class;
    $self->{workers}   //= 1;
    $self->{log_level} //= 'info';
    remove_tree($self->{root});
    make_path(map { "$self->{root}/$_" } qw(logs conf html temp));
    $self->write;
    return $self;
}

# A configuration that was started.
sub start { my $self = new(@_); $self->run; return $self }

sub port { MatrixUserHash::free_port(0) }
sub root { $_[0]{root} }

sub modules { join "\n", map { "load_module $_;" } grep { length } split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '' }

# Environment variables as Test::Nginx expands them.
sub fill { my ($text) = @_; $text =~ s/\$(TEST_NGINX_\w+)/$ENV{$1} \/\/ die "no $1"/ge; return $text }

sub write {
    my ($self, %o) = @_;
    @$self{keys %o} = values %o;
    my $root = $self->{root};
    my $temp = join "\n", map { "    ${_}_temp_path $root/temp/$_;" } qw(client_body proxy fastcgi scgi uwsgi);
    my $server = defined $self->{server} ? "    server {\n        listen @{[$self->port]}"
        . ($self->{listen} ? " $self->{listen}" : '') . ";\n" . MatrixUserHash::common_server()
        . "        $self->{server}\n    }\n" : '';
    my $common = $self->{bare} ? '' : MatrixUserHash::switch_off(MatrixUserHash::common_http());
    my $conf = MatrixUserHash::switch_off(fill(($self->{http} // '') . $server));
    open my $out, '>', "$root/conf/nginx.conf" or die $!;
    print $out <<".";
@{[modules()]}
user root;
worker_processes $self->{workers};
daemon off;
pid logs/nginx.pid;
error_log logs/error.log $self->{log_level};
@{[$self->{main} // '']}
events { worker_connections 4096; }
http {
$temp
$common
    access_log logs/access.log @{[$self->{log_format} // 'combined']};
$conf
}
.
    close $out;
}

sub command {
    my ($self) = @_;
    my $valgrind = $ENV{TEST_NGINX_USE_VALGRIND};
    my @wrap = !$valgrind ? () : $valgrind =~ /^\d+$/ ? qw(valgrind -q --leak-check=full --trace-children=yes)
        : ('valgrind', '-q', split ' ', $valgrind);
    return (@wrap, $ENV{TEST_NGINX_BINARY} || 'nginx', '-p', "$self->{root}/", '-c', "$self->{root}/conf/nginx.conf",
            '-e', "$self->{root}/logs/error.log", @{ $self->{arguments} // [] });
}

# `nginx -t`: (exit status is zero, what it printed).
sub check {
    my ($self) = @_;
    my @cmd = ($ENV{TEST_NGINX_BINARY} || 'nginx', '-t', '-p', "$self->{root}/", '-c', "$self->{root}/conf/nginx.conf");
    my $out = '';
    my $pid = open(my $in, '-|') // die $!;
    if (!$pid) { open STDERR, '>&', \*STDOUT; exec @cmd or die }
    { local $/; $out = <$in> // '' }
    close $in;
    return ($? == 0, $out);
}

sub run {
    my ($self) = @_;
    MatrixUserHash::start_whoami();
    my @cmd = $self->command;
    $self->{pid} = fork // die "fork: $!";
    if (!$self->{pid}) {
        open STDOUT, '>', "$self->{root}/logs/stdout";
        open STDERR, '>&', \*STDOUT;
        exec @cmd or die "cannot run @cmd: $!";
    }
    my $end = time + ($ENV{TEST_NGINX_USE_VALGRIND} ? 60 : 10);
    # The port is open before there is any worker process.
    until (-s "$self->{root}/logs/nginx.pid" && $self->worker_pids >= $self->{workers} && (!defined $self->{server} || $self->listening)) {
        die "nginx did not start: " . $self->error_log if time > $end || waitpid($self->{pid}, 1) > 0;
        sleep 0.02;
    }
}

sub listening {
    my ($self) = @_;
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->port, Timeout => 1) or return 0;
    close $sock;
    return 1;
}

sub slurp {
    my ($self, $name) = @_;
    open my $in, '<', "$self->{root}/logs/$name" or return '';
    local $/;
    return <$in> // '';
}
sub error_log  { $_[0]->slurp('error.log') }
sub access_log { $_[0]->slurp('access.log') }

# What the error log says above `notice`, except for what the pattern allows.
sub complaints {
    my ($self, $allow) = @_;
    return grep { !defined $allow || !/$allow/ } grep { /\[(?:warn|error|crit|alert|emerg)\]/ } split /\n/, $self->error_log;
}

# The process ids of the workers that are not shutting down, as the error log (at `notice`) tells: under valgrind, a
# process keeps valgrind's title, not nginx's.
sub worker_pids {
    my ($self) = @_;
    my $log  = $self->error_log;
    my %gone = map { $_ => 1 } $log =~ /(\d+)#\d+: (?:gracefully shutting down|exiting)$/mg, $log =~ /(?:worker process|process) (\d+) exited/g;
    return grep { !$gone{$_} } $log =~ /start worker process (\d+)$/mg;
}

# Rereads the configuration (after write()) and waits until new workers serve and the old ones are going.
sub reload {
    my ($self) = @_;
    my %old = map { $_ => 1 } $self->worker_pids;
    kill HUP => $self->{pid};
    my $end = time + ($ENV{TEST_NGINX_USE_VALGRIND} ? 60 : 10);
    while (time < $end) {
        sleep 0.05;
        my @now = $self->worker_pids;
        return 1 if @now >= 1 && !grep { $old{$_} } @now;
    }
    return 0;
}

sub stop {
    my ($self, $signal) = @_;
    my $pid = delete $self->{pid} // return;
    return if $self->{owner} != $$;
    local ($?, $!);
    kill $signal // 'TERM', $pid;
    my $end = time + ($ENV{TEST_NGINX_USE_VALGRIND} ? 60 : 10);
    while (waitpid($pid, 1) == 0) {
        if (time > $end) { kill KILL => $pid; waitpid $pid, 0; last }
        sleep 0.02;
    }
}

sub DESTROY { $_[0]->stop }

1;
