"""The program's own name, and what it says about itself and about mistakes.

An exception carries the message alone.  `render_error` makes of it what a person sees: the name in
front, and iptables' pointer to the help behind a mistake on the command line.
"""

from __future__ import annotations

from natengine.errors import ConfigError, RuleSyntaxError
from natengine.rules.model import LEFT_ALONE, ChainName, Table, TableName
from natengine.rules.targets import Drop

PROGRAM = "natengine iptables"
RESTORE_PROGRAM = "natengine iptables-restore"
SAVE_PROGRAM = "natengine iptables-save"
_HEADS_OWN = (ChainName.INPUT, ChainName.OUTPUT)


def render_error(error: ConfigError, program: str = PROGRAM) -> str:
    """Return the complete text for standard error, with its newline."""
    text = f"{program}: {error}\n"
    if isinstance(error, RuleSyntaxError):
        text += f"Try `{program} -h' or '{program} --help' for more information.\n"
    return text


def only_kept(table: Table, chain: str | None = None) -> list[str]:
    """Return warnings about what is not carried out: rules of a table that is left alone, and the head's own chains.

    Args:
        chain: Say so of this chain of table filter only.
    """
    if table.name is TableName.FILTER:
        names = [
            each.name for each in table if each.name in _HEADS_OWN and chain in (None, each.name)
            and (each.rules or isinstance(each.policy, Drop))
        ]
        of_them = f"chain {names[0]} is" if len(names) == 1 else f"chains {' and '.join(names)} are"
        return [f"{of_them} kept and listed, not carried out: what is for the head itself or from it is for its "
                "iptables or nft"] if names else []
    rules = sum(len(each.rules) for each in table)
    if table.name not in LEFT_ALONE or not rules:
        return []
    its = f"its {rules} rules are" if rules > 1 else "its 1 rule is"
    return [f"table {table.name} is left alone: {its} kept and listed, not carried out"]


def version_text(program: str = PROGRAM) -> str:
    """Return what `-V` prints."""
    return f"{program} (commands and listings as in iptables v1.8.9)\n"


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
  -N, --new-chain CHAIN                make a chain of your own
  -X, --delete-chain [CHAIN]           remove an empty one that no rule leads to, or all of them
  -E, --rename-chain OLD NEW           give it another name
  -L, --list [CHAIN [NUMBER]]          list rules as a table
  -S, --list-rules [CHAIN [NUMBER]]    list rules as commands

Rules (`!' before an option inverts it):
  [!] -s, --source ADDRESS[/MASK][,...]    [!] -d, --destination ADDRESS[/MASK][,...]
  [!] -i, --in-interface NAME[+]           [!] -o, --out-interface NAME[+]
  [!] -p, --protocol NAME | NUMBER | all   [!] -f, --fragments
  -m, --match MATCH, with its options; -p loads that of its protocol by itself:
  -m tcp | udp       [!] --sport PORT[:PORT]   [!] --dport PORT[:PORT]
  -m tcp             [!] --tcp-flags MASK SET  [!] --syn
  -m icmp            [!] --icmp-type NAME | TYPE[/CODE]
  -m multiport       [!] --sports | --dports | --ports PORT[:PORT][,...]
  -m conntrack       [!] --ctstate STATE[,...]  [!] --ctproto PROTOCOL  --ctdir ORIGINAL | REPLY
                     [!] --ctorigsrc | --ctorigdst | --ctreplsrc | --ctrepldst ADDRESS[/MASK]
                     [!] --ctorigsrcport | --ctorigdstport | --ctreplsrcport | --ctrepldstport PORT[:PORT]
                     [!] --ctstatus STATUS[,...]  [!] --ctexpire SECONDS[:SECONDS]
  -m state           [!] --state STATE[,...]
  -m mark | connmark [!] --mark VALUE[/MASK]
  -m limit           --limit RATE[/second | /minute | /hour | /day]  --limit-burst NUMBER
  -m addrtype        [!] --src-type | --dst-type TYPE[,...]  --limit-iface-in | --limit-iface-out
  -m iprange         [!] --src-range | --dst-range ADDRESS[-ADDRESS]
  -m statistic       --mode random [!] --probability P  |  --mode nth [!] --every N --packet P
  -m mac             [!] --mac-source ADDRESS
  -m comment         --comment TEXT
  -j, --jump ACCEPT | DROP | RETURN | CHAIN      -g, --goto CHAIN
  -j, --jump MASQUERADE  [--to-ports PORT[-PORT]] [--random] [--random-fully]
  -j, --jump SNAT        --to-source [ADDRESS[-ADDRESS]][:PORT[-PORT]] [--random] [--random-fully] [--persistent]
  -j, --jump DNAT        --to-destination [ADDRESS[-ADDRESS]][:PORT[-PORT[/BASE]]] [--random] [--persistent]
  -j, --jump REDIRECT    [--to-ports PORT[-PORT]] [--random]
  -j, --jump NETMAP      --to ADDRESS[/MASK]
  -j, --jump REJECT      [--reject-with icmp-port-unreachable | … | tcp-reset]
  -j, --jump LOG         [--log-level LEVEL] [--log-prefix TEXT] [--log-tcp-sequence] [--log-tcp-options]
                         [--log-ip-options] [--log-uid] [--log-macdecode]
  -j, --jump MARK        --set-xmark | --set-mark VALUE[/MASK] | --and-mark | --or-mark | --xor-mark VALUE
  -j, --jump CONNMARK    the same, or --save-mark | --restore-mark [--nfmask MASK] [--ctmask MASK]
  -c, --set-counters PACKETS BYTES     start the rule's counters there

Options:
  -t, --table filter | nat | mangle | raw
  -n, --numeric     -v, --verbose     -x, --exact     --line-numbers
  --flush-flows                end every flow when the rules have changed (else they stay)
  -w, --wait [SECONDS]         accepted, and not needed
  -h, --help                   -V, --version
"""
