"""Rule lines for the comparison with the real iptables: what it takes, what it refuses, what the kernel refuses."""

from __future__ import annotations


def nat(line: str) -> str:
    return f"-t nat -A POSTROUTING {line}"


def fwd(line: str) -> str:
    return f"-A FORWARD {line}"


GOOD = [
    # masquerading
    nat("-o bond0.2 -j MASQUERADE"),
    nat("-s 10.0.0.0/8 ! -d 10.0.0.0/255.0.255.0 -o bond0.2 -p tcp --dport 80 -j MASQUERADE "
        "--to-ports 1024-2048 --random"),
    nat("! -o bond0.3 -j MASQUERADE --random --random-fully"),
    nat("-p udp -j MASQUERADE --to-ports 4-4"),
    nat("-p icmp -j MASQUERADE --to-ports 1024"),
    nat("! -p udp -j MASQUERADE --to-ports 1024"),
    nat("-p tcp -j MASQUERADE --to http"),
    nat("-m comment --comment lab -j MASQUERADE --random-f"),
    "-t nat -A PREROUTING -i bond0.def -j ACCEPT",
    "-t nat -A OUTPUT -o lo -j RETURN",
    "-t nat -A INPUT",
    # addresses
    fwd("-s 10.0.0.5,10.1.2.3/24 -d 1.1.1.1,2.2.2.2 -j ACCEPT"),
    fwd("-s 0/0 -d 10/8"), fwd("-s 10.1"), fwd("-s 1.2.3.4/0"), fwd("-s 128.0.0.0/1"),
    fwd("-s 1.0.0.0/255.0.0.1"),
    fwd("! -s 127.0.0.1 ! -d 192.168.100.100/255.255.255.0 ! -p icmp ! -i a+ ! -o b"),
    fwd("-s 127.0.0.1 -j ACCEPT"), fwd("--src 1.2.3.4 --dst 1.2.3.5"), fwd("--so 1.2.3.4"),
    # interfaces
    fwd("-i a -o b+ -j ACCEPT"), fwd("-i + -j ACCEPT"), fwd("-i eth0+ ! -o + -j ACCEPT"),
    fwd("-i abcdefghijklmno"), fwd("-i a:b"), fwd("--in-interf a --out-int b"), "-A INPUT -i lo -j ACCEPT",
    # fragments
    fwd("-f -j ACCEPT"), fwd("! -f"), fwd("--fragments -s 1.2.3.4 -i a -o b -p udp -j DROP"), fwd("--frag"),
    fwd("-f -p tcp --dport 80"), fwd("! -f -p tcp --syn -m multiport --dports 1,2"), nat("-f -j MASQUERADE"),
    fwd("-f -j REJECT"),
    # protocols
    fwd("-p all"), fwd("-p 0"), fwd("-p TCP"), fwd("-p 47"), fwd("-p 253"), fwd("-p ipv6-icmp"),
    fwd("-p udplite"),
    fwd("--proto udp --jump ACCEPT"), fwd("! -p tcp"), fwd("! -p tcp --dport 80"),
    # tcp and udp
    fwd("-p tcp -m tcp"), fwd("-p tcp -m tcp -m tcp --dport 8"), fwd("-p tcp --sport 1:2 ! --dport 3:4"),
    fwd("-p tcp --sport :2 --dport 3:"), fwd("-p tcp --sport :"), fwd("-p udp --sport 0:65535"),
    fwd("-p tcp --sport http --dport 0x50"), fwd("-p tcp --dport 010"), fwd("-p udp --dport domain"),
    fwd("-p tcp --source-port 1 --destination-port 2"), fwd("-p tcp ! --dport 1 ! --sport 4"),
    fwd("-m tcp --dport 80 -p tcp"), fwd("-p udp -j ACCEPT --dport 53"), fwd("-p tcp --syn"),
    fwd("-p tcp ! --syn"),
    fwd("-p tcp --tcp-flags ALL NONE"), fwd("-p tcp ! --tcp-flags ALL SYN,FIN"),
    fwd("-p tcp --tcp-flags NONE NONE"), fwd("-p tcp --tcp-flags SYN,FIN,RST,ACK syn --dport 22"),
    # icmp
    *(fwd(f"-p icmp --icmp-type {name}") for name in (
        "8", "8/0", "echo-request", "ping", "3", "3/4", "3/99", "frag", "TTL-EXCEEDED", "any", "255", "200/3",
        "host-redirect", "redir", "0x8", "timestamp-reply", "required-option-missing")),
    fwd("-p icmp ! --icmp-type any"), fwd("-p icmp ! --icmp-type 8"), fwd("-p icmp ! --icmp-type 8/0"),
    fwd("-p icmp ! --icmp-type 3/4"),
    # states
    fwd("-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"), fwd("-m conntrack --ctstate new"),
    fwd("-m conntrack ! --ctstate NEW,INVALID,UNTRACKED,RELATED,ESTABLISHED -j DROP"),
    fwd("-m state --state ESTABLISHED,RELATED -j ACCEPT"), fwd("-m state ! --state INVALID -j RETURN"),
    fwd("-m conntrack --ctstate NEW -p udp --dport 53 -m comment --comment dns -j DROP"),
    # comments
    *(fwd(f"-m comment --comment {text}") for text in (
        "hello", "a_b-c", "a.b", "''", "'hello world'", "'say \"hi\" \\ $x'", '"it\'s"', "é", "x" * 255)),
    # counters, and options that do nothing
    *(fwd(f"-c {count} {count + 1}") for count in (
        0, 99_998, 99_999, 100_499, 999_999, 9_999_499, 10_000_000, 99_999_999, 9_999_999_999, 10**15)),
    fwd("-c 5,7 -j ACCEPT"), fwd("-w -j ACCEPT"), fwd("-w 5"), fwd("-w5"), fwd("-4"),
]

# two chains of the user's own, in each table; the lines below fill them
CHAINS = ["-N CHAIN", "-N Other", "-t nat -N CHAIN", "-t nat -N Other"]


def pre(line: str) -> str:
    return f"-t nat -A PREROUTING {line}"


GOOD += [
    # user-defined chains
    fwd("-j CHAIN"), fwd("-p tcp -g CHAIN"), fwd("-s 10.0.0.0/8 -g CHAIN"), "-A CHAIN -j RETURN", "-A CHAIN -j Other",
    "-A Other -i lo -o lo", "-A Other -j ACCEPT -c 5 6", "-t nat -A CHAIN -j DNAT --to 1.2.3.4", pre("-j CHAIN"),
    "-t nat -A Other -j SNAT --to 1.2.3.4", nat("-o a -j Other"), "-t nat -A Other -j NETMAP --to 10.0.0.0/24",
    "-N new", "-E new newer", "-X newer", "-N a_chain_of_exactly_28_letter", "-N é", "-N ok -v", "-N 1",
    fwd("--goto CHAIN"), fwd("--jump CHAIN -m comment --comment x"), "-t nat -I POSTROUTING 1 -j Other",
    "-R FORWARD 1 -s 9.9.9.9 -g CHAIN", "-D FORWARD -j CHAIN", "-A FORWARD -j CHAIN", "-C FORWARD -j CHAIN",
    # SNAT, DNAT, REDIRECT, NETMAP
    *(nat(f"-p tcp -j SNAT {text}") for text in (
        "--to-source 1.2.3.4", "--to 1.2.3.4-1.2.3.9", "--to 1.2.3.4:100", "--to 1.2.3.4:http", "--to :100-200",
        "--to 1.2.3.4-1.2.3.4:7-7", "--to 1.2.3.4:0x50-0x5a",
        "--to 1.2.3.4:100-200 --random --random-fully --persistent", "--persistent --to 1.2.3.4",
        "--persist --to 1.2.3.4")),
    "-t nat -A INPUT -j SNAT --to 1.2.3.4", nat("-j SNAT --to 1.2.3.4 -o eth0"),
    *(pre(f"-p tcp -j DNAT {text}") for text in (
        "--to-destination 1.2.3.4", "--to 1.2.3.4-1.2.3.9", "--to 1.2.3.4:80", "--to :80", "--to 1.2.3.4:http",
        "--to 1.2.3.4:1000-1010/5000", "--to 1.2.3.4:1000-1010/http", "--to 1.2.3.4:80 --random --persistent",
        "--to 1.2.3.4:80-80")),
    pre("-j DNAT --to 1.2.3.4"), pre("-p 132 -j DNAT --to 1.2.3.4:80"), pre("! -p tcp -j DNAT --to 1.2.3.4:80"),
    pre("-p icmp -j DNAT --to 1.2.3.4:80"), "-t nat -A OUTPUT -j DNAT --to 1.2.3.4",
    pre("-p udp -i bond0.2 -d 203.0.113.1 --dport 53 -j DNAT --to 10.1.0.11"),
    pre("-j REDIRECT"), pre("-j REDIRECT --random"),
    *(pre(f"-p tcp -j REDIRECT {text}") for text in (
        "--to-ports 80", "--to-port 80-90", "--to-ports http --random", "--to 80-80")),
    "-t nat -A OUTPUT -p udp -j REDIRECT --to-ports 53",
    *(pre(f"-d 1.2.3.0/24 -j NETMAP --to {text}") for text in (
        "10.0.0.0/24", "10.0.0.5/24", "10.0.0.5", "10.0.0.0/255.255.255.0", "10.0/16", "10.0.0.0/0")),
    nat("-s 10.0.0.0/24 -j NETMAP --to 203.0.113.0/24"), "-t nat -A INPUT -j NETMAP --to 10.0.0.0/24",
    # REJECT
    fwd("-j REJECT"),
    *(fwd(f"-p tcp -j REJECT --reject-with {kind}") for kind in (
        "icmp-net-unreachable", "net-unreach", "host-unreach", "proto-unreach", "port-unreach", "net-prohib",
        "host-prohib", "admin-prohib", "icmp-admin-prohibited", "icmp-p", "icmp-proto-u", "ICMP-PORT-UNREACHABLE",
        "tcp-rst", "tcp-reset", "t", "''", "icmp-host-prohibited")),
    "-A INPUT -j REJECT", "-A OUTPUT -d 1.2.3.4 -j REJECT --reject-with icmp-net-prohibited", "-A CHAIN -j REJECT",
    # LOG
    fwd("-j LOG"),
    *(fwd(f"-j LOG {text}") for text in (
        "--log-prefix a", "--log-prefix 'a b: '", "--log-prefix " + "x" * 29, "--log-prefix " + "x" * 40,
        "--log-prefix 'say \"hi\" \\ $'", "--log-level debug", "--log-level info", "--log-level 3",
        "--log-level warning", "--log-level 4", "--log-level error", "--log-level panic", "--log-level emerg",
        "--log-level alert", "--log-level crit", "--log-level 0", "--log-level notice --log-macdecode",
        "--log-tcp-sequence --log-tcp-options --log-ip-options --log-uid --log-macdecode --log-prefix all",
        "--log-level 7 --log-prefix 'dropped ' --log-ip-options")),
    pre("-j LOG --log-prefix nat"),
    # MARK and CONNMARK
    *(fwd(f"-j {target} {text}") for target in ("MARK", "CONNMARK") for text in (
        "--set-mark 1", "--set-mark 0x10/0xff", "--set-xmark 0x10/0xff", "--set-xmark 0x10", "--set-mark 0xffffffff",
        "--and-mark 0xff", "--or-mark 0xff", "--xor-mark 0xff", "--or-mark 0", "--and-mark 0", "--set-mark 010",
        "--set-xmark 1/0", "--set-xmark 0/0", "--set-mark 1/1", "--and-mark 0xffffffff")),
    *(fwd(f"-j CONNMARK {text}") for text in (
        "--save-mark", "--restore-mark", "--save-mark --mask 0xff", "--restore-mark --mask 0xff",
        "--save-mark --nfmask 0xff", "--save-mark --ctmask 0xff", "--save-mark --ctmask 0xff --nfmask 0xf0",
        "--restore-mark --ctmask 0xff --nfmask 0xf0", "--restore-mark --ctmask 0xff --nfmask 0xff",
        "--mask 0xff --save-mark", "--set-mark 1 --mask 0xff", "--set-xmark 1 --ctmask 0xff")),
    pre("-j MARK --set-mark 7"), nat("-j CONNMARK --restore-mark"),
    # multiport
    *(fwd(f"-p tcp -m multiport {text}") for text in (
        "--dports 80,443", "--sports 80,443,1000:2000", "--ports 53", "! --dports http,https", "--dports 0",
        "--dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "--dports 1:2,3:4,5:6,7:8,9:10,11:12,13:14,15",
        "--destination-ports 70", "--source-ports 70", "--dport 70", "--port 70", "! --ports 1:65535 -j ACCEPT")),
    fwd("-p udp -m multiport --ports 53,domain"), fwd("-p sctp -m multiport --dports 70"),
    fwd("-p 33 -m multiport --dports 70"), fwd("-p 136 -m multiport --dports 70"),
    fwd("-p tcp --sport 1024: -m multiport --dports 80"),
    # mark, connmark
    *(fwd(f"-m {module} {text}") for module in ("mark", "connmark") for text in (
        "--mark 1", "--mark 0x10/0xff", "! --mark 10", "--mark 0x1ff/0xff", "--mark 010", "--mark 1/0", "--mark 0/0",
        "--mark 1/0xffffffff", "! --mark 1/0xf0")),
    # limit
    fwd("-m limit"),
    *(fwd(f"-m limit --limit {rate}") for rate in (
        "5/s", "5/sec", "5/second", "5/m", "7/min", "100/hour", "1/day", "3/d", "3", "300/s", "3000/s", "10000/s",
        "60/m", "90/m", "120/m", "7/s", "1000/h", "3600/h", "24/d", "11/d", "5/sEC", "5/mi", "5/hou", "5.5/s", "7/d",
        "13/h", "17/m", "61/m", "700/m", "123456/h", "9999/s", "5001/s", "5/sec --limit-burst 10",
        "1/s --limit-burst 5")),
    *(fwd(f"-m limit --limit-burst {burst}") for burst in ("0", "1", "10000", "0x10", "7 --limit 3/s")),
    # addrtype
    *(fwd(f"-m addrtype {text}") for text in (
        "--dst-type LOCAL", "! --src-type LOCAL,BROADCAST", "--dst-type LOC", "--dst-type u",
        "--src-type unicast --dst-type UNSPEC,UNICAST,LOCAL,BROADCAST,ANYCAST,MULTICAST,BLACKHOLE,UNREACHABLE,"
        "PROHIBIT,THROW,NAT,XRESOLVE", "--dst-type LOCAL --limit-iface-in", "--dst-type LOCAL --limit-iface-out")),
    pre("-m addrtype --dst-type LOCAL -j ACCEPT"),
    # iprange
    *(fwd(f"-m iprange {text}") for text in (
        "--src-range 1.2.3.4-1.2.3.5", "! --src-range 1.2.3.4-1.2.3.5 ! --dst-range 1.2.3.4-1.2.3.4",
        "--src-range 1.2.3.4", "--dst-range 10.0.0.1-10.0.0.99 -j ACCEPT")),
    # statistic
    *(fwd(f"-m statistic {text}") for text in (
        "--mode random --probability 0.5", "--mode random ! --probability 0.3333", "--mode random --probability 1",
        "--mode random --probability 0", "--mode random --probability 1e-3", "--mode random --probability 0.1",
        "--mode random --probability 0.7", "--mode random --probability 0.000000001",
        "--mode random --probability 0.999999999", "--probability .3 --mode random",
        "--mode nth --every 3 --packet 0", "--mode nth ! --every 3 --packet 2", "--mode nth --every 1 --packet 0",
        "--mode nth --packet 0 --every 4294967295", "--every 3 --packet 1 --mode nth")),
    # mac
    fwd("-m mac --mac-source 00:11:22:aa:BB:55"), fwd("-m mac ! --mac-source 0:1:2:3:4:5"),
    # conntrack
    *(fwd(f"-m conntrack {text}") for text in (
        "--ctstate SNAT", "--ctstate DNAT,NEW", "! --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED,SNAT,DNAT",
        "--ctproto tcp", "! --ctproto 6", "--ctproto all", "! --ctproto 0", "--ctproto 47", "--ctproto 253",
        "--ctorigsrc 1.2.3.4", "--ctorigdst 1.2.3.4/24", "! --ctreplsrc 1.2.3.4", "--ctrepldst 0/0",
        "! --ctrepldst 0/0", "--ctrepldst 127.0.0.1", "--ctrepldst 10.1/16", "--ctorigsrcport 80",
        "--ctorigdstport 80:90", "! --ctreplsrcport 80", "--ctrepldstport http", "--ctrepldstport :80",
        "--ctrepldstport 80:", "--ctrepldstport 0:65535", "--ctstatus NONE",
        "--ctstatus EXPECTED,SEEN_REPLY,ASSURED,CONFIRMED", "! --ctstatus assured", "--ctstatus NONE,ASSURED",
        "--ctexpire 10", "--ctexpire 10:20", "! --ctexpire 10:20", "--ctexpire :20", "--ctexpire 20:",
        "--ctdir ORIGINAL", "--ctdir reply", "--ctdir ORIGINAL ! --ctstate NEW -j ACCEPT",
        "--ctstate NEW --ctproto udp --ctorigsrc 1.2.3.4 --ctorigdst 1.2.3.5 --ctreplsrc 1.2.3.6 --ctrepldst 1.2.3.7 "
        "--ctorigsrcport 1 --ctorigdstport 2 --ctreplsrcport 3 --ctrepldstport 4 --ctstatus ASSURED --ctexpire 5 "
        "--ctdir ORIGINAL", "--ctstate NEW,DNAT --ctdir ORIGINAL")),
    # everything at once
    fwd("-p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -m comment --comment 'a b' -m limit --limit 1/s "
        "-m mark --mark 1 -m addrtype --dst-type LOCAL -j LOG --log-prefix 'x '"),
    fwd("-p tcp -m comment --comment x --dport 80 -m multiport --sports 1,2 -m iprange --src-range 1.2.3.4"),
    # the other tables
    "-t mangle -A PREROUTING -i a -j MARK --set-mark 1", "-t mangle -A POSTROUTING -o a -j CONNMARK --save-mark",
    "-t mangle -A INPUT -p tcp --syn", "-t mangle -A OUTPUT -j ACCEPT", "-t mangle -N m", "-t mangle -A FORWARD -g m",
    "-t raw -A PREROUTING -i a -j ACCEPT", "-t raw -A OUTPUT -o lo -j LOG", "-t raw -N r", "-t raw -A OUTPUT -j r",
]

BAD = [
    # the command line
    "", "-n", "-t nat", "foo", "--foo", "-z", "-A", "-t", "-L --table", "-L --tablex", "-L --numeric=5",
    "-L -nz",
    "-L -n -- FORWARD", "--li", "--de FORWARD 1", "-t nosuch -L", "-t '' -L", "-t NAT -L", "-A -j ACCEPT",
    "-A " + "x" * 29, "-A " + "x" * 28,
    # commands
    "-A NOCHAIN -j ACCEPT", "-A '' -j ACCEPT", "-A forward", "-t nat -A FORWARD -j ACCEPT",
    "-C NOCHAIN -j DROP",
    "-D NOCHAIN 1", "-D FORWARD", "-D FORWARD 1 -j DROP", "-D FORWARD 1 2", "-D FORWARD x",
    "-R NOCHAIN 1 -j DROP",
    "-R FORWARD", "-R FORWARD -s 7.7.7.7", "-R FORWARD 1", "-R FORWARD 0", "-R FORWARD 1 -s 7.7.7.7,8.8.8.8",
    "-I FORWARD 2", "-I FORWARD 0", "-I FORWARD -1", "-I FORWARD x", "-I FORWARD 4294967296",
    "-I FORWARD 1 2",
    "-D FORWARD 9", "-D FORWARD 0", "-D FORWARD -s 9.9.9.9", "-C FORWARD -s 9.9.9.9", "-C FORWARD",
    "-F NOCHAIN", "-F FORWARD 1", "-F -s 1.2.3.4", "-F -n", "-F -L", "-F --line-numbers", "-Z NOCHAIN",
    "-Z FORWARD 0",
    "-Z FORWARD x", "-P", "-P FORWARD", "-P FORWARD foo", "-P FORWARD RETURN", "-P NOCHAIN ACCEPT",
    "-P FORWARD DROP ACCEPT", "-P FORWARD DROP -s 1.2.3.4", "-P FORWARD DROP -j ACCEPT",
    "-t nat -P OUTPUT DROP",
    "-L FORWARD 0", "-L FORWARD x", "-L FORWARD foo bar", "-L -s 1.2.3.4", "-L -j ACCEPT", "-S -n", "-S -x",
    "-S --line-numbers", "-S FORWARD x", "-S -c 1 2",
    # options of rules
    fwd("--foo"), fwd("foo"), fwd("-n"), fwd("-x"), fwd("--line-numbers"), fwd("-A FORWARD"),
    fwd("-L FORWARD"),
    fwd("! -j ACCEPT"), fwd("-j ACCEPT !"), fwd("! ! -s 1.2.3.4"), "! -A FORWARD", "! -t nat -A OUTPUT",
    fwd("! -m tcp"), fwd("! -n"), fwd("-s ! 1.2.3.4"), fwd("--s 1.2.3.4"),
    fwd("-p tcp --dport 1 --dest 2.2.2.2"),
    fwd("-w x"), fwd("-c 1"), fwd("-c x 1"), fwd("-c 1 x"), fwd("-c 1,x"),
    # addresses
    *(fwd(f"-s {text}") for text in (
        "10.0.0.256", "nosuch.invalid", "10.0.0.1/33", "10.0.0.1/", "''", "10.0.0.0/8/8", "10.0.0.1,",
        "1.2.3.4/8x",
        "1.2.3.4/08", "1.2.3.4/-1", "1.2.3.4/255.255.255", "1.2.3.4 -s 1.2.3.5")),
    fwd("! -s 10.0.0.1,10.0.0.2"),
    # interfaces
    nat("-i bond0.2 -j MASQUERADE"), "-t nat -A PREROUTING -o a", "-A INPUT -o lo", "-A OUTPUT -i lo",
    fwd("-i ''"), fwd("-i abcdefghijklmnop"), fwd("-i eth0 -i eth1"),
    # protocols, tcp, udp
    fwd("-p nosuch"), fwd("-p 256"), fwd("-p ''"), fwd("-p"), fwd("! -p all"), fwd("! -p 0"),
    fwd("-p tcp -p udp"),
    fwd("--dport 80"), fwd("-m tcp --dport 80"), fwd("-p udp -m tcp --dport 80"),
    fwd("-p tcp -m udp --dport 3"),
    *(fwd(f"-p tcp {text}") for text in (
        "--dport", "--dport ''", "--sport 5:2", "--sport nosuchport", "--sport 65536", "--sport 1-2",
        "--dport 1:x",
        "--sport 1 --sport 2", "--dport 1 --dport 1", "--tcp-flags FOO SYN", "--tcp-flags SYN",
        "--tcp-flags SYN SYN --syn", "--tcp-flags SYN SYN --tcp-flags SYN SYN")),
    fwd("-p udp --dport 1 --dport 1"),
    # icmp
    *(fwd(f"-p icmp {text}") for text in (
        "--icmp-type time", "--icmp-type timestamp", "--icmp-type 256", "--icmp-type 8/256",
        "--icmp-type foo",
        "--icmp-type 8/", "--icmp-type /", "--icmp-type ''", "--icmp-type e", "--icmp-type -j ACCEPT",
        "-m icmp",
        "--icmp-type 8 --icmp-type 0")),
    # states, comments
    *(fwd(f"-m conntrack {text}") for text in (
        "", "--ctstate FOO", "--ctstate NEW,", "--ctstate ''", "--ctstate NEW --ctstate INVALID",
        "--state NEW")),
    *(fwd(f"-m state {text}") for text in ("", "--state FOO", "--state NEW,", "--ctstate NEW")),
    fwd("--state NEW"), fwd("-m comment"), fwd("-m comment ! --comment x"), fwd("-m comment --comment"),
    fwd("-m comment --comment x --comment y"), fwd("-m nosuch"), fwd("-m"), fwd("-m ''"),
    # targets
    fwd("-j"), fwd("-j ''"), fwd("-j NOSUCH"), fwd("-j NOSUCH --foo"), fwd("-j ACCEPT -j DROP"),
    fwd("-j ACCEPT --to-ports 4"),
    fwd("-j -s 1.2.3.4"), "-F -j NOSUCH", fwd("--to-ports 4 -j ACCEPT"), nat("-j DROP"),
    nat("-j masquerade"), nat("-j MASQUERADE extra"),
    *(nat(f"-p udp -j MASQUERADE {text}") for text in (
        "--to-ports 2000-1000", "--to-ports 70000", "--to-ports x", "--to-ports 1-", "--to-ports",
        "--to-ports 4:5",
        "--to-ports 4-5-6", "--to-ports 4 --to-ports 5", "! --to-ports 4", "--rand", "--random --random")),
    nat("-j MASQUERADE --to-ports 1024"),
]

BAD += [
    # user-defined chains
    "-N", "-N x y", "-N -x", "-N '!x'", "-N ''", "-N ACCEPT", "-N MASQUERADE", "-N FORWARD", "-N 'a b'",
    "-N " + "x" * 29, "! -N x", "-N x -j ACCEPT", "-N x -n", "-N x -A FORWARD", "-X nosuch", "-X a b",
    "-X -n", "-X -s 1.2.3.4", "-E", "-E a", "-E a -x", "-E a b c", "-E nosuch b", "-E a b -n",
    "-F nosuch", "-P nosuch DROP", "-A nosuch -j NOSUCH", "-D nosuch -j ACCEPT",
    fwd("-g"), fwd("-g ''"), fwd("! -g CHAIN"), fwd("-g NOSUCH"), fwd("-g ACCEPT"), fwd("-g A -j B"),
    fwd("-j A -g B"), fwd("-g A -g B"), fwd("-j NOSUCH -n"), fwd("-j " + "x" * 28), fwd("-j " + "x" * 29),
    fwd("-j 'a b'"), fwd("-j '!x'"),
    "-R FORWARD 1 -j NOSUCH", "-I FORWARD -j NOSUCH", "-D FORWARD -j NOSUCH", "-C FORWARD -g NOSUCH",
    "-t nat -A CHAIN -j DROP",
    # SNAT, DNAT, REDIRECT, NETMAP
    nat("-j SNAT"), nat("-j SNAT --random"), nat("-j SNAT --to 1.2.3.4:100"), nat("-j SNAT --to :100"),
    *(nat(f"-p tcp -j SNAT --to {text}") for text in (
        "1.2.3.4:200-100", "1.2.3.4:70000", "1.2.3.4:nosuch", "1.2.3.4:100/5", "1.2.3.4:", "1.2.3", "localhost", "''",
        "1.2.3.4-", "1.2.3.4/24", "1.2.3.4:1-2-3", "1.2.3.4:1:2", "1.2.3.4 --to 1.2.3.5", "1.2.3.4 --random --random",
        "1.2.3.4 --to-destination 1.2.3.4", "1.2.3.4:1-", "1.2.3.4:x-y", "-1.2.3.4", "1.2.3.4 --nosuch")),
    nat("-j SNAT ! --to 1.2.3.4"), nat("-j SNAT --to"), nat("-j SNAT --to 1.2.3.4 ! --random"),
    pre("-j DNAT"), pre("-p 47 -j DNAT --to 1.2.3.4:80"), pre("-p udplite -j DNAT --to 1.2.3.4:80"),
    *(pre(f"-p tcp -j DNAT --to {text}") for text in (
        "1.2.3.4:1000-1010/", "1.2.3.4:1000-1010/0", "1.2.3.4:1000-1010/70000", "1.2.3.4:1000/5",
        "1.2.3.4:http-https", "1.2.3.4:80 --random-fully", "1.2.3.4:80 --to 1.2.3.4:80", "1.2.3.4:90-80", "x:80")),
    pre("-j REDIRECT --to-ports 80"), pre("-j REDIRECT --persistent"),
    *(pre(f"-p tcp -j REDIRECT --to-ports {text}") for text in (
        "80-90/100", "90-80", "x", "1:2", "1-", "1-2-3", "70000", "''", "1 --to-ports 2")),
    *(pre(f"-j NETMAP {text}") for text in (
        "", "--to", "--to 10.0.0.0/", "--to 1.2.3.4 --to 1.2.3.4", "! --to 1.2.3.4")),
    # REJECT, LOG
    *(fwd(f"-j REJECT {text}") for text in (
        "--reject-with", "--reject-with nosuch", "--reject-with echo-reply", "--reject-with t --reject-with t",
        "! --reject-with t", "--reject-with icmp-host-unreachalbe")),
    *(fwd(f"-j LOG {text}") for text in (
        "--log-prefix ''", "--log-level WARN", "--log-level err", "--log-level 8", "--log-level x", "--log-level -1",
        "--log-level 1 --log-level 2", "--log-uid --log-uid", "! --log-uid", "--log-tcp", "--log-prefix",
        "--log-prefix a --log-prefix b", "--log-prefix 'a\nb'")),
    fwd("-j LOG -j DROP"),
    # MARK, CONNMARK
    fwd("-j MARK"), fwd("-j CONNMARK"),
    *(fwd(f"-j {target} {text}") for target in ("MARK", "CONNMARK") for text in (
        "--set-mark 0x1ffffffff", "--set-mark x", "--set-mark 1/x", "--set-mark 1 --or-mark 1",
        "--set-mark 1 --set-mark 1", "--set-mark -1", "--set-mark ''", "--and-mark 1/2", "--and-mark x",
        "! --set-mark 1", "--or-mark 1 --xor-mark 1", "--set-xmark 1/")),
    *(fwd(f"-j CONNMARK {text}") for text in (
        "--mask 0xff", "--ctmask 0xff", "--save-mark --ctmask 0xff --mask 0xff", "--set-mark 1 --save-mark",
        "--save-mark --save-mark", "--save-mark --restore-mark", "--save-mark --mask x", "--save-mark --ctmask x",
        "--save-mark --ctmask 1 --ctmask 1", "--save-mark 5")),
    # multiport
    fwd("-m multiport --dports 80"), fwd("-p icmp -m multiport --dports 80"), fwd("! -p tcp -m multiport --dports 80"),
    *(fwd(f"-p tcp -m multiport {text}") for text in (
        "", "--dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", "--dports 1:2,3:4,5:6,7:8,9:10,11:12,13:14,15:16",
        "--dports 80 --sports 80", "--dports 80 --dports 80", "--dports nosuch", "--dports 5:2", "--dports ''",
        "--dports 1,", "--dports 1:", "--dports :5", "--dports 70000", "--dports 80:80", "--dports")),
    # mark, limit
    *(fwd(f"-m {module} {text}") for module in ("mark", "connmark") for text in (
        "", "--mark", "--mark x", "--mark 1/x", "--mark 1 --mark 1", "--mark 0x1ffffffff", "--mark -1", "--mark ''",
        "--mark 1/")),
    *(fwd(f"-m limit --limit {rate}") for rate in (
        "10001/s", "0/s", "x", "3/x", "3/", "1/s --limit 2/s", "5/seconds", "-5/s", "4294967295/d", "1/week", "''")),
    *(fwd(f"-m limit {text}") for text in (
        "--limit-burst 10001", "--limit-burst x", "--limit-burst -1", "! --limit 1/s",
        "--limit-burst 1 --limit-burst 2", "--limit")),
    # addrtype, iprange
    *(fwd(f"-m addrtype {text}") for text in (
        "", "--limit-iface-in", "--dst-type FOO", "--dst-type ''", "--dst-type LOCAL,",
        "--dst-type LOCAL --dst-type LOCAL", "--dst-type LOCAL --limit-iface-in --limit-iface-out")),
    *(fwd(f"-m iprange {text}") for text in (
        "", "--src-range 1.2.3.5-", "--src-range -1.2.3.5", "--src-range x-y", "--src-range 1.2.3.5-1.2.3.4-1.2.3.6",
        "--src-range 1.2.3.4 --src-range 1.2.3.5", "--src-range localhost")),
    # statistic, mac
    *(fwd(f"-m statistic {text}") for text in (
        "", "--mode random", "--mode nth --every 3", "--mode nth --every 3 --packet 3", "--mode nth --every 0",
        "--mode nth", "--mode nth --every 3 --probability 1", "--mode foo", "--probability 0.5", "--every 3",
        "--mode random --every 3", "--mode random --mode random", "--mode nth --every x",
        "--mode nth --every 3 --packet x", "--mode nth --packet 1", "--mode random --probability 1.1",
        "--mode random --probability x", "--mode random --probability -0.1", "--mode random --probability ''",
        "--mode rando --probability 0.3", "--mode nth --every 3 ! --packet 0", "! --mode nth --every 3 --packet 0",
        "--mode random --probability 0.3 --packet 3")),
    *(fwd(f"-m mac {text}") for text in (
        "", "--mac-source x", "--mac-source 00:11:22:33:44", "--mac-source 00:11:22:33:44:55:66",
        "--mac-source 00-11-22-33-44-55", "--mac-source 0:1:2:3:4:5 --mac-source 0:1:2:3:4:5")),
    # conntrack
    *(fwd(f"-m conntrack {text}") for text in (
        "--ctproto foo", "--ctstatus FOO", "--ctstatus ''", "--ctexpire x", "--ctexpire 1:x", "--ctdir ORIG",
        "--ctdir foo", "! --ctdir REPLY", "--ctdir REPLY --ctdir REPLY", "--ctproto tcp --ctproto tcp",
        "--ctorigsrc 1.2.3.4 --ctorigsrc 1.2.3.4", "--ctstate NONE", "--ctrepldst")),
    fwd("-m state --state DNAT"),
    # other tables
    "-t mangle -A NOCHAIN", "-t raw -A FORWARD", "-t raw -A PREROUTING -o a",
    "-t mangle -P x DROP",
]

# iptables prints "RULE_APPEND failed (Invalid argument)" for these; natengine says what is wrong
REFUSED_BY_KERNEL = [
    "-t nat -A PREROUTING -j MASQUERADE", fwd("-j MASQUERADE"), nat("! -s 0.0.0.0/0 -j MASQUERADE"),
    fwd("-m tcp"), fwd("-p tcp -m udp"), fwd("-m icmp --icmp-type 8"), fwd("! -p icmp --icmp-type 3/4"),
    fwd("-p tcp -m icmp --icmp-type 3/4"),
]
REFUSED_BY_KERNEL += [
    pre("-j SNAT --to 1.2.3.4"), fwd("-j SNAT --to 1.2.3.4"), nat("-j DNAT --to 1.2.3.4"), fwd("-j DNAT --to 1.2.3.4"),
    nat("-p tcp -j REDIRECT --to-ports 1"), fwd("-j REDIRECT"), fwd("-j NETMAP --to 10.0.0.0/24"),
    pre("-j REJECT"), "-t mangle -A FORWARD -j REJECT", "-t mangle -A FORWARD -j MASQUERADE",
    fwd("-j REJECT --reject-with tcp-rst"), fwd("! -p tcp -j REJECT --reject-with tcp-reset"),
    "-A INPUT -m addrtype --dst-type LOCAL --limit-iface-out",
    "-A OUTPUT -m addrtype --dst-type LOCAL --limit-iface-in", "-A OUTPUT -m mac --mac-source 00:11:22:33:44:55",
    nat("-m mac --mac-source 00:11:22:33:44:55"), fwd("-j FORWARD"), fwd("-j INPUT"), fwd("-g OUTPUT"),
]

# several commands, of which the last one is refused by the kernel: where jumps lead
REFUSED_SEQUENCES = [
    ["-N a", "-A FORWARD -j a", "-A a -j a"],
    ["-N a", "-N b", "-A FORWARD -j a", "-A a -j b", "-A b -g a"],
    ["-t nat -N a", "-t nat -A a -j DNAT --to 1.2.3.4", "-t nat -A POSTROUTING -j a"],
    ["-t nat -N a", "-t nat -A PREROUTING -g a", "-t nat -A a -j SNAT --to 1.2.3.4"],
    ["-N a", "-A a -j MASQUERADE"],
    ["-N a", "-A FORWARD -j a", "-X a"],
    ["-N a", "-A a -s 1.2.3.4", "-X"],
    ["-N a", "-A a -s 1.2.3.4", "-X a"],
    ["-N c0", *(line for n in range(1, 16) for line in (f"-N c{n}", f"-A c{n} -j c{n - 1}")), "-A FORWARD -j c15"],
]

# texts for iptables-restore, one after the other, with their options; what comes of them is compared after each
_GATEWAY = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [3:4]
:OUTPUT ACCEPT [0:0]
:guests - [0:0]
-A FORWARD -i bond0.def -j guests
[5:6] -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A guests -p tcp -m multiport --dports 80,443 -j ACCEPT
-A guests -j REJECT --reject-with icmp-admin-prohibited
COMMIT
# a comment
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 203.0.113.1/32 -p tcp --dport 80 -j DNAT --to-destination 10.1.0.11:8080

-A POSTROUTING -o bond0.2 -j SNAT --to-source 203.0.113.1
COMMIT
"""
TEXTS: list[list[tuple[str, str]]] = [
    [("", _GATEWAY)],
    [("-c", _GATEWAY), ("", "*nat\nCOMMIT\n"), ("", "*filter\n:FORWARD ACCEPT\nCOMMIT\n")],
    [("", "*filter\n-6 -A FORWARD -j DROP\n-A FORWARD --ipv6 -j nonsense\n-4 -A FORWARD -f -j DROP\nCOMMIT\n")],
    [("", "*filter\n-A FORWARD -m limit --limit-burst 0 -M x\nCOMMIT\n")],
    [("", "*filter\n-w -A FORWARD\nCOMMIT\n")], [("", "*filter\n-A FORWARD -W 3\nCOMMIT\n")],
    [("", _GATEWAY), ("--test", "*filter\n-A FORWARD -j DROP\nCOMMIT\n")],
    [("", _GATEWAY),
     ("-n", "*filter\n:guests - [0:0]\n:more - [0:0]\n-A FORWARD -j more\n-A guests -j DROP\nCOMMIT\n")],
    [("", _GATEWAY), ("--noflush", "*filter\n-D FORWARD 1\n-I FORWARD -s 1.2.3.4\nCOMMIT\n")],
    [("", _GATEWAY), ("-T nat", _GATEWAY.replace("bond0.2", "bond0.3"))],
    [("", _GATEWAY), ("-n", "*filter\n-P FORWARD ACCEPT\n-F\n-X guests\n-N g\n-A FORWARD -g g\nCOMMIT\n")],
    [("", "*mangle\n-A PREROUTING -j MARK --set-mark 1\nCOMMIT\n*raw\n-A OUTPUT -o lo -j ACCEPT\nCOMMIT\n")],
    [("", '*filter\n-A FORWARD -m comment --comment "a \\"b\\" c" -j LOG --log-prefix "x y "\nCOMMIT\n')],
    [("", "*filter\n:a - [0:0]\n:a - [0:0]\n-A FORWARD -j a\n-A a -s 1.1.1.1\nCOMMIT\n")],
    [("", "*filter\n-A FORWARD -s 1.2.3.4,1.2.3.5 -j DROP\nCOMMIT\n*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n")],
    [("", "")], [("", "# nothing\n\n")],
    [("", "*filter\n-A FORWARD -s localhost -p tcp --dport http -m multiport --sports domain,ssh\nCOMMIT\n")],
    [("-c", "*nat\n[1:2] -A PREROUTING -p tcp -d localhost --dport http -j REDIRECT --to-ports https\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n-A FORWARD -s nosuch.invalid\nCOMMIT\n")],
    # refused: exit status, and nothing of the table is left
    [("", _GATEWAY), ("", "*filter\n-A FORWARD --nosuch\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n-A FORWARD -j nosuch\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n-A nosuch -j ACCEPT\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n:FORWARD FOO [0:0]\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n:FORWARD\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n-A FORWARD -s 1.2.3.4\n")],
    [("", _GATEWAY), ("", "*nosuch\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n-A FORWARD -t nat\nCOMMIT\n")],
    [("", _GATEWAY), ("-n", "*filter\n-X guests\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\n:-x - [0:0]\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*filter\nnonsense\nCOMMIT\n")],
    [("", _GATEWAY), ("", "*nat\n-A PREROUTING -j SNAT --to-source 1.2.3.4\nCOMMIT\n")],
]
