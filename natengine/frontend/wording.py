"""The program's own name, and what it says about itself and about mistakes.

An exception carries the message alone.  `render_error` makes of it what a person sees: the name in
front, and iptables' pointer to the help behind a mistake on the command line.
"""

from __future__ import annotations

from natengine.errors import ConfigError, RuleSyntaxError

PROGRAM = "natengine iptables"
RESTORE_PROGRAM = "natengine iptables-restore"


def render_error(error: ConfigError, program: str = PROGRAM) -> str:
    """Return the complete text for standard error, with its newline."""
    text = f"{program}: {error}\n"
    if isinstance(error, RuleSyntaxError):
        text += f"Try `{program} -h' or '{program} --help' for more information.\n"
    return text


def version_text() -> str:
    """Return what `-V` prints."""
    return f"{PROGRAM} (commands and listings as in iptables v1.8.9)\n"


def help_text() -> str:
    """Return what `-h` prints."""
    return _HELP.replace("PROGRAM", PROGRAM)


_HELP = """\
PROGRAM: the rules of the natengine gateway, in the language of iptables

Commands (the table is `filter' unless -t says otherwise; rules are numbered from 1):
  -A, --append CHAIN RULE              put a rule at the end of a chain
  -I, --insert CHAIN [NUMBER] RULE     put a rule before rule NUMBER (1)
  -R, --replace CHAIN NUMBER RULE      put a rule in the place of rule NUMBER
  -D, --delete CHAIN NUMBER | RULE     remove a rule
  -C, --check CHAIN RULE               exit with 0 if the rule is there, with 1 if not
  -F, --flush [CHAIN]                  remove all rules
  -P, --policy CHAIN ACCEPT | DROP     decide for packets that no rule decides
  -Z, --zero [CHAIN [NUMBER]]          set counters to zero
  -L, --list [CHAIN [NUMBER]]          list rules as a table
  -S, --list-rules [CHAIN [NUMBER]]    list rules as commands

Rules (`!' before an option inverts it):
  [!] -s, --source ADDRESS[/MASK][,...]    [!] -d, --destination ADDRESS[/MASK][,...]
  [!] -i, --in-interface NAME[+]           [!] -o, --out-interface NAME[+]
  [!] -p, --protocol NAME | NUMBER | all
  -m, --match MATCH, with its options; -p loads that of its protocol by itself:
  -m tcp | udp       [!] --sport PORT[:PORT]   [!] --dport PORT[:PORT]
  -m tcp             [!] --tcp-flags MASK SET  [!] --syn
  -m icmp            [!] --icmp-type NAME | TYPE[/CODE]
  -m conntrack       [!] --ctstate STATE[,...]
  -m state           [!] --state STATE[,...]
  -m comment         --comment TEXT
  -j, --jump ACCEPT | DROP | RETURN
  -j, --jump MASQUERADE  [--to-ports PORT[-PORT]] [--random] [--random-fully]
  -c, --set-counters PACKETS BYTES     start the rule's counters there

Options:
  -t, --table filter | nat     -n, --numeric     -v, --verbose     -x, --exact     --line-numbers
  -w, --wait [SECONDS]         accepted, and not needed
  -h, --help                   -V, --version
"""
