# Stands in for cloudflared: says that it listens before it does, and dials for each connection.
# cloudflared access tcp --hostname HOST --url ADDRESS:PORT
use strict;
use IO::Socket::INET;
$| = 1;
my %option = @ARGV[2 .. $#ARGV];
my ($address, $port) = split /:/, $option{'--url'};
print STDERR "\e[32mINF\e[0m Start Websocket listener host=$option{'--url'}\n";
select undef, undef, undef, 0.2;
exit 7 if $option{'--hostname'} =~ /^fails/;
sleep 60 if $option{'--hostname'} =~ /^hangs/;
my $listener = IO::Socket::INET->new(LocalAddr => $address, LocalPort => $port, Listen => 16, ReuseAddr => 1) or die "bind: $!";
$SIG{CHLD} = 'IGNORE';
# A process that lives and listens no more.
$SIG{USR1} = sub { close $listener; sleep 1 while 1 };
while (my $client = $listener->accept) {
    next if fork;
    close $listener;
    # Whoever connects is told what came first, and then hears an echo.
    syswrite $client, "$option{'--hostname'} " . getppid() . "\n";
    while (sysread $client, my $bytes, 65536) {
        kill 'KILL', getppid() if $bytes =~ /^DIE/;
        kill 'USR1', getppid() if $bytes =~ /^DEAF/;
        syswrite $client, $bytes;
    }
    exit 0;
}
